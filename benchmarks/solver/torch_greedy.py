"""DiBA-Greedy written with vectorised PyTorch: what the solve benchmark compares the C++ solver with.

The same algorithm, start, order of steps and stopping rule as diba/solvers/greedy.py, in float32 on
dense tensors, every flip step batched over the rows that still improve.
"""

from __future__ import annotations

import torch

THRESHOLD = 2.0**-20  # as in cpp/src/kernels/kernels.hpp


def flip_rows(
    H: torch.Tensor, G: torch.Tensor, d: torch.Tensor, B: torch.Tensor, signs: bool, drop_finished: bool
) -> float:
    """Best flip of every row that still improves, again and again; changes B, returns the decrease.

    ``drop_finished`` copies the rows that still improve together once others are done; without it every
    sweep tests all rows.
    """
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
        if not bool(improves.any()):
            break
        if drop_finished and not bool(improves.all()):
            B[rows] = B_rows
            G_rows, B_rows, d_rows = G_rows[improves], B_rows[improves], d_rows[improves]
            rows, best, bit, sign = rows[improves], best[improves], bit[improves], sign[improves]
            improves = improves[improves]
        change = step * improves * sign.gather(1, bit[:, None])[:, 0]
        G_rows = G_rows - (change * d_rows)[:, None] * H[bit]
        B_rows = B_rows.scatter_add(1, bit[:, None], change[:, None])
        decrease += float((improves * best).double().sum())
    B[rows] = B_rows
    return decrease


def solve(
    A: torch.Tensor,
    B1: torch.Tensor,
    B2: torch.Tensor,
    signs: bool,
    max_iter: int,
    tol: float,
    drop_finished: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(d1, B1, d2, B2, d3) from the start B1 (m, k), B2 (k, n)."""
    energy = float(A.double().square().sum())
    left, right = B1.clone(), B2.T.clone()
    d1, d3 = torch.ones(A.shape[0]), torch.ones(A.shape[1])
    d2 = fit_inner(A, left, d1, right, d3)
    objective = float(residual(A, left, d1, d2, right, d3).double().square().sum())
    for _ in range(max_iter):
        before = objective
        d3 = fit_scale(A.T, right, left * d1[:, None] * d2)
        d2 = fit_inner(A, left, d1, right, d3)
        d1 = fit_scale(A, left, right * d3[:, None] * d2)
        R = residual(A, left, d1, d2, right, d3)
        objective = float(R.double().square().sum())
        X = right * d3[:, None] * d2
        objective -= flip_rows(X.T @ X, R @ X, d1, left, signs, drop_finished)
        R = residual(A, left, d1, d2, right, d3).T
        X = left * d1[:, None] * d2
        objective -= flip_rows(X.T @ X, R @ X, d3, right, signs, drop_finished)
        if before - objective <= tol * before or objective <= 1e-11 * energy:
            break
    return d1, left, d2, right.T, d3


def residual(A, left, d1, d2, right, d3) -> torch.Tensor:
    """A - D1 B1 D2 B2 D3."""
    return A - (left * d1[:, None] * d2) @ (right * d3[:, None]).T


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
