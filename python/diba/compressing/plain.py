"""A compression without data: every weight for itself, from files to files, on any number of machines."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import runtime
from .._internal import check
from ..checkpoints import integrity
from ..layers.solved import layer_file, read_solved
from ..progress import Progress
from . import card
from .solving import Solving, shard_of
from .writing import described, without_times, write_tensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from pathlib import Path

    from ..checkpoints.report import Report
    from ..layers.solved import Solved
    from .files import FileSource
    from .outline import Outline, Weight
    from .recipe import CompressSettings
    from .workplace import Workplace

__all__ = ["Workers", "solve_weights", "write_result"]

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Workers:
    """Who solves weights; the result is the same.

    Attributes:
        threads: Of every task; None: those of diba, shared out between the workers.
        count: Number of processes of this machine; None: this one.
        executor: Of ``concurrent.futures``, whose workers see the files under the same names.
        shard: (i, n): only the i-th of n shares of the weights, i from 1.

    Raises:
        TypeError: A value is of the wrong kind.
        ValueError: A value is out of range, or several are given that exclude each other.
    """

    threads: int | None = None
    count: int | None = None
    executor: Executor | None = None
    shard: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, value in (("threads", self.threads), ("workers", self.count)):
            if value is not None:
                check.positive_int(value, name)
        if self.count is not None and self.executor is not None:
            raise ValueError("workers and executor are given; give one of them")
        if self.executor is not None and not callable(getattr(self.executor, "submit", None)):
            raise TypeError(
                f"executor is a {type(self.executor).__name__}; it must be a concurrent.futures.Executor"
            )
        if self.shard is not None:
            number, count = self.shard
            check.positive_int(count, "the number of shards")
            if not 1 <= check.positive_int(number, "shard") <= count:
                raise ValueError(f"shard is {number} of {count}; it must be from 1 to {count}")

    @property
    def here(self) -> bool:
        """Whether this process does all of it."""
        return self.count is None and self.executor is None and self.shard is None

    @property
    def threads_each(self) -> int:
        """Threads of a task."""
        return self.threads or max(1, runtime.num_threads() // (self.count or 1))


def solve_weights(
    outline: Outline, place: Workplace, workers: Workers, show: Callable[[Progress], object] | None
) -> int:
    """Solve the weights of a model into the folder of finished layers; returns how many are missing.

    Args:
        outline: Of the model.
        place: Where its layers are kept.
        workers: Who solves.
        show: Hears of the progress.

    Raises:
        OSError: A file cannot be read or written, or workers are lost again and again.
        ValueError: A weight is not finite.
    """
    weights = list(outline.weights.values())
    mine = weights if workers.shard is None else shard_of(weights, *workers.shard)
    solving = Solving(place.layers, mine, _told(mine, show))
    if workers.executor is not None:
        solving.on(workers.executor, workers.threads_each)
    elif workers.count is not None:
        solving.in_workers(workers.count, workers.threads_each)
    else:
        solving.here(workers.threads_each)
    if workers.shard is None:
        return 0
    return sum(not layer_file(place.layers, weight.name).is_file() for weight in weights)


def _told(
    weights: list[Weight], show: Callable[[Progress], object] | None
) -> Callable[[str | None, float | None, float], None]:
    """What ``Solving`` tells, as a Progress that counts layers by their work."""
    began, start = time.perf_counter(), -1.0

    def tell(name: str | None, snr: float | None, share: float) -> None:
        nonlocal start
        if show is None:
            return
        elapsed = time.perf_counter() - began
        start = share if start < 0 else start
        left = elapsed * (1 - share) / (share - start) if share > start else None
        facts: dict[str, Any] = {} if name is None else {"item": name, "snr_db": snr}
        show(Progress("compress", share * len(weights), len(weights), elapsed, left, **facts))

    return tell


def write_result(
    folder: Path, source: FileSource, outline: Outline, place: Workplace, settings: CompressSettings
) -> tuple[dict[str, Any], Report]:
    """Write the compressed model, and check what was written; returns facts about it, and its report.

    Raises:
        OSError: The disk is full.
    """

    def solved(name: str) -> Solved:
        found = read_solved(layer_file(place.layers, name), outline.weights[name].key)
        if found is None:
            raise OSError(5, "a finished layer was there and is not any more", str(place.layers))
        return found

    write_tensors(folder / WEIGHTS, outline, solved)
    description = described(outline, solved)
    source.write_config(folder, without_times(description), outline.tensors)
    source.copy_others(folder)
    integrity.inspect(folder)  # what was written is read and checked
    report = integrity.report_of(description, outline.tensors)
    facts = {"bits_per_weight": report.bits_per_weight, "figures": {}, "dense_bytes": source.bytes}
    card.write(folder, source, settings, facts, report.without_times())
    return facts, report
