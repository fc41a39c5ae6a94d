"""What the cells of one task share: data, the dense model and its answers, converted models."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import diba.torch

from . import speech, text, vision
from .plan import PLAN, Cell
from .task import Batch, Task

__all__ = [
    "HELD_OUT",
    "TASKS",
    "Made",
    "batches",
    "keep_converted",
    "loss_of",
    "made",
    "once",
    "seen",
    "share_out",
    "teacher",
    "unseen_first",
]

TASKS: dict[str, Callable[..., Task]] = {
    "mlp": vision.mlp,
    "efficientnet": vision.efficientnet,
    "minilm": text.minilm,
    "whisper": speech.whisper,
    "smollm2": text.smollm2,
}

Made = tuple[nn.Module, dict[str, Any]]  # a model, and facts about its making

HELD_OUT = 4  # batches that calibration has not seen, on which losses are measured to share out bits
ANSWERS = 3 * 2**30  # bytes of the dense model's answers that a process keeps

_tasks: dict[tuple[str, bool], Task] = {}
_batches: dict[str, list[Batch]] = {}
_dense: dict[str, nn.Module] = {}
_losses: dict[str, Any] = {}
_converted: dict[Cell, nn.Module] = {}  # the last one of its place, for the cells that go on from it
_folder: list[Path] = []  # one, where converted models are kept for other runs too


def keep_converted(folder: Path | None) -> None:
    """Write every calibrated model to a folder, and take it from there."""
    _folder[:] = [] if folder is None else [folder]


def made(name: str, quick: bool) -> Task:
    """The task, and room for its data: those of the one before are dropped."""
    if (name, quick) not in _tasks:
        for kept in (_tasks, _batches, _dense, _losses, _converted):
            kept.clear()  # type: ignore[attr-defined]
        gc.collect()
        _tasks[name, quick] = TASKS[name](size="quick" if quick else "full")
        _batches[name] = _tasks[name, quick].train()
    return _tasks[name, quick]


def teacher(task: Task) -> nn.Module:
    """The dense model, loaded once."""
    if task.name not in _dense:
        _dense[task.name] = task.load().requires_grad_(False)
    return _dense[task.name]


def loss_of(task: Task) -> Any:
    """Distance from the dense model's answers; with labels where the task has a loss of its own.

    Answers are kept for the next cell, which retunes on the same batches; not all of a language model.
    """
    if callable(task.loss):
        return task.loss
    if task.name not in _losses:
        features = task.loss == "hidden"
        _losses[task.name] = diba.torch.distillation(teacher(task), features=features, cache=ANSWERS)
    return _losses[task.name]


def batches(task: Task) -> list[Batch]:
    """All batches, those for calibration first."""
    return _batches[task.name]


def seen(task: Task, quick: bool) -> list[Batch]:
    """The batches for calibration."""
    return batches(task)[: 2 if quick else PLAN[task.name].calibration]


def unseen_first(task: Task) -> list[Batch]:
    """All batches, those for calibration last: a calibrated model answers them better than any others."""
    count, every = PLAN[task.name].calibration, batches(task)
    return every[count:] + every[:count]


def once(cell: Cell, arm: str, make: Callable[[], Made]) -> Made:
    """Made for the first cell of a place that needs it; each gets a copy."""
    origin, facts = replace(cell, arm=arm), {}
    if origin not in _converted:
        _converted.clear()
        _converted[origin], facts = from_folder(origin, make)
    return copy.deepcopy(_converted[origin]), facts


def from_folder(origin: Cell, make: Callable[[], Made]) -> Any:
    if not _folder:
        return make()
    path = _folder[0] / f"{origin.key.replace(' | ', '_')}.pt"
    if path.exists():
        model, facts = torch.load(path, weights_only=False)  # a whole model, of an earlier run of this script
        return model, facts | {"earlier_seconds": facts["convert_seconds"]}
    result = make()
    _folder[0].mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(result, part)
    part.replace(path)
    return result


def share_out(
    dense: nn.Module, bits: float, by: str, loss: Any, unseen: Sequence[Batch], **options: Any
) -> diba.Allocation:
    """Bits shared out between layers, by ``loss`` on batches that calibration has not seen if ``by`` says so.

    The other options are those of ``diba.torch.allocate``.
    """
    judged: dict[str, Any] = {"loss": loss, "batches": unseen} if by == "loss" else {}
    return diba.torch.allocate(dense, bits, by=by, progress=False, **judged, **options)
