"""DiBA-Greedy written with vectorised PyTorch: what benchmarks/solve.py compares the C++ solver with.

The same algorithm, start, order of steps and stopping rule as diba/solvers/greedy.py, in float32 on
dense tensors, every flip step batched over the rows that still improve.
"""

from __future__ import annotations

import torch

THRESHOLD = 2.0**-20  # as in cpp/include/diba/kernels.hpp


def flip_rows(H: torch.Tensor, G: torch.Tensor, d: torch.Tensor, B: torch.Tensor, signs: bool) -> float:
    """Best flip of every row that still improves, again and again; changes B, returns the decrease."""
    step = 2.0 if signs else 1.0
    diagonal = H.diagonal()
    decrease = 0.0
    rows = torch.arange(B.shape[0])
    G_rows, B_rows, d_rows = G, B.clone(), d
    while rows.numel():
        sign = -B_rows if signs else 1 - 2 * B_rows
        moved = (step * d_rows)[:, None]
        gains = sign * (2 * moved * G_rows) - moved.square() * diagonal
        best, bit = gains.max(dim=1)
        improves = best > THRESHOLD * moved[:, 0].square() * diagonal.max()
        if not bool(improves.all()):
            B[rows] = B_rows
            G_rows, B_rows, d_rows = G_rows[improves], B_rows[improves], d_rows[improves]
            rows, best, bit, sign = rows[improves], best[improves], bit[improves], sign[improves]
            if not rows.numel():
                break
        change = step * sign.gather(1, bit[:, None])[:, 0]
        G_rows = G_rows - (change * d_rows)[:, None] * H[bit]
        B_rows = B_rows.scatter_add(1, bit[:, None], change[:, None])
        decrease += float(best.double().sum())
    return decrease


def solve(A: torch.Tensor, B1: torch.Tensor, B2: torch.Tensor, signs: bool, max_iter: int, tol: float):
    """(d1, B1, d2, B2, d3, objective, iterations) from the start B1 (m, k), B2 (k, n)."""
    energy = float(A.double().square().sum())
    left, right = B1.clone(), B2.T.clone()
    d1, d3 = torch.ones(A.shape[0]), torch.ones(A.shape[1])
    d2 = fit_inner(A, left, d1, right, d3)
    objective = float((A - (left * d1[:, None] * d2) @ (right * d3[:, None]).T).double().square().sum())
    for iteration in range(1, max_iter + 1):
        before = objective
        d3 = fit_scale(A.T, right, left * d1[:, None] * d2)
        d1 = fit_scale(A, left, right * d3[:, None] * d2)
        d2 = fit_inner(A, left, d1, right, d3)
        R = A - (left * d1[:, None] * d2) @ (right * d3[:, None]).T
        objective = float(R.double().square().sum())
        objective -= flip_side(R, left, d1, right * d3[:, None] * d2, signs)
        R = A - (left * d1[:, None] * d2) @ (right * d3[:, None]).T
        objective -= flip_side(R.T, right, d3, left * d1[:, None] * d2, signs)
        if before - objective <= tol * before or objective <= 1e-11 * energy:
            break
    return d1, left, d2, right.T, d3, objective, iteration


def fit_scale(A: torch.Tensor, B: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """s_i = <a_i, p_i> / |p_i|^2 with p_i = b_i X'."""
    P = B @ X.T
    return (A * P).sum(1) / P.square().sum(1)


def fit_inner(A, left, d1, right, d3) -> torch.Tensor:
    """Solves ((L'L) o (R'R)) d2 = diag(L'A R)."""
    L, R = left * d1[:, None], right * d3[:, None]
    gram = ((L.T @ L) * (R.T @ R)).double()
    gram += 1e-7 * gram.diagonal().mean() * torch.eye(gram.shape[0], dtype=torch.float64)
    correlations = (L * (A @ R)).double().sum(0)
    return torch.linalg.solve(gram, correlations).float()


def flip_side(R: torch.Tensor, B: torch.Tensor, d: torch.Tensor, X: torch.Tensor, signs: bool) -> float:
    """Flips the bits of B (rows, k) against X (p, k), given the residual R (rows, p)."""
    return flip_rows(X.T @ X, R @ X, d, B, signs)
