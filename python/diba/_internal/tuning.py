"""Settings of the fast products that are measured, not guessed: for speed alone, results stay the same bytes.

``autotune()`` measures them on this machine (seconds) and puts them to use;
``autotune().save(path)`` keeps them, and the environment variable ``DIBA_TUNING``
names the file for later processes, which read it before their first fast product.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from .. import _core
from ..runtime import resolve_threads
from . import check
from .disk import open_regular, replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .disk import PathLike

__all__ = ["Tuning", "autotune", "set_tuning", "tuning"]

_ENVIRONMENT = "DIBA_TUNING"
_LONGEST_FILE = 1 << 16
_TABLE_BYTES = tuple(1 << e for e in range(16, 23))
_SIDES = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_NEVER = 1 << 62  # bits per thread where a second thread never pays
_PAYS = 1.1  # a second thread must be so many times faster
_CLOSE = 1.02  # a time within this of the best is as good


@dataclass(frozen=True)
class Tuning:
    """Settings of the fast products.

    Attributes:
        table_bytes: Vectors of a batch are worked on together as long as their
            tables (about 4 bytes an entry) fit this; they should stay in a cache.
        bits_per_thread: Bits of both factors, times the vectors of a batch, that pay
            for each further thread.
    """

    table_bytes: int
    bits_per_thread: int

    def __post_init__(self) -> None:
        for field in fields(self):
            check.integer(getattr(self, field.name), field.name, minimum=1, maximum=_NEVER)

    def save(self, path: PathLike) -> None:
        """Write JSON for ``DIBA_TUNING``.

        Raises:
            OSError: the folder does not exist or cannot be written.
        """
        replace_file(check.path(path), (json.dumps(asdict(self), indent=1) + "\n").encode())


def tuning() -> Tuning:
    """The settings in use.

    Raises:
        ValueError: ``DIBA_TUNING`` names no file that ``Tuning.save`` wrote.
    """
    read_environment()
    return Tuning(*_core.tuning())


def set_tuning(values: Tuning) -> None:
    """Use other settings in this process from now on.

    Raises:
        TypeError: ``values`` is no Tuning.
    """
    check.instance(values, "values", Tuning, "use diba.Tuning(table_bytes, bits_per_thread)")
    read_environment()  # not later, over these
    _core.set_tuning(values.table_bytes, values.bits_per_thread)


def autotune(*, threads: int | None = None, seconds: float = 4.0) -> Tuning:
    """Measure the settings on this machine and use them from now on.

    Args:
        threads: As many as later products will use; None uses ``diba.num_threads()``.
        seconds: About how long it may take.

    Returns:
        The settings, now in use.

    Raises:
        TypeError, ValueError: ``threads`` or ``seconds`` is no positive number.
    """
    budget = check.number(seconds, "seconds", minimum=0.0, exclusive=True)
    before = tuning()
    try:
        table_bytes = _best_table_bytes(budget / 2)
        bits = _NEVER if resolve_threads(threads) == 1 else _least_bits(budget / 2)
    finally:  # also after Ctrl-C
        set_tuning(before)
    found = Tuning(table_bytes, bits)
    set_tuning(found)
    return found


@cache
def read_environment() -> None:
    """Use the file that ``DIBA_TUNING`` names, if it is set: once in a process.

    Raises:
        ValueError: it is no such file.
    """
    path = os.environ.get(_ENVIRONMENT, "")
    if not path:
        return
    try:
        with open_regular(path) as file:
            values = Tuning(**json.loads(file.read(_LONGEST_FILE).decode()))
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{_ENVIRONMENT} is {path!r}; it must be a file that diba.autotune().save() wrote, "
            f"or be unset ({error})"
        ) from error
    _core.set_tuning(values.table_bytes, values.bits_per_thread)


# ---------------------------------------------------------------- measuring


def _best_table_bytes(seconds: float) -> int:
    """The smallest that is about as fast as any, for a batch and factors beyond a second-level cache."""
    multiply = _product(4096, 64)
    bits_per_thread = tuning().bits_per_thread

    def trial(table_bytes: int) -> Callable[[], None]:
        def run() -> None:
            _core.set_tuning(table_bytes, bits_per_thread)
            multiply(1)

        return run

    times = _interleaved([trial(size) for size in _TABLE_BYTES], seconds)
    return next(size for size, t in zip(_TABLE_BYTES, times, strict=True) if t <= _CLOSE * min(times))


def _least_bits(seconds: float) -> int:
    """Half the bits of the smallest product from which on two threads are faster than one."""
    _core.set_tuning(tuning().table_bytes, 1)
    least = _NEVER
    for side in reversed(_SIDES):
        multiply = _product(side, 1)
        one, two = _interleaved(
            [lambda m=multiply: m(1), lambda m=multiply: m(2)],  # type: ignore[misc]
            seconds / len(_SIDES),
        )
        if one < _PAYS * two:
            break
        least = side * side // 2
    return least


def _product(side: int, count: int) -> Callable[[int], None]:
    """A product of random bits, k = side / 2, with `count` vectors; takes the number of threads."""
    random = np.random.default_rng(0)
    k = side // 2
    ones = np.ones(side, dtype=np.float32)

    def bits(rows: int, cols: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
        return random.integers(0, 2**64, size=(rows, cols // 64), dtype=np.uint64, endpoint=False)

    prepared = _core.Packed(ones, bits(side, k), ones[:k].copy(), bits(k, side), ones, True)
    x = random.standard_normal((count, side)).astype(np.float32)
    out = np.empty((count, side), dtype=np.float32)
    return lambda threads: prepared.multiply(x, None, out, threads)


def _interleaved(actions: Sequence[Callable[[], None]], seconds: float) -> list[float]:
    """Median seconds of each action, called in turn."""
    inner = []
    for action in actions:
        action()
        start = time.perf_counter()
        action()
        inner.append(max(1, int(1e-4 / max(1e-7, time.perf_counter() - start))))
    times: list[list[float]] = [[] for _ in actions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for action, repeats, found in zip(actions, inner, times, strict=True):
            start = time.perf_counter()
            for _ in range(repeats):
                action()
            found.append((time.perf_counter() - start) / repeats)
    return [statistics.median(found) for found in times]
