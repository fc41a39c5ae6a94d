"""Made-up data for the tests: factors as plain arrays, vectors; and the instruction sets there are."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import numpy as np

import diba

ARM = platform.machine() in ("aarch64", "arm64")
ALL_ISAS = ("neon", "scalar") if ARM else ("amx", "avx512vbmi", "avx512vnni", "avx512", "avx2", "scalar")


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


def vectors(count: int, n: int, seed: int = 0) -> np.ndarray:
    """Rows of n entries, float32: of different sizes, one of them zero."""
    X = np.random.default_rng([count, n, seed]).standard_normal((count, n))
    X *= np.exp(np.arange(count) % 7)[:, None]
    X[count // 2] = 0
    return X.astype(np.float32)
