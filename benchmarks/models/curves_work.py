"""What the cells of one task of the curves benchmark share, and the time that one of them takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

import diba.torch

from .curves_plan import Recipe
from .shared import batches, teacher
from .speech import mixed_batches
from .task import Batch, Task
from .text import smollm2_batches, smollm2_drawn

__all__ = ["Clock", "Facts", "Work", "joined"]

Facts = dict[str, Any]


class Work:
    """Data and settings of a task.

    Args:
        task: The task, of ``shared.made``.
        recipe: Its settings.
        folder: Where models are kept, also those that are not ready.
        threads: Of conversion.
        device: Where diba's models are made.

    Attributes:
        seen: The batches that conversion sees.
        unseen_first: All batches: those that the model wrote, others, those that conversion has seen.
    """

    def __init__(self, task: Task, recipe: Recipe, folder: Path, threads: int, device: str = "cpu") -> None:
        self.task, self.recipe, self.folder, self.threads = task, recipe, folder, threads
        self.device = torch.device(device)
        data = grouped(data_of(task, recipe), recipe.joined)
        drawn = grouped(smollm2_drawn(recipe.drawn), recipe.joined) if recipe.drawn else []
        self.seen = data[: recipe.calibration]
        self.unseen_first = drawn + data[recipe.calibration :] + self.seen

    @property
    def loss(self) -> Any:
        """The distance from the dense model, which retuning lowers."""
        dense = teacher(self.task).to(self.device)
        return diba.torch.distillation(dense, features=self.task.loss == "hidden")

    def there(self, data: Sequence[Batch]) -> list[Batch]:
        """Batches on the device."""
        return [{key: value.to(self.device) for key, value in batch.items()} for batch in data]

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """The end metrics, always on the CPU, by the kernels that users run."""
        found = self.task.metrics(model.cpu())
        model.to(self.device)
        return found


def data_of(task: Task, recipe: Recipe) -> Sequence[Batch]:
    """The batches that the task takes, or those that the recipe names in their place."""
    if recipe.windows is not None:
        return smollm2_batches(count=recipe.windows)
    return mixed_batches(recipe.spoken) if recipe.spoken else batches(task)


def grouped(parts: Sequence[Batch], count: int) -> list[Batch]:
    """Every ``count`` batches made one."""
    return [joined(parts[i : i + count]) for i in range(0, len(parts), count)]


def joined(parts: Sequence[Batch]) -> Batch:
    """One batch of several whose tensors differ in their first size only."""
    return {key: torch.cat([batch[key] for batch in parts]) for key in parts[0]}


class Clock:
    """Seconds of making a model, wall-clock and of all cores; it runs inside ``with``."""

    def __init__(self, seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        self.seconds, self.cpu_seconds = seconds, cpu_seconds
        self._since = (0.0, 0.0)

    def __enter__(self) -> Self:
        self._since = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.lap()

    def lap(self) -> Facts:
        """Add the time until now; what it is then."""
        now = time.perf_counter(), time.process_time()
        self.seconds += now[0] - self._since[0]
        self.cpu_seconds += now[1] - self._since[1]
        self._since = now
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
