"""Fixtures for all tests: instruction sets, the source tree, random factors."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import diba
from diba import _core

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

ARM = platform.machine() in ("aarch64", "arm64")
ALL_ISAS = ("neon", "scalar") if ARM else ("amx", "avx512vbmi", "avx512vnni", "avx512", "avx2", "scalar")


@pytest.fixture(params=ALL_ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once on every instruction set; one the machine lacks is a visible skip."""
    if request.param not in _core.supported_isas():
        pytest.skip(f"this machine lacks {request.param}")
    before = _core.isa()
    _core.select_isa(request.param)
    try:
        yield request.param
    finally:
        _core.select_isa(before)


@pytest.fixture(scope="session")
def source_root() -> Path:
    """The source tree: DIBA_SOURCE_ROOT, else the checkout these tests lie in."""
    named = os.environ.get("DIBA_SOURCE_ROOT")
    root = Path(named) if named else Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        pytest.skip(f"no source tree at {root}; set DIBA_SOURCE_ROOT")
    return root


@dataclass(frozen=True)
class Factors:
    """Plain arrays of a factorization, for computing with NumPy alone."""

    d1: np.ndarray
    b1: np.ndarray
    d2: np.ndarray
    b2: np.ndarray
    d3: np.ndarray
    alphabet: str

    @property
    def diba(self) -> diba.Factorization:
        return diba.Factorization.from_factors(self.d1, self.b1, self.d2, self.b2, self.d3, self.alphabet)

    def dense(self) -> np.ndarray:
        """The product in float64."""
        d1, d2, d3 = (np.diag(d.astype(np.float64)) for d in (self.d1, self.d2, self.d3))
        return d1 @ self.b1 @ d2 @ self.b2 @ d3

    def magnitude(self) -> np.ndarray:
        """The product of all absolute values in float64: what rounding errors are relative to."""
        absolute = (np.abs(f.astype(np.float64)) for f in (self.d1, self.b1, self.d2, self.b2, self.d3))
        return Factors(*absolute, self.alphabet).dense()


def random_factors(m: int, k: int, n: int, alphabet: str, seed: int = 0, integers: bool = False) -> Factors:
    """Half of the bits set, diagonals of both signs; ``integers``: products that float32 holds exactly."""
    rng = np.random.default_rng(seed)
    zero = 0 if alphabet == "binary" else -1
    b1, b2 = (np.where(rng.random(shape) < 0.5, 1, zero) for shape in ((m, k), (k, n)))
    if integers:
        d1, d2, d3 = (rng.integers(-4, 5, size).astype(np.float32) for size in (m, k, n))
    else:
        d1, d2, d3 = (rng.standard_normal(size).astype(np.float32) for size in (m, k, n))
    return Factors(d1, b1, d2, b2, d3, alphabet)


@pytest.fixture(scope="module")
def benchmark(source_root: Path) -> Iterator[Callable[[str], ModuleType]]:
    """A module of benchmarks/ by its name."""
    folder = str(source_root / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)


@pytest.fixture
def make_factors() -> Callable[..., Factors]:
    """A maker of random factors: ``random_factors``."""
    return random_factors


def vectors(count: int, n: int, seed: int = 0) -> np.ndarray:
    """Rows of n entries, float32: of different sizes, one of them zero."""
    X = np.random.default_rng([count, n, seed]).standard_normal((count, n))
    X *= np.exp(np.arange(count) % 7)[:, None]
    X[count // 2] = 0
    return X.astype(np.float32)


@pytest.fixture(params=[(1 << 14, 1), None], ids=["finely cut", "usually cut"])
def cut(request: pytest.FixtureRequest) -> Iterator[None]:
    """Few vectors together and as many threads as asked for, even for the smallest product; and as usual."""
    before = _core.tuning()
    _core.set_tuning(*(request.param or before))
    yield
    _core.set_tuning(*before)
