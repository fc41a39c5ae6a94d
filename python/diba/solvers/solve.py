"""diba.solve: checks, budget, scaling, the chosen method, and the finished Factorization."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Literal

import numpy as np

from .. import _check
from ..bits import BitMatrix
from ..factorization import Factorization
from ..progress import Progress
from ..runtime import resolve_threads
from .admm import Admm
from .budget import inner_dimension
from .greedy import Greedy, snr

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from .._check import Alphabet, FloatArray
    from ..progress import ProgressCallback

__all__ = ["METHODS", "solve"]

METHODS = ("greedy", "admm")
BALANCE = 0.1  # lambda of the balance penalty
POLISH = 20  # greedy iterations after the ramp, at most
DEFAULT_ITERATIONS = {"greedy": 100, "admm": 800}


def solve(
    A: ArrayLike,
    k: int | None = None,
    *,
    bits_per_weight: float | None = None,
    storage_ratio: float | None = None,
    method: Literal["greedy", "admm"] = "greedy",
    alphabet: Alphabet = "binary",
    seed: int = 0,
    max_iter: int | None = None,
    tol: float = 1e-4,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Factorization:
    """Factor ``A ~ D1 B1 D2 B2 D3`` with two binary matrices and three diagonals.

    Args:
        A: Real matrix of shape (m, n): anything NumPy can read, or a torch CPU tensor.
        k: Inner dimension. Give exactly one of ``k``, ``bits_per_weight``, ``storage_ratio``.
        bits_per_weight: The largest k whose factors take at most this many bits for each entry
            of A, diagonals counted at 16 bits an entry.
        storage_ratio: The same as a share of float32: bits per weight / 32.
        method: ``"greedy"``: DiBA-Greedy as published, from a random start. ``"admm"``: better factors
            in more time, by ADMM on signs (balanced first where 0/1 factors are wanted), then greedy.
        alphabet: Entries of the binary factors: ``"binary"`` (0/1) or ``"sign"`` (-1/+1).
        seed: Of the random start; the same seed gives the same start.
        max_iter: Outer iterations: at most (greedy), or of the whole ramp (admm, where more give
            better factors); None for 100 (greedy) or 800 (admm).
        tol: Stop greedy iterations when one lowers the objective by less than this share of it.
        threads: Threads of the bit kernels; None uses ``diba.num_threads()``. The linear solves of
            admm run in NumPy's LAPACK with its own threads.
        progress: Called with a :class:`diba.Progress` at the start and after every iteration. What
            it raises ends the run, as Ctrl-C does.

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
    m, n = matrix.shape
    inner = inner_dimension(m, n, k, bits_per_weight, storage_ratio)
    _check.method(method, METHODS)
    alphabet = _check.alphabet(alphabet)
    seed = _check.seed(seed)
    if max_iter is None:
        max_iter = DEFAULT_ITERATIONS[method]
    max_iter = _check.integer(max_iter, "max_iter", minimum=0, maximum=10**9)
    tol = _check.number(tol, "tol", minimum=0)
    threads = resolve_threads(threads)
    _check.callback(progress)
    _check.fits_in_memory(
        _bytes_needed(m, n, inner),
        f"a {m} x {n} matrix with k = {inner}",
        "use a smaller k, or split A by rows",
    )

    started = time.perf_counter()
    scaled, exponent = scaled_to_one(matrix)

    def report(run: Greedy | Admm, iteration: int, flips: int) -> None:
        if progress is not None:
            objective = math.ldexp(run.objective, 2 * exponent)
            elapsed = time.perf_counter() - started
            decibels = snr(run.energy, run.objective)
            progress(Progress(iteration, max_iter, objective, decibels, flips, elapsed))

    if method == "greedy":
        run = Greedy(scaled, *random_start(m, n, inner, alphabet, seed), threads)
        report(run, 0, 0)
        for iteration in run.iterate(max_iter, tol):
            report(run, iteration, run.flips)
    else:
        ramp = Admm(scaled, inner, seed, BALANCE if alphabet == "binary" else 0.0, threads)
        for iteration in ramp.iterate(max_iter):
            report(ramp, iteration, 0)
        run, flips = _polished(ramp, scaled, alphabet, tol, threads)
        report(run, max_iter, flips)
    return _finished(run, exponent)


def _polished(
    ramp: Admm, scaled: NDArray[np.float32], alphabet: Alphabet, tol: float, threads: int
) -> tuple[Greedy, int]:
    """(greedy from the best iterate of a ramp, bits it flipped)."""
    d1, b1, b2, d3 = ramp.factors(alphabet)
    run = Greedy(scaled, b1, b2, threads, d1=d1, d3=d3)
    return run, sum(run.flips for _ in run.iterate(POLISH, tol))


def _bytes_needed(m: int, n: int, k: int) -> int:
    """Peak memory of a run: A in four forms, dense (m + n) x k matrices, k x k systems."""
    return 4 * (4 * m * n + 6 * (m + n) * k) + 8 * 5 * k * k


def scaled_to_one(A: FloatArray) -> tuple[NDArray[np.float32], int]:
    """(A / 2^e as float32 with magnitudes up to 1, e): no product of the solver over- or underflows."""
    largest = max(abs(float(A.max())), abs(float(A.min())))
    exponent = math.frexp(largest)[1]
    return np.ldexp(A, -exponent).astype(np.float32, order="C"), exponent


def random_start(m: int, n: int, k: int, alphabet: Alphabet, seed: int) -> tuple[BitMatrix, BitMatrix]:
    """B1 (m x k) and B2 (k x n) with every bit 0 or 1 at even odds."""
    random = np.random.default_rng(seed)
    return _random_bits(random, m, k, alphabet), _random_bits(random, k, n, alphabet)


def _random_bits(random: np.random.Generator, rows: int, cols: int, alphabet: Alphabet) -> BitMatrix:
    packed = random.integers(0, 256, size=(rows, -(-cols // 8)), dtype=np.uint8)
    packed[:, -1] &= 0xFF >> (-cols % 8)
    return BitMatrix.from_packed_rows(packed, cols, alphabet)


def _finished(run: Greedy, exponent: int) -> Factorization:
    """The factors of the unscaled A, the power of two spread evenly over the diagonals."""
    share = exponent // 3
    d1 = np.ldexp(run.left.scale, share)
    d2 = np.ldexp(run.d2, exponent - 2 * share)
    d3 = np.ldexp(run.right.scale, share)
    b1, b2 = run.bits()
    return Factorization(d1, b1, d2, b2, d3).round_diagonals()
