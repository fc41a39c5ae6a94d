"""The greedy method in a few lines of NumPy: float64, dense, not packed; slow, and meant to be read.

It documents what the compiled solver computes, and its tests compare with it. The model is
``A ~ D1 B1 D2 B2 D3`` (Ono, "DiBA", arXiv 2605.05994) with entries 0/1 or -1/+1 in B1 (m, k) and B2 (k, n).
Diagonals are vectors: d1 (m,), d2 (k,), d3 (n,).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_flips", "best_inner_scale", "best_row_scale", "greedy", "objective", "reconstruct"]

Array = NDArray[np.float64]
Factors = tuple[Array, Array, Array, Array, Array]

FLIP_THRESHOLD = 2.0**-20  # kFlipThreshold of cpp/src/kernels/kernels.hpp
EXACT = 1e-11  # an objective below this share of |A|^2 is rounding error


def reconstruct(d1: Array, B1: Array, d2: Array, B2: Array, d3: Array) -> Array:
    """``D1 B1 D2 B2 D3``, shape (m, n)."""
    product: Array = (d1[:, None] * B1 * d2) @ (B2 * d3)
    return product


def objective(A: Array, factors: Factors) -> float:
    """``|A - D1 B1 D2 B2 D3|^2``, the squared Frobenius error."""
    return float(np.square(A - reconstruct(*factors)).sum())


def best_row_scale(A: Array, B: Array, C: Array) -> Array:
    """The d that minimises ``|A - diag(d) B C|^2``: ``d_i = <a_i, p_i> / |p_i|^2`` for rows p_i of B C.

    Args:
        A: Shape (rows, p).
        B: Shape (rows, k).
        C: Shape (k, p).

    Returns:
        d, shape (rows,); 0 where p_i is zero.
    """
    P = B @ C
    along: Array = (A * P).sum(axis=1)
    squared: Array = (P * P).sum(axis=1)
    scale: Array = np.divide(along, squared, out=np.zeros_like(along), where=squared > 0)
    return scale


def best_inner_scale(A: Array, L: Array, R: Array) -> Array:
    """The d that minimises ``|A - L diag(d) R|^2``: solves ``((L'L) o (R R')) d = diag(L' A R')``.

    Args:
        A: Shape (m, n).
        L: ``D1 B1``, shape (m, k).
        R: ``B2 D3``, shape (k, n).

    Returns:
        d, shape (k,): the minimiser of least norm if there are several; 0 for components that are not used.
    """
    gram = (L.T @ L) * (R @ R.T)
    best: Array = np.linalg.lstsq(gram, ((L.T @ A) * R).sum(axis=1), rcond=None)[0]
    return best


def best_flips(H: Array, G: Array, d: Array, B: Array, step: int) -> tuple[Array, Array, int, float]:
    """Lower ``sum_i |a_i - d_i b_i C|^2``: flip the best bit of each row until no flip lowers it.

    Flipping bit j of row i changes b_ij by s_j = step or -step and lowers the objective by exactly
    ``2 s_j d_i g_ij - (s_j d_i)^2 H_jj``; row i of G then changes by ``-s_j d_i H_j``. A flip is made if it
    lowers the objective by more than a threshold that covers the rounding of float32.

    Args:
        H: Gram matrix ``C C'``, shape (k, k).
        G: Correlations ``C r_i`` of the residuals ``r_i = a_i - d_i b_i C``, shape (rows, k).
        d: Row scales, shape (rows,).
        B: Entries, shape (rows, k).
        step: 1 for entries 0/1, 2 for -1/+1.

    Returns:
        B and G after the flips, the number of flips, and by how much the objective fell.
    """
    B, G, flips, decrease = B.copy(), G.copy(), 0, 0.0
    for i, (b, g) in enumerate(zip(B, G, strict=True)):  # b, g: rows of B, G, shape (k,)
        threshold = FLIP_THRESHOLD * (step * d[i]) ** 2 * H.diagonal().max()
        while True:
            s = np.where(b > 0, -step, step)
            gains = 2 * s * d[i] * g - (s * d[i]) ** 2 * H.diagonal()
            j = gains.argmax()
            if not gains[j] > threshold:
                break
            b[j] += s[j]
            g -= s[j] * d[i] * H[j]
            flips += 1
            decrease += gains[j]
    return B, G, flips, decrease


def greedy(A: Any, B1: Any, B2: Any, max_iter: int, tol: float) -> Factors:
    """DiBA-Greedy, Algorithm 1: fit the diagonals, flip bits of B1, then of B2, until progress stalls.

    Args:
        A: Shape (m, n).
        B1: Start, shape (m, k); entries 0/1, or -1/+1 if any entry of B1 or B2 is -1.
        B2: Start, shape (k, n).
        max_iter: Largest number of iterations.
        tol: Stop when an iteration lowers the objective by less than this share of it.

    Returns:
        d1, B1, d2, B2, d3.
    """
    A, B1, B2 = (np.array(x, dtype=np.float64) for x in (A, B1, B2))
    step = 1 - int(min(B1.min(), B2.min()))
    d1, d3 = np.ones(A.shape[0]), np.ones(A.shape[1])
    d2 = best_inner_scale(A, B1, B2)
    for _ in range(max_iter):
        before = objective(A, (d1, B1, d2, B2, d3))
        d3 = best_row_scale(A.T, B2.T, (d1[:, None] * B1 * d2).T)
        d2 = best_inner_scale(A, d1[:, None] * B1, B2 * d3)
        d1 = best_row_scale(A, B1, d2[:, None] * B2 * d3)
        B1 = _flip_rows(A, d1, B1, d2[:, None] * B2 * d3, step)
        B2 = _flip_rows(A.T, d3, B2.T, (d1[:, None] * B1 * d2).T, step).T
        after = objective(A, (d1, B1, d2, B2, d3))
        if before - after <= tol * before or after <= EXACT * (A * A).sum():
            break
    return d1, B1, d2, B2, d3


def _flip_rows(A: Array, d: Array, B: Array, C: Array, step: int) -> Array:
    return best_flips(C @ C.T, (A - d[:, None] * (B @ C)) @ C.T, d, B, step)[0]
