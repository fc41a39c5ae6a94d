"""Time and progress of one call: deadlines, and the reports of its stages."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from .._internal.snr import snr_db
from ..progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NEVER", "Deadline", "Schedule", "Stage"]


class Deadline:
    """A time limit that runs from a start.

    Args:
        limit: Seconds; None for no limit.
        started: ``time.perf_counter()`` of the start; None for now.
    """

    def __init__(self, limit: float | None, started: float | None = None) -> None:
        self.started = time.perf_counter() if started is None else started
        self.limit = limit

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def part_used(self) -> float:
        """Share of the time used so far; 0 without a limit."""
        if self.limit is None:
            return 0.0
        return self.elapsed() / self.limit if self.limit > 0 else 1.0

    def over(self) -> bool:
        """Whether the time is up."""
        return self.limit is not None and self.elapsed() >= self.limit

    def leaves(self, seconds: float) -> bool:
        """Whether work of ``seconds`` seconds would end in time."""
        return self.limit is None or self.elapsed() + seconds < self.limit

    def share(self, part: float) -> Deadline:
        """A deadline with the same start and this part of the time."""
        return Deadline(None if self.limit is None else part * self.limit, self.started)

    def rest(self, part: float = 1.0) -> Deadline:
        """A deadline that starts now and has this part of the remaining time."""
        return Deadline(None if self.limit is None else max(0.0, part * (self.limit - self.elapsed())))


NEVER = Deadline(None)


class Schedule:
    """Counts the iterations of one call through all its stages and reports them.

    Args:
        report: Called with every state; None to report nothing.
    """

    def __init__(self, report: Callable[[Progress], object] | None) -> None:
        self._report = report
        self._began = time.perf_counter()
        self._last = Progress("solve", 0, 0, 0.0, snr_db=-math.inf, objective=math.inf, flips=0)

    @property
    def iterations(self) -> int:
        """Iterations so far, of all stages."""
        return int(self._last.done)

    def stage(self, deadline: Deadline, exponent: int, steps: int, polish: int = 0) -> Stage:
        """Begin the next stage: steps of ADMM, then greedy iterations.

        Args:
            deadline: When it ends at the latest.
            exponent: ``2^exponent`` times an objective of the stage is the objective to report.
            steps: Number of steps at most.
            polish: Number of greedy iterations at most after those, each about twice as long as a step.
        """
        return Stage(self, deadline, exponent, steps, polish)

    def tell(self, state: Progress) -> None:
        """Report a state; its ``elapsed`` is set here."""
        self._last = replace(state, elapsed=time.perf_counter() - self._began)
        if self._report is not None:
            self._report(self._last)

    def end(self, objective: float, snr_db: float) -> None:
        """Report the objective and SNR of the returned factors."""
        self.tell(replace(self._last, objective=objective, snr_db=snr_db, remaining=0.0))


class Stage:
    """One run of a solver within a call; made by :meth:`Schedule.stage`."""

    def __init__(
        self, schedule: Schedule, deadline: Deadline, exponent: int, steps: int, polish: int
    ) -> None:
        self._schedule, self._deadline, self._exponent = schedule, deadline, exponent
        self._steps, self._polish = steps, polish
        self._before = schedule.iterations
        self._first: tuple[float, float] | None = None  # work and time at the first iteration

    def report(self, iteration: int, energy: float, objective: float, flips: int = 0) -> None:
        """Report ``iteration`` iterations of this stage as done.

        Args:
            iteration: Number of iterations.
            energy: Objective of the zero matrix.
            objective: Objective now.
            flips: Bits the last iteration changed.
        """
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
        """Seconds left at the pace since the first iteration; a greedy iteration counts as two steps."""
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
