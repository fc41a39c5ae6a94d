"""diba.solve: checks, budget, objective, scaling, the chosen method, and the finished Factorization."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import _check
from ..factorization import Factorization
from ..progress import Progress
from ..runtime import resolve_threads
from .budget import inner_dimension
from .deadline import Deadline
from .methods import EFFORTS, METHODS, Task, run
from .objective import Objective, checked
from .target_snr import smallest_k

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from .._check import Alphabet, FloatArray
    from ..progress import ProgressCallback

__all__ = ["solve"]

_START_SHARE = 0.6  # of a time limit, for the start of a descent under a covariance
_FAST_TOL = 2e-3  # of that descent at effort "fast": a third of its steps, within 0.05 dB


def solve(
    A: ArrayLike,
    k: int | None = None,
    *,
    bits_per_weight: float | None = None,
    storage_ratio: float | None = None,
    snr_db: float | None = None,
    method: Literal["auto", "admm", "greedy", "dbf"] = "auto",
    alphabet: Alphabet = "binary",
    effort: Literal["fast", "normal", "best"] = "normal",
    importance: tuple[ArrayLike | None, ArrayLike | None] | None = None,
    covariance: ArrayLike | tuple[ArrayLike, float] | None = None,
    init: Factorization | None = None,
    seed: int = 0,
    max_iter: int | None = None,
    tol: float = 1e-4,
    time_limit: float | None = None,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Factorization:
    """Factor ``A ~ D1 B1 D2 B2 D3`` with two binary matrices and three diagonals.

    Args:
        A: Real matrix of shape (m, n): anything NumPy can read, or a torch CPU tensor.
        k: Inner dimension. Give exactly one of ``k``, ``bits_per_weight``, ``storage_ratio``, ``snr_db``,
            unless ``init`` brings its own k.
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
        time_limit: Seconds after which the best factors so far are returned; ramps are hurried to end
            in time.
        threads: Threads of the compiled code; None uses ``diba.num_threads()``.
        progress: Called with a :class:`diba.Progress` at the start, after every iteration and at the end,
            then with the figures of what is returned. What it raises ends the run, as Ctrl-C does.

    Returns:
        The factors, with diagonals that 16 bits an entry hold exactly.

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
    matrix = _check.real_matrix(A, "A")
    options = _options(locals())
    if options.init is not None and (k, bits_per_weight, storage_ratio, snr_db) == (None,) * 4:
        return factor(matrix, options.init.k, options)
    name, size = _check.exactly_one_budget(k, bits_per_weight, storage_ratio, snr_db)
    if name == "snr_db":
        return _reaching(matrix, size, options)
    m, n = matrix.shape
    inner = inner_dimension(m, n, name, size)
    if options.init is not None:
        _check.equal(options.init.k, "the inner dimension of init", inner, "inner dimension asked for")
    return factor(matrix, inner, options)


@dataclass(frozen=True)
class Options:
    """The checked arguments of :func:`solve` that say how, not what."""

    method: str
    alphabet: Alphabet
    effort: str
    objective: Objective
    init: Factorization | None
    seed: int
    max_iter: int | None
    tol: float
    deadline: Deadline
    threads: int
    progress: ProgressCallback | None


def _options(given: dict[str, Any]) -> Options:
    shape = given["matrix"].shape
    method = _check.method(given["method"], METHODS)
    alphabet = _check.alphabet(given["alphabet"])
    if method == "dbf" and alphabet != "sign":
        raise ValueError(
            "alphabet is 'binary'; it must be 'sign' for method='dbf', which knows no 0/1 factors"
        )
    max_iter, limit, init = given["max_iter"], given["time_limit"], given["init"]
    if max_iter is not None:
        max_iter = _check.integer(max_iter, "max_iter", minimum=0, maximum=10**9)
    if limit is not None:
        limit = _check.number(limit, "time_limit", minimum=0)
    if init is not None:
        _check.instance(init, "init", Factorization, "use Factorization.from_factors for plain arrays")
        _check.equal(init.shape, "the shape of init", shape, "shape of A")
        _check.equal(init.alphabet, "the alphabet of init", alphabet, "alphabet asked for")
        if given["snr_db"] is not None:
            raise ValueError("snr_db and init are both given; a start has a k of its own: leave one out")
    _check.callback(given["progress"])
    return Options(
        method,
        alphabet,
        _check.one_of(given["effort"], "effort", tuple(EFFORTS)),
        checked(given["importance"], given["covariance"], *shape),
        init,
        _check.seed(given["seed"]),
        max_iter,
        _check.number(given["tol"], "tol", minimum=0),
        Deadline(limit),
        resolve_threads(given["threads"]),
        given["progress"],
    )


def _reaching(matrix: FloatArray, snr_db: float, options: Options) -> Factorization:
    """The factors of the smallest k that reaches snr_db."""

    def solve_at(k: int) -> tuple[Factorization, float]:
        f = factor(matrix, k, options)
        return f, options.objective.measure(matrix, f)[1]

    def rough(k: int) -> float:
        return options.objective.measure(matrix, factor(matrix, k, cheap))[1]

    m, n = matrix.shape
    cheap = replace(options, effort="fast", progress=None)
    pays = options.max_iter is None and options.effort != "fast"
    return smallest_k(solve_at, m, n, snr_db, rough=rough if pays else None, expired=options.deadline.over)[1]


def factor(matrix: FloatArray, k: int, options: Options) -> Factorization:
    """Factor a checked matrix at inner dimension k, all else being said."""
    (m, n), objective = matrix.shape, options.objective
    _check.fits_in_memory(
        _bytes_needed(m, n, k, objective),
        f"a {m} x {n} matrix with k = {k}",
        "use a smaller k, or split A by rows",
    )
    last = Progress(0, 0, math.inf, -math.inf, 0, 0.0)

    def report(state: Progress) -> None:
        nonlocal last
        last = state
        if options.progress is not None:
            options.progress(state)

    result = options.init
    if result is None or objective.covariance is None:
        result = objective.unscaled(_factor_plain(objective.scaled(matrix), k, options, report))

    def report_after(state: Progress, before: int = last.iteration) -> None:
        iteration = before + state.iteration
        elapsed = options.deadline.elapsed()
        report(replace(state, iteration=iteration, max_iter=before + state.max_iter, elapsed=elapsed))

    tol = max(options.tol, _FAST_TOL) if options.effort == "fast" else options.tol
    result = objective.descend(matrix, result, tol, options.threads, options.deadline, report_after)
    error, decibels = objective.measure(matrix, result)
    if options.init is not None:
        before, start = objective.measure(matrix, options.init)
        if not error < before:
            result, error, decibels = options.init, before, start
    report(replace(last, objective=error, snr=decibels, elapsed=options.deadline.elapsed(), remaining=0.0))
    return result


def _factor_plain(matrix: FloatArray, k: int, options: Options, report: ProgressCallback) -> Factorization:
    """Factors of a matrix under the plain objective, diagonals in float32."""
    scaled, exponent = scaled_to_one(matrix)
    weighted = options.objective.covariance is not None
    task = Task(
        scaled,
        k,
        options.alphabet,
        options.method,
        options.effort,
        options.seed,
        options.max_iter,
        options.tol,
        options.threads,
        options.deadline.share(_START_SHARE) if weighted else options.deadline,
        lambda state: report(replace(state, objective=math.ldexp(state.objective, 2 * exponent))),
        None if options.init is None else _rescaled(options.objective.inward(options.init), -exponent),
        not options.objective.plain,
    )
    return _rescaled(run(task).factors(), exponent)


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


def _rescaled(f: Factorization, exponent: int) -> Factorization:
    """2^exponent times f, spread over the diagonals."""
    share = exponent // 3
    return Factorization(
        np.ldexp(f.d1, share), f.b1, np.ldexp(f.d2, exponent - 2 * share), f.b2, np.ldexp(f.d3, share)
    )
