"""Time limits: what a solver asks while it runs."""

from __future__ import annotations

import time

__all__ = ["NEVER", "Deadline"]


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
