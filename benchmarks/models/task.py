"""The form of a task: a pretrained model, data, and what it is judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

__all__ = ["Batch", "Size", "Task"]

Size = Literal["full", "quick"]  # "quick" takes subsets: for trying the benchmark out, not for its table
Batch = dict[str, torch.Tensor]  # for model(**batch)
Loss = Literal["logits", "hidden"] | Callable[[torch.nn.Module, Batch], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    """A pretrained dense model, data to calibrate and retune it with, and what it is judged by.

    Attributes:
        name: Word for the command line.
        title: The model, for tables.
        load: Makes the dense model: float32, in evaluation mode, a new one each time.
        train: Makes the batches for calibration and retuning, in an order that may be cut short; they share
            nothing with what ``metrics`` sees.
        metrics: Every end metric of a model by its name, on held-out data.
        primary: The metric that decides.
        higher_is_better: Whether that of ``primary`` is.
        loss: What retuning lowers: the distance of the "logits" or the "hidden" states from the dense
            model's, or a function of (model, batch).
        config: Settings of ``diba.torch.Config``: which layers are replaced.
        norms: Whether normalisation is retuned too: where the replaced layers have no biases.
    """

    name: str
    title: str
    load: Callable[[], torch.nn.Module]
    train: Callable[[], list[Batch]]
    metrics: Callable[[torch.nn.Module], dict[str, float]]
    primary: str
    higher_is_better: bool
    loss: Loss
    config: dict[str, Any] = field(default_factory=dict)
    norms: bool = False
