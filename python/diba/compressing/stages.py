"""The stages of a compression as one piece of work: one share that is done, and one time left."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..allocation.sizes import FIRST
from ..progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ..progress import ProgressOption
    from .outline import Weight
    from .recipe import CompressSettings

__all__ = ["Stages", "fitted_seconds", "plain_seconds"]

_UNKNOWN, _NOTHING = {"load": 1.0}, dict[str, float]()
_DISK = 3e8  # bytes a second
_FLOPS = 6e10  # of one core
_MEASURED = sum(FIRST) + 0.5  # sizes that bits are shared out by: few layers take more than the first
_SOLVE = 1.3e-8  # seconds of a solve for each m n k of its matrix, effort "fast"
_MEASURED = 0.02  # share of a stage after which its pace says more than the estimate


class Stages:
    """Tells of stages, one after another, as of one piece of work.

    The time of a stage is what it took, or what it is going to take at its own pace; of stages that have not
    begun, the estimate times how much longer than estimated the others take.

    Args:
        show: Hears of everything; None: nobody does.
        estimates: Stage -> estimated seconds, on any machine, in the order of the work; see ``expect``.
    """

    def __init__(
        self, show: Callable[[Progress], object] | None, estimates: Mapping[str, float] = _UNKNOWN
    ) -> None:
        self._show, self._estimates = show, dict(estimates)
        self._known: dict[str, float] = {}
        self._shares = dict.fromkeys(self._estimates, 0.0)
        self._began, self._fraction = time.perf_counter(), 0.0
        self._last: Progress | None = None

    def expect(
        self,
        estimates: Mapping[str, float],
        shares: Mapping[str, float] = _NOTHING,
        times: Mapping[str, float] = _NOTHING,
    ) -> None:
        """Know the stages better, before the first one or in the middle of it.

        Args:
            estimates: As at the start.
            shares: Stage -> what earlier runs have done of it.
            times: Stage -> its seconds, as earlier runs have measured them.
        """
        self._estimates = dict(estimates)
        self._shares = {name: float(shares.get(name, self._shares.get(name, 0.0))) for name in estimates}
        self._known |= {name: float(times[name]) for name in estimates if name in times}

    def kept(self) -> dict[str, Any]:
        """The arguments of ``expect`` for a run that goes on from here, as plain values."""
        shares, times = dict(self._shares), dict(self._known)
        return {"estimates": dict(self._estimates), "shares": shares, "times": times}

    @contextlib.contextmanager
    def stage(self, name: str, item: str | None = None, *, rest: bool = False) -> Iterator[ProgressOption]:
        """A context in which a stage is done; gives what its work is to report to.

        Args:
            name: The stage; all before it count as ended.
            item: What is done, where the work itself says nothing.
            rest: Whether the work counts only what earlier runs have left of it.
        """
        for other in self._estimates:
            if other == name:
                break
            self._shares[other] = 1.0
        before = self._shares.get(name, 0.0) if rest else 0.0
        clock = _Clock(before)
        self._tell(Progress(name, 0, None, 0.0, item=item), name)

        def heard(state: Progress) -> None:
            done = state.fraction
            if done is None:
                done = state.done / state.total if state.total else 0.0
            share = before + (1 - before) * min(done, 1.0)
            if state.remaining is None:
                clock.begin(share)
            self._shares[name] = max(self._shares.get(name, 0.0), share)
            if state.remaining is not None and _MEASURED < share - clock.first < 1 - clock.first:
                self._known[name] = state.remaining / (1 - share)
            self._tell(state, name)

        yield False if self._show is None else _Heard(heard)
        self._shares[name] = 1.0
        if clock.first < 1:
            self._known[name] = clock.seconds() / (1 - clock.first)

    def counted(self, name: str, items: Sequence[Any], rounds: int) -> Sequence[Any]:
        """The items, which are gone through so many times, each time reporting to a stage that is on."""
        return _Counted(items, rounds, lambda done, total: self._count(name, done, total))

    def end(self) -> None:
        """Everything is done."""
        self._shares = dict.fromkeys(self._shares, 1.0)
        last = self._last or Progress("compress", 0, None, 0.0)
        self._tell(dataclasses.replace(last, item=None, snr_db=None, loss=None, detail=None), last.task)

    def _count(self, name: str, done: int, total: int) -> None:
        self._shares[name] = max(self._shares[name], min(1.0, done / total))
        self._tell(Progress(name, done, total, 0.0), name)

    def _tell(self, state: Progress, name: str) -> None:
        if self._show is None:
            return
        seconds = self._seconds()
        whole = sum(seconds.values())
        left = sum((1 - self._shares[stage]) * x for stage, x in seconds.items())
        fraction = 1 - left / whole if whole and left else 1.0
        self._fraction = max(self._fraction, min(fraction, 1.0))
        elapsed = time.perf_counter() - self._began
        self._last = dataclasses.replace(
            state, task=name, elapsed=elapsed, remaining=left, fraction=self._fraction
        )
        self._show(self._last)

    def _seconds(self) -> dict[str, float]:
        """The time of every stage, as well as it is known."""
        estimated = sum(self._estimates[name] for name in self._known)
        pace = sum(self._known.values()) / estimated if estimated else 1.0
        if not math.isfinite(pace) or not pace:
            pace = 1.0
        return {name: self._known.get(name, pace * x) for name, x in self._estimates.items()}


class _Heard:
    """A callable for ``progress=`` that hears what happens between the steps of a task, too."""

    hears_details = True

    def __init__(self, heard: Callable[[Progress], None]) -> None:
        self._heard = heard

    def __call__(self, state: Progress) -> None:
        self._heard(state)


class _Clock:
    """The time since a share of a stage was done by earlier runs."""

    def __init__(self, first: float) -> None:
        self.begin(first)

    def begin(self, first: float) -> None:
        self.first, self._began = first, time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._began


class _Counted(Sequence[Any]):
    """Counts its items as they are gone through."""

    def __init__(self, items: Sequence[Any], rounds: int, count: Callable[[int, int], None]) -> None:
        self._items, self._rounds, self._count, self._done = items, rounds, count, 0

    def __iter__(self) -> Iterator[Any]:
        total = self._rounds * len(self)
        for item in self._items:
            yield item
            self._done = min(self._done + 1, total)
            self._count(self._done, total)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]


def plain_seconds(weights: Iterable[Weight], size: int) -> dict[str, float]:
    """Estimated seconds of the stages of a compression without data, of so many dense bytes."""
    work = sum(weight.shape[0] * weight.shape[1] * max(1, weight.k) for weight in weights)
    return {"compress": _SOLVE * work, "write": 0.5 + size / _DISK}


def fitted_seconds(
    *,
    parameters: int,
    tokens: float,
    width: int,
    batches: tuple[int, int],
    settings: CompressSettings,
    size: int,
) -> dict[str, float]:
    """Estimated seconds of the stages of a compression with data, on one core.

    Args:
        parameters: Entries of matrices that multiply each token.
        tokens: In a batch.
        width: Of the model.
        batches: Those that compression sees, and those that judge.
        settings: Of the compression.
        size: Bytes of the dense files.
    """
    seen, judging = batches
    forward = 2 * parameters * tokens / _FLOPS
    steps = settings.reconstruct + 4 * 32 if settings.reconstruct else 0
    passes = seen * (3 + 5) + 3 * steps
    sizes = {"allocate": 4 * seen * forward + _MEASURED * _SOLVE * parameters * settings.bits * width / 2}
    return {
        "load": 2 + size / _DISK,
        **(sizes if settings.shares_bits else {}),
        "convert": forward * passes + _SOLVE * parameters * settings.bits * width / 2,
        "retune": 2.5 * forward * settings.retune,
        "measure": 2.5 * forward * judging,
        "write": 1 + size / _DISK,
    }
