"""Second moments ``S = E[x x']`` of the inputs x of a layer: their check, and what a small sample needs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal import check, check_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._internal.check import FloatArray

__all__ = [
    "SHRINK",
    "about_mean",
    "checked",
    "factor_shrinkage",
    "input_scales",
    "missing_power",
    "shrinkage",
    "shrunk",
]

SHRINK = 0.2
"""Share of the diagonal in a shrunk S, see :func:`shrunk`, where the size of the sample is not known.

That of :func:`factor_shrinkage` for a few hundred inputs, one or two bits and some 10,000 vectors.
"""

_LEAST = 0.1  # shares to use for samples of any size: other texts have other moments
_MOST = 0.6

LEAST_POWER = 0.01
"""Smallest mean square of an input that is used, relative to the median over the inputs."""

_CONSTANT = 1e-9  # variance of an input, as a share of its power, that may be rounding

# Tolerances of the check:
_ASYMMETRY = 1e-4  # as a share of the largest entry: sums in float32 or a file in float16 may leave this much
_NEGATIVE = 1e-5  # as a share of the trace: eigenvalues this far below zero are rounding errors


def checked(value: Any, n: int, shrink: float) -> tuple[FloatArray, float]:
    """Check the ``covariance`` argument of ``diba.solve``: S, or a pair (S, share).

    Args:
        value: The argument.
        n: Number of columns of A.
        shrink: Share of the diagonal where the argument does not give it.

    Returns:
        (S, share).

    Raises:
        TypeError: S is not a matrix of real numbers, or the share is not a number.
        ValueError: S is not n x n, finite, symmetric, positive semidefinite and other than zero, or the share
            is not from 0 to 1.
    """
    if isinstance(value, tuple) and len(value) == 2 and np.ndim(value[1]) == 0:
        value, shrink = value
    shrink = check.number(shrink, "the shrinkage covariance[1]", minimum=0)
    if shrink > 1:
        raise ValueError(f"the shrinkage covariance[1] is {shrink:g}; it must be from 0 to 1")
    S = check_arrays.real_matrix(value, "covariance")
    if S.shape != (n, n):
        raise ValueError(
            f"covariance has shape {S.shape}; it must be {(n, n)}, the second moments of the inputs of A: "
            f"use X.T @ X / len(X) for inputs X of shape (samples, {n})"
        )
    largest = float(np.abs(S).max())
    asymmetry = float(np.abs(S - S.T).max())
    if asymmetry > _ASYMMETRY * largest:
        raise ValueError(
            f"covariance is not symmetric: S and S.T differ by up to {asymmetry:.3g}, the largest entry is "
            f"{largest:.3g}; use (S + S.T) / 2 if that is meant"
        )
    if not largest:
        raise ValueError(
            "covariance is zero; it must have a positive entry: use X.T @ X / len(X) for inputs X"
        )
    scaled = S / largest
    ridge = _NEGATIVE * max(float(scaled.trace()), 1.0)
    try:
        np.linalg.cholesky(scaled + ridge * np.eye(n, dtype=S.dtype))
    except np.linalg.LinAlgError:
        raise ValueError(
            "covariance is not positive semidefinite, as second moments always are; use X.T @ X / len(X) for "
            "inputs X of shape (samples, n)"
        ) from None
    return S, shrink


def factor_shrinkage(n: int, count: int, bits: float) -> float:
    """Share of the diagonal for factoring a matrix with n inputs, S a mean over ``count`` vectors.

    ``sqrt(bits) / 2 * cbrt(n / (n + count))``, from 0.1 to 0.6: the closer factors come to A, the more they
    fit what is particular to the sample, so the share grows with their bits per weight. Chosen on four
    matrices of all-MiniLM-L6-v2, with moments of 1,000 to 16,000 tokens of news, by errors on other news and
    on a novel. Tokens of one text are alike: for independent samples, far less would be enough.
    """
    share = math.sqrt(bits) / 2 * math.cbrt(n / (n + count))
    return min(_MOST, max(_LEAST, share))


def shrinkage(n: int, count: int) -> float:
    """Share of the diagonal for a linear correction, S being the mean over ``count`` vectors of length n.

    ``max(0.1, n / (2 (n + count)))``: more for few vectors. On held-out tokens, with moments of 500 and
    1,500 tokens and n of 384 and 1536, shares of 0.2 to 0.5 are 0.1 to 0.5 dB better than 0.1
    (objectives_500.json and objectives_1500.json in benchmarks/results).
    """
    return max(_LEAST, n / (2 * (n + count)))


def shrunk(S: FloatArray, shrink: float = SHRINK) -> NDArray[np.float64]:
    """``(1 - shrink) S + shrink diag(S)``, exactly symmetric, float64."""
    result = S.astype(np.float64)
    result += result.T.copy()
    diagonal = result.diagonal() / 2
    result *= (1 - shrink) / 2
    np.fill_diagonal(result, diagonal)
    return result


def about_mean(S: FloatArray, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariance ``S - mean mean'`` of inputs with second moments S; 0 for inputs that never vary."""
    result: NDArray[np.float64] = S - np.outer(mean, mean)
    constant = result.diagonal() <= _CONSTANT * S.diagonal()
    result[constant] = 0
    result[:, constant] = 0
    return result


def input_scales(S: FloatArray) -> NDArray[np.float64]:
    """Root mean square of each input, shape (n,), for column importance; above 0 even for a constant 0."""
    power = S.diagonal().astype(np.float64)
    result: NDArray[np.float64] = np.sqrt(np.maximum(power, 1e-6 * power.mean()))
    return result


def missing_power(S: FloatArray) -> NDArray[np.float64]:
    """What to add to the diagonal of S so that no input has less than LEAST_POWER of the median, shape (n,).

    Without it, the columns of inputs that were nearly always 0 in the sample are almost free: the solver
    would use them to cancel errors of other columns, with entries thousands of times too large, and the layer
    would fail on data where those inputs are not 0.
    """
    power = np.asarray(S.diagonal(), np.float64)
    known = power[power > 0]
    result: NDArray[np.float64] = (
        np.maximum(0, LEAST_POWER * np.median(known) - power) if len(known) else 0 * power
    )
    return result
