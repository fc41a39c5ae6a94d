"""One layer: its matrix, what is minimised for it, its factors, and what they do to its outputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

import diba

from ..._internal import storage
from ...solvers.objective import missing_power, shrinkage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..calibration.moments import Moments
    from ..model.config import Settings

__all__ = ["factorization", "objective", "output_snr", "tells"]

_LARGEST_EXPONENT = 120  # of an entry to solve for
_ROWS_AT_ONCE = 1024  # of error matrices in float64


def objective(settings: Settings, moments: Moments | None) -> str:
    """What is minimised; inputs that are always 0 weigh nothing."""
    if not tells(moments) or settings.objective == "plain":
        return "plain"
    return "covariance" if settings.objective == "auto" else settings.objective


def tells(moments: Moments | None) -> bool:
    """Whether moments say anything of the inputs: some were not 0."""
    return moments is not None and bool(np.asarray(moments.second).any())


def factorization(
    matrix: NDArray[Any],
    settings: Settings,
    minimised: str,
    moments: Moments | None,
    **options: Any,
) -> diba.Factorization:
    """Factors of a matrix, shape (m, n), under that objective; ``options`` are of ``diba.solve``."""
    options |= settings.solve_options()
    if moments is None or minimised == "plain":
        return diba.solve(matrix, **options)
    rows, cols = moments.importance
    if minimised == "importance":
        return diba.solve(matrix, importance=(rows, cols), **options)
    S = np.asarray(moments.second, np.float64)
    options["covariance"] = S + np.diag(missing_power(S)), shrinkage(len(S), moments.count)
    if rows is None:
        return diba.solve(matrix, **options)
    # sum_i o_i^2 (A - F)_i S (A - F)_i': the covariance objective of o A, whose factors have d1 = o d1.
    rows = rows / np.sqrt(np.mean(rows**2))
    excess = max(0, math.frexp(float(np.abs(matrix).max()) * rows.max())[1] - _LARGEST_EXPONENT)
    f = diba.solve(matrix * np.ldexp(rows, -excess)[:, None], **options)
    d1, d2, d3 = storage.spread(f.d1 / rows, f.d2, f.d3, excess)
    return diba.Factorization(d1, f.b1, d2, f.b2, d3).round_diagonals()


def output_snr(matrix: NDArray[Any], f: diba.Factorization, second: Any) -> float:
    """``10 log10(tr(A S A') / tr((A - F) S (A - F)'))``, in float64."""
    S = np.asarray(second, dtype=np.float64)
    dense = f.to_dense()
    signal = noise = 0.0
    for start in range(0, len(matrix), _ROWS_AT_ONCE):
        A = matrix[start : start + _ROWS_AT_ONCE].astype(np.float64)
        E = A - dense[start : start + _ROWS_AT_ONCE]
        signal += float(np.vdot(A @ S, A))
        noise += float(np.vdot(E @ S, E))
    if noise <= 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
