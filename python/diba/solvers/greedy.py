"""DiBA-Greedy, Algorithm 1 of Ono, "DiBA", arXiv 2605.05994.

Two steps alternate until the objective ``|A - D1 B1 D2 B2 D3|^2`` hardly falls any more; no step raises it:

1. fit the three diagonals, each in closed form;
2. flip bits in the rows of B1, then in the columns of B2, whenever that lowers the objective.

Both binary factors pose the same problem, since the columns of B2 are the rows of B2' for A'. A
:class:`Side` stands for either.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .. import _core
from ..bits import BitMatrix
from ..factorization import Factorization
from .schedule import NEVER
from .side import Side

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from .._internal.check import Alphabet
    from .schedule import Deadline

__all__ = ["Greedy"]

_WORK_PER_CALL = 1 << 30  # rows * k^2 of one C++ call, a fraction of a second: Ctrl-C waits for its end
_FIRST_ROWS = 16  # rows of the first call under a time limit
_CALL_SHARE = 0.01  # share of the time limit that each later call should take
_EXACT = 1e-11  # an objective below this share of |A|^2 is rounding error


class Subproblem(NamedTuple):
    """What flips of one side are tested with; C (k, p) is the other side times D2."""

    gram: NDArray[np.float32]  # C C', shape (k, k)
    residual: NDArray[np.float32]  # (A - diag(scale) B C) C', shape (rows, k)


class Greedy:
    """One greedy run. Each step is a method; they may be called in any order.

    Args:
        A: Matrix to factor, float32, shape (m, n), entries of magnitude up to about 1.
        b1: Start of B1, shape (m, k).
        b2: Start of B2, shape (k, n).
        threads: Threads of the compiled code.
        d1: Start of the row scales, shape (m,); None for ones.
        d2: Start of the inner scales, shape (k,); None to fit them to the rest.
        d3: Start of the column scales, shape (n,); None for ones.
        pairs: Beyond the published method: flip pairs of bits where no single flip lowers the objective, and
            give rows whose scale is 0 a new start.

    Attributes:
        energy: ``|A|^2``.
        objective: ``|A - D1 B1 D2 B2 D3|^2`` now.
        flips: Bits that the last iteration changed.
    """

    def __init__(
        self,
        A: NDArray[np.float32],
        b1: BitMatrix,
        b2: BitMatrix,
        threads: int,
        *,
        d1: NDArray[np.float32] | None = None,
        d2: NDArray[np.float32] | None = None,
        d3: NDArray[np.float32] | None = None,
        pairs: bool = False,
    ) -> None:
        self.energy = _core.energy(A)
        self.left = Side(b1, d1, A, threads)
        self.right = self._right_side(b2.T, d3, A, threads)
        self.d2 = np.zeros(b1.shape[1], dtype=np.float32)
        self.objective = self.energy
        self.flips = 0
        self._pairs = pairs
        self._threads = threads
        self._buffers = {side: np.empty((side.rows, side.k), np.float32) for side in (self.left, self.right)}
        self._rows_problem: Subproblem | None = None  # kept by fit_rows for flip_rows
        self._deadline = NEVER
        self._took: dict[str, float] = {}  # seconds of each step, by its name
        if d2 is None:
            self.fit_inner()
        else:
            self.d2[:] = d2
            self.objective = self._measure()

    def _right_side(
        self, bits: BitMatrix, scale: NDArray[np.float32] | None, A: NDArray[np.float32], threads: int
    ) -> Side:
        return Side(bits, scale, A, threads, transposed=True)

    # ------------------------------------------------------------ Algorithm 1

    def iterate(self, max_iter: int, tol: float, deadline: Deadline = NEVER) -> Iterator[int]:
        """Run iterations until one gains too little or time is up; yield the number done after each."""
        for iteration in range(1, max_iter + 1):
            if deadline.over():
                break
            before = self.objective
            self.sweep(deadline)
            yield iteration
            if before - self.objective <= tol * before or self.objective <= _EXACT * self.energy:
                break

    def sweep(self, deadline: Deadline = NEVER) -> None:
        """Make one iteration, or the steps of it that end in time."""
        self._deadline, self.flips = deadline, 0
        for step in self.steps():
            stops_in_time = step.__name__.startswith("flip")  # these look at the clock themselves
            if not deadline.leaves(0.0 if stops_in_time else self._took.get(step.__name__, 0.0)):
                break
            began = time.perf_counter()
            step()
            self._took[step.__name__] = time.perf_counter() - began

    def steps(self) -> tuple[Callable[[], None], ...]:
        """The steps of one iteration: d3, d2, d1, then bits of B1, then of B2."""
        return self.fit_columns, self.fit_inner, self.fit_rows, self.flip_rows, self.flip_columns

    def fit_rows(self) -> None:
        """Fit d1 in closed form."""
        self._rows_problem = self._subproblem(self.left, self.right, fit=True)
        self.left.scale_changed()

    def fit_columns(self) -> None:
        """Fit d3 in closed form."""
        self._subproblem(self.right, self.left, fit=True)
        self.right.scale_changed()
        self._rows_problem = None

    def fit_inner(self) -> None:
        """Fit d2 in closed form; left unchanged if rounding would make it worse."""
        began = time.perf_counter()
        objective = _core.fit_inner(
            self.left.gram,
            self.right.gram,
            self.right.correlations,
            self.left.words,
            self.left.signs,
            self.left.scale,
            self.energy,
            self.d2,
            self._threads,
        )
        self.objective = max(objective, 0.0)
        self._rows_problem = None
        self._took["fit_inner"] = time.perf_counter() - began

    def flip_rows(self) -> None:
        """Flip bits of B1, row by row."""
        self._flip(self.left, self._rows_problem or self._subproblem(self.left, self.right, fit=False))
        self._rows_problem = None

    def flip_columns(self) -> None:
        """Flip bits of B2, column by column."""
        self._flip(self.right, self._subproblem(self.right, self.left, fit=False))
        self._rows_problem = None

    # ------------------------------------------------------------ one side at a time

    def _subproblem(self, side: Side, other: Side, fit: bool) -> Subproblem:
        """Gram matrix and residual correlations for flips of ``side``; ``fit``: fit its scale first."""
        problem = Subproblem(other.gram * np.outer(self.d2, self.d2), self._buffers[side])
        decrease = _core.residual_correlations(
            problem.gram,
            other.correlations,
            self.d2,
            side.words,
            side.signs,
            fit,
            side.scale,
            problem.residual,
            self._threads,
        )
        self._lower_objective(decrease)
        if fit and self._pairs and not side.signs:
            self._revive(side, problem)
        return problem

    def _revive(self, side: Side, problem: Subproblem) -> None:
        """Give rows with scale 0 their one best bit and its scale.

        No flip of such a row changes the objective, so the published algorithm never changes it again.
        """
        diagonal = problem.gram.diagonal()
        dead = np.flatnonzero(side.scale == 0)
        if not dead.size or not diagonal.max() > 0:
            return
        along = problem.residual[dead]  # C a_i
        gains = np.divide(along * along, diagonal, out=np.zeros_like(along), where=diagonal > 0)
        best = gains.argmax(axis=1)
        gained = gains[np.arange(dead.size), best]
        dead, best, along = dead[gained > 0], best[gained > 0], along[gained > 0]
        side.scale[dead] = along[np.arange(dead.size), best] / diagonal[best]
        side.words[dead] = 0
        side.words[dead, best // 64] = np.uint64(1) << (best % 64).astype(np.uint64)
        problem.residual[dead] -= side.scale[dead, None] * problem.gram[best]
        self._lower_objective(float(gained.sum()))
        side.bits_changed()

    def _flip(self, side: Side, problem: Subproblem) -> None:
        """Flip bits of a side, a block of rows per call, until all are done or time is up."""
        limit = self._deadline.limit
        most = max(64, _WORK_PER_CALL // side.k**2)
        first, rows = 0, most if limit is None else min(most, _FIRST_ROWS)
        while first < side.rows and not (first and self._deadline.over()):
            began = time.perf_counter()
            part = slice(first, first + rows)
            flips, decrease = _core.greedy_rows(
                problem.gram,
                problem.residual[part],
                side.scale[part],
                side.words[part],
                side.signs,
                self._threads,
                self._pairs,
            )
            self.flips += flips
            self._lower_objective(decrease)
            first += rows
            if limit is not None:
                pace = (time.perf_counter() - began) / rows
                rows = max(1, min(most, 2 * rows, int(_CALL_SHARE * limit / max(pace, 1e-9))))
        side.bits_changed()

    def _lower_objective(self, decrease: float) -> None:
        self.objective = max(self.objective - decrease, 0.0)  # rounding may take it below 0

    # ------------------------------------------------------------ result

    def _measure(self) -> float:
        """The objective of the factors now, from the Gram matrices."""
        left, right = self.left, self.right
        along = _core.product_along(left.words, left.signs, left.scale, right.correlations, self.d2)
        square = _core.product_energy(left.gram, right.gram, self.d2)
        return max(self.energy - 2 * along + square, 0.0)

    @property
    def seconds_to_fit(self) -> float:
        """Seconds of the last fit of d2."""
        return self._took.get("fit_inner", 0.0)

    def factors(self) -> Factorization:
        """The factors now, with float32 diagonals."""
        b1, b2 = self.bits()
        return Factorization(self.left.scale, b1, self.d2, b2, self.right.scale)

    def bits(self) -> tuple[BitMatrix, BitMatrix]:
        """B1 (m x k) and B2 (k x n) now."""
        alphabet: Alphabet = "sign" if self.left.signs else "binary"
        right = BitMatrix(self.right.words, self.right.k, alphabet)
        return BitMatrix(self.left.words, self.left.k, alphabet), right.T
