"""Errors of approximations in float64, their SNR in dB, and dense blocks of factorizations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..bits import BitMatrix
from . import storage
from .check_arrays import saturated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .check import FloatArray

__all__ = ["dense_blocks", "energy_and_error", "output_energy_and_error", "snr_db"]

_BLOCK_BYTES = 8 << 20
_LEAST_EXPONENT, _MOST_EXPONENT = -100, 126  # products with exponents between these are safe in float32
_SMALL = -400  # squares of numbers with exponents below this may underflow in float64
_ROWS_AT_ONCE = 1024  # rows of A in float64


class Approximation(Protocol):
    """A matrix in factored form: a Factorization or a OneBit."""

    def _blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Column slices and the dense blocks of shape (m, width)."""

    def to_dense(self) -> NDArray[Any]:
        """The whole matrix, of shape (m, n)."""


# ---------------------------------------------------------------- error


def snr_db(energy: float, error: float) -> float:
    """``10 log10(energy / error)``: ``inf`` for no error, ``-inf`` for an error where A is zero.

    Args:
        energy: ``|A|^2``, or the objective of the zero matrix.
        error: ``|A - F|^2``, or the objective of F; may be slightly below 0 by rounding.
    """
    if error <= 0:
        return math.inf
    return 10 * (math.log10(energy) - math.log10(error)) if energy > 0 else -math.inf


def energy_and_error(
    A: FloatArray,
    F: Approximation | NDArray[Any],
    rows: NDArray[np.float64] | None = None,
    cols: NDArray[np.float64] | None = None,
) -> tuple[float, float]:
    """``sum (o_i A_ij i_j)^2`` and ``sum (o_i (A - F)_ij i_j)^2`` in float64, with a few MB of temporaries.

    Args:
        A: The exact matrix, shape (m, n).
        F: Its approximation, factored or dense.
        rows: o, shape (m,); None for ones.
        cols: i, shape (n,); None for ones.

    Returns:
        (energy, error); both times the same power of four where squares of entries of A would underflow.
    """
    energy = error = 0.0
    exponent = math.frexp(max(float(A.max()), -float(A.min())))[1]
    raised = -exponent if exponent < _SMALL else 0
    for columns, block in ((slice(None), F),) if isinstance(F, np.ndarray) else F._blocks():
        exact, found = A[:, columns].astype(np.float64), block
        if raised or rows is not None or cols is not None:
            found = found.astype(np.float64)
            for matrix in (exact, found):
                np.ldexp(matrix, raised, out=matrix)
                matrix *= 1.0 if rows is None else rows[:, None]
                matrix *= 1.0 if cols is None else cols[columns]
        energy += float(np.vdot(exact, exact))
        exact -= found
        error += float(np.vdot(exact, exact))
    return energy, error


def output_energy_and_error(
    A: FloatArray, F: Approximation | NDArray[Any], S: FloatArray
) -> tuple[float, float]:
    """``tr(A S A')`` and ``tr((A - F) S (A - F)')`` in float64: means of ``|A x|^2`` and ``|A x - F x|^2``.

    Args:
        A: The exact matrix, shape (m, n).
        F: Its approximation, factored or dense.
        S: Second moments of the inputs x, shape (n, n).

    Returns:
        (energy, error).
    """
    dense, moments = F if isinstance(F, np.ndarray) else F.to_dense(), np.asarray(S, np.float64)
    energy = error = 0.0
    for start in range(0, len(A), _ROWS_AT_ONCE):
        exact = A[start : start + _ROWS_AT_ONCE].astype(np.float64)
        energy += float(np.vdot(exact @ moments, exact))
        exact -= dense[start : start + _ROWS_AT_ONCE]
        error += float(np.vdot(exact @ moments, exact))
    return energy, error


# ---------------------------------------------------------------- dense blocks


def dense_blocks(
    d1: NDArray[np.float32],
    b1: BitMatrix,
    d2: NDArray[np.float32],
    b2: BitMatrix,
    d3: NDArray[np.float32],
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Compute ``D1 B1 D2 B2 D3`` in blocks of columns: yields a column slice and its block (m, width).

    Blocks are whole 64-bit words of columns. Entries beyond float32's range become its largest numbers, never
    infinite: where an intermediate result might leave the range, d1 and d3 are multiplied in float64.
    """
    (m, k), n = b1.shape, b2.shape[1]
    words_per_block = max(1, _BLOCK_BYTES // (4 * 64 * (m + k)))
    words = b2.words
    e1, e2, e3 = (storage.exponent(d) + 1 for d in (d1, d2, d3))
    most = e2 + e3 + k.bit_length() + max(0, e1)
    safe = _least_exponent(d2) + _least_exponent(d3) > _LEAST_EXPONENT and most < _MOST_EXPONENT
    for first in range(0, words.shape[1], words_per_block):
        columns = slice(64 * first, min(n, 64 * (first + words_per_block)))
        part = BitMatrix(words[:, first : first + words_per_block], columns.stop - columns.start, b2.alphabet)
        inner = part.to_dense()
        if safe:
            inner *= d3[columns]
            inner *= d2[:, None]
            block = b1.matmat(inner)
            block *= d1[:, None]
        else:
            inner *= np.ldexp(d2, -e2)[:, None]
            exact = b1.matmat(inner).astype(np.float64)
            exact *= np.ldexp(d1.astype(np.float64), e2)[:, None]
            exact *= d3[columns]
            block = saturated(exact)
        yield columns, block


def _least_exponent(d: NDArray[np.float32]) -> int:
    """The binary exponent of the smallest entry that is not zero; 0 if all are zero."""
    sizes = np.abs(d[d != 0])
    return int(np.frexp(sizes.min())[1]) if sizes.size else 0
