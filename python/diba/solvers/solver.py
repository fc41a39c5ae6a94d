"""diba.solve: what it is given is checked here; then sizes, stages and the best of what they find."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal import check, check_arrays
from ..bits import BitMatrix
from ..factorization import Factorization
from ..progress import check_progress, reporting
from ..runtime import resolve_threads
from .covariance import descend
from .methods import Problem, factors
from .objective import checked
from .options import SolveOptions
from .schedule import Deadline, Schedule
from .size import advise, inner_dimension, sizes_to_try, smallest_k

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from .._internal.check import Alphabet, FloatArray
    from ..progress import ProgressOption
    from .objective import Objective, Solution
    from .options import Effort, Method

__all__ = ["checked_matrix", "solve"]

_SMALLEST = 2.0**-150  # in size; what is smaller rounds to zero in float32
_START_SHARE = 0.6  # of a time limit, for the start of a descent under a covariance
_FAST_TOL = 2e-3  # of that descent at effort "fast": a third of its steps, within 0.05 dB
_TRIAL_SHARE = 1 / 16  # of the time that is left, for a size that a larger one follows
_GROWTH, _USEFUL_STEPS = 8, 10  # a step of twice the k takes up to 8 times as long; fewer steps gain nothing
_SHORTER = 4  # what ended by itself in its share of the time still pays in a quarter of the time it needs


def solve(
    A: ArrayLike,
    k: int | None = None,
    *,
    bits_per_weight: float | None = None,
    storage_ratio: float | None = None,
    snr_db: float | None = None,
    method: Method = "auto",
    alphabet: Alphabet = "binary",
    effort: Effort = "normal",
    importance: tuple[ArrayLike | None, ArrayLike | None] | None = None,
    covariance: ArrayLike | tuple[ArrayLike, float] | None = None,
    init: Factorization | None = None,
    seed: int = 0,
    max_iter: int | None = None,
    tol: float = 1e-4,
    time_limit: float | None = None,
    threads: int | None = None,
    progress: ProgressOption = False,
) -> Factorization:
    """Factor ``A ~ D1 B1 D2 B2 D3`` with two binary matrices and three diagonals.

    Args:
        A: Real matrix of shape (m, n): anything NumPy can read, or a torch CPU tensor.
        k: Inner dimension. Give exactly one of ``k``, ``bits_per_weight``, ``storage_ratio``, ``snr_db``,
            unless ``init`` brings its own k. Beyond 4 bits for each entry of A, k = 4 m n / (m + n), a
            warning says that less is enough; smaller k are then solved too and the best factors count.
            Beyond 16 bits, the factors are those of 16 bits, and further components are zero.
        bits_per_weight: The largest k whose factors take at most this many bits for each entry
            of A, diagonals counted at 16 bits an entry.
        storage_ratio: The same as a share of float32: bits per weight / 32.
        snr_db: The smallest k whose factors reach this signal-to-noise ratio in dB: one that reaches it
            while k - 1 was tried and does not. Solves some 5 to 10 times.
        method: ``"auto"``: the best factors known here, today ``"admm"``, and ``"greedy"`` too where A or k
            is small. ``"admm"``: ADMM on signs (balanced where 0/1 factors are wanted), closed by greedy
            steps with pairs of flips. ``"greedy"``: DiBA-Greedy as published, from a random start.
            ``"dbf"``: DBF as published (260 outer steps, three projections each, no refit), signs only.
        alphabet: Entries of the binary factors: ``"binary"`` (0/1) or ``"sign"`` (-1/+1).
        effort: Steps of ``"auto"`` and ``"admm"``: 140, 700 or 2400 for signs, 200, 1000 or 2400 for 0/1, and
            what follows them.
        importance: ``(o, i)``, positive, shapes (m,) and (n,), either may be None: minimises
            ``sum (o_i (A - F)_ij i_j)^2``, with o the RMS gradient of every output, say, and i the RMS of
            every input. SNRs are then those of this objective.
        covariance: S, shape (n, n), second moments of the inputs, X'X / len(X): minimises
            ``tr((A - F) S (A - F)')``, the error of the outputs, with S shrunk towards its diagonal by a
            share of 0.1; ``(S, share)`` sets the share. SNRs are then those of this objective.
        init: Factors of A to start from: greedy steps improve them, or they are returned as they are.
        seed: Of the random start; the same seed gives the same factors, on every processor.
        max_iter: Outer iterations, instead of what effort or method say: at most (greedy), or of the
            whole ramp (admm, dbf), where more give better factors.
        tol: Stop greedy iterations when one lowers the objective by less than this share of it.
        time_limit: Seconds after which the best factors so far are returned; ramps are shortened to end
            in time, and a step that would not is not begun.
        threads: Threads of the compiled code; None uses ``diba.num_threads()``.
        progress: True shows a bar on stderr, False nothing. A callable gets a :class:`diba.Progress` at the
            start, after every iteration and at the end, then with the figures of what is returned; what it
            raises ends the run, as Ctrl-C does.

    Returns:
        The factors, with diagonals that 16 bits an entry hold exactly. They are finite and never worse than
        the zero matrix in what is minimised, whatever the method and limits. Numbers of A that float32
        cannot tell from zero count as zero.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: A is not a finite non-empty matrix, or a number is out of range; checked before
            any work.
        KeyboardInterrupt: promptly on Ctrl-C; A and all state of the process are as before.

    Source:
        Ono, "DiBA", arXiv 2605.05994 (binary, greedy); Boza and Macko, arXiv 2505.11076 (signs, ADMM).

    Example:
        >>> import numpy as np
        >>> import diba
        >>> A = np.random.default_rng(0).standard_normal((64, 48))
        >>> diba.solve(A, bits_per_weight=2)
        Factorization(64x48, k=34, binary, 2.00 bits/weight)
    """
    matrix = checked_matrix(A, "A")
    options = SolveOptions(
        method=method,
        alphabet=alphabet,
        effort=effort,
        seed=seed,
        max_iter=max_iter,
        tol=tol,
        time_limit=time_limit,
        threads=threads,
    )
    _check_start(init, matrix.shape, options.alphabet, snr_db)
    check_progress(progress)
    objective = checked(importance, covariance, *matrix.shape)
    deadline = Deadline(options.time_limit)
    with reporting(progress) as report:
        run = Run(
            matrix, objective, init, options, resolve_threads(options.threads), deadline, Schedule(report)
        )
        result = _solve(run, k, bits_per_weight, storage_ratio, snr_db)
    advise(result)
    return result


def checked_matrix(A: Any, name: str) -> FloatArray:
    """A as float32 or float64; zeros where float32 cannot tell any entry from zero."""
    matrix = check_arrays.real_matrix(A, name)
    return matrix if max(matrix.max(), -matrix.min()) > _SMALLEST else np.zeros_like(matrix)


def _check_start(init: Any, shape: tuple[int, int], alphabet: str, snr_db: Any) -> None:
    """Require factors of that shape and alphabet, or None."""
    if init is None:
        return
    check.instance(init, "init", Factorization, "use Factorization.from_factors for plain arrays")
    check.equal(init.shape, "the shape of init", shape, "shape of A")
    check.equal(init.alphabet, "the alphabet of init", alphabet, "alphabet asked for")
    if snr_db is not None:
        raise ValueError("snr_db and init are both given; a start has a k of its own: leave one out")


# ---------------------------------------------------------------- one call


@dataclass(frozen=True)
class Run:
    """One call of :func:`solve`: what is factored, for what objective, from where, how, and by when."""

    A: FloatArray
    objective: Objective
    init: Factorization | None
    options: SolveOptions
    threads: int
    deadline: Deadline
    schedule: Schedule


def _solve(run: Run, *sizes: Any) -> Factorization:
    """Factors of the size asked for: k, bits_per_weight, storage_ratio or snr_db."""
    m, n = run.A.shape
    if run.init is not None and sizes == (None,) * 4:
        return _best(run, run.init.k).f
    name, size = check.exactly_one_budget(*sizes)
    if name == "snr_db":
        return _of_snr(run, size)
    k = inner_dimension(m, n, name, size)
    if run.init is not None:
        check.equal(run.init.k, "the inner dimension of init", k, "inner dimension asked for")
    return _best(run, k).f


def _of_snr(run: Run, snr_db: float) -> Factorization:
    """The factors of the smallest k that reaches snr_db."""
    cheap = replace(run, options=replace(run.options, effort="fast"), schedule=Schedule(None))
    pays = run.options.max_iter is None and run.options.effort != "fast"

    def solve_at(k: int) -> tuple[Factorization, float]:
        found = _best(run, k, only=True)
        return found.f, found.snr_db

    def rough(k: int) -> float:
        return _best(cheap, k, only=True).snr_db

    m, n = run.A.shape
    return smallest_k(solve_at, m, n, snr_db, rough=rough if pays else None, expired=run.deadline.over)[1]


def _best(run: Run, k: int, *, only: bool = False) -> Solution:
    """Factors at k; beyond what pays the best of several inner dimensions, filled up to k with zeros.

    They rise, as far as the time goes. Under a time limit, a share of it tells how long a step takes; the
    largest size that it is enough for has the rest. ``only``: no other size than k.
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
        found.append(_at(size, trial))
        took = deadline.elapsed() - began
        needed = _GROWTH * took * min(1.0, _USEFUL_STEPS / (schedule.iterations - before + 1))
        ended = not trial.deadline.over()  # by itself: what follows may be given less time
        if not deadline.leaves(needed / _SHORTER if ended else needed):
            sizes = [size]  # once more, in all the time that is left
            break
    if not found or not deadline.over():
        found.append(_at(sizes[-1], replace(run, deadline=deadline.rest())))
    best = min(found, key=lambda solution: solution.error)
    schedule.end(best.error, best.snr_db)
    return best._replace(f=_padded(best.f, k))


def _at(k: int, run: Run) -> Solution:
    """Factors at one inner dimension, finished and measured."""
    objective, A = run.objective, run.A
    f = run.init
    if f is None or objective.covariance is None:
        f = _by_method(k, run)
    candidates = [f]
    if objective.covariance is not None:
        options = run.options
        tol = max(options.tol, _FAST_TOL) if options.effort == "fast" else options.tol
        candidates = descend(
            A,
            f,
            objective.covariance,
            schedule=run.schedule,
            deadline=run.deadline,
            threads=run.threads,
            tol=tol,
        )
    measured = min((objective.measured(A, f) for f in candidates), key=lambda solution: solution.error)
    found = objective.no_worse_than_zero(A, measured)
    if run.init is None:
        return found
    before = objective.measured(A, run.init)
    return found if found.error < before.error else before


def _by_method(k: int, run: Run) -> Factorization:
    """Factors of A by the method asked for, under the plain objective of the normalised matrix."""
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
        )
    )
    return objective.denormalised(f, exponent)


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
    """Peak memory of a run: A normalised and in tiles of both sides, (m + n) x k matrices, k x k systems."""
    plain = 4 * (3 * m * n + 6 * (m + n) * k) + 8 * 6 * k * k
    if objective.covariance is None:
        return plain
    return max(plain, 8 * 2 * n * n + 4 * (5 * m * n + 4 * n * n + 8 * n * k + 3 * k * k))
