"""Fixtures for all tests: instruction sets, the source tree, random factors."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arrays import ALL_ISAS, Factors, random_factors
from diba import _core

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import ModuleType

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: all files are on this machine


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the garbage collector, which would look again and again at what lives to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


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
    root = Path(named) if named else Path(__file__).resolve().parents[1]
    if not (root / "pyproject.toml").is_file():
        pytest.skip(f"no source tree at {root}; set DIBA_SOURCE_ROOT")
    return root


@pytest.fixture(scope="module")
def benchmark(source_root: Path) -> Iterator[Callable[[str], ModuleType]]:
    """A module of benchmarks/ by its name in there."""
    folder = str(source_root)
    sys.path.insert(0, folder)
    yield lambda name: importlib.import_module(f"benchmarks.{name}")
    sys.path.remove(folder)


@pytest.fixture
def make_factors() -> Callable[..., Factors]:
    """A maker of random factors: ``random_factors``."""
    return random_factors


@pytest.fixture(params=[(1 << 14, 1, 128), None], ids=["finely cut", "usually cut"])
def cut(request: pytest.FixtureRequest) -> Iterator[None]:
    """Few vectors together and as many threads as asked for, even for the smallest product; and as usual."""
    before = _core.tuning()
    _core.set_tuning(*(request.param or before))
    yield
    _core.set_tuning(*before)
