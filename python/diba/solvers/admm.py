"""Sign factors by ADMM with a long ramp, and an optional balance that 0/1 factors need.

The problem is ``A ~ L R'`` with L and R in the set { signs o rank one }, which is exactly
``D1 S1 D2 S2 D3``. Each outer step makes one linear solve and one projection per side, while the
penalty rises geometrically to 1; at higher rates both sides are solved from the *previous* iterate.
(Boza and Macko, "Double binary factorization", arXiv 2505.11076, alternate with three projections a
solve and a short ramp: ``published=True`` runs that.)

One side against the other, X, with unit columns: ``min |A - Y X'|^2`` over Y in the set, by

    Y = (A X + rho (Z - U)) (X'X + ridge + rho)^-1,   Z = project(Y + U),   U = U + Y - Z.

X is a sign matrix with one scale per row, so that A X and X'X are packed products; the rest of a step is one
pass of compiled code over the rows. No BLAS or LAPACK: a seed gives the same factors on every processor and
with any number of threads.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .. import _core
from ..bits import BitMatrix
from .side import Side

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .._internal.check import Alphabet
    from .schedule import Deadline

__all__ = ["PUBLISHED_STEPS", "Admm"]

PUBLISHED_STEPS = 260
_PUBLISHED_INNER = 3
_DIVERGED = 1e8  # times |A|^2
_RIDGE = 0.03  # of the Gram matrix's diagonal, as published
_FIRST_PENALTY = 0.2
_EXCESS = 16  # power of two that a component's norms may grow by
_SEQUENTIAL_BITS = 1.4  # per weight: sides solved one after the other are better up to about here, see docs
_SETTLED = 3  # last steps at full penalty
_POWER_STEPS = 5  # of the first projection; later ones start from the step before


def ramp(part: float) -> float:
    """The penalty after that part of the steps: geometric, to 1."""
    return math.pow(_FIRST_PENALTY, 1 - part)


class SignSide(Side):
    """One factor ``diag(u) S diag(v)``, shape (rows, k), with its ADMM variables.

    Args:
        A: See :class:`Side`; so are ``threads``, ``transposed`` and ``unit``.
        k: Inner dimension.
        random: Source of the start.
        balance: Weights w (k,) of the penalty ``(w . y)^2`` on every row y of Y; None for none.

    Attributes:
        scale: u, of length one.
        inner: v.
        state: Y + U before the projection.
        norms: Of the other side's columns when v was fitted.
    """

    def __init__(
        self,
        A: NDArray[np.float32],
        k: int,
        random: np.random.Generator,
        balance: NDArray[np.float32] | None,
        threads: int,
        *,
        transposed: bool = False,
        unit: float = 1.0,
    ) -> None:
        rows = A.shape[1 if transposed else 0]
        self.state = random.standard_normal((rows, k), dtype=np.float32)
        words = np.empty((rows, -(-k // 64)), dtype=np.uint64)
        _core.pack(self.state, words, threads)
        signs = BitMatrix(words, k, "sign", copy=False)
        super().__init__(signs, None, A, threads, transposed=transposed, unit=unit)
        self.balance = balance
        self.inner = np.ones(k, dtype=np.float32)
        self.norms = np.ones(k, dtype=np.float32)
        self._tiles = _core.TiledMatrix(k, k)
        self._inverse = _core.QuantizedMatrix(k)
        self.refine(_POWER_STEPS)
        self.state = self.projection()  # the dual U starts at zero

    def refine(self, steps: int) -> None:
        """The rank-one fit u v' of |Y + U|, by power iteration from v."""
        for _ in range(steps):
            _core.fit_magnitudes(self.scale, self.inner, self.state)

    def column_norms(self) -> NDArray[np.float32]:
        """Of this factor, in the units of A: v was fitted against unit columns of the other one."""
        return _divide(self.inner, self.norms)

    def projection(self) -> NDArray[np.float32]:
        """Z = diag(u) S diag(v), dense."""
        dense = self.dense()
        dense *= self.scale[:, None]
        dense *= self.inner
        return dense

    def unit_products(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(X'X (k, k), A'X (p, k)) for X = diag(u) S with u of length one; overwritten by the next call."""
        self.bits_changed()
        return self.gram, self.correlations

    def advance(
        self,
        gram: NDArray[np.float32],
        correlations: NDArray[np.float32],
        norms: NDArray[np.float32],
        penalties: tuple[float, ...],
        power_steps: int = 1,
    ) -> float:
        """ADMM steps against the other side X, given X'X, A X and the norms X had before scaling.

        Returns ``<Z diag(norms) X', A>`` of the iterate before the steps.
        """
        size = norms * self.column_norms()
        ratio = _divide(norms, self.norms)
        self.norms = norms
        along = math.nan
        for number, penalty in enumerate(penalties):
            if number == 0 or penalty != penalties[number - 1]:
                _core.invert_shifted(
                    gram, _RIDGE + penalty, self.balance, self._tiles, self._inverse, self.threads
                )
            product = _core.step_sign_side(
                self.words,
                self.scale,
                self.inner,
                self.state,
                correlations,
                self._inverse,
                ratio,
                size,
                penalty,
                self.threads,
            )
            if power_steps > 1:
                self.refine(power_steps - 1)
            if number == 0:
                along = product
                ratio = np.ones_like(ratio)
        return along


class Iterate(NamedTuple):
    """A projected iterate: all that the result needs of it."""

    objective: float
    left: NDArray[np.uint64]
    d1: NDArray[np.float32]
    size: NDArray[np.float32]
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
        threads: Threads of the compiled code.
        published: The recipe of DBF: sides after one another, three projections for each solve, penalty
            rising with the third power from 0.

    Attributes:
        objective: ``|A - L R'|^2`` of the iterate last measured.
        best: The best iterate so far.
        pace: Seconds of the last whole step.
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
    ) -> None:
        random = np.random.default_rng(seed)
        m, n = A.shape
        self.energy = _core.energy(A)
        self.published = published
        self.sequential = published or k * (m + n) <= _SEQUENTIAL_BITS * m * n
        self._unit = np.float32(np.sqrt(self.energy / A.size) or 1.0)  # rms of A
        # The 0/1 factors give component j the sign (-1)^j, which goes into S1. Then rows of S1 have to
        # balance under weights of one, and columns of S2 under alternating ones.
        weight = np.float32(np.sqrt(balance))
        weights = (np.full(k, weight), weight * _alternating(k)) if balance else (None, None)
        unit = float(self._unit)
        self.left = SignSide(A, k, random, weights[0], threads, unit=unit)
        self.right = SignSide(A, k, random, weights[1], threads, transposed=True, unit=unit)
        self.objective = math.inf
        self.pace = 0.0
        self.best = self._iterate(np.zeros(k, dtype=np.float32))

    def iterate(self, steps: int, deadline: Deadline) -> Iterator[int]:
        """Run the outer steps, yielding how many are done: 0 for the start, and after each.

        The penalty rises faster where it would not reach 1 by the deadline. Steps from the previous iterate
        may diverge where k is far beyond what A needs: the run then ends.
        """
        used, pace, began = deadline.part_used(), 0.0, time.perf_counter()
        for step in range(steps + 1):
            of_time = (deadline.part_used() - used) / max(1 - used, 1e-9)
            part = max(step / max(1, steps - _SETTLED), of_time)
            last = step == steps or deadline.over() or not deadline.leaves(pace)
            if self.published:
                penalties = (min(1.0, part) ** 3,) + (1.0,) * (_PUBLISHED_INNER - 1)
                self._step(penalties, _POWER_STEPS, last)
            else:
                self._step((ramp(min(1.0, part)),), 1, last)
            if not self.objective <= _DIVERGED * self.energy:
                break
            yield step
            if last:
                break
            self.pace = pace = time.perf_counter() - began
            began += pace

    def _step(self, penalties: tuple[float, ...], power_steps: int, last: bool) -> None:
        """Measure the iterate and, unless it is the last, replace it."""
        left, right = self.left, self.right
        self._balance_norms()
        gram_right, against_right = right.unit_products()
        norms_right = right.column_norms()
        if self.sequential and not last:
            left.advance(gram_right, against_right, norms_right, penalties, power_steps)
        gram_left, against_left = left.unit_products()
        norms_left = left.column_norms()
        iterate = self._iterate(norms_left * norms_right)
        if last:
            along = _core.product_along(left.words, True, left.scale, against_right, iterate.size)
        elif self.sequential:
            along = right.advance(gram_left, against_left, norms_left, penalties, power_steps)
        else:
            along = left.advance(gram_right, against_right, norms_right, penalties, power_steps)
            right.advance(gram_left, against_left, norms_left, penalties, power_steps)
        self._keep(iterate, along, (gram_left, gram_right))

    def _balance_norms(self) -> None:
        """Move a power of two between the norms of both sides, without rounding.

        Only their products count: over a long run one side's would grow out of range, and the other's vanish.
        """
        left, right = self.left, self.right
        excess = np.frexp(left.norms)[1]
        if np.abs(excess).max() > _EXCESS:
            left.norms = np.ldexp(left.norms, -excess)
            right.norms = np.ldexp(right.norms, excess)

    def _keep(
        self, iterate: Iterate, along: float, grams: tuple[NDArray[np.float32], NDArray[np.float32]]
    ) -> None:
        """|A|^2 - 2 <L R', A> + |L R'|^2 of an iterate; the best is kept."""
        square = _core.product_energy(*grams, iterate.size)
        self.objective = max(self.energy + float(self._unit) ** 2 * (square - 2 * along), 0.0)
        if self.objective < self.best.objective:
            self.best = iterate._replace(objective=self.objective)

    def _iterate(self, size: NDArray[np.float32]) -> Iterate:
        left, right = self.left, self.right
        return Iterate(
            math.inf, left.words.copy(), left.scale.copy(), size, right.words.copy(), right.scale.copy()
        )

    def factors(
        self, alphabet: Alphabet
    ) -> tuple[NDArray[np.float32], BitMatrix, NDArray[np.float32], BitMatrix, NDArray[np.float32]]:
        """d1, B1 (m x k), d2, B2 (k x n), d3: signs as they are, or their 0/1 form.

        With ``S = 2 B - 1``, ``S1 D2 S2 = 4 B1 D2 B2`` but for three terms that vanish where the
        factors balance (``1'd2 = 0``, ``S1 d2 = 0``, ``d2'S2 = 0``): what the penalty is for.
        """
        best = self.best
        k = self.left.k
        left, d2 = best.left, best.size * self._unit
        if alphabet == "binary":
            odd = BitMatrix.from_dense((np.arange(k) % 2)[None, :], "binary")
            left = left ^ odd.words
            d2 = 4 * d2 * _alternating(k)
        return best.d1, BitMatrix(left, k, alphabet), d2, BitMatrix(best.right, k, alphabet).T, best.d3


def _alternating(k: int) -> NDArray[np.float32]:
    return np.where(np.arange(k) % 2, -1, 1).astype(np.float32)


def _divide(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """a / b, and 0 for components that have died."""
    return np.divide(a, b, out=np.zeros_like(b), where=b > 0)
