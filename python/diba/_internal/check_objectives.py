"""Rules about what a solver is to minimise: importance and covariance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import check
from .check_arrays import describe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .check import FloatArray

__all__ = ["covariance", "importance", "no_sizes"]

_ASYMMETRY = 1e-4  # of the largest entry: what a sum in float32, or a file in float16, may leave
_NEGATIVE = 1e-5  # of the trace: rounding of eigenvalues that should be zero
_SIZES = ("k", "bits_per_weight", "storage_ratio", "snr_db")


def importance(value: Any, m: int, n: int) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Importance of rows (m,) and columns (n,), float64; None stands for ones.

    Raises:
        TypeError: not a pair, or not of real numbers.
        ValueError: wrong lengths, or an entry that is not positive and finite.
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(
            f"importance is {describe(value)}; it must be a pair (rows, cols) of vectors of lengths "
            f"{m} and {n}, None for one that does not matter: use importance=(None, cols) for columns"
        )
    rows, cols = value
    return _weights(rows, "importance[0]", m, "rows of A"), _weights(cols, "importance[1]", n, "columns of A")


def _weights(value: Any, name: str, length: int, against: str) -> NDArray[np.float64] | None:
    if value is None:
        return None
    vector = check.diagonal(value, name, length, against).astype(np.float64)
    if not vector.min() > 0:
        first = int(vector.argmin())
        raise ValueError(
            f"{name} has entries that are not positive in float32 ({name}[{first}] is {vector[first]:g}); "
            f"all must be above 0: use numpy.maximum({name}, 1e-3 * numpy.max({name}))"
        )
    return vector


def covariance(value: Any, n: int, shrink: float) -> tuple[FloatArray, float]:
    """(S, shrink) from S or (S, shrink): symmetric positive semidefinite (n, n), share of its diagonal.

    Raises:
        TypeError: S is no matrix of real numbers, shrink no number.
        ValueError: S is not n x n, finite, symmetric, positive semidefinite and other than zero; shrink is
            not from 0 to 1.
    """
    if isinstance(value, tuple) and len(value) == 2 and np.ndim(value[1]) == 0:
        value, shrink = value
    shrink = check.number(shrink, "the shrinkage covariance[1]", minimum=0)
    if shrink > 1:
        raise ValueError(f"the shrinkage covariance[1] is {shrink:g}; it must be from 0 to 1")
    S = check.real_matrix(value, "covariance")
    if S.shape != (n, n):
        raise ValueError(
            f"covariance has shape {S.shape}; it must be {(n, n)}, the second moments of the inputs of A: "
            f"use X.T @ X / len(X) for inputs X of shape (samples, {n})"
        )
    largest = float(np.abs(S).max())
    asymmetry = float(np.abs(S - S.T).max())
    if asymmetry > _ASYMMETRY * largest:
        raise ValueError(
            f"covariance is not symmetric: entries differ from their mirror images by up to {asymmetry:.3g}, "
            f"the largest is {largest:.3g}; use (S + S.T) / 2 if that is meant"
        )
    if not largest:
        raise ValueError("covariance is zero; it must have a positive entry, or every factorization is exact")
    _positive_semidefinite(S / largest)
    return S, shrink


def _positive_semidefinite(S: FloatArray) -> None:
    ridge = _NEGATIVE * max(float(S.trace()), 1.0)
    try:
        np.linalg.cholesky(S + ridge * np.eye(len(S), dtype=S.dtype))
    except np.linalg.LinAlgError:
        raise ValueError(
            "covariance is not positive semidefinite: some combination of inputs would have a negative mean "
            "square; use X.T @ X / len(X) for inputs X of shape (samples, n)"
        ) from None


def no_sizes(options: dict[str, Any], function: str, argument: str) -> None:
    """Refuse options of solve that set the size, where the function sets it itself."""
    for name in _SIZES:
        if name in options:
            raise ValueError(f"{name} is given; {function} sets the sizes itself: use {argument}")
