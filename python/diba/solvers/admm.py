"""Sign factors by ADMM with a rising penalty, and the balance penalty that 0/1 factors need.

The problem is ``A ~ L R'`` where L and R are each a sign matrix times, entry by entry, a rank-one matrix,
which is the same as ``D1 S1 D2 S2 D3``. For one side Y, with the other side X scaled to columns of length
one, ADMM lowers ``|A - Y X'|^2`` over that set by

    Y = (A X + rho (Z - U)) (X'X + ridge + rho)^-1,   Z = project(Y + U),   U = U + Y - Z.

Each step makes one linear solve and one projection per side, while the penalty rho rises geometrically to 1.
At higher bits per weight both sides are solved from the *previous* iterate. ``published=True`` runs the
method of Boza and Macko, "Double binary factorization", arXiv 2505.11076: one side after the other, three
projections per solve, few steps.

X is a sign matrix with one scale per row, so A X and X'X are packed products; the rest of a step is one pass
of compiled code over the rows. No BLAS or LAPACK is called: a seed gives the same factors on every processor
and with any number of threads.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .. import _core
from ..bits import BitMatrix
from .sign_side import POWER_STEPS, SignSide, may_round

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .._internal.check import Alphabet
    from .schedule import Deadline

__all__ = ["PUBLISHED_STEPS", "Admm"]

PUBLISHED_STEPS = 260
_PUBLISHED_PROJECTIONS = 3
_DIVERGED = 1e8  # a run ends when its objective exceeds this many times |A|^2
_FIRST_PENALTY = 0.2
_EXCESS = 16  # norms of a component are scaled back when they leave 2^-16 to 2^16
_SEQUENTIAL_BITS = 1.4  # up to about this many bits per weight, solving one side after the other is better
_SETTLED = 3  # steps at the end with penalty 1


def ramp(part: float, first: float) -> float:
    """The penalty after this part of the steps: geometric, from the first to 1."""
    return math.pow(first, 1 - part)


class Iterate(NamedTuple):
    """A projected iterate: packed signs S1 and S2', diagonals, and the objective."""

    objective: float
    left: NDArray[np.uint64]
    d1: NDArray[np.float32]
    d2: NDArray[np.float32]
    right: NDArray[np.uint64]
    d3: NDArray[np.float32]


class Admm:
    """One ADMM run.

    Args:
        A: Matrix to factor, float32, shape (m, n), magnitudes up to about 1.
        k: Inner dimension.
        seed: Seed of the normal start.
        balance: Weight lambda of the balance penalty; positive if the result is to become 0/1 factors, else
            0.
        threads: Threads of the compiled code.
        published: Run DBF as published: one side after the other, three projections per solve, and a penalty
            that rises from 0 with the third power of the step.
        outer: d1 and d3 to keep, each of length one; None to fit them.

    Attributes:
        energy: ``|A|^2``.
        objective: ``|A - L R'|^2`` of the last iterate.
        best: The best iterate so far.
        pace: Seconds of the last complete step.
        first_penalty: Where the penalty begins.
    """

    def __init__(
        self,
        A: NDArray[np.float32],
        k: int,
        seed: int,
        balance: float,
        threads: int,
        *,
        published: bool = False,
        outer: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    ) -> None:
        random = np.random.default_rng(seed)
        m, n = A.shape
        square = _core.energy(A)
        self.published = published
        self.sequential = published or k * (m + n) <= _SEQUENTIAL_BITS * m * n
        self._unit = np.float32(np.sqrt(square / A.size) or 1.0)  # RMS of A
        # For 0/1 factors, component j gets the sign (-1)^j, which is moved into S1 (see factors). The balance
        # weights are then ones for rows of S1, and alternate in sign for columns of S2.
        weight = np.float32(np.sqrt(balance))
        weights = (np.full(k, weight), weight * _alternating(k)) if balance else (None, None)
        kept = (None, None) if outer is None else outer
        self.energy, self.left, self.right = self._sides(A, square, k, random, weights, kept, threads)
        self.first_penalty = _FIRST_PENALTY
        self.objective = math.inf
        self.pace = 0.0
        self.best = self._iterate(np.zeros(k, dtype=np.float32))

    def _sides(
        self,
        A: NDArray[np.float32],
        square: float,
        k: int,
        random: np.random.Generator,
        balance: tuple[NDArray[np.float32] | None, NDArray[np.float32] | None],
        outer: tuple[NDArray[np.float32] | None, NDArray[np.float32] | None],
        threads: int,
    ) -> tuple[float, SignSide, SignSide]:
        """(objective of the zero matrix, left side, right side); ``square`` is ``|A|^2``."""
        unit = float(self._unit)
        rounded = not self.published and may_round(A, k)
        left, right = (
            SignSide(
                A,
                k,
                random,
                balance[side],
                threads,
                transposed=side == 1,
                unit=unit,
                outer=outer[side],
                rounded=rounded,
            )
            for side in (0, 1)
        )
        return square, left, right

    def iterate(self, steps: int, deadline: Deadline) -> Iterator[int]:
        """Run the steps; yield the number done: 0 for the start, then after each.

        The penalty rises faster if it would not reach 1 by the deadline. If k is far larger than A needs,
        steps from the previous iterate may diverge; the run then ends.
        """
        used, began = deadline.part_used(), time.perf_counter()
        for step in range(steps + 1):
            time_used = (deadline.part_used() - used) / max(1 - used, 1e-9)
            part = min(1.0, max(step / max(1, steps - _SETTLED), time_used))
            last = step == steps or deadline.over() or not deadline.leaves(self.pace)
            if self.published:
                penalties = (part**3,) + (1.0,) * (_PUBLISHED_PROJECTIONS - 1)
                self._step(penalties, POWER_STEPS, last)
            else:
                self._step((ramp(part, self.first_penalty),), 1, last)
            if not self.objective <= _DIVERGED * self.energy:
                break
            yield step
            if last:
                break
            self.pace = time.perf_counter() - began
            began += self.pace

    def _step(self, penalties: tuple[float, ...], power_steps: int, last: bool) -> None:
        """Measure the iterate and, unless it is the last, make the next."""
        left, right = self.left, self.right
        self._rescale_norms()
        partner = right.as_partner()
        if self.sequential and not last:
            left.advance(*partner, penalties, power_steps)
        other = left.as_partner()
        iterate = self._iterate(left.column_norms() * right.column_norms())
        gram, against, norms = partner
        d2 = other[2] * norms
        if last:
            along = left.along(against, d2)
        elif self.sequential:
            along = right.advance(*other, penalties, power_steps)
        else:
            along = left.advance(*partner, penalties, power_steps)
            right.advance(*other, penalties, power_steps)
        square = left.energy_with(other[0], gram, d2)
        # |A|^2 - 2 <L R', A> + |L R'|^2
        self.objective = max(self.energy + float(self._unit) ** 2 * (square - 2 * along), 0.0)
        if self.objective < self.best.objective:
            self.best = iterate._replace(objective=self.objective)

    def _rescale_norms(self) -> None:
        """Move powers of two between the norms of both sides, which rounds nothing.

        Only the products of the norms matter; over a long run, one side's would overflow and the other's
        vanish.
        """
        left, right = self.left, self.right
        excess = left.excess()
        if np.abs(excess).max() > _EXCESS:
            left.shift(-excess)
            right.shift(excess)

    def _iterate(self, d2: NDArray[np.float32]) -> Iterate:
        left, right = self.left, self.right
        return Iterate(math.inf, *left.kept(), d2, *right.kept())

    def factors(
        self, alphabet: Alphabet
    ) -> tuple[NDArray[np.float32], BitMatrix, NDArray[np.float32], BitMatrix, NDArray[np.float32]]:
        """d1, B1 (m x k), d2, B2 (k x n), d3 of the best iterate, in either alphabet.

        For alphabet "binary", ``S = 2 B - 1`` gives ``S1 D2 S2 = 4 B1 D2 B2`` except for three terms that
        vanish for balanced factors (``1'd2 = 0``, ``S1 d2 = 0``, ``d2'S2 = 0``). The balance penalty makes
        them small.
        """
        best, k = self.best, self.left.k
        left, d2 = best.left, best.d2 * self._unit
        if alphabet == "binary":
            left = left ^ BitMatrix.from_dense((np.arange(k) % 2)[None, :], "binary").words
            d2 = 4 * d2 * _alternating(k)
        return best.d1, BitMatrix(left, k, alphabet), d2, BitMatrix(best.right, k, alphabet).T, best.d3


def _alternating(k: int) -> NDArray[np.float32]:
    """1, -1, 1, ... of length k."""
    return np.where(np.arange(k) % 2, -1, 1).astype(np.float32)
