"""OneBit: a matrix as its signs between two diagonals, ``A ~ diag(a) sign(A) diag(b)``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from . import _core
from ._internal import check, check_arrays, storage
from ._internal.check_arrays import saturated
from ._internal.factored import FactoredMatrix
from .bits import BitMatrix, column_blocks
from .runtime import resolve_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

__all__ = ["OneBit", "onebit"]

_POWER_STEPS = 1000
_SETTLED = 1e-9  # the power iteration stops when a step raises |fit|^2 by less than this share of |A|^2


class OneBit(FactoredMatrix):
    """An immutable m x n matrix in the form ``diag(a) S diag(b)``, S a sign matrix.

    It multiplies like a dense matrix, with the methods of :class:`diba.Factorization`, always exactly (sums
    in float32).

    Args:
        a: m finite numbers, stored as float32.
        signs: Bit matrix of shape (m, n) and alphabet ``"sign"``.
        b: n finite numbers.

    Raises:
        TypeError: ``signs`` is not a BitMatrix, or a diagonal is not an array of real numbers.
        ValueError: lengths disagree, the alphabet is not ``"sign"``, an entry is not finite in float32.

    Source:
        Xu et al., "OneBit", arXiv 2402.11295.
    """

    __slots__ = ("__weakref__", "_a", "_b", "_signs")

    def __init__(self, a: ArrayLike, signs: BitMatrix, b: ArrayLike) -> None:
        check.instance(signs, "signs", BitMatrix, "use BitMatrix.from_dense for plain arrays")
        check.equal(signs.alphabet, "the alphabet of signs", "sign", "alphabet of entries -1 and +1")
        self._signs = signs
        self._a = check_arrays.diagonal(a, "a", signs.shape[0], "rows of signs")
        self._b = check_arrays.diagonal(b, "b", signs.shape[1], "columns of signs")

    @property
    def a(self) -> NDArray[np.float32]:
        """Row scales, read-only, of shape (m,)."""
        return self._a

    @property
    def signs(self) -> BitMatrix:
        """The sign matrix S, of shape (m, n)."""
        return self._signs

    @property
    def b(self) -> NDArray[np.float32]:
        """Column scales, read-only, of shape (n,)."""
        return self._b

    @property
    def bits_per_weight(self) -> float:
        """``[m n + q (m + n)] / (m n)`` with q = ``diagonal_bits``; padding not counted."""
        m, n = self.shape
        return (m * n + self.diagonal_bits * (m + n)) / (m * n)

    @property
    def T(self) -> OneBit:
        """The transposed matrix ``diag(b) S' diag(a)``, a new object (not a view)."""
        return OneBit(self._b, self._signs.T, self._a)

    def _blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        for columns, block in column_blocks(self._signs):
            block *= self._a[:, None]
            with np.errstate(over="ignore"):
                block *= self._b[columns]
            yield columns, saturated(block)

    def _parts(self) -> tuple[NDArray[np.float32], BitMatrix, NDArray[np.float32]]:
        return self._a, self._signs, self._b

    def __repr__(self) -> str:
        m, n = self.shape
        return f"OneBit({m}x{n}, {self.bits_per_weight:.2f} bits/weight)"


def onebit(A: ArrayLike, *, threads: int | None = None) -> OneBit:
    """Approximate ``A ~ diag(a) sign(A) diag(b)`` with the least squared error (SVID).

    With the signs of A (+1 for 0) the squared error is ``| |A| - a b' |^2``, so a b' is the best rank-one
    fit of the magnitudes. It is found by power iteration in float64 from their row sums; every run gives the
    same result.

    Args:
        A: Real matrix of shape (m, n): anything NumPy can read, or a torch CPU tensor.
        threads: Worker threads; None uses ``diba.num_threads()``.

    Returns:
        The signs with the diagonals, each rounded to 16 bits per entry.

    Raises:
        TypeError: ``A`` is not an array of real numbers.
        ValueError: ``A`` is not a finite non-empty matrix.

    Source:
        Xu et al., "OneBit", arXiv 2402.11295, section 3.2 (sign-value-independent decomposition).

    Example:
        >>> import numpy as np
        >>> import diba
        >>> f = diba.onebit([[1.0, -2.0], [-3.0, 6.0]])
        >>> f
        OneBit(2x2, 17.00 bits/weight)
        >>> f.to_dense().round(2)
        array([[ 1., -2.],
               [-3.,  6.]], dtype=float32)
    """
    matrix = check_arrays.real_matrix(A, "A")
    threads = resolve_threads(threads)
    m, n = matrix.shape
    check.fits_in_memory(
        14 * m * n, f"the rank-one fit of a {m} x {n} matrix", "split A by rows"
    )  # |A| in float64, signs as float32, a mask
    signs = np.empty((m, -(-n // 64)), dtype=np.uint64)
    _core.pack(np.where(matrix < 0, np.float32(-1), np.float32(1)), signs, threads)
    magnitudes = np.abs(matrix, dtype=np.float64)
    exponent = math.frexp(float(magnitudes.max()))[1]
    np.ldexp(magnitudes, -exponent, out=magnitudes)
    a, b = _rank_one(magnitudes)
    half = exponent // 2
    diagonals = (np.ldexp(d, e).astype(np.float32) for d, e in ((a, half), (b, exponent - half)))
    rounded = [storage.round_to_16(d) for d in diagonals]
    return OneBit(rounded[0], BitMatrix(signs, n, "sign", copy=False), rounded[1])


def _rank_one(X: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(a, b) of equal lengths with a b' the best rank-one fit of X, whose entries are from 0 to 1."""
    b = np.ones(X.shape[1])
    captured, energy = 0.0, float(np.vdot(X, X))
    for _ in range(_POWER_STEPS):
        a = X @ b
        length = float(np.linalg.norm(a))
        if not length:
            return np.zeros(X.shape[0]), np.zeros(X.shape[1])
        a /= length
        b = a @ X
        value = float(np.linalg.norm(b))
        b /= value
        if value**2 - captured <= _SETTLED * energy:
            break
        captured = value**2
    return a * math.sqrt(value), b * math.sqrt(value)
