"""diba.apb: one magnitude for most entries of a matrix, and which of them are stored as they are.

Minimised is ``sum W_ij (A_ij - F_ij)^2`` over alpha and the set of exceptions, of which the number is given;
W is ``(o_i i_j)^2``, ones without importance. For given exceptions alpha is the weighted mean of the other
``|A_ij|``; for a given alpha the exceptions are the entries of the largest ``W_ij (|A_ij| - alpha)^2``. The
two are repeated, neither raises the error. Without weights and with one alpha the entries that are not
exceptions lie between two of the sorted magnitudes, and the best of all such sets is where this begins.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from .. import _core
from .._internal import check, check_arrays, storage
from .._internal.sparse_rows import column_dtype, stored_bits
from ..binarized import APB
from ..bits import BitMatrix
from ..runtime import resolve_threads
from .objective import importance_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["apb"]

_ROUNDS = 100
_SETTLED = 1e-6  # the repetition stops when a round lowers the error by less than this share of it
_SCALES = ("layer", "rows")


class _Problem(NamedTuple):
    """Magnitudes ``|A| 2^-e`` (m, n), at most 1; weights of rows (m, 1) and columns (1, n); kind of alpha."""

    magnitudes: NDArray[np.float64]
    rows: NDArray[np.float64]
    cols: NDArray[np.float64]
    by_rows: bool

    def errors(self, alpha: NDArray[np.float64]) -> NDArray[np.float64]:
        """``W (|A| - alpha)^2``."""
        result = self.magnitudes - alpha
        np.square(result, out=result)
        result *= self.rows
        result *= self.cols
        return result

    def best_alpha(self, kept: NDArray[np.bool_], otherwise: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weighted means of the magnitudes kept; ``otherwise`` where there is none. (m, 1) or (1, 1)."""
        axis = 1 if self.by_rows else None
        weights = kept * self.cols
        if not self.by_rows:
            weights *= self.rows  # else it cancels
        total = np.sum(weights, axis=axis, keepdims=True)
        weights *= self.magnitudes
        return np.divide(
            np.sum(weights, axis=axis, keepdims=True), total, out=otherwise.copy(), where=total > 0
        )


def apb(
    A: ArrayLike,
    *,
    exceptions: float | None = None,
    bits_per_weight: float | None = None,
    scales: Literal["layer", "rows"] = "layer",
    importance: tuple[ArrayLike | None, ArrayLike | None] | None = None,
    threads: int | None = None,
) -> APB:
    """Approximate A by ``alpha sign(A)``, apart from a few entries that are stored as they are.

    The exceptions are the entries that lower the squared error most, and alpha is the best for the others.
    Without importance and with one alpha no other choice of so many has a smaller error; else the choice and
    alpha are repeated until the error settles.

    Args:
        A: Real matrix of shape (m, n): anything NumPy can read, or a torch CPU tensor.
        exceptions: Their share of all entries, from 0 to 1. Give this or ``bits_per_weight``.
        bits_per_weight: As many exceptions as so many bits for each entry of A allow, everything counted; see
            :attr:`APB.bits_per_weight`.
        scales: ``"layer"``: one alpha for the matrix, as published; ``"rows"``: one for each row.
        importance: As in :func:`diba.solve`: pair ``(o, i)`` of positive weights of shapes (m,) and (n,),
            either may be None: minimise ``sum (o_i (A - F)_ij i_j)^2``.
        threads: Worker threads; None uses ``diba.num_threads()``.

    Returns:
        The matrix, with alpha and the exceptions in 16 bits each. Exceptions that would change nothing are
        left out.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``A`` is not a finite non-empty matrix, or another value is not possible.

    Source:
        Nardini et al., "Neural Network Compression using Binarization and Few Full-Precision Weights",
        arXiv 2306.08960.

    Example:
        >>> import numpy as np
        >>> import diba
        >>> f = diba.apb([[1.0, -1.0, 1.0, 9.0], [-1.0, 1.0, -1.0, -1.0]], exceptions=0.125)
        >>> f.alpha, f.to_dense()[0]
        (array([1.], dtype=float32), array([ 1., -1.,  1.,  9.], dtype=float32))
    """
    matrix = check_arrays.real_matrix(A, "A")
    m, n = matrix.shape
    by_rows = check.one_of(scales, "scales", _SCALES) == "rows"
    count = _count(exceptions, bits_per_weight, m, n, m if by_rows else 1)
    rows, cols = importance_of(importance, m, n)
    threads = resolve_threads(threads)
    check.fits_in_memory(32 * m * n, f"the choice of exceptions of a {m} x {n} matrix", "split A by rows")

    magnitudes = np.abs(matrix, dtype=np.float64)
    exponent = math.frexp(float(magnitudes.max()))[1]
    np.ldexp(magnitudes, -exponent, out=magnitudes)
    plain = rows is None and cols is None
    problem = _Problem(magnitudes, _weights(rows, m).reshape(m, 1), _weights(cols, n).reshape(1, n), by_rows)
    start = _best_window(magnitudes, count) if plain and not by_rows else None
    alpha = _settle(problem, count, start)
    stored = storage.round_to_16(np.ldexp(alpha, exponent).astype(np.float32).ravel())
    chosen = _largest(problem.errors(np.ldexp(stored.astype(np.float64), -exponent)[:, None]), count)
    return _assembled(matrix, stored, chosen, threads)


# ---------------------------------------------------------------- how many


def _count(exceptions: Any, bits_per_weight: Any, m: int, n: int, alphas: int) -> int:
    """The number of exceptions."""
    if (exceptions is None) == (bits_per_weight is None):
        both = "both are" if exceptions is not None else "neither is"
        raise ValueError(
            f"exceptions and bits_per_weight: {both} given; give one, for example exceptions=0.01"
        )
    if exceptions is not None:
        share = check.number(exceptions, "exceptions", minimum=0)
        if share > 1:
            raise ValueError(f"exceptions is {share:g}; it is a share and must be at most 1")
        return round(share * m * n)
    asked = check.number(bits_per_weight, "bits_per_weight", minimum=0, exclusive=True)
    fixed = m * n + 16 * alphas + stored_bits(m, n, 0)
    if asked * m * n < fixed:
        raise ValueError(
            f"bits_per_weight is {asked:g}; a {m} x {n} matrix takes at least {fixed / (m * n):.4g} without "
            "any exceptions: use more bits"
        )
    return min(m * n, int((asked * m * n - fixed) / (16 + 8 * column_dtype(n).itemsize)))


# ---------------------------------------------------------------- which


def _weights(importance: NDArray[np.float64] | None, length: int) -> NDArray[np.float64]:
    """Squares of importance, the largest 1."""
    return np.ones(length) if importance is None else np.square(importance / importance.max())


def _best_window(magnitudes: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The alpha (1, 1) of least squared error of all but ``count`` magnitudes."""
    ordered = np.sort(magnitudes, axis=None)
    kept = ordered.size - count
    if not kept:
        return np.zeros((1, 1))
    low, high = ordered[:count], ordered[kept:]  # window j leaves out low[:j], and high[j:] is not in it
    sums = ordered[:kept].sum() + np.concatenate(([0.0], np.cumsum(high - low)))
    squares = np.square(ordered[:kept]).sum() + np.concatenate(([0.0], np.cumsum(high**2 - low**2)))
    best = int((squares - np.square(sums) / kept).argmin())
    return np.full((1, 1), sums[best] / kept)


def _largest(errors: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """A mask of the ``count`` largest errors; of equal ones the first."""
    chosen = np.zeros(errors.shape, bool)
    if count:
        flat = errors.ravel()
        limit = np.partition(flat, flat.size - count)[flat.size - count]
        chosen = errors > limit
        ties = np.flatnonzero(flat == limit)[: count - int(chosen.sum())]
        chosen.ravel()[ties] = True
    return chosen


def _settle(problem: _Problem, count: int, start: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Alpha, (m, 1) or (1, 1), from choices and means by turns; the start by default from all entries."""
    everything = np.ones(problem.magnitudes.shape, bool)
    zero = np.zeros((len(everything) if problem.by_rows else 1, 1))
    alpha = problem.best_alpha(everything, zero) if start is None else start
    best = math.inf
    for _ in range(_ROUNDS if count else 0):
        errors = problem.errors(alpha)
        kept = ~_largest(errors, count)
        error = float(errors.sum(where=kept))
        if error >= best * (1 - _SETTLED):
            break
        best = error
        alpha = problem.best_alpha(kept, alpha)
    return alpha


# ---------------------------------------------------------------- the result


def _assembled(
    matrix: NDArray[Any], alpha: NDArray[np.float32], chosen: NDArray[np.bool_], threads: int
) -> APB:
    m, n = matrix.shape
    words = np.empty((m, -(-n // 64)), dtype=np.uint64)
    _core.pack(np.where(matrix < 0, np.float32(-1), np.float32(1)), words, threads)
    rows, columns = np.nonzero(chosen)
    exact = matrix[rows, columns].astype(np.float64)
    own = alpha.astype(np.float64)[rows if alpha.size > 1 else np.zeros_like(rows)]
    corrections = check_arrays.saturated(exact - np.where(exact < 0, -own, own))
    values = storage.round_to_16(corrections) if corrections.size else corrections
    used = values != 0
    starts = np.concatenate(([0], np.cumsum(np.bincount(rows[used], minlength=m))))
    return APB(alpha, BitMatrix(words, n, "sign", copy=False), starts, columns[used], values[used])
