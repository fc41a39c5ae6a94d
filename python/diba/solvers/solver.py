"""diba.solve: checks, budget, the factors, and a word where k is beyond what pays."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal import check, check_arrays
from ..factorization import Factorization
from ..progress import check_progress, reporting
from ..runtime import resolve_threads
from .deadline import Deadline
from .factoring import Run, factor, factor_at
from .objective import checked
from .options import SolveOptions
from .size import PAYING_BITS, inner_dimension, paying_k
from .target_snr import smallest_k

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike

    from .._internal.check import Alphabet, FloatArray
    from ..progress import ProgressOption
    from .options import Effort, Method

__all__ = ["no_advice", "solve"]

_SMALLEST = 2.0**-150  # in size; what is smaller rounds to zero in float32
_advising: ContextVar[bool] = ContextVar("diba_advising", default=True)


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
        time_limit: Seconds after which the best factors so far are returned; ramps are hurried to end
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
    matrix = check_arrays.real_matrix(A, "A")
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
    _checked_start(init, matrix.shape, options.alphabet, snr_db)
    check_progress(progress)
    objective = checked(importance, covariance, *matrix.shape)
    run = Run(options, objective, init, Deadline(options.time_limit), resolve_threads(options.threads))
    if not np.abs(matrix).max() > _SMALLEST:
        matrix = np.zeros_like(matrix)
    with reporting(progress) as report:
        result = _solve(matrix, (k, bits_per_weight, storage_ratio, snr_db), replace(run, report=report))
    _advise(result)
    return result


def _solve(matrix: FloatArray, sizes: tuple[Any, Any, Any, Any], run: Run) -> Factorization:
    m, n = matrix.shape
    if run.init is not None and sizes == (None,) * 4:
        return factor(matrix, run.init.k, run)
    name, size = check.exactly_one_budget(*sizes)
    if name == "snr_db":
        return _reaching(matrix, size, run)
    inner = inner_dimension(m, n, name, size)
    if run.init is not None:
        check.equal(run.init.k, "the inner dimension of init", inner, "inner dimension asked for")
    return factor(matrix, inner, run)


def _advise(f: Factorization) -> None:
    """Say it where k is beyond what pays."""
    (m, n), k = f.shape, f.k
    pays = paying_k(m, n)
    if k <= pays or not _advising.get():
        return
    text = (
        f"k is {k}, beyond what pays for a {m} x {n} matrix: its binary factors take "
        f"{k * (m + n) / (m * n):.3g} bits for each entry, where plain integers of as many bits lose less; "
        f"k = {pays} ({PAYING_BITS} bits) is enough"
    )
    try:
        warnings.warn(text, UserWarning, stacklevel=3)
    except UserWarning:  # a filter that makes it an error must not cost the factors
        logging.getLogger("diba").warning("%s", text)


@contextmanager
def no_advice() -> Iterator[None]:
    """Within it, :func:`solve` says nothing of k in this thread: for sizes that no user chose."""
    token = _advising.set(False)
    try:
        yield
    finally:
        _advising.reset(token)


def _checked_start(init: Any, shape: tuple[int, int], alphabet: str, snr_db: Any) -> None:
    """Require factors of that shape and alphabet, or None."""
    if init is None:
        return
    check.instance(init, "init", Factorization, "use Factorization.from_factors for plain arrays")
    check.equal(init.shape, "the shape of init", shape, "shape of A")
    check.equal(init.alphabet, "the alphabet of init", alphabet, "alphabet asked for")
    if snr_db is not None:
        raise ValueError("snr_db and init are both given; a start has a k of its own: leave one out")


def _reaching(matrix: FloatArray, snr_db: float, run: Run) -> Factorization:
    """The factors of the smallest k that reaches snr_db."""

    def solve_at(k: int) -> tuple[Factorization, float]:
        f = factor_at(matrix, k, run)
        return f, run.objective.measure(matrix, f)[1]

    def rough(k: int) -> float:
        return run.objective.measure(matrix, factor_at(matrix, k, cheap))[1]

    m, n = matrix.shape
    cheap = replace(run, options=replace(run.options, effort="fast"), report=None)
    pays = run.options.max_iter is None and run.options.effort != "fast"
    return smallest_k(solve_at, m, n, snr_db, rough=rough if pays else None, expired=run.deadline.over)[1]
