"""What each named method does to one normalised matrix: a chain of ADMM and greedy runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .._internal import storage
from .._internal.error import snr_db
from ..bits import BitMatrix
from .admm import PUBLISHED_STEPS, Admm
from .greedy import Greedy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._internal.check import Alphabet
    from ..factorization import Factorization
    from .options import SolveOptions
    from .schedule import Deadline, Schedule, Stage

__all__ = ["BUDGETS", "Problem", "factors"]

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
    """Iterations of one effort."""

    signs: int  # of the ADMM ramp
    binary: int  # of the ramp for 0/1 factors, which have to balance too
    polish: int  # greedy iterations after it, at most


BUDGETS = {
    "fast": Steps(140, 200, 3),
    "normal": Steps(700, 1000, 10),
    "best": Steps(2400, 2400, 30),
}


@dataclass(frozen=True)
class Problem:
    """One normalised matrix to factor.

    Attributes:
        matrix: Shape (m, n), float32, magnitudes up to 1.
        k: Inner dimension.
        options: Checked.
        threads: Of the compiled code.
        schedule: Told of every iteration.
        exponent: Objectives of ``matrix``, times 2^exponent, are those to report.
        deadline: When to stop.
        start: Factors of ``matrix`` to improve instead of a random start.
        weighted: Whether ``matrix`` was scaled by what its rows or columns matter: then a few of them may
            hold most of its energy.
    """

    matrix: NDArray[np.float32]
    k: int
    options: SolveOptions
    threads: int
    schedule: Schedule
    exponent: int
    deadline: Deadline
    start: Factorization | None = None
    weighted: bool = False

    def budget(self) -> tuple[int, int]:
        """(steps of a ramp, greedy iterations after it or alone) by method, effort and max_iter."""
        steps, given = BUDGETS[self.options.effort], self.options.max_iter
        if self.options.method == "greedy" or self.start is not None:
            return 0, GREEDY_ITERATIONS if given is None else given
        if self.options.method == "dbf":
            return PUBLISHED_STEPS if given is None else given, 0
        if given is None:
            given = steps.binary if self.options.alphabet == "binary" else steps.signs
        return given, steps.polish


def factors(problem: Problem) -> Factorization:
    """Factors of ``problem.matrix``: the best that the method found."""
    stage = problem.schedule.stage(problem.deadline, problem.exponent, *problem.budget())
    if problem.start is not None:
        return _descend(problem, _from(problem, problem.start), stage)
    if problem.options.method == "greedy":
        return _descend(problem, _random(problem), stage)
    result = _ramped(problem, stage)
    found = result.factors()
    if problem.options.method != "auto" or not _unusual(problem, result):
        return found
    seconds = result.seconds_to_fit
    del result  # its memory
    if not problem.deadline.leaves(2 * seconds):
        return found
    return max([found, *_by_greedy(problem, seconds)], key=lambda f: _reached(problem, f))


def _unusual(problem: Problem, result: Greedy) -> bool:
    """Whether greedy may do better: ADMM averages over many components of many alike rows and columns."""
    m, n = problem.matrix.shape
    bits = problem.k * (m + n) / (m * n)
    small = min(m, n, problem.k) < _SMALL or bits > _MANY_BITS
    easy = snr_db(result.energy, result.objective) > _USUAL_DB * max(bits, 0.5) and not problem.weighted
    return small or not result.objective < result.energy or easy


def _by_greedy(problem: Problem, seconds_to_fit: float) -> list[Factorization]:
    """Factors by greedy as published, and those with pairs of flips after it, as far as the time goes."""
    published = _random(problem)
    for _ in published.iterate(GREEDY_ITERATIONS, problem.options.tol, problem.deadline):
        pass
    found = [published.factors()]
    if problem.deadline.leaves(seconds_to_fit):
        further = _from(problem, found[0])  # with pairs, and rows of zeros begin again
        for _ in further.iterate(GREEDY_ITERATIONS, problem.options.tol, problem.deadline):
            pass
        found.append(further.factors())
    return found


def _reached(problem: Problem, f: Factorization) -> float:
    """SNR of the finished factors: near exact fits rounding decides, to 16 bits and of the objective."""
    return f.round_diagonals().snr_db(problem.matrix)


def _ramped(problem: Problem, stage: Stage) -> Greedy:
    """ADMM, then greedy from its best iterate."""
    steps, polish = problem.budget()
    published = problem.options.method == "dbf"
    alphabet = problem.options.alphabet
    balance = BALANCE if alphabet == "binary" else 0.0
    ramp = Admm(
        problem.matrix, problem.k, problem.options.seed, balance, problem.threads, published=published
    )
    share = problem.deadline.share(_PUBLISHED_SHARE if published else _RAMP_SHARE)
    for step in ramp.iterate(steps, share):
        stage.report(step, ramp.energy, ramp.objective)
    d1, b1, d2, b2, d3 = ramp.factors(alphabet)
    fitted = not published and problem.deadline.leaves(_FIT_SHARE * ramp.pace)
    given_d2 = None if fitted or not ramp.energy else d2
    del ramp  # its memory
    result = Greedy(problem.matrix, b1, b2, problem.threads, d1=d1, d2=given_d2, d3=d3, pairs=not published)
    if published:
        return result
    for iteration in result.iterate(polish, problem.options.tol, problem.deadline):
        stage.report(steps + iteration, result.energy, result.objective, result.flips)
    return result


def _descend(problem: Problem, result: Greedy, stage: Stage) -> Factorization:
    _, iterations = problem.budget()
    stage.report(0, result.energy, result.objective)
    for iteration in result.iterate(iterations, problem.options.tol, problem.deadline):
        stage.report(iteration, result.energy, result.objective, result.flips)
    return result.factors()


def _from(problem: Problem, start: Factorization) -> Greedy:
    """Greedy from given factors, the outer diagonals brought to entries of about 1."""
    e1, e3 = storage.exponent(start.d1), storage.exponent(start.d3)
    d2 = np.ldexp(start.d2.astype(np.float64), e1 + e3)
    return Greedy(
        problem.matrix,
        start.b1,
        start.b2,
        problem.threads,
        d1=np.ldexp(start.d1, -e1),
        d2=d2.astype(np.float32) if np.abs(d2).max() < _FAR_BEYOND else None,
        d3=np.ldexp(start.d3, -e3),
        pairs=problem.options.method != "greedy",
    )


def _random(problem: Problem) -> Greedy:
    """Greedy from random bits and scales of one."""
    m, n = problem.matrix.shape
    random = np.random.default_rng(problem.options.seed)
    b1 = _random_bits(random, m, problem.k, problem.options.alphabet)
    b2 = _random_bits(random, problem.k, n, problem.options.alphabet)
    return Greedy(problem.matrix, b1, b2, problem.threads)


def _random_bits(random: np.random.Generator, rows: int, cols: int, alphabet: Alphabet) -> BitMatrix:
    """Every bit 0 or 1 at even odds."""
    packed = random.integers(0, 256, size=(rows, -(-cols // 8)), dtype=np.uint8)
    packed[:, -1] &= 0xFF >> (-cols % 8)
    return BitMatrix.from_packed_rows(packed, cols, alphabet)
