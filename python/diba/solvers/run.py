"""The work of one call of :func:`diba.solve`: which inner dimensions, for how long, and the best result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal import check
from ..bits import BitMatrix
from ..factorization import Factorization
from .covariance import descend
from .methods import Problem, factors, is_small
from .schedule import Schedule
from .size import inner_dimension, sizes_to_try, smallest_k
from .stages import metric_for

if TYPE_CHECKING:
    from .._internal.check import FloatArray
    from .objective import Objective, Solution
    from .options import SolveOptions
    from .schedule import Deadline

__all__ = ["Run", "run_for_size"]

# With a covariance:
_START_SHARE = 0.75  # share of a time limit for the factors that the descent starts from
_EIGEN_SHARE = 4.0  # a time limit must have room for this many seconds for the eigenvectors of n = 1000
_FAST_TOL = 2e-3  # tolerance of the descent at effort "fast": a third of the steps, within 0.05 dB
# With several k under a time limit:
_TRIAL_SHARE = 1 / 16  # share of the remaining time for each k but the last
_GROWTH = 8  # a step takes at most this many times as long for twice the k
_USEFUL_STEPS = 10  # a run of fewer steps is not worth beginning
_SHORTER = 4  # where a trial converged, a run is worth beginning in a quarter of the time it needs


@dataclass(frozen=True)
class Run:
    """One call of :func:`diba.solve`, its arguments checked.

    Attributes:
        A: Matrix to factor, shape (m, n).
        objective: What to minimise.
        init: Factors to start from; None for a random start.
        options: Method, effort and the like.
        threads: Threads of the compiled code.
        deadline: When to stop.
        schedule: Counts and reports iterations.
    """

    A: FloatArray
    objective: Objective
    init: Factorization | None
    options: SolveOptions
    threads: int
    deadline: Deadline
    schedule: Schedule


def run_for_size(run: Run, *sizes: Any) -> Factorization:
    """Factors of the size asked for.

    Args:
        run: The call.
        *sizes: k, bits_per_weight, storage_ratio, snr_db: all but one are None, or all, to keep init's k.
    """
    if run.init is not None and sizes == (None,) * 4:
        found = _best_at(run, run.init.k)
    else:
        found = _of_size(run, *check.exactly_one_size(*sizes))
    run.schedule.end(found.error, found.snr_db)
    return found.f


def _of_size(run: Run, name: str, size: float) -> Solution:
    """The factors for a size of this name."""
    if name == "snr_db":
        return _smallest_for_snr(run, size)
    m, n = run.A.shape
    k = inner_dimension(m, n, name, size)
    if run.init is not None:
        check.equal(run.init.k, "the inner dimension of init", k, "inner dimension asked for")
    return _best_at(run, k)


def _smallest_for_snr(run: Run, snr_db: float) -> Solution:
    """The factors of the smallest k that reaches ``snr_db``."""
    cheap = replace(run, options=replace(run.options, effort="fast"), schedule=Schedule(None))
    cheaper = run.options.max_iter is None and run.options.effort != "fast"

    def solve_at(k: int) -> tuple[Solution, float]:
        found = _best_at(run, k, only=True)
        return found, found.snr_db

    def rough(k: int) -> float:
        return _best_at(cheap, k, only=True).snr_db

    m, n = run.A.shape
    return smallest_k(solve_at, m, n, snr_db, rough=rough if cheaper else None, expired=run.deadline.over)[1]


def _best_at(run: Run, k: int, *, only: bool = False) -> Solution:
    """Factors of inner dimension k.

    Where k is larger than useful, several smaller ones are tried too, see :func:`sizes_to_try`, and the best
    factors are padded to k with zeros. Under a time limit, each gets a share of the time, which also shows
    how long a step takes; the largest for which the time is enough gets the rest. ``only``: try nothing but
    k.
    """
    m, n = run.A.shape
    single = only or run.init is not None
    sizes = [k] if single else sizes_to_try(m, n, k, limited=run.deadline.limit is not None)
    check.fits_in_memory(
        _bytes_needed(m, n, sizes[-1], run.objective) + (k * (m + n) // 4 if k > sizes[-1] else 0),
        f"a {m} x {n} matrix with k = {k}",
        "use a smaller k, or split A by rows",
    )
    deadline, schedule = run.deadline, run.schedule
    found: list[Solution] = []
    for size in sizes[:-1]:
        began, before = deadline.elapsed(), schedule.iterations
        trial = replace(run, deadline=deadline.rest(_TRIAL_SHARE))
        found.append(_solve_at(size, trial))
        took = deadline.elapsed() - began
        needed = _GROWTH * took * min(1.0, _USEFUL_STEPS / (schedule.iterations - before + 1))
        converged = not trial.deadline.over()
        if not deadline.leaves(needed / _SHORTER if converged else needed):
            sizes = [size]  # run this one again, in all the time that is left
            break
    if not found or not deadline.over():
        found.append(_solve_at(sizes[-1], replace(run, deadline=deadline.rest())))
    best = min(found, key=lambda solution: solution.error)
    return best._replace(f=_padded(best.f, k))


def _solve_at(k: int, run: Run) -> Solution:
    """Factors of inner dimension k, with their objective."""
    objective, A = run.objective, run.A
    if objective.covariance is None:
        candidates = [_by_method(k, run)]
    else:
        candidates = [f for start in _starts(k, run) for f in _descended(start, run)]
    measured = min((objective.measured(A, f) for f in candidates), key=lambda solution: solution.error)
    found = objective.no_worse_than_zero(A, measured)
    if run.init is None:
        return found
    before = objective.measured(A, run.init)
    return found if found.error < before.error else before


def _descended(start: Factorization, run: Run) -> list[Factorization]:
    """What the descent on the error of outputs makes of a start, and the start."""
    options, S = run.options, run.objective.covariance
    assert S is not None
    tol = max(options.tol, _FAST_TOL) if options.effort == "fast" else options.tol
    return descend(
        run.A, start, S, schedule=run.schedule, deadline=run.deadline, threads=run.threads, tol=tol
    )


def _starts(k: int, run: Run) -> list[Factorization]:
    """Factors for the descent on the error of outputs to start from.

    ADMM in the metric of S, where the method has ADMM and there is time for the eigenvectors of S; else, and
    for small matrices too, factors for the diagonal of S alone.
    """
    if run.init is not None:
        return [run.init]
    m, n = run.A.shape
    in_metric = run.options.method in ("auto", "admm") and run.deadline.leaves(_EIGEN_SHARE * n**3 / 1e9)
    if not in_metric:
        return [_by_method(k, run)]
    small = run.options.method == "auto" and is_small(m, n, k)
    first = replace(run, deadline=run.deadline.rest(0.5)) if small else run
    starts = [_by_method(k, first, metric_for(run.objective.scaled_covariance(), run.options.device))]
    return [*starts, _by_method(k, run)] if small else starts


def _by_method(k: int, run: Run, metric: Any = None) -> Factorization:
    """Factors of A by the method asked for, which minimises the squared error for the normalised matrix.

    With a metric, it minimises the error of outputs instead.
    """
    objective = run.objective
    matrix, exponent = objective.normalised(run.A)
    f = factors(
        Problem(
            matrix,
            k,
            run.options,
            run.threads,
            run.schedule,
            2 * (exponent + objective.exponent),
            run.deadline if objective.covariance is None else run.deadline.share(_START_SHARE),
            None if run.init is None else objective.normalised_factors(run.init, exponent),
            not objective.plain,
            metric,
        )
    )
    return objective.denormalised(f, exponent)


def _padded(f: Factorization, k: int) -> Factorization:
    """The same matrix with inner dimension k: further components are zero."""
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
    """Peak memory of a run: A normalised and as tiles for both sides, (m + n) x k and k x k matrices."""
    plain = 4 * (3 * m * n + 6 * (m + n) * k) + 8 * 6 * k * k
    if objective.covariance is None:
        return plain
    return max(plain, 8 * 2 * n * n + 4 * (5 * m * n + 4 * n * n + 8 * n * k + 3 * k * k))
