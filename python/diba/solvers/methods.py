"""What each method does with a normalised matrix: which ADMM and greedy runs, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._internal import storage
from .._internal.snr import snr_db
from ..bits import BitMatrix
from .admm import PUBLISHED_STEPS
from .greedy import Greedy
from .stages import part_sizes, ramps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._internal.check import Alphabet
    from ..factorization import Factorization
    from .options import SolveOptions
    from .schedule import Deadline, Schedule, Stage
    from .stages import Ramps

__all__ = ["EFFORT_STEPS", "Problem", "factors", "is_small"]

BALANCE = 0.1  # weight lambda of the balance penalty, for alphabet "binary"
GREEDY_ITERATIONS = 100
# Method "auto" runs greedy, too, in these cases:
_SMALL = 32  # m, n or k is below this
_MANY_BITS = 7  # the binary factors take more bits per weight than this
_USUAL_DB = 8  # the SNR is above this many dB per bit: a few entries or a low rank hold most of the energy
_LARGEST_D2 = 2.0**40  # a larger d2 of ``init``, for a matrix with entries up to 1, is not used but fitted
_ADMM_SHARE = 0.8  # share of a time limit for ADMM; the rest is for greedy iterations
_PUBLISHED_SHARE = 0.95  # the same for method "dbf"
_FIT_STEPS = 1.25  # fitting d2 takes at most as long as this many steps of ADMM


class EffortSteps(NamedTuple):
    """Numbers of steps for one effort."""

    sign: int  # ADMM steps for alphabet "sign"
    binary: int  # ADMM steps for alphabet "binary": more, since the factors have to balance too
    polish: int  # greedy iterations after ADMM, at most


EFFORT_STEPS = {
    "fast": EffortSteps(140, 200, 3),
    "normal": EffortSteps(700, 1000, 10),
    "best": EffortSteps(2400, 2400, 30),
}


@dataclass(frozen=True)
class Problem:
    """One normalised matrix to factor.

    Attributes:
        matrix: Shape (m, n), float32, magnitudes up to 1.
        k: Inner dimension.
        options: Method, effort and the like, checked.
        threads: Threads of the compiled code.
        schedule: Counts and reports iterations.
        exponent: ``2^exponent`` times the objective for ``matrix`` is the objective to report.
        deadline: When to stop.
        init: Factors of ``matrix`` to start from; None for a random start.
        weighted: Whether rows or columns of ``matrix`` were scaled by importance, so that a few of them may
            hold most of its energy.
        metric: Second moments of the inputs, in the scales of ``matrix``, as :func:`stages.metric_for` makes
            them, for a ramp on the error of outputs with no greedy steps after it; None for the squared
            error.
    """

    matrix: NDArray[np.float32]
    k: int
    options: SolveOptions
    threads: int
    schedule: Schedule
    exponent: int
    deadline: Deadline
    init: Factorization | None = None
    weighted: bool = False
    metric: Any = None

    def parts(self) -> list[int]:
        """Inner dimensions of the stages of ADMM."""
        m, n = self.matrix.shape
        return [self.k] if self.options.method == "dbf" else part_sizes(m, n, self.k)

    def steps(self) -> tuple[int, int]:
        """(steps of ADMM in each stage, greedy iterations) for the method, effort and max_iter asked for."""
        steps, given = EFFORT_STEPS[self.options.effort], self.options.max_iter
        if self.options.method == "greedy" or self.init is not None:
            return 0, GREEDY_ITERATIONS if given is None else given
        if self.options.method == "dbf":
            return PUBLISHED_STEPS if given is None else given, 0
        if given is None:
            given = steps.binary if self.options.alphabet == "binary" else steps.sign
        return given, 0 if self.metric is not None else steps.polish


def factors(problem: Problem) -> Factorization:
    """The best factors of ``problem.matrix`` that the method finds."""
    steps, polish = problem.steps()
    stages = len(problem.parts())
    stage = problem.schedule.stage(problem.deadline, problem.exponent, stages * steps, polish)
    if problem.init is not None:
        return _descend(problem, _from(problem, problem.init), stage)
    if problem.options.method == "greedy":
        return _descend(problem, _random(problem), stage)
    if problem.metric is not None:
        return _ramps(problem, stage, problem.deadline).factors
    result = _admm(problem, stage)
    found = result.factors()
    if problem.options.method != "auto" or not _unusual(problem, result):
        return found
    seconds = result.seconds_to_fit
    del result  # frees its memory
    if not problem.deadline.leaves(2 * seconds):
        return found
    return max([found, *_by_greedy(problem, seconds)], key=lambda f: _snr_db(problem, f))


def is_small(m: int, n: int, k: int) -> bool:
    """Whether a matrix is so small, or k so large, that ADMM may not do well."""
    return min(m, n, k) < _SMALL or k * (m + n) > _MANY_BITS * m * n


def _unusual(problem: Problem, result: Greedy) -> bool:
    """Whether greedy may do better: ADMM works best with large m, n and k and no dominant entries."""
    m, n = problem.matrix.shape
    bits = problem.k * (m + n) / (m * n)
    easy = snr_db(result.energy, result.objective) > _USUAL_DB * max(bits, 0.5) and not problem.weighted
    return is_small(m, n, problem.k) or not result.objective < result.energy or easy


def _by_greedy(problem: Problem, seconds_to_fit: float) -> list[Factorization]:
    """Factors by greedy as published and, if there is time, by greedy with pairs of flips from there."""
    published = _random(problem)
    for _ in published.iterate(GREEDY_ITERATIONS, problem.options.tol, problem.deadline):
        pass
    found = [published.factors()]
    if problem.deadline.leaves(seconds_to_fit):
        further = _from(problem, found[0])
        for _ in further.iterate(GREEDY_ITERATIONS, problem.options.tol, problem.deadline):
            pass
        found.append(further.factors())
    return found


def _snr_db(problem: Problem, f: Factorization) -> float:
    """SNR with diagonals rounded to 16 bits, in float64: for nearly exact fits, rounding decides."""
    return f.round_diagonals().snr_db(problem.matrix)


def _admm(problem: Problem, stage: Stage) -> Greedy:
    """Run ADMM, then greedy from its best iterates."""
    steps, polish = problem.steps()
    published = problem.options.method == "dbf"
    found = _ramps(problem, stage, problem.deadline.share(_PUBLISHED_SHARE if published else _ADMM_SHARE))
    f = found.factors
    fitted = not published and problem.deadline.leaves(_FIT_STEPS * found.pace)
    d2 = None if fitted or found.empty else f.d2
    result = Greedy(problem.matrix, f.b1, f.b2, problem.threads, d1=f.d1, d2=d2, d3=f.d3, pairs=not published)
    if published:
        return result
    before = steps * len(problem.parts())
    for iteration in result.iterate(polish, problem.options.tol, problem.deadline):
        stage.report(before + iteration, result.energy, result.objective, result.flips)
    return result


def _ramps(problem: Problem, stage: Stage, deadline: Deadline) -> Ramps:
    """Run ADMM, in its stages."""
    options = problem.options
    return ramps(
        problem.matrix,
        problem.parts(),
        options.alphabet,
        options.seed,
        BALANCE if options.alphabet == "binary" else 0.0,
        problem.threads,
        steps=problem.steps()[0],
        deadline=deadline,
        stage=stage,
        metric=problem.metric,
        published=options.method == "dbf",
        device=options.device,
    )


def _descend(problem: Problem, result: Greedy, stage: Stage) -> Factorization:
    """Run greedy to its end, reporting every iteration."""
    _, iterations = problem.steps()
    stage.report(0, result.energy, result.objective)
    for iteration in result.iterate(iterations, problem.options.tol, problem.deadline):
        stage.report(iteration, result.energy, result.objective, result.flips)
    return result.factors()


def _from(problem: Problem, f: Factorization) -> Greedy:
    """Greedy from given factors, with d1 and d3 scaled to largest entries of about 1."""
    e1, e3 = storage.exponent(f.d1), storage.exponent(f.d3)
    d2 = np.ldexp(f.d2.astype(np.float64), e1 + e3)
    return Greedy(
        problem.matrix,
        f.b1,
        f.b2,
        problem.threads,
        d1=np.ldexp(f.d1, -e1),
        d2=d2.astype(np.float32) if np.abs(d2).max() < _LARGEST_D2 else None,
        d3=np.ldexp(f.d3, -e3),
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
    """A matrix of independent random bits, 0 and 1 equally likely."""
    packed = random.integers(0, 256, size=(rows, -(-cols // 8)), dtype=np.uint8)
    packed[:, -1] &= 0xFF >> (-cols % 8)
    return BitMatrix.from_packed_rows(packed, cols, alphabet)
