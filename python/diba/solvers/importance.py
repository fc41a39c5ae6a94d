"""Weighted objective ``sum (o_i (A - F)_ij i_j)^2``: factor ``o A i``, then take o and i out of d1 and d3.

The rank-one form of a diagonal Fisher matrix: o is the RMS gradient of every output, i the RMS of
every input (Boza and Macko, arXiv 2505.11076, section 3.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._internal import diagonal16
from ..factorization import Factorization

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._internal.check import FloatArray

__all__ = ["Importance"]


class Importance:
    """Importance of the rows and columns of an m x n matrix.

    Args:
        rows: o, positive, shape (m,); None for ones.
        cols: i, positive, shape (n,); None for ones.

    Attributes:
        exponent: :meth:`scaled` leaves out a factor 2^exponent, so that nothing leaves float32's range:
            the weighted objective is ``4^exponent`` times the squared error of the scaled matrix.
    """

    def __init__(self, rows: NDArray[np.float64] | None, cols: NDArray[np.float64] | None) -> None:
        self._rows, e1 = _unit(rows)
        self._cols, e2 = _unit(cols)
        self.exponent = e1 + e2

    def scaled(self, A: FloatArray) -> NDArray[np.float64]:
        """``o A i 2^-exponent``, what to factor in place of A; float64."""
        result = A.astype(np.float64)
        result *= self._rows[:, None]
        result *= self._cols
        return result

    def unscaled(self, f: Factorization, exponent: int = 0) -> Factorization:
        """Factors of A, with 16-bit diagonals, from factors of ``scaled(A) 2^-exponent``.

        Where importance spreads over more than 2^14, pass diagonals that are not rounded yet.
        """
        d1, d2, d3 = diagonal16.spread(f.d1 / self._rows, f.d2, f.d3 / self._cols, exponent)
        return Factorization(d1, f.b1, d2, f.b2, d3).round_diagonals()

    def inward(self, f: Factorization, exponent: int = 0) -> Factorization:
        """Factors of ``scaled(A) 2^-exponent`` from factors of A: the inverse of :meth:`unscaled`."""
        d1, d2, d3 = diagonal16.spread(f.d1 * self._rows, f.d2, f.d3 * self._cols, -exponent)
        return Factorization(d1, f.b1, d2, f.b2, d3)

    def error(self, A: FloatArray, f: Factorization) -> float:
        """``sum (o_i (A - F)_ij i_j)^2`` in float64."""
        error = self.weighted(A)
        error -= self.weighted(f.to_dense())
        return float(np.vdot(error, error))

    def weighted(self, A: FloatArray) -> NDArray[np.float64]:
        """``o A i``: squares of it stay within float64's range, as those of ``scaled`` may not."""
        result = self.scaled(A)
        return np.ldexp(result, self.exponent, out=result)


def _unit(weights: NDArray[np.float64] | None) -> tuple[NDArray[np.float64], int]:
    """(weights / 2^e, e), the largest from 1/2 to 1."""
    if weights is None:
        return np.ones(1), 0
    exponent = int(np.frexp(weights.max())[1])
    return np.ldexp(weights, -exponent), exponent
