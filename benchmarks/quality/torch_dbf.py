"""Double binary factorization as published, in PyTorch: the reference of the quality benchmark.

Boza and Macko, "Double binary factorization", arXiv 2505.11076, with the counts of the published notebooks:
260 outer steps, each an ADMM of three projections for one side and then for the other. It is written to be
fast on a CPU: one Cholesky factorization per side and distinct penalty, whichever of triangular solves and
an explicit inverse is cheaper, no solve or pass whose result is not used, every tensor contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Factors", "solve"]

OUTER, INNER = 260, 3
POWER_STEPS = 5
RIDGE = 0.03  # as a share of the mean of the Gram matrix's diagonal
SETTLED = 3  # last outer steps at full penalty
TINY = 1e-12


@dataclass
class Factors:
    """``A ~ D1 S1 D2 S2 D3``; diagonals (m), (k), (n), signs (m, k) and (k, n), all float32."""

    d1: torch.Tensor
    S1: torch.Tensor
    d2: torch.Tensor
    S2: torch.Tensor
    d3: torch.Tensor


class Side:
    """One factor ``Z = diag(u) S diag(v)``, shape (rows, k), and the dual U of its ADMM."""

    def __init__(self, rows: int, k: int, random: torch.Generator) -> None:
        self.Z = torch.randn(rows, k, generator=random)
        self.v = torch.linalg.vector_norm(self.Z, dim=0)  # u has unit length: v holds the columns' norms
        self.X = self.Z / self.v  # diag(u) S, the unit columns that the other side is solved against
        self.U = torch.zeros(rows, k)
        self.u = torch.zeros(rows)
        self._target, self._solved, self._correlations = (torch.empty(rows, k) for _ in range(3))

    def fit(self, W: torch.Tensor, X: torch.Tensor, first_penalty: float, inner: int) -> None:
        """``min |W - Z X'|^2`` from the present Z and U; W is (rows, p), X (p, k) has unit columns."""
        gram = X.T @ X
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        correlations = torch.mm(W, X, out=self._correlations)
        # The first penalty serves one solve; penalty 1 the others, or all of them once the ramp is over.
        later = Solver(gram, 1.0, W.shape[0], inner - (first_penalty < 1))
        first = later if first_penalty == 1 else Solver(gram, first_penalty, W.shape[0], 1)
        for step in range(inner):
            target = torch.sub(self.Z, self.U, out=self._target)
            if step == 0:
                target *= first_penalty
            M = (later if step else first)(target.add_(correlations), self._solved)
            self.project(M.add_(self.U))
            torch.sub(M, self.Z, out=self.U)

    def project(self, M: torch.Tensor) -> None:
        """SVID: signs of M times the rank-one fit u v' of its magnitudes."""
        magnitudes = torch.abs(M, out=self._target)
        v = torch.ones(M.shape[1])
        for _ in range(POWER_STEPS):
            u = torch.mv(magnitudes, v)
            u /= torch.linalg.vector_norm(u) + TINY
            v = torch.mv(magnitudes.T, u)  # needs no unit length: u gets one, and this v is the fit for it
        self.u, self.v = u, v
        torch.sign(M, out=self.X).mul_(u[:, None])
        torch.mul(self.X, v, out=self.Z)


class Solver:
    """``T (gram + penalty)^-1`` for matrices T of so many rows, to be used so many times."""

    def __init__(self, gram: torch.Tensor, penalty: float, rows: int, uses: int) -> None:
        system = gram.clone()
        system.diagonal().add_(penalty)
        factor = torch.linalg.cholesky(system)
        # Measured: an inverse and products are faster than triangular solves for this many rows.
        self.inverted = uses * rows > 2 * gram.shape[0]
        self.matrix = torch.cholesky_inverse(factor) if self.inverted else factor

    def __call__(self, target: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The solution, in ``out`` or in memory of its own."""
        if self.inverted:
            return torch.mm(target, self.matrix, out=out)
        return torch.cholesky_solve(target.T, self.matrix).T  # contiguous


def solve(A: torch.Tensor, k: int, seed: int = 0, outer: int = OUTER, inner: int = INNER) -> Factors:
    """Factor A (m, n), float32, with inner dimension k; the last iterate, its diagonals not fitted again."""
    m, n = A.shape
    if m >= n:  # as published: the shorter side is solved first
        f = solve_wide(A.T.contiguous(), k, seed, outer, inner)
        return Factors(f.d3, f.S2.T, f.d2, f.S1.T, f.d1)
    return solve_wide(A, k, seed, outer, inner)


@torch.inference_mode()
def solve_wide(A: torch.Tensor, k: int, seed: int, outer: int, inner: int) -> Factors:
    random = torch.Generator().manual_seed(seed)
    scale = A.std()
    W = A / scale
    Wt = W.T.contiguous()
    left, right = Side(W.shape[0], k, random), Side(W.shape[1], k, random)
    for step in range(outer):
        penalty = min(1.0, step / max(1, outer - SETTLED)) ** 3
        left.fit(W, right.X, penalty, inner)
        right.fit(Wt, left.X, penalty, inner)
    # The right side was fitted last, against unit columns: the product is X of the left, Z of the right.
    one = torch.ones(())
    signs = [torch.copysign(one, side.X) for side in (left, right)]
    return Factors(left.u, signs[0], scale * right.v, signs[1].T, right.u)
