"""What each named method does to one scaled matrix: a chain of ADMM and greedy runs, tracked and timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .._internal import diagonal16
from ..bits import BitMatrix
from ..progress import Progress
from .admm import PUBLISHED_STEPS, Admm
from .greedy import Greedy, snr_db

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .._internal.check import Alphabet
    from ..factorization import Factorization
    from .deadline import Deadline

__all__ = ["BUDGETS", "Run", "Task", "run"]

BALANCE = 0.1  # lambda of the balance penalty
GREEDY_ITERATIONS = 100
# Where method "auto" tries greedy too:
_SMALL = 32  # a side or an inner dimension below this
_MANY_BITS = 7  # of the binary factors for each weight, above this
_USUAL_DB = 8  # for each bit, and an SNR above it: a few entries or a low rank make up most of the matrix
_FAR_BEYOND = 2.0**40  # of a start's inner diagonal, the matrix being scaled to 1: it is fitted anew
_RAMP_SHARE = 0.8  # of a time limit; the rest is for the polish
_PUBLISHED_SHARE = 0.95
_FIT_SHARE = 1.25  # of a step of the ramp: what the fit of the inner diagonal takes at most


class Steps(NamedTuple):
    """Iteration budget of a run."""

    steps: int  # of the ADMM ramp, for signs
    binary_steps: int  # for 0/1 factors, which have to balance too
    polish: int  # greedy iterations after it, at most


BUDGETS = {
    "fast": Steps(140, 200, 3),
    "normal": Steps(700, 1000, 10),
    "best": Steps(2400, 2400, 30),
}


class Budget(NamedTuple):
    """Iterations of one task: of the ramp, and of greedy after it or alone."""

    steps: int
    polish: int


@dataclass(frozen=True)
class Task:
    """One matrix to factor, all arguments checked.

    Attributes:
        matrix: Shape (m, n), float32, scaled to magnitudes up to 1.
        k: Inner dimension.
        alphabet: Of the factors.
        method: One of METHODS.
        effort: Key of BUDGETS.
        seed: Of the random start.
        max_iter: Outer iterations; None for the method's own.
        tol: Least share of the objective that a greedy iteration must win.
        threads: Of the compiled code.
        deadline: When to stop.
        report: Called with every Progress, in units of the scaled matrix.
        start: Factors to improve instead of a random start.
        weighted: Whether the matrix was scaled by what its rows or columns matter: then a few of them may
            hold most of its energy.
    """

    matrix: NDArray[np.float32]
    k: int
    alphabet: Alphabet
    method: str
    effort: str
    seed: int
    max_iter: int | None
    tol: float
    threads: int
    deadline: Deadline
    report: Callable[[Progress], object]
    start: Factorization | None = None
    weighted: bool = False

    def budget(self) -> Budget:
        """What ``method``, ``effort`` and ``max_iter`` say."""
        effort, given = BUDGETS[self.effort], self.max_iter
        if self.method == "greedy" or self.start is not None:
            return Budget(0, GREEDY_ITERATIONS if given is None else given)
        if self.method == "dbf":
            return Budget(PUBLISHED_STEPS if given is None else given, 0)
        steps = effort.binary_steps if self.alphabet == "binary" else effort.steps
        return Budget(steps if given is None else given, effort.polish)


class Run:
    """Counts iterations over the stages of a task and reports them."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._budget = task.budget()
        self._first: tuple[float, float] | None = None  # work and time of the first iteration, and before it

    def report(self, energy: float, objective: float, iteration: int, flips: int = 0) -> None:
        """One Progress. ``iteration`` counts the ramp and what follows it."""
        elapsed = self._task.deadline.elapsed()
        total = sum(self._budget)
        self._task.report(
            Progress(
                "solve",
                iteration,
                total,
                elapsed,
                self._remaining(iteration, elapsed),
                snr_db=snr_db(energy, objective),
                objective=objective,
                flips=flips,
            )
        )

    def _remaining(self, iteration: int, elapsed: float) -> float | None:
        """Seconds to go, at the pace since the first iteration: a greedy one costs about two of the ramp."""
        if iteration == 0:
            return None
        steps, polish = self._budget
        done = iteration + max(0, iteration - steps)
        if self._first is None:
            self._first = done, elapsed
        work, time = self._first
        pace = (elapsed - time) / (done - work) if done > work else elapsed / done
        remaining = pace * (steps + 2 * polish - done)
        limit = self._task.deadline.limit
        return remaining if limit is None else max(0.0, min(remaining, limit - elapsed))


def run(task: Task) -> Greedy:
    """Factors of ``task.matrix``: the best that the method found."""
    progress = Run(task)
    if task.start is not None:
        return _descend(task, _from(task, task.start), progress)
    if task.method == "greedy":
        return _descend(task, _random(task), progress)
    result = _ramped(task, progress)
    if task.method == "auto" and _unusual(task, result) and task.deadline.leaves(2 * result.seconds_to_fit):
        other = _random(task)
        for _ in other.iterate(GREEDY_ITERATIONS, task.tol, task.deadline):
            pass
        further = other
        if task.deadline.leaves(result.seconds_to_fit):
            further = _from(task, other.factors())  # with pairs, and rows of zeros begin again
            for _ in further.iterate(GREEDY_ITERATIONS, task.tol, task.deadline):
                pass
        result = max(result, other, further, key=lambda candidate: _reached(task, candidate))
    return result


def _unusual(task: Task, result: Greedy) -> bool:
    """Whether greedy may do better: ADMM averages over many components of many alike rows and columns."""
    m, n = task.matrix.shape
    bits = task.k * (m + n) / (m * n)
    small = min(m, n, task.k) < _SMALL or bits > _MANY_BITS
    easy = result.snr_db > _USUAL_DB * max(bits, 0.5) and not task.weighted
    return small or not result.objective < result.energy or easy


def _reached(task: Task, result: Greedy) -> float:
    """SNR of the finished factors: near exact fits rounding decides, to 16 bits and of the objective."""
    return result.factors().round_diagonals().snr_db(task.matrix)


def _ramped(task: Task, progress: Run) -> Greedy:
    """ADMM, then greedy from its best iterate."""
    steps, polish = task.budget()
    published = task.method == "dbf"
    balance = BALANCE if task.alphabet == "binary" else 0.0
    ramp = Admm(task.matrix, task.k, task.seed, balance, task.threads, published=published)
    share = task.deadline.share(_PUBLISHED_SHARE if published else _RAMP_SHARE)
    for step in ramp.iterate(steps, share):
        progress.report(ramp.energy, ramp.objective, step)
    d1, b1, d2, b2, d3 = ramp.factors(task.alphabet)
    fitted = not published and task.deadline.leaves(_FIT_SHARE * ramp.pace)
    result = Greedy(
        task.matrix,
        b1,
        b2,
        task.threads,
        d1=d1,
        d2=None if fitted or not ramp.energy else d2,
        d3=d3,
        pairs=not published,
    )
    if published:
        return result
    for iteration in result.iterate(polish, task.tol, task.deadline):
        progress.report(result.energy, result.objective, steps + iteration, result.flips)
    return result


def _descend(task: Task, result: Greedy, progress: Run) -> Greedy:
    progress.report(result.energy, result.objective, 0)
    for iteration in result.iterate(task.budget().polish, task.tol, task.deadline):
        progress.report(result.energy, result.objective, iteration, result.flips)
    return result


def _from(task: Task, start: Factorization) -> Greedy:
    """Greedy from given factors of the scaled matrix, the outer diagonals brought to entries of about 1."""
    e1, e3 = diagonal16.exponent(start.d1), diagonal16.exponent(start.d3)
    d2 = np.ldexp(start.d2.astype(np.float64), e1 + e3)
    return Greedy(
        task.matrix,
        start.b1,
        start.b2,
        task.threads,
        d1=np.ldexp(start.d1, -e1),
        d2=d2.astype(np.float32) if np.abs(d2).max() < _FAR_BEYOND else None,
        d3=np.ldexp(start.d3, -e3),
        pairs=task.method != "greedy",
    )


def _random(task: Task) -> Greedy:
    """Every bit 0 or 1 at even odds, scales of one."""
    m, n = task.matrix.shape
    random = np.random.default_rng(task.seed)
    b1 = _random_bits(random, m, task.k, task.alphabet)
    return Greedy(task.matrix, b1, _random_bits(random, task.k, n, task.alphabet), task.threads)


def _random_bits(random: np.random.Generator, rows: int, cols: int, alphabet: Alphabet) -> BitMatrix:
    packed = random.integers(0, 256, size=(rows, -(-cols // 8)), dtype=np.uint8)
    packed[:, -1] &= 0xFF >> (-cols % 8)
    return BitMatrix.from_packed_rows(packed, cols, alphabet)
