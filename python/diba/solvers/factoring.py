"""Factors of a checked matrix: scaling, the chosen method, the objective, and the best of several k."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .._internal import check
from ..bits import BitMatrix
from ..factorization import Factorization
from ..progress import Progress
from .methods import Task
from .methods import run as solve_task
from .size import sizes_to_try

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .._internal.check import FloatArray
    from .deadline import Deadline
    from .objective import Objective
    from .options import SolveOptions

__all__ = ["Run", "factor", "factor_at", "scaled_to_one"]

_START_SHARE = 0.6  # of a time limit, for the start of a descent under a covariance
_FAST_TOL = 2e-3  # of that descent at effort "fast": a third of its steps, within 0.05 dB
_TRIAL_SHARE = 1 / 16  # of the time that is left, for a size that a larger one follows
_GROWTH, _USEFUL_STEPS = 8, 10  # a step of twice the k takes up to 8 times as long; fewer steps gain nothing
_HURRY = 4


@dataclass(frozen=True)
class Run:
    """One call of :func:`solve`: its options, what it minimises, where it begins, and who listens."""

    options: SolveOptions
    objective: Objective
    init: Factorization | None
    deadline: Deadline
    threads: int
    report: Callable[[Progress], object] | None = None


class _Result(NamedTuple):
    f: Factorization
    error: float
    decibels: float


class _Course:
    """Progress over the stages of one call, with iterations counted on."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._last = Progress("solve", 0, 0, 0.0, snr_db=-math.inf, objective=math.inf, flips=0)
        self._before = 0  # iterations of the stages that are over

    def report(self, state: Progress) -> None:
        before, elapsed = self._before, self._run.deadline.elapsed()
        if before:
            state = replace(state, done=before + state.done, total=before + (state.total or 0))
        self._last = replace(state, elapsed=elapsed)
        if self._run.report is not None:
            self._run.report(self._last)

    @property
    def iterations(self) -> int:
        return self._before

    def next_stage(self) -> None:
        self._before = int(self._last.done)

    def end(self, result: _Result) -> None:
        self._before = 0
        self.report(replace(self._last, objective=result.error, snr_db=result.decibels, remaining=0.0))


def factor(matrix: FloatArray, k: int, run: Run) -> Factorization:
    """Factor a checked matrix, all else being said; beyond what pays, never worse than at fewer bits."""
    m, n = matrix.shape
    limited = run.deadline.limit is not None
    sizes = [k] if run.init is not None else sizes_to_try(m, n, k, limited=limited)
    return _best_of(sizes, matrix, k, run)


def factor_at(matrix: FloatArray, k: int, run: Run) -> Factorization:
    """The same, with no other inner dimension than k."""
    return _best_of([k], matrix, k, run)


def _best_of(sizes: list[int], matrix: FloatArray, k: int, run: Run) -> Factorization:
    """The best of several inner dimensions, rising, as far as the time goes; filled up to k with zeros.

    Under a time limit, a share of it tells how long a step takes; the largest size that it is enough for has
    the rest.
    """
    m, n = matrix.shape
    check.fits_in_memory(
        _bytes_needed(m, n, sizes[-1], run.objective) + (k * (m + n) // 4 if k > sizes[-1] else 0),
        f"a {m} x {n} matrix with k = {k}",
        "use a smaller k, or split A by rows",
    )
    deadline, course = run.deadline, _Course(run)
    found: list[_Result] = []
    for size in sizes[:-1]:
        began, before = deadline.elapsed(), course.iterations
        hurried = replace(run, deadline=deadline.rest(_TRIAL_SHARE))
        found.append(_at(size, matrix, hurried, course))
        took = deadline.elapsed() - began
        needed = _GROWTH * took * min(1.0, _USEFUL_STEPS / (course.iterations - before + 1))
        ended = not hurried.deadline.over()  # by itself: what follows may be hurried
        if not deadline.leaves(needed / _HURRY if ended else needed):
            sizes = [size]  # once more, in all the time that is left
            break
    if not found or not deadline.over():
        found.append(_at(sizes[-1], matrix, replace(run, deadline=deadline.rest()), course))
    best = min(found, key=lambda result: result.error)
    course.end(best)
    return _padded(best.f, k)


def _at(k: int, matrix: FloatArray, run: Run, course: _Course) -> _Result:
    """Factors at one inner dimension, finished and measured."""
    objective, result = run.objective, run.init
    if result is None or objective.covariance is None:
        factors, exponent = _factor_plain(objective.scaled(matrix), k, run, course.report)
        result = objective.unscaled(factors, exponent)
        course.next_stage()
    tol = max(run.options.tol, _FAST_TOL) if run.options.effort == "fast" else run.options.tol
    result = objective.descend(matrix, result, tol, run.threads, run.deadline, course.report)
    course.next_stage()
    found = _Result(*objective.no_worse_than_zero(matrix, result))
    if run.init is not None:
        before, decibels = objective.measure(matrix, run.init)
        if not found.error < before:
            return _Result(run.init, before, decibels)
    return found


def _factor_plain(
    matrix: FloatArray, k: int, run: Run, report: Callable[[Progress], object]
) -> tuple[Factorization, int]:
    """(f, e): factors of matrix 2^-e under the plain objective, diagonals in float32."""
    scaled, exponent = scaled_to_one(matrix)
    weighted = run.objective.covariance is not None
    task = Task(
        scaled,
        k,
        run.options.alphabet,
        run.options.method,
        run.options.effort,
        run.options.seed,
        run.options.max_iter,
        run.options.tol,
        run.threads,
        run.deadline.share(_START_SHARE) if weighted else run.deadline,
        lambda state: report(replace(state, objective=math.ldexp(state.objective or 0.0, 2 * exponent))),
        None if run.init is None else run.objective.inward(run.init, exponent),
        not run.objective.plain,
    )
    return solve_task(task).factors(), exponent


def _padded(f: Factorization, k: int) -> Factorization:
    """The same with further components that are zero."""
    if k == f.k:
        return f
    (m, n), signs = f.shape, f.alphabet
    b1 = np.zeros((m, -(-k // 64)), np.uint64)
    b1[:, : f.b1.words.shape[1]] = f.b1.words
    b2 = np.zeros((k, f.b2.words.shape[1]), np.uint64)
    b2[: f.k] = f.b2.words
    d2 = np.zeros(k, np.float32)
    d2[: f.k] = f.d2
    return Factorization(
        f.d1, BitMatrix(b1, k, signs, copy=False), d2, BitMatrix(b2, n, signs, copy=False), f.d3
    )


def _bytes_needed(m: int, n: int, k: int, objective: Objective) -> int:
    """Peak memory of a run: A in five forms, dense (m + n) x k matrices, k x k systems."""
    plain = 4 * (5 * m * n + 6 * (m + n) * k) + 8 * 6 * k * k
    if objective.covariance is None:
        return plain + (0 if objective.plain else 8 * m * n)
    return max(plain, 8 * (2 * m * n + 2 * n * n) + 4 * (6 * m * n + 4 * n * n + 8 * n * k + 3 * k * k))


def scaled_to_one(A: FloatArray) -> tuple[NDArray[np.float32], int]:
    """(A / 2^e as float32 with magnitudes up to 1, e): no product of the solver over- or underflows."""
    largest = max(abs(float(A.max())), abs(float(A.min())))
    exponent = math.frexp(largest)[1]
    return np.ldexp(A, -exponent).astype(np.float32, order="C"), exponent
