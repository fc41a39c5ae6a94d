"""Solving the weights of a model into files: in this process, in workers, or on an executor of others."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED as FIRST
from concurrent.futures import BrokenExecutor, CancelledError, ProcessPoolExecutor, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.layers import LayerRecipe
from ..layers.solved import Solved, layer_file, read_solved, solve_weight, write_solved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Executor, Future

    from ..progress import Progress
    from .outline import Weight

__all__ = ["ROWS_FOR_THREADS", "Solving", "shard_of", "solve_to"]

ROWS_FOR_THREADS = 1024
"""Layers with fewer rows or columns are solved side by side, each by one thread."""

_TRIES = 3  # of a layer whose worker dies
_TICK = 0.2  # seconds between looks at what workers do

_stop: Any = None  # in a worker process: whether its run has ended, in shared memory without a lock


def solve_to(
    folder: str, weight: Weight, threads: int, progress: Callable[[Progress], object] | None = None
) -> tuple[str, float]:
    """Solve one weight into its file in a folder; returns its name, and its SNR in dB.

    This is what executors run: it can be pickled, and so can its arguments, which hold no values.

    Raises:
        OSError, FormatError: The weight cannot be read, or the folder not be written.
        ValueError: An entry of it is not finite.
    """
    began = time.perf_counter()
    options: dict[str, Any] = {"threads": threads, "progress": progress or _watch}
    f, snr = solve_weight(weight, weight.settings, **options)
    recipe = LayerRecipe(
        objective="plain", snr_db=snr, seconds=time.perf_counter() - began, bias_corrected=False
    )
    write_solved(layer_file(Path(folder), weight.name), weight.key, Solved(f, recipe, None))
    return weight.name, snr


def shard_of(weights: Iterable[Weight], number: int, count: int) -> list[Weight]:
    """The weights of one shard of several, which take about the same time, each: the same on every machine.

    Args:
        weights: All of them.
        number: From 1.
        count: Number of shards.
    """
    load = [0.0] * count
    shards: list[list[Weight]] = [[] for _ in range(count)]
    for weight in sorted(weights, key=lambda weight: (-weight.work, weight.name)):
        least = min(range(count), key=load.__getitem__)
        load[least] += weight.work
        shards[least].append(weight)
    return shards[number - 1]


class Solving:
    """Solves weights into a folder, and goes on where it was stopped.

    Args:
        folder: Of finished layers; it is made.
        weights: What is to be there.
        tell: Called with a finished layer's name and SNR in dB, and the share of all work that is done, when
            that grows.
    """

    def __init__(
        self, folder: Path, weights: Sequence[Weight], tell: Callable[[str | None, float | None, float], None]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._tell = folder, tell
        self._whole = sum(weight.work for weight in weights) or 1.0
        self.left = {w.name: w for w in sorted(weights, key=lambda w: (-w.work, w.name))}
        self._look()
        self._parts: dict[str, float] = {}  # share of layers under way
        self._stopped = threading.Event()

    def _look(self) -> None:
        """Find what is finished."""
        for name, weight in list(self.left.items()):
            if read_solved(layer_file(self._folder, name), weight.key) is not None:
                del self.left[name]

    @property
    def share(self) -> float:
        """Share of the work that is done, from 0 to 1."""
        open_work = sum(
            weight.work * (1 - self._parts.get(name, 0.0)) for name, weight in list(self.left.items())
        )
        return 1 - open_work / self._whole

    def here(self, threads: int) -> None:
        """Solve in this process: large layers with all threads, small ones side by side."""
        share = sum(weight.work for weight in self.left.values()) / threads
        small = [w for w in self.left.values() if min(w.shape) < ROWS_FOR_THREADS and w.work <= share]
        if threads == 1 or len(small) < 2:
            small = []
        for weight in [weight for weight in self.left.values() if weight not in small]:
            self._done(*solve_to(str(self._folder), weight, threads, self._watching(weight.name)))
        if not small:
            return
        pool = ThreadPoolExecutor(threads, thread_name_prefix="diba-compress")
        try:
            futures = [
                pool.submit(solve_to, str(self._folder), weight, 1, self._watching(weight.name))
                for weight in small
            ]
            self._gather(set(futures))
        finally:
            self._stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def in_workers(self, count: int, threads: int) -> None:
        """Solve in processes of this machine; the layers of one that dies are solved again.

        Args:
            count: Number of processes.
            threads: Of each.

        Raises:
            OSError: Workers die again and again.
        """
        context, before, deaths = multiprocessing.get_context("spawn"), len(self.left), 0
        # No Event: a worker killed while it looks at one keeps its lock, and all others wait for ever.
        stop = context.RawValue(ctypes.c_bool, False)
        while self.left:
            options: Any = {"mp_context": context, "initializer": _begin, "initargs": (stop,)}
            pool = ProcessPoolExecutor(min(count, len(self.left)), **options)
            try:
                self._gather(
                    {pool.submit(solve_to, str(self._folder), w, threads) for w in self.left.values()}
                )
            except BrokenExecutor:
                self._look()
                deaths = deaths + 1 if len(self.left) == before else 1
                before = len(self.left)
                if deaths == _TRIES:
                    raise OSError(
                        f"workers died {_TRIES} times before they had solved a layer, such as "
                        f"{next(iter(self.left))}: is there too little memory? Give fewer workers; what is "
                        "finished is kept"
                    ) from None
            except BaseException:
                stop.value = True
                raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def on(self, executor: Executor, threads: int) -> None:
        """Solve on an executor of others, whose workers see the same files under the same names.

        Args:
            executor: Of ``concurrent.futures``.
            threads: Of each task.

        Raises:
            OSError: Tasks are lost again and again.
        """
        tries = dict.fromkeys(self.left, 0)
        while self.left:
            futures = {
                executor.submit(solve_to, str(self._folder), weight, threads): name
                for name, weight in self.left.items()
            }
            lost = {futures[future] for future in self._gather(set(futures), lost=True)}
            for name in lost & self.left.keys():
                tries[name] += 1
                if tries[name] == _TRIES:
                    raise OSError(
                        f"the task of {name} was lost {_TRIES} times: look at the log of the executor's "
                        "workers; what is finished is kept"
                    )

    def _gather(self, futures: set[Future[tuple[str, float]]], lost: bool = False) -> set[Future[Any]]:
        """Wait for tasks, and tell of each; returns those that were lost, if these are no error."""
        missing: set[Future[Any]] = set()
        open_ones = set(futures)
        try:
            while open_ones:
                ready, open_ones = wait(open_ones, timeout=_TICK, return_when=FIRST)
                for future in ready:
                    error = None if future.cancelled() else future.exception()
                    if future.cancelled() or _means_lost(error):
                        if not lost:
                            raise error or CancelledError
                        missing.add(future)
                    else:
                        self._done(*future.result())
                if self._parts:
                    self._tell(None, None, self.share)
        except BaseException:
            for future in open_ones:
                future.cancel()
            raise
        return missing

    def _done(self, name: str, snr: float) -> None:
        self.left.pop(name, None)
        self._parts.pop(name, None)
        self._tell(name, snr, self.share)

    def _watching(self, name: str) -> Callable[[Progress], None]:
        def watch(state: Progress) -> None:
            if self._stopped.is_set():
                raise _Stopped
            if state.total:
                self._parts[name] = min(state.done / state.total, 0.99)
            if threading.current_thread() is threading.main_thread():
                self._tell(None, None, self.share)

        return watch


class _Stopped(Exception):
    """Stops a solver whose run has ended."""


def _means_lost(error: BaseException | None) -> bool:
    """Whether an exception of a task tells of its worker, not of its work."""
    return isinstance(error, (BrokenExecutor, CancelledError)) or type(error).__name__ == "KilledWorker"


def _watch(state: Progress) -> None:
    if _stop is not None and _stop.value:
        raise _Stopped


def _begin(stop: Any) -> None:
    """In a new worker: know when its run ends, and end with the process that made it."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal's Ctrl-C the main process tells
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    with contextlib.suppress(OSError):
        parent.join()
    os._exit(1)
