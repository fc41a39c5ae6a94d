"""Progress of long work: the argument of a ``progress=`` callable, and the bar of ``progress=True``."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._internal.check import describe

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Progress", "ProgressOption", "Steps", "check_progress", "duration", "hears_details", "reporting"]

_SECONDS_BETWEEN_LINES = 3.0
_BAR = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}{postfix}]"
_BAR_STEPS = 1000  # not the task's total: that may change, and a notebook's bar cannot change its own


@dataclass(frozen=True)
class Progress:
    """The state of a task: the one argument of every ``progress=`` callable. Unknown values are None.

    Attributes:
        task: What is running: ``"solve"``, ``"curve"``, ``"allocate"``, ``"calibrate"``, ``"convert"``,
            ``"retune"``; of ``diba.compress`` also ``"load"``, ``"compress"``, ``"measure"``, ``"write"``.
        done: Steps done: iterations of a solver, matrices, layers, batches or optimizer steps. A fraction
            counts the part done of the current step, where that is known. 0 reports the start.
        total: Number of steps at most; None while unknown. It grows where a solve tries another size.
        elapsed: Seconds since the start.
        remaining: Seconds to the end at most, estimated from the pace so far; None while unknown, 0 at the
            end.
        item: Name of the layer or matrix finished last.
        snr_db: Signal-to-noise ratio in dB of the factors so far, or of ``item``; ``inf`` for an exact fit.
        objective: Value of what a solver minimises, ``|A - D1 B1 D2 B2 D3|^2`` by default.
        flips: Bits of both factors that the last iteration changed.
        loss: Training loss of the last step.
        detail: More about ``item``: in a conversion, its ``diba.torch.LayerReport``.
        fraction: Where a task is a stage of a longer one, as in ``diba.compress``: the share of all stages
            that is done, from 0 to 1; ``elapsed`` and ``remaining`` are those of all stages, too.
    """

    task: str
    done: float
    total: int | None
    elapsed: float
    remaining: float | None = None
    item: str | None = None
    snr_db: float | None = None
    objective: float | None = None
    flips: int | None = None
    loss: float | None = None
    detail: Any = None
    fraction: float | None = None

    def __str__(self) -> str:
        share = [] if self.fraction is None else [f"{100 * self.fraction:.0f} %"]
        facts = "".join(f"{fact}, " for fact in (*share, *_facts(self)))
        return f"{_counts(self)}, {facts}{_times(self)}"


ProgressOption = bool | Callable[[Progress], object]
"""True shows a bar on stderr, or a line every few seconds if stderr is not a terminal or tqdm is missing;
False shows nothing. A callable is called with a :class:`Progress` at the start and after every step; its
result is ignored, and an exception it raises ends the work, as Ctrl-C does."""


def check_progress(progress: Any) -> None:
    """Require a bool or a callable."""
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(
            f"progress is {describe(progress)}; it must be True, False, or a callable that takes one "
            "diba.Progress"
        )


def hears_details(progress: Any) -> bool:
    """Whether a callable wants to hear what is done between the steps of a task, too: it says so itself."""
    return getattr(progress, "hears_details", False) is True


@contextmanager
def reporting(progress: ProgressOption) -> Iterator[Callable[[Progress], object] | None]:
    """Context manager: gives the callable to report states to, or None for ``progress=False``.

    Raises:
        TypeError: ``progress`` is neither a bool nor callable.
    """
    check_progress(progress)
    if not isinstance(progress, bool):
        yield progress
    elif not progress:
        yield None
    elif (tqdm := _tqdm()) is None:
        lines = _Lines()
        yield lines
        lines.end()  # not after an exception
    else:
        bar = _Bar(tqdm)
        try:
            yield bar
        finally:
            bar.close()


def _tqdm() -> Any:
    """tqdm's class for a bar in this notebook or terminal; None elsewhere or without tqdm."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return tqdm if notebook or sys.stderr.isatty() else None


class _Bar:
    """A tqdm bar, made when the first state arrives."""

    def __init__(self, tqdm: Any) -> None:
        self._tqdm = tqdm
        self._bar: Any = None
        self._share = _Share()

    def __call__(self, state: Progress) -> None:
        title = f"diba {_counts(state)}"
        if self._bar is None:
            self._bar = self._tqdm(
                total=_BAR_STEPS, desc=title, bar_format=_BAR, miniters=0, leave=False, file=sys.stderr
            )
        self._bar.set_description_str(title, refresh=False)
        self._bar.set_postfix_str(", ".join(_facts(state)) + _outlook(state), refresh=False)
        part = self._share.after(state) if state.fraction is None else state.fraction
        self._bar.update(round(_BAR_STEPS * part) - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _Lines:
    """A line every few seconds, and one for the last state."""

    def __init__(self) -> None:
        self._shown = time.monotonic()
        self._waiting: Progress | None = None

    def __call__(self, state: Progress) -> None:
        self._waiting = state
        if time.monotonic() - self._shown >= _SECONDS_BETWEEN_LINES:
            self.end()

    def end(self) -> None:
        if self._waiting is not None:
            print(f"diba: {self._waiting}", file=sys.stderr, flush=True)
            self._waiting, self._shown = None, time.monotonic()


class _Share:
    """The share of a task that is done: it does not fall, and is not whole, where another size is tried."""

    def __init__(self) -> None:
        self._most = 0.0

    def after(self, state: Progress) -> float:
        """The share after this state, below 1; 0 where a task begins."""
        if not state.done:
            self._most = 0.0
        elif state.total and state.done < state.total:
            self._most = max(self._most, state.done / state.total)
        return self._most


class Steps:
    """Counts the steps of a task, each of one solve or more, and reports them.

    Args:
        task: Name of the task.
        total: Number of steps; None if unknown.
        report: Called with every state; None to report nothing.
    """

    def __init__(self, task: str, total: int | None, report: Callable[[Progress], object] | None) -> None:
        self._task, self._total, self._report = task, total, report
        self._began, self._first = time.perf_counter(), 0
        self._started = False
        self.done(0)

    def begin(self, steps: int) -> None:
        """So many steps were done by an earlier run, in no time; only the first call counts."""
        if not self._started:
            self._started, self._first = True, steps

    def within(self, first: float, end: float) -> ProgressOption:
        """The ``progress`` argument of a solve that takes the task from ``first`` to ``end`` steps."""
        if self._report is None:
            return False

        share = _Share()

        def show(state: Progress) -> None:
            if part := share.after(state):  # the end is reported by the caller, with what came of it
                self._tell(first + (end - first) * part)

        return show

    def done(self, steps: float, item: str | None = None, snr_db: float | None = None, **facts: Any) -> None:
        """Report ``steps`` steps as done; ``item`` names the last, ``facts`` are other fields of Progress."""
        self._facts = {"item": item, "snr_db": snr_db, **facts}
        self._tell(steps)

    def _tell(self, done: float) -> None:
        if self._report is not None:
            elapsed = time.perf_counter() - self._began
            own, remaining = done - self._first, None
            if own > 0 and self._total is not None:
                remaining = elapsed * (self._total - done) / own
            self._report(Progress(self._task, done, self._total, elapsed, remaining, **self._facts))


# ---------------------------------------------------------------- text


def _counts(state: Progress) -> str:
    done = f"{state.done:.1f}".removesuffix(".0")
    return f"{state.task} {done}" if state.total is None else f"{state.task} {done}/{state.total}"


def _facts(state: Progress) -> list[str]:
    """What is known besides counts and times, in a few words each."""
    return [
        *([state.item] if state.item is not None else []),
        *([f"SNR {state.snr_db:.2f} dB"] if state.snr_db is not None and state.snr_db > -math.inf else []),
        *([f"loss {state.loss:.4g}"] if state.loss is not None else []),
    ]


def _times(state: Progress) -> str:
    return f"{duration(state.elapsed)}{_outlook(state)}"


def _outlook(state: Progress) -> str:
    """The time left and the time of day of the end; empty while unknown, and at the end."""
    if not state.remaining:
        return ""
    end = time.strftime("%H:%M:%S", time.localtime(time.time() + state.remaining))
    return f", {duration(state.remaining)} left, done by {end}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours as text, such as "2 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
