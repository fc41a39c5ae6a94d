"""All steps of a training: their rates, the batches gone through, and an end no worse than the start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from .batches import some
from .steps import Run

__all__ = ["Course", "Outcome", "Schedule", "run_course"]

_EMPTY = "batches is empty; it must have at least one batch each time that it is read"
_CHECKED = 4  # batches whose loss must not rise

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class Course:
    """How long a training is, and how fast at each point.

    Attributes:
        steps: Of the optimizer.
        schedule: What the rate does after the warm-up: falls to zero as a cosine or a line, or nothing.
        warmup: Share of the steps in which it rises from zero.
        accumulate: Batches of a step.
    """

    steps: int
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    accumulate: int = 1

    def rate(self, step: int) -> float:
        """The learning rate of a step, over its largest."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return (step + 1) / rise
        rest = (step - rise) / max(1, self.steps - rise)
        falls = {"cosine": (1 + math.cos(math.pi * rest)) / 2, "linear": 1 - rest, "constant": 1.0}
        return falls[self.schedule]


@dataclass(frozen=True)
class Outcome:
    """Mean loss of some batches before and after a training, and whether everything was put back."""

    batches: int
    before: float
    after: float
    restored: bool


def run_course(
    run: Run,
    batches: Iterable[Any],
    course: Course,
    after_step: Callable[[float], None] = lambda loss: None,
    around_epochs: Callable[[], None] = lambda: None,
) -> Outcome:
    """Take all steps; put everything back where the mean loss of some batches is larger at the end.

    Args:
        run: Not yet begun.
        batches: Can be read any number of times.
        course: What to do.
        after_step: Called with the step's loss.
        around_epochs: Called at the start and after each pass over the batches.

    Raises:
        ValueError: no batches.
    """
    sample = some(batches, _CHECKED)
    if not sample:
        raise ValueError(_EMPTY)
    around_epochs()
    start = run.mean_loss(sample)
    while len(run.losses) < course.steps:
        done = len(run.losses)
        for chunk in _chunks(batches, course.accumulate, course.steps - done):
            run.step(chunk, course.rate(len(run.losses)))
            after_step(run.losses[-1])
        if len(run.losses) == done:
            raise ValueError(_EMPTY)
        around_epochs()
    run.finish(sample[0])
    end = run.mean_loss(sample)
    risen = math.isfinite(start) and not end <= start
    if risen:
        run.undo()
    return Outcome(len(sample), start, end, risen)


def _chunks(batches: Iterable[Any], size: int, count: int) -> Iterator[list[Any]]:
    """At most ``count`` lists of ``size`` batches (the last of an epoch may be shorter)."""
    batches = iter(batches)
    for _ in range(count):
        chunk = list(islice(batches, size))
        if not chunk:
            return
        yield chunk
