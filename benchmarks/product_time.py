"""Time of f @ x against NumPy's A @ x, both on one thread."""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from numpy.typing import NDArray

import diba

__all__ = ["Pair", "compare"]

REPETITIONS = 41
SECONDS_PER_SAMPLE = 2e-3

# Read by the BLAS libraries that NumPy comes with, once, when they are loaded.
ONE_THREAD = dict.fromkeys(
    ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)

Pair = tuple[NDArray[np.float32], diba.Factorization]


def compare(pairs: Sequence[Pair]) -> list[dict[str, object]]:
    """Microseconds of A @ x and f @ x: one matrix of each shape again and again, then all in turn.

    The first kind of row has its matrix in the nearest cache that holds it. The last row, shape None,
    goes through all matrices as a model does. Runs in a process of its own, where NumPy's BLAS can
    still be told to use one thread.
    """
    previous = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn, initializer=_prepare) as pool:
            return pool.submit(_compare, list(pairs)).result()
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _prepare() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    diba.set_num_threads(1)


def _compare(pairs: list[Pair]) -> list[dict[str, object]]:
    by_shape: dict[tuple[int, int], Pair] = {}
    for pair in pairs:
        by_shape.setdefault(pair[1].shape, pair)
    rows = [{"shape": list(shape), **_time_both([pair])} for shape, pair in by_shape.items()]
    return [*rows, {"shape": None, **_time_both(pairs)}]


def _time_both(pairs: list[Pair]) -> dict[str, object]:
    random = np.random.default_rng(0)
    vectors = [random.standard_normal(A.shape[1], dtype=np.float32) for A, _ in pairs]

    def dense() -> None:
        for (A, _), x in zip(pairs, vectors, strict=True):
            A @ x

    def packed() -> None:
        for (_, f), x in zip(pairs, vectors, strict=True):
            f @ x

    numpy_us, diba_us = _interleaved(dense, packed)
    return {
        "matrices": len(pairs),
        "numpy_us": _summary(numpy_us),
        "diba_us": _summary(diba_us),
        "numpy_over_diba": round(statistics.median(numpy_us) / statistics.median(diba_us), 3),
    }


def _interleaved(*actions: Callable[[], None]) -> list[list[float]]:
    """Microseconds of every repetition of each action; they take turns, so that noise meets all."""
    loops = [max(1, round(SECONDS_PER_SAMPLE / _seconds(action, 3))) for action in actions]
    samples: list[list[float]] = [[] for _ in actions]
    for _ in range(REPETITIONS):
        for action, count, taken in zip(actions, loops, samples, strict=True):
            taken.append(1e6 * _seconds(action, count))
    return samples


def _seconds(action: Callable[[], None], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        action()
    return (time.perf_counter() - start) / count


def _summary(samples: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(samples, n=4)
    return {"median": round(middle, 2), "quartile_1": round(low, 2), "quartile_3": round(high, 2)}
