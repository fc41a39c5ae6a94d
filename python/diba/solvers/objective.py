"""What a solver minimises, how A is normalised for it, and the error of factors in it.

There are three objectives for factors F of A: the squared error ``|A - F|^2``; the same weighted by
importance, ``sum (o_i (A - F)_ij i_j)^2``; and the error of a layer's outputs, ``tr((A - F) S (A - F)')``
with ``S = E[x x']`` of its inputs x.

All methods factor the normalised matrix ``W = diag(o) A diag(i) 2^-e`` in float32 with magnitudes up to 1, so
that no product over- or underflows. W is the only copy of A in row order; errors are measured in float64, a
few rows at a time. Factors of W become factors of A by dividing d1 by o and d3 by i, and sharing 2^e among
the diagonals.

Importance is the rank-one form of a diagonal Fisher matrix: o is the RMS gradient of each output, i the RMS
of each input (Boza and Macko, arXiv 2505.11076, section 3.3).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._internal import check, check_arrays, storage
from .._internal.snr import energy_and_error, output_energy_and_error, snr_db
from ..factorization import Factorization
from . import second_moments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._internal.check import FloatArray

__all__ = ["Objective", "Solution", "importance_of", "normalised", "objective_for"]

_BLOCK_BYTES = 8 << 20  # float64 rows that are normalised together


# ---------------------------------------------------------------- normalisation


def normalised(
    A: FloatArray, rows: NDArray[np.float64] | None = None, cols: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float32], int]:
    """Weight A and scale it by a power of two to magnitudes up to 1.

    Args:
        A: Float32 or float64, shape (m, n).
        rows: o, shape (m,); None for ones.
        cols: i, shape (n,); None for ones.

    Returns:
        (W, e) with ``W = diag(o) A diag(i) 2^-e``, float32.
    """
    m, n = A.shape
    at_once = max(1, _BLOCK_BYTES // (8 * n))
    blocks = [slice(first, first + at_once) for first in range(0, m, at_once)]

    def weighted(block: slice) -> FloatArray:
        if rows is None and cols is None:
            return A[block]
        result = A[block].astype(np.float64)
        result *= 1.0 if rows is None else rows[block, None]
        result *= 1.0 if cols is None else cols
        return result

    largest = max(max(float(part.max()), -float(part.min())) for part in map(weighted, blocks))
    exponent = math.frexp(largest)[1]
    W = np.empty((m, n), dtype=np.float32)
    for block in blocks:
        W[block] = np.ldexp(weighted(block), -exponent)
    return W, exponent


# ---------------------------------------------------------------- objectives


class Solution(NamedTuple):
    """Factors with their value of the objective."""

    f: Factorization
    error: float  # the objective of f
    snr_db: float  # 10 log10(objective of the zero matrix / error)


class Objective:
    """What is minimised: the squared error, the same weighted by importance, or the error of outputs.

    Args:
        rows: o, positive, shape (m,); None for ones.
        cols: i, positive, shape (n,); None for ones.
        S: Second moments of the inputs, shrunk, shape (n, n), for the error of outputs; None for the others.

    Attributes:
        covariance: S.
        plain: Whether it is ``|A - F|^2``.
        exponent: e1 + e2 where :meth:`normalised` takes ``o 2^-e1`` and ``i 2^-e2``, with largest entries
            from 1/2 to 1, so that W stays in float32's range. Errors of A are ``4^exponent`` times those.
    """

    def __init__(
        self,
        rows: NDArray[np.float64] | None = None,
        cols: NDArray[np.float64] | None = None,
        S: NDArray[np.float64] | None = None,
    ) -> None:
        if S is not None:  # the start minimises the error for the diagonal of S
            cols = second_moments.input_scales(S)
        self.covariance = S
        self.plain = rows is None and cols is None
        self._weights = (rows, cols) if S is None else (None, None)
        self._rows, e1 = _scaled_to_one(rows)
        self._cols, e2 = _scaled_to_one(cols)
        self.exponent = e1 + e2

    def normalised(self, A: FloatArray) -> tuple[NDArray[np.float32], int]:
        """(W, e): the matrix to factor in place of A; see :func:`normalised`.

        The squared error for W is this objective for A; with S, it is that for the diagonal of S alone.
        """
        return normalised(A, self._rows, self._cols)

    def scaled_covariance(self) -> NDArray[np.float64]:
        """S in the scales of W: its diagonal is ones, or less for inputs that are nearly always 0."""
        S = self.covariance
        assert S is not None
        scales = second_moments.input_scales(S)
        return S / np.outer(scales, scales)

    def denormalised(self, f: Factorization, exponent: int) -> Factorization:
        """Factors of A, with 16-bit diagonals, from factors of W and its exponent e.

        The diagonals of ``f`` should not be rounded to 16 bits before: weights may differ by more than 2^14.
        """
        d1 = f.d1 if self._rows is None else f.d1 / self._rows
        d3 = f.d3 if self._cols is None else f.d3 / self._cols
        return _with_diagonals(f, *storage.spread(d1, f.d2, d3, exponent)).round_diagonals()

    def normalised_factors(self, f: Factorization, exponent: int) -> Factorization:
        """Factors of W from factors of A: the inverse of :meth:`denormalised`, except for rounding."""
        d1 = f.d1 if self._rows is None else f.d1 * self._rows
        d3 = f.d3 if self._cols is None else f.d3 * self._cols
        return _with_diagonals(f, *storage.spread(d1, f.d2, d3, -exponent))

    # ------------------------------------------------------------ error

    def measured(self, A: FloatArray, f: Factorization) -> Solution:
        """Factors of A with their objective, computed in float64."""
        if self.covariance is None:
            energy, error = energy_and_error(A, f, *self._weights)
        else:
            energy, error = output_energy_and_error(A, f, self.covariance)
        return Solution(f, max(error, 0.0), snr_db(energy, error))

    def no_worse_than_zero(self, A: FloatArray, found: Solution) -> Solution:
        """``found`` if it is no worse than the zero matrix; else its best multiple, or zeros."""
        if found.snr_db >= 0:
            return found
        f = found.f
        scaled = self.measured(A, _times(f, self._best_multiple(A, f)).round_diagonals())
        return scaled if scaled.snr_db >= 0 else self.measured(A, _times(f, 0))

    def _best_multiple(self, A: FloatArray, f: Factorization) -> float:
        """The number from -1 to 1 by which f is to be multiplied for the least objective."""
        exact, found = A.astype(np.float64), f.to_dense().astype(np.float64)
        rows, cols = self._weights
        for matrix in (exact, found):
            matrix *= 1.0 if rows is None else rows[:, None]
            matrix *= 1.0 if cols is None else cols
        weighted = found if self.covariance is None else found @ self.covariance
        energy = float(np.vdot(weighted, found))
        return min(1.0, max(-1.0, float(np.vdot(weighted, exact)) / energy)) if energy > 0 else 0.0


def objective_for(importance: Any, covariance: Any, m: int, n: int) -> Objective:
    """The objective for the arguments ``importance`` and ``covariance`` of ``diba.solve``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: both are given, or one has a wrong shape or wrong values.
    """
    if importance is not None and covariance is not None:
        raise ValueError(
            "importance and covariance are both given; give only one (a covariance already weights columns)"
        )
    if importance is not None:
        return Objective(*importance_of(importance, m, n))
    if covariance is not None:
        return Objective(
            S=second_moments.shrunk(*second_moments.checked(covariance, n, second_moments.SHRINK))
        )
    return Objective()


def importance_of(
    value: Any, m: int, n: int
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """The argument ``importance``: weights of rows (m,) and of columns (n,), float64; None for ones.

    Raises:
        TypeError: it is not a pair, or a vector is not an array of real numbers.
        ValueError: a length is wrong, or an entry is not positive and finite.
    """
    if value is None:
        return None, None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(
            f"importance is {check.describe(value)}; it must be a pair (rows, cols) of vectors of lengths "
            f"{m} and {n}, either of which may be None: use importance=(None, cols) for columns alone"
        )
    rows, cols = value
    return _weights(rows, "importance[0]", m, "rows of A"), _weights(cols, "importance[1]", n, "columns of A")


def _weights(value: Any, name: str, length: int, against: str) -> NDArray[np.float64] | None:
    if value is None:
        return None
    vector = check_arrays.diagonal(value, name, length, against).astype(np.float64)
    if not vector.min() > 0:
        first = int(vector.argmin())
        raise ValueError(
            f"{name} has entries that are not positive in float32 ({name}[{first}] is {vector[first]:g}); "
            f"all must be above 0: use numpy.maximum({name}, 1e-3 * numpy.max({name}))"
        )
    return vector


def _scaled_to_one(weights: NDArray[np.float64] | None) -> tuple[NDArray[np.float64] | None, int]:
    """(``weights 2^-e``, e), the largest entry from 1/2 to 1."""
    if weights is None:
        return None, 0
    exponent = int(np.frexp(weights.max())[1])
    return np.ldexp(weights, -exponent), exponent


def _with_diagonals(
    f: Factorization, d1: NDArray[np.float64], d2: NDArray[np.float64], d3: NDArray[np.float64]
) -> Factorization:
    return Factorization(d1, f.b1, d2, f.b2, d3)


def _times(f: Factorization, factor: float) -> Factorization:
    return Factorization(f.d1, f.b1, factor * f.d2, f.b2, f.d3)
