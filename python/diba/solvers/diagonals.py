"""Closed-form least squares for the inner diagonal, from Gram matrices and correlations only.

The model is ``A ~ L diag(d2) R'`` with ``L = D1 B1`` (m x k) and ``R = D3 B2'`` (n x k).
Every objective enters through Gram matrices and correlations, so a weighted one uses the
same functions (method: Ono, "DiBA", arXiv 2605.05994). The scales of rows and columns are
fitted where their residuals are made: ``residual_correlations`` in cpp/include/diba/greedy.hpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["best_inner_scale", "inner_objective", "weighted_column_products"]

_RIDGE = 1e-7  # of the mean curvature: the rounding of float32 Gram matrices
_BLOCK = 128  # rows that are added in float32


def weighted_column_products(
    scale: NDArray[np.float32], entries: NDArray[np.float32], correlations: NDArray[np.float32]
) -> NDArray[np.float64]:
    """``diag(B' diag(scale) T)`` for entries B and correlations T, shape (rows, k) each: float64 over blocks of rows."""
    total = np.zeros(entries.shape[1])
    for first in range(0, scale.size, _BLOCK):
        part = slice(first, first + _BLOCK)
        total += scale[part] @ (entries[part] * correlations[part])
    return total


def inner_objective(
    d2: NDArray[np.float64], gram: NDArray[np.float64], correlations: NDArray[np.float64], energy: float
) -> float:
    """``|A - L diag(d2) R'|^2`` from ``(L'L) o (R'R)``, ``diag(L'A R)`` and ``|A|^2``."""
    return energy - 2.0 * float(d2 @ correlations) + float(d2 @ gram @ d2)


def best_inner_scale(
    gram: NDArray[np.float64], correlations: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The d2 that minimises the objective: solves ``((L'L) o (R'R)) d2 = diag(L'A R)``.

    Args:
        gram: ``(L'L) o (R'R)``, shape (k, k), symmetric positive semidefinite.
        correlations: ``diag(L'A R)``, shape (k,).

    Returns:
        d2, shape (k,); 0 for components with no curvature. Dependent components share their
        weight: a ridge far below the data keeps the system regular.
    """
    d2 = np.zeros_like(correlations)
    used = np.flatnonzero(gram.diagonal() > 0)
    if used.size == 0:
        return d2
    system = gram[np.ix_(used, used)]
    ridge = _RIDGE * float(system.diagonal().mean())
    system.flat[:: used.size + 1] += ridge
    d2[used] = np.linalg.solve(system, correlations[used])
    return d2
