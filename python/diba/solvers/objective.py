"""What a solver minimises, the one normalisation of A for it, and the error of factors in it.

Three objectives: ``|A - F|^2``; weighted by importance, ``sum (o_i (A - F)_ij i_j)^2``; and the error of a
layer's outputs, ``tr((A - F) S (A - F)')`` with S = E[x x'] of its inputs x.

Every solver works on one matrix, ``W = o A i 2^-e`` in float32 with magnitudes up to 1, so that no product
over- or underflows. It is the only copy of A in row order; float64 is for errors alone, a few rows at a time.
Factors of W become those of A by taking o and i out of d1 and d3, and 2^e in all three diagonals.

Importance is the rank-one form of a diagonal Fisher matrix: o the RMS gradient of every output, i the RMS of
every input (Boza and Macko, arXiv 2505.11076, section 3.3).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._internal import check_arrays, storage
from .._internal.error import energy_and_error, output_energy_and_error, snr_db
from ..factorization import Factorization

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._internal.check import FloatArray

__all__ = [
    "SHRINK",
    "Objective",
    "Solution",
    "checked",
    "input_scales",
    "missing_power",
    "normalised",
    "shrinkage",
    "shrunk",
]

SHRINK = 0.1
"""Share of the diagonal in S by default.

Held out, on all-MiniLM-L6-v2 (benchmarks/solver/objectives.py), 0.1 is within 0.04 dB of the best share with
16,000 tokens and 0.08 to 0.16 dB better than none with 2,000; 0.4 costs 0.1 to 0.3 dB with 16,000.
"""

LEAST_POWER = 0.01
"""Least mean square of an input, relative to the median over the inputs."""

_BLOCK_BYTES = 8 << 20  # of float64 entries


# ---------------------------------------------------------------- normalisation


def normalised(
    A: FloatArray, rows: NDArray[np.float64] | None = None, cols: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float32], int]:
    """(W, e): ``W = o A i 2^-e`` in float32, with magnitudes up to 1.

    Args:
        A: Float32 or float64, shape (m, n).
        rows: o, shape (m,); None for ones.
        cols: i, shape (n,); None for ones.
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
    """Factors and what they reach."""

    f: Factorization
    error: float  # of the objective
    snr_db: float  # 10 log10(objective of the zero matrix / error)


class Objective:
    """One of three: plain, weighted by importance, or the error of outputs.

    Args:
        rows: o, positive, shape (m,); None for ones.
        cols: i, positive, shape (n,); None for ones.
        S: Second moments of the inputs, shrunk, for the error of outputs; None without.

    Attributes:
        covariance: S.
        plain: Whether it is ``|A - F|^2``.
        exponent: The objective is ``4^exponent`` times that of weights whose largest are 1/2 to 1: those are
            what :meth:`normalised` takes, so that nothing leaves float32's range.
    """

    def __init__(
        self,
        rows: NDArray[np.float64] | None = None,
        cols: NDArray[np.float64] | None = None,
        S: NDArray[np.float64] | None = None,
    ) -> None:
        if S is not None:  # its start minimises what the diagonal of S says
            cols = input_scales(S)
        self.covariance = S
        self.plain = rows is None and cols is None
        self._weights = (rows, cols) if S is None else (None, None)
        self._rows, e1 = _unit(rows)
        self._cols, e2 = _unit(cols)
        self.exponent = e1 + e2

    def normalised(self, A: FloatArray) -> tuple[NDArray[np.float32], int]:
        """(W, e): what to factor in place of A, whose plain objective is this one, or stands for it."""
        return normalised(A, self._rows, self._cols)

    def denormalised(self, f: Factorization, exponent: int) -> Factorization:
        """Factors of A, 16-bit diagonals, from factors of :meth:`normalised` with that exponent.

        Where importance spreads over more than 2^14, pass diagonals that are not rounded yet.
        """
        d1 = f.d1 if self._rows is None else f.d1 / self._rows
        d3 = f.d3 if self._cols is None else f.d3 / self._cols
        return _with_diagonals(f, *storage.spread(d1, f.d2, d3, exponent)).round_diagonals()

    def normalised_factors(self, f: Factorization, exponent: int) -> Factorization:
        """The inverse of :meth:`denormalised`, but for the rounding."""
        d1 = f.d1 if self._rows is None else f.d1 * self._rows
        d3 = f.d3 if self._cols is None else f.d3 * self._cols
        return _with_diagonals(f, *storage.spread(d1, f.d2, d3, -exponent))

    # ------------------------------------------------------------ error

    def measured(self, A: FloatArray, f: Factorization) -> Solution:
        """Factors with their objective, in float64."""
        if self.covariance is None:
            energy, error = energy_and_error(A, f, *self._weights)
        else:
            energy, error = output_energy_and_error(A, f, self.covariance)
        return Solution(f, max(error, 0.0), snr_db(energy, error))

    def no_worse_than_zero(self, A: FloatArray, found: Solution) -> Solution:
        """``found``; where zeros would be better, its factors times what is best for them, or zeros."""
        if found.snr_db >= 0:
            return found
        f = found.f
        scaled = self.measured(A, _times(f, self._best_multiple(A, f)).round_diagonals())
        return scaled if scaled.snr_db >= 0 else self.measured(A, _times(f, 0))

    def _best_multiple(self, A: FloatArray, f: Factorization) -> float:
        """The multiple of f, from -1 to 1, of the least objective."""
        exact, found = A.astype(np.float64), f.to_dense().astype(np.float64)
        rows, cols = self._weights
        for matrix in (exact, found):
            matrix *= 1.0 if rows is None else rows[:, None]
            matrix *= 1.0 if cols is None else cols
        weighed = found if self.covariance is None else found @ self.covariance
        energy = float(np.vdot(weighed, found))
        return min(1.0, max(-1.0, float(np.vdot(weighed, exact)) / energy)) if energy > 0 else 0.0


def checked(importance: Any, covariance: Any, m: int, n: int) -> Objective:
    """The objective that these arguments of ``diba.solve`` ask for.

    Raises:
        TypeError, ValueError: see ``check_arrays``; also where both are given.
    """
    if importance is not None and covariance is not None:
        raise ValueError(
            "importance and covariance are both given; give one: a covariance weighs the columns by itself"
        )
    if importance is not None:
        return Objective(*check_arrays.importance(importance, m, n))
    if covariance is not None:
        return Objective(S=shrunk(*check_arrays.covariance(covariance, n, SHRINK)))
    return Objective()


def _unit(weights: NDArray[np.float64] | None) -> tuple[NDArray[np.float64] | None, int]:
    """(weights / 2^e, e), the largest from 1/2 to 1."""
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


# ---------------------------------------------------------------- second moments of inputs


def shrinkage(n: int, count: int) -> float:
    """Share of the diagonal in an S that is the mean over ``count`` vectors of length n.

    SHRINK, or more where there are few vectors: n / (2 (n + count)). Held out, with moments of 500 and 1,500
    tokens, shares of 0.2 to 0.5 are 0.1 to 0.5 dB better than SHRINK (objectives_500.json and _1500 in
    benchmarks/results; n is 384 and 1536).
    """
    return max(SHRINK, n / (2 * (n + count)))


def shrunk(S: FloatArray, shrink: float = SHRINK) -> NDArray[np.float64]:
    """``(1 - shrink) S + shrink diag(S)``, made exactly symmetric."""
    result = S.astype(np.float64)
    result += result.T.copy()
    diagonal = result.diagonal() / 2
    result *= (1 - shrink) / 2
    np.fill_diagonal(result, diagonal)
    return result


def input_scales(S: FloatArray) -> NDArray[np.float64]:
    """Root mean square of every input, for ``importance``: positive, also where an input is always 0."""
    power = S.diagonal().astype(np.float64)
    result: NDArray[np.float64] = np.sqrt(np.maximum(power, 1e-6 * power.mean()))
    return result


def missing_power(S: FloatArray) -> NDArray[np.float64]:
    """What the diagonal of S lacks to LEAST_POWER of its median, shape (n,).

    Added to S, it keeps the columns of inputs that hardly came up near those of A. Without, they would serve
    to mend errors of others, with entries thousands of times larger, which other data would bring to light.
    """
    power = np.asarray(S.diagonal(), np.float64)
    known = power[power > 0]
    result: NDArray[np.float64] = (
        np.maximum(0, LEAST_POWER * np.median(known) - power) if len(known) else 0 * power
    )
    return result
