"""Timing of products, for ``diba.autotune``, ``diba bench`` and the benchmarks.

Random factors and activations to multiply, timings of several calls in turn, and the machine's read
bandwidth.
"""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import astuple, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from ..bits import BitMatrix
from ..factorization import Factorization
from ..runtime import resolve_threads
from ..solvers.size import inner_dimension
from . import check, tuning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from .tuning import Tuning

    Call = Callable[..., Any]

__all__ = [
    "activations",
    "autotune",
    "blas_threads",
    "exact_product",
    "fastest",
    "interleaved",
    "random_factorization",
    "read_bandwidth",
]

HEAVY_ENTRIES, HEAVY_FACTOR = 4, 50

# ---------------------------------------------------------------- operands


def random_factorization(m: int, n: int, bits: float, seed: int = 0) -> Factorization:
    """Random 0/1 factors of an m x n matrix that take ``bits`` bits per weight.

    Raises:
        ValueError: even k = 1 takes more bits.
    """
    k = inner_dimension(m, n, "bits_per_weight", bits)
    random = np.random.default_rng(seed)
    b1, b2 = (_random_bits(random, rows, cols) for rows, cols in ((m, k), (k, n)))
    d1, d2, d3 = (np.exp(0.25 * random.standard_normal(size)) for size in (m, k, n))
    d2 *= random.choice([-1.0, 1.0], k)  # signs that balance the ones of B1, as in solved factors
    return Factorization(d1, b1, d2, b2, d3).round_diagonals()


def _random_bits(random: np.random.Generator, rows: int, cols: int) -> BitMatrix:
    words = random.integers(0, 2**64, (rows, -(-cols // 64)), dtype=np.uint64)
    if cols % 64:
        words[:, -1] &= np.uint64(2 ** (cols % 64) - 1)
    return BitMatrix(words, cols, "binary", copy=False)


def activations(count: int, n: int, heavy: bool = False, seed: int = 0) -> NDArray[np.float32]:
    """Gaussian vectors as rows, shape (count, n); ``heavy``: 4 entries of each are 50 times larger."""
    random = np.random.default_rng(seed)
    X = random.standard_normal((count, n), dtype=np.float32)
    if heavy:
        for row in X:
            row[random.choice(n, min(HEAVY_ENTRIES, n), replace=False)] *= HEAVY_FACTOR
    return X


def exact_product(f: Factorization, X: NDArray[np.float32]) -> NDArray[np.float64]:
    """``X f'`` in float64, shape (count, m), for X of shape (count, n)."""
    Z = _bit_product(f.b2, X.astype(np.float64) * f.d3) * f.d2
    return _bit_product(f.b1, Z) * f.d1


def _bit_product(b: BitMatrix, X: NDArray[np.float64]) -> NDArray[np.float64]:
    """``X B'`` in float64, a few rows of B at a time to save memory."""
    rows, cols = b.shape
    step = max(1, 2**22 // cols)
    parts = [BitMatrix(b.words[i : i + step], cols, b.alphabet) for i in range(0, rows, step)]
    return np.concatenate([X @ part.to_dense(np.float64).T for part in parts], axis=1)


# ---------------------------------------------------------------- timing


def interleaved(
    calls: Mapping[str, Call], rounds: int, seconds: float, rest: float = 0.0
) -> dict[str, list[float]]:
    """Time several calls in turn, so that noise of the machine affects all of them alike.

    Args:
        calls: Name -> call.
        rounds: Samples of each call; fewer, but at least 3, if they would take more than ``seconds``.
        seconds: Seconds for all samples of one call.
        rest: Seconds to sleep before every sample, so that threads of the call before stop spinning.

    Returns:
        Name -> samples, each the seconds of one call.
    """
    once = {name: _first_seconds(call, seconds) for name, call in calls.items()}
    loops = {name: max(1, round(seconds / rounds / taken)) for name, taken in once.items()}
    turns = {name: min(rounds, max(3, round(seconds / loops[name] / once[name]))) for name in calls}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            if turn < turns[name]:
                time.sleep(rest)
                if once[name] < seconds:
                    call()  # warm-up: caches and threads
                samples[name].append(_seconds(call, loops[name]))
    return samples


def _first_seconds(call: Call, limit: float) -> float:
    """Rough seconds of a call: the best of three, or the first alone if it exceeds ``limit``."""
    first = _seconds(call, 1)
    return first if first > limit else min(_seconds(call, 1) for _ in range(3))


def fastest(*calls: Call) -> Call:
    """The fastest of several calls."""
    if len(calls) == 1:
        return calls[0]
    taken = interleaved({str(i): call for i, call in enumerate(calls)}, 3, 0.01)
    return calls[min(range(len(calls)), key=lambda i: min(taken[str(i)]))]


def _seconds(call: Call, count: int) -> float:
    """Mean seconds of ``count`` calls, without garbage collection."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count
    finally:
        if collecting:
            gc.enable()


def read_bandwidth(size: int, threads: int = 1, seconds: float = 0.03) -> float:
    """Bytes per second that ``threads`` threads together read from the same ``size`` bytes, repeatedly."""
    from concurrent.futures import ThreadPoolExecutor

    parts = np.array_split(np.ones(max(size // 8, 8 * threads), dtype=np.uint64), threads)
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(partial(_read_rate, seconds=seconds), parts))


def _read_rate(part: NDArray[np.uint64], seconds: float) -> float:
    _core.read_seconds(part)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < end:
        taken.append(max(_core.read_seconds(part), 1e-9))
    return part.nbytes / statistics.median(taken)


def blas_threads(threads: int) -> dict[str, str]:
    """Environment variables that set the threads of the libraries of NumPy and torch."""
    names = ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    return dict.fromkeys(names, str(threads))


# ---------------------------------------------------------------- settings of the fast products

_TABLE_BYTES = tuple(1 << e for e in range(16, 23))
_FETCH_BYTES = (0, 2048, 6144, 16384)
_STREAMED, _STREAMED_SIDE = 20, 4096  # matrices, 42 MB of bits: more than most caches hold
_SIDES = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_LEAST_SPEEDUP = 1.1  # speed-up from which on a second thread is used
_CLOSE = 1.02  # a time within this factor of the best is as good
_ROUNDS = 25  # samples of each time


def autotune(*, threads: int | None = None, seconds: float = 4.0) -> Tuning:
    """Measure the best settings of the fast products on this machine and use them from now on.

    Args:
        threads: Threads that later products will use; None uses ``diba.num_threads()``.
        seconds: About how long to measure.

    Returns:
        The settings, now in use.

    Raises:
        TypeError: ``threads`` or ``seconds`` is not a number.
        ValueError: ``threads`` or ``seconds`` is not positive.
    """
    budget = check.number(seconds, "seconds", minimum=0.0, exclusive=True)
    before = tuning.tuning()
    try:
        table_bytes = _best_table_bytes(budget / 3)
        fetch_bytes = _best_fetch_bytes(budget / 3)
        bits = tuning.NEVER if resolve_threads(threads) == 1 else _least_bits(budget / 3)
    finally:  # also after Ctrl-C
        tuning.set_tuning(before)
    found = tuning.Tuning(table_bytes, bits, fetch_bytes)
    tuning.set_tuning(found)
    return found


def _best_table_bytes(seconds: float) -> int:
    """The smallest ``table_bytes`` that is about as fast as any, for a batch and factors larger than L2."""
    multiply = _product(4096, 64)
    return _least_of_the_best("table_bytes", _TABLE_BYTES, partial(multiply, threads=1), seconds)


def _best_fetch_bytes(seconds: float) -> int:
    """The smallest ``fetch_bytes`` that is about as fast as any, for one vector and matrices in turn."""
    products = [_product(_STREAMED_SIDE, 1) for _ in range(_STREAMED)]

    def run() -> None:
        for multiply in products:
            multiply(threads=1)

    return _least_of_the_best("fetch_bytes", _FETCH_BYTES, run, seconds)


def _least_of_the_best(name: str, values: Sequence[int], run: Call, seconds: float) -> int:
    """The first value of a setting with which a call is about as fast as with any."""
    now = tuning.tuning()

    def trial(value: int) -> Callable[[], None]:
        def measured() -> None:
            _core.set_tuning(*astuple(replace(now, **{name: value})))
            run()

        return measured

    times = _medians([trial(value) for value in values], seconds)
    _core.set_tuning(*astuple(now))
    return next(value for value, t in zip(values, times, strict=True) if t <= _CLOSE * min(times))


def _least_bits(seconds: float) -> int:
    """``bits_per_thread``: half the bits of the smallest product that two threads speed up."""
    _core.set_tuning(*astuple(replace(tuning.tuning(), bits_per_thread=1)))
    least = tuning.NEVER
    for side in reversed(_SIDES):
        multiply = _product(side, 1)
        one, two = _medians(
            [partial(multiply, threads=1), partial(multiply, threads=2)], seconds / len(_SIDES)
        )
        if one < _LEAST_SPEEDUP * two:
            break
        least = side * side // 2
    return least


def _product(side: int, count: int) -> Call:
    """A fast product of ``count`` vectors with random side x side factors at one bit per weight."""
    return partial(random_factorization(side, side, 1.0).prepare().linear, activations(count, side))


def _medians(actions: Sequence[Call], seconds: float) -> list[float]:
    """Median seconds of each action; all samples together take about ``seconds``."""
    calls = {str(at): action for at, action in enumerate(actions)}
    samples = interleaved(calls, _ROUNDS, seconds / len(actions))
    return [statistics.median(found) for found in samples.values()]
