"""Sign factors by ADMM, both sides at once, with an optional balance that 0/1 factors need.

The problem is ``A ~ L R'`` with L and R in the set { signs o rank one }, which is exactly
``D1 S1 D2 S2 D3``. Each outer step solves both sides from the *previous* iterate, one linear solve
and one projection per side, while the penalty rises from 0.1 to 1 (a Jacobi form, with a long ramp,
of the alternating method of Boza and Macko, "Double binary factorization", arXiv 2505.11076).

One side against the other, X, with unit columns: ``min |A - Y X'|^2`` over Y in the set, by

    Y = (A X + rho (Z - U)) (X'X + ridge + rho)^-1,   Z = project(Y + U),   U = U + Y - Z.

X is a sign matrix with one scale per row, so that A X and X'X are packed products.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .. import _core
from ..bits import BitMatrix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .._check import Alphabet

__all__ = ["Admm"]

_DIVERGED = 1e8  # times |A|^2
_RIDGE = 0.03  # of the Gram matrix's diagonal, as published
_FIRST_PENALTY = 0.1
_SETTLED = 3  # last steps at full penalty
_TINY = float(np.finfo(np.float32).tiny)
_POWER_STEPS = 5  # of the first projection; later ones start from the step before


class SignSide:
    """One factor ``diag(u) S diag(v)``, shape (rows, k), with its ADMM variables.

    Args:
        A: This side's rows against the other's, float32, shape (rows, p).
        k: Inner dimension.
        random: Source of the start.
        balance: Weights w (k,) of the penalty ``(w . y)^2`` on every row y of Y; None for none.
        threads: Threads of the bit kernels.
    """

    def __init__(
        self,
        A: NDArray[np.float32],
        k: int,
        random: np.random.Generator,
        balance: NDArray[np.float32] | None,
        threads: int,
    ) -> None:
        self.rows = rows = A.shape[0]
        self.A = _core.TiledMatrix(A)  # multiplied from its rows: correlations of the other side
        self.k = k
        self.threads = threads
        self.balance = balance
        self.inner = np.ones(k, dtype=np.float32)  # v
        self.signed = random.standard_normal((rows, k), dtype=np.float32)  # Y + U before the projection
        self.words = np.empty((rows, -(-k // 64)), dtype=np.uint64)
        self._columns = np.empty((k, -(-rows // 64)), dtype=np.uint64)
        self.norms = np.ones(k, dtype=np.float32)  # of the other side's columns when v was fitted
        self.project(_POWER_STEPS)
        self.signed = self.projection()  # the dual U starts at zero

    def project(self, steps: int) -> None:
        """Signs of Y + U times the rank-one fit u v' of its magnitudes, by power iteration from v."""
        magnitudes = np.abs(self.signed)
        for _ in range(steps):
            self.outer = magnitudes @ self.inner
            self.outer /= max(float(np.linalg.norm(self.outer)), _TINY)
            self.inner = self.outer @ magnitudes
        _core.pack(self.signed, self.words, self.threads)
        _core.transpose(self.words, self.k, self._columns)

    def column_norms(self) -> NDArray[np.float32]:
        """Of this factor, in the units of A: v was fitted against unit columns of the other one."""
        return _divide(self.inner, self.norms)

    def projection(self) -> NDArray[np.float32]:
        """Z = diag(u) S diag(v), dense."""
        dense = np.empty(self.signed.shape, dtype=np.float32)
        _core.unpack(self.words, self.k, -1.0, 1.0, dense, self.threads)
        dense *= self.outer[:, None]
        dense *= self.inner
        return dense

    def unit_gram(self) -> NDArray[np.float32]:
        """X'X for X = diag(u) S with u of length one, shape (k, k): ones on the diagonal."""
        gram = np.empty((self.k, self.k), dtype=np.float32)
        _core.gram(self._columns, self.rows, np.square(self.outer), True, gram, self.threads)
        return gram

    def unit_correlations(self, p: int) -> NDArray[np.float32]:
        """A'X for the same X, shape (p, k)."""
        out = np.empty((p, self.k), dtype=np.float32)
        _core.correlate(self._columns, self.A, self.outer, True, out, self.threads)
        return out

    def advance(
        self,
        gram: NDArray[np.float32],
        correlations: NDArray[np.float32],
        norms: NDArray[np.float32],
        rho: float,
    ) -> None:
        """One ADMM step against the other side X, given X'X, A X and the norms X had before scaling."""
        ratio = _divide(norms, self.norms)
        projection = self.projection()
        projection *= ratio
        dual = self.signed
        dual *= ratio
        dual -= projection
        target = projection
        target -= dual
        target *= np.float32(rho)
        target += correlations
        system = gram.copy()
        if self.balance is not None:
            system += np.outer(self.balance, self.balance)
        system.flat[:: self.k + 1] += np.float32(_RIDGE + rho)
        self.signed = target @ np.linalg.inv(system)
        self.signed += dual
        self.norms = norms
        self.inner *= ratio
        self.inner /= max(float(np.linalg.norm(self.inner)), _TINY)
        self.project(1)


class Iterate(NamedTuple):
    """A projected iterate: all that the result needs of it."""

    objective: float
    left: NDArray[np.uint64]
    d1: NDArray[np.float32]
    right: NDArray[np.uint64]
    d3: NDArray[np.float32]


class Admm:
    """The state of one run on A (m, n), float32, of magnitudes up to about 1.

    Args:
        A: Matrix to factor.
        k: Inner dimension.
        seed: Of the normal start.
        balance: Weight lambda of the balance penalty; 0 for sign factors, positive where the result is
            to become 0/1 factors.
        threads: Threads of the bit kernels.

    Attributes:
        objective: ``|A - L R'|^2`` of the iterate last yielded.
        best: The best iterate so far: objective, words of S1 (m, .) and S2' (n, .), d1, d3.
    """

    def __init__(self, A: NDArray[np.float32], k: int, seed: int, balance: float, threads: int) -> None:
        random = np.random.default_rng(seed)
        self.energy = _core.energy(A)
        self._unit = np.float32(np.sqrt(self.energy / A.size) or 1.0)  # rms of A
        scaled = A / self._unit
        # The 0/1 factors give component j the sign (-1)^j, which goes into S1. Then rows of S1 have to
        # balance under weights of one, and columns of S2 under alternating ones.
        weight = np.float32(np.sqrt(balance))
        weights = (np.full(k, weight), weight * _alternating(k)) if balance else (None, None)
        self.left = SignSide(scaled, k, random, weights[0], threads)
        self.right = SignSide(np.ascontiguousarray(scaled.T), k, random, weights[1], threads)
        self.objective = math.inf
        self.best = self._iterate()

    def _iterate(self) -> Iterate:
        left, right = self.left, self.right
        return Iterate(self.objective, left.words.copy(), left.outer, right.words.copy(), right.outer)

    def iterate(self, steps: int) -> Iterator[int]:
        """Run the outer steps, yielding how many are done: 0 for the start, and after each.

        Steps from the previous iterate may diverge where k is far beyond what A needs: the run then ends.
        """
        left, right = self.left, self.right
        for step in range(steps + 1):
            grams = left.unit_gram(), right.unit_gram()
            correlations = right.unit_correlations(left.rows), left.unit_correlations(right.rows)
            norms = left.column_norms(), right.column_norms()
            self._measure(correlations[0], grams, norms)
            if self.objective < self.best.objective:
                self.best = self._iterate()
            if not self.objective <= _DIVERGED * self.energy:
                break
            yield step
            if step < steps:
                ramp = min(1.0, step / max(1, steps - _SETTLED))
                rho = _FIRST_PENALTY + (1.0 - _FIRST_PENALTY) * ramp
                left.advance(grams[1], correlations[0], norms[1], rho)
                right.advance(grams[0], correlations[1], norms[0], rho)

    def _measure(
        self,
        correlations: NDArray[np.float32],
        grams: tuple[NDArray[np.float32], NDArray[np.float32]],
        norms: tuple[NDArray[np.float32], NDArray[np.float32]],
    ) -> None:
        """|A|^2 - 2 <L R', A> + |L R'|^2, all of it from what the next step needs anyway."""
        size = norms[0] * norms[1]  # of the components
        along = float(np.vdot(self.left.projection(), correlations * _divide(norms[1], self.left.norms)))
        square = float(size @ (grams[0] * grams[1]) @ size)
        self.objective = max(self.energy + float(self._unit) ** 2 * (square - 2 * along), 0.0)

    def factors(
        self, alphabet: Alphabet
    ) -> tuple[NDArray[np.float32], BitMatrix, BitMatrix, NDArray[np.float32]]:
        """d1, B1 (m x k), B2 (k x n), d3: signs as they are, or their 0/1 form.

        With ``S = 2 B - 1``, ``S1 D2 S2 = 4 B1 D2 B2`` but for three terms that vanish where the
        factors balance (``1'd2 = 0``, ``S1 d2 = 0``, ``d2'S2 = 0``): what the penalty is for.
        """
        _, left, d1, right, d3 = self.best
        k = self.left.k
        if alphabet == "binary":
            odd = BitMatrix.from_dense((np.arange(k) % 2)[None, :], "binary")
            left = left ^ odd.words
        return d1, BitMatrix(left, k, alphabet), BitMatrix(right, k, alphabet).T, d3


def _alternating(k: int) -> NDArray[np.float32]:
    return np.where(np.arange(k) % 2, -1, 1).astype(np.float32)


def _divide(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """a / b, and 0 for components that have died."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
