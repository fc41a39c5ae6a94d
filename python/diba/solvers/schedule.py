"""Time and iterations of one call: deadlines, and what is reported of the stages it consists of."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from .._internal.error import snr_db
from ..progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NEVER", "Deadline", "Schedule", "Stage"]


class Deadline:
    """A point in time, ``limit`` seconds after the start; never if None.

    Args:
        limit: Seconds.
        started: ``time.perf_counter()`` of the start; None for now.
    """

    def __init__(self, limit: float | None, started: float | None = None) -> None:
        self.started = time.perf_counter() if started is None else started
        self.limit = limit

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def part_used(self) -> float:
        """Share of the time that is gone; 0 without a limit."""
        if self.limit is None:
            return 0.0
        return self.elapsed() / self.limit if self.limit > 0 else 1.0

    def over(self) -> bool:
        """Whether the time is up."""
        return self.limit is not None and self.elapsed() >= self.limit

    def leaves(self, seconds: float) -> bool:
        """Whether work of so many seconds would end in time."""
        return self.limit is None or self.elapsed() + seconds < self.limit

    def share(self, part: float) -> Deadline:
        """A deadline after that part of the time."""
        return Deadline(None if self.limit is None else part * self.limit, self.started)

    def rest(self, part: float = 1.0) -> Deadline:
        """A deadline after that part of the time that is left, which starts now."""
        return Deadline(None if self.limit is None else max(0.0, part * (self.limit - self.elapsed())))


NEVER = Deadline(None)


class Schedule:
    """Progress of one call over its stages, whose iterations are counted on.

    Args:
        report: Called with every state; None for nobody.
    """

    def __init__(self, report: Callable[[Progress], object] | None) -> None:
        self._report = report
        self._began = time.perf_counter()
        self._last = Progress("solve", 0, 0, 0.0, snr_db=-math.inf, objective=math.inf, flips=0)

    @property
    def iterations(self) -> int:
        """Iterations so far."""
        return int(self._last.done)

    def stage(self, deadline: Deadline, exponent: int, steps: int, polish: int = 0) -> Stage:
        """The next stage: at most so many steps of a ramp, then so many greedy iterations.

        Args:
            deadline: When it ends at the latest.
            exponent: Objectives of the stage, times 2^exponent, are those of the call.
            steps: Iterations of a ramp or a descent.
            polish: Greedy iterations after a ramp, each of which takes about twice the time.
        """
        return Stage(self, deadline, exponent, steps, polish)

    def tell(self, state: Progress) -> None:
        """Report a state, timed here."""
        self._last = replace(state, elapsed=time.perf_counter() - self._began)
        if self._report is not None:
            self._report(self._last)

    def end(self, objective: float, decibels: float) -> None:
        """Report the figures of what is returned."""
        self.tell(replace(self._last, objective=objective, snr_db=decibels, remaining=0.0))


class Stage:
    """A part of a call; made by :meth:`Schedule.stage`."""

    def __init__(
        self, schedule: Schedule, deadline: Deadline, exponent: int, steps: int, polish: int
    ) -> None:
        self._schedule, self._deadline, self._exponent = schedule, deadline, exponent
        self._steps, self._polish = steps, polish
        self._before = schedule.iterations
        self._first: tuple[float, float] | None = None  # work and time at the first iteration

    def report(self, iteration: int, energy: float, objective: float, flips: int = 0) -> None:
        """Report so many iterations of this stage, whose objective was ``energy`` for the zero matrix."""
        self._schedule.tell(
            Progress(
                "solve",
                self._before + iteration,
                self._before + self._steps + self._polish,
                0.0,
                self._remaining(iteration),
                snr_db=snr_db(energy, objective),
                objective=math.ldexp(objective, self._exponent),
                flips=flips,
            )
        )

    def _remaining(self, iteration: int) -> float | None:
        """Seconds to go, at the pace since the first iteration: a greedy one costs about two of the ramp."""
        if iteration == 0:
            return None
        elapsed = self._deadline.elapsed()
        done = iteration + max(0, iteration - self._steps)
        if self._first is None:
            self._first = done, elapsed
        work, time_of_first = self._first
        pace = (elapsed - time_of_first) / (done - work) if done > work else elapsed / done
        remaining = pace * (self._steps + 2 * self._polish - done)
        limit = self._deadline.limit
        return remaining if limit is None else max(0.0, min(remaining, limit - elapsed))
