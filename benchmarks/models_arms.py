"""The cells of benchmarks/models.py: what is done to a model before it is measured."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

import diba.torch
import models_speech
import models_text
import models_vision
from diba.torch.factors import Factors
from diba.waterfill import stored_bits
from models_control import convert_random
from models_data import Batch, Task
from rounding import Rounded, convert_rounded, retune_scales

__all__ = ["PLAN", "TASKS", "Cell", "Plan", "cells", "run"]

TASKS: dict[str, Callable[..., Task]] = {
    "mlp": models_vision.mlp,
    "efficientnet": models_vision.efficientnet,
    "minilm": models_text.minilm,
    "whisper": models_speech.whisper,
    "smollm2": models_text.smollm2,
}

Pair = tuple[float, str]  # bits per weight, alphabet
BOTH: tuple[Pair, ...] = tuple(
    (bits, alphabet) for bits in (2.0, 1.0, 3.0) for alphabet in ("sign", "binary")
)


@dataclass(frozen=True)
class Plan:
    """How much of everything one task gets.

    Attributes:
        task: Its name.
        steps: Of every retuning.
        calibration: Batches that conversion sees.
        pairs: Sizes and alphabets, in the order in which they are run.
        seeds: Of solver, random bits and retuning, at 2 bits.
        flips: Sizes at which bits move too.
        plain: Sizes at which the factors that know no data are measured.
        random: Sizes of the control.
    """

    task: str
    steps: int
    calibration: int
    pairs: tuple[Pair, ...] = BOTH
    seeds: int = 1
    flips: tuple[float, ...] = (1.0, 2.0, 3.0)
    plain: tuple[float, ...] = (1.0, 2.0, 3.0)
    random: tuple[float, ...] = (1.0, 2.0, 3.0)


PLAN = {
    plan.task: plan
    for plan in (
        Plan("mlp", steps=200, calibration=20, seeds=3),
        Plan("efficientnet", steps=100, calibration=10, seeds=3),
        Plan("minilm", steps=200, calibration=40, flips=(2.0,), random=(2.0,)),
        Plan("whisper", steps=60, calibration=10, flips=(2.0,), plain=(2.0,), random=(2.0,)),
        Plan(
            "smollm2",
            steps=120,
            calibration=24,
            pairs=((2.0, "sign"), (3.0, "sign"), (1.0, "sign"), (2.0, "binary")),
            flips=(2.0,),
            plain=(2.0,),
            random=(2.0,),
        ),
    )
}
ROUNDED_BITS = (2, 3, 4)


@dataclass(frozen=True)
class Cell:
    """One model to measure."""

    task: str
    arm: str
    bits: float = 32.0
    alphabet: str = ""
    seed: int = 0

    @property
    def key(self) -> str:
        """Its name in the results."""
        return " | ".join((self.task, self.arm, f"{self.bits:g}", self.alphabet or "-", str(self.seed)))


def cells(plan: Plan, quick: bool) -> Iterator[Cell]:
    """All of a plan; those that share a conversion follow each other."""
    yield Cell(plan.task, "dense")
    for bits, alphabet in plan.pairs:
        for seed in range(plan.seeds if bits == 2 and not quick else 1):
            place = {"bits": bits, "alphabet": alphabet, "seed": seed}
            if bits in plan.plain:
                yield Cell(plan.task, "replaced", **place)
            yield Cell(plan.task, "calibrated", **place)
            yield Cell(plan.task, "dibard", **place)
            if bits in plan.flips:
                yield Cell(plan.task, "flips", **place)
            if bits in plan.random:
                yield Cell(plan.task, "random", **place)
    for bits in ROUNDED_BITS:
        yield Cell(plan.task, "rounded", float(bits))
        yield Cell(plan.task, "rounded, retuned", float(bits))


# ---- running one


def run(cell: Cell, quick: bool) -> dict[str, Any]:
    """Make the model of a cell and measure it."""
    task = made(cell.task, quick)
    began = time.perf_counter()
    model, facts = MAKERS[cell.arm](cell, task, quick)
    facts["seconds"] = time.perf_counter() - began
    facts["bytes"] = stored_bytes(model)
    facts["layer_bits"] = layer_bits(model)
    facts["metrics"] = task.metrics(model)
    facts |= {
        "arm": cell.arm,
        "task": cell.task,
        "bits": cell.bits,
        "alphabet": cell.alphabet,
        "seed": cell.seed,
    }
    return facts | {"primary": task.primary, "higher_is_better": task.higher_is_better, "title": task.title}


_tasks: dict[tuple[str, bool], Task] = {}
_batches: dict[str, list[Batch]] = {}
_dense: dict[str, nn.Module] = {}
_calibrated: dict[Cell, nn.Module] = {}


def made(name: str, quick: bool) -> Task:
    """The task, and room for its data: those of the one before are dropped."""
    if (name, quick) not in _tasks:
        for kept in (_tasks, _batches, _dense, _calibrated):
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


def config(cell: Cell, task: Task) -> diba.torch.Config:
    return diba.torch.Config(
        bits_per_weight=cell.bits, alphabet=cell.alphabet, effort="fast", seed=cell.seed, **task.config
    )


def loss_of(task: Task) -> Any:
    """Distance from the dense model's answers; with labels where the task has a loss of its own."""
    if callable(task.loss):
        return task.loss
    return diba.torch.distillation(teacher(task), features=task.loss == "hidden")


def steps_of(cell: Cell, quick: bool) -> int:
    return 4 if quick else PLAN[cell.task].steps


def dense(cell: Cell, task: Task, quick: bool) -> tuple[nn.Module, dict[str, Any]]:
    return teacher(task), {}


def replaced(cell: Cell, task: Task, quick: bool) -> tuple[nn.Module, dict[str, Any]]:
    model = task.load()
    report = diba.torch.convert(model, config(cell, task), progress=False)
    return model, solved(report)


def calibrated(cell: Cell, task: Task, quick: bool) -> tuple[nn.Module, dict[str, Any]]:
    """Made once for the cells of its place, which get copies."""
    place = Cell(cell.task, "calibrated", cell.bits, cell.alphabet, cell.seed)
    facts: dict[str, Any] = {}
    if place not in _calibrated:
        _calibrated.clear()
        model = task.load()
        seen = _batches[task.name][: 2 if quick else PLAN[cell.task].calibration]
        report = diba.torch.convert(model, config(cell, task), batches=seen, progress=False)
        _calibrated[place], facts = model, solved(report)
    return copy.deepcopy(_calibrated[place]), facts


def solved(report: diba.torch.Report) -> dict[str, Any]:
    levels = [layer.snr_db for layer in report.layers]
    outputs = [layer.output_snr_db for layer in report.layers if layer.output_snr_db is not None]
    return {
        "layers": len(levels),
        "mean_snr_db": sum(levels) / len(levels),
        "mean_output_snr_db": sum(outputs) / len(outputs) if outputs else None,
        "convert_seconds": report.seconds,
    }


def retuned(cell: Cell, task: Task, quick: bool, flips: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    model, facts = calibrated(cell, task, quick)
    return train(cell, task, quick, model, facts, flips)


# Every layer has one turn, in which a bit needs 20 steps to flip.
def train(
    cell: Cell, task: Task, quick: bool, model: nn.Module, facts: dict[str, Any], flips: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    steps = steps_of(cell, quick)
    moving = diba.torch.Flips(rate=0.05, every=max(1, steps // 5), layers=0.2) if flips else None
    options = {"steps": steps, "bits": moving, "seed": cell.seed, "progress": False}
    report = diba.torch.retune(model, _batches[task.name], loss_of(task), **options)
    facts |= {
        "retune_seconds": report.seconds,
        "losses": [float(report.losses[:5].mean()), float(report.losses[-20:].mean())],
        "trained": report.trained,
        "training_bytes": report.training_bytes,
        "dense_training_bytes": report.dense_bytes,
        "flips": sum(report.flips.values()),
        "flip_seconds": report.flip_seconds,
    }
    return model, facts


def random(cell: Cell, task: Task, quick: bool) -> tuple[nn.Module, dict[str, Any]]:
    model = task.load()
    levels = convert_random(model, config(cell, task), cell.seed)
    facts = {"layers": len(levels), "mean_snr_db": sum(levels.values()) / len(levels)}
    return train(cell, task, quick, model, facts)


def rounded(cell: Cell, task: Task, quick: bool, retune: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    model = task.load()
    chosen = diba.torch.Config(bits_per_weight=cell.bits, **task.config)
    bits = convert_rounded(model, chosen, int(cell.bits))
    facts: dict[str, Any] = {"bits_per_weight": bits}
    if retune:
        losses = retune_scales(model, _batches[task.name], loss_of(task), steps=steps_of(cell, quick))
        facts["losses"] = [sum(losses[:5]) / 5, sum(losses[-20:]) / len(losses[-20:])]
    return model, facts


MAKERS: dict[str, Callable[..., tuple[nn.Module, dict[str, Any]]]] = {
    "dense": dense,
    "replaced": replaced,
    "calibrated": calibrated,
    "dibard": retuned,
    "flips": partial(retuned, flips=True),
    "random": random,
    "rounded": rounded,
    "rounded, retuned": partial(rounded, retune=True),
}


# ---- sizes


def compressed_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, (Factors, Rounded))]


def bits_of(layer: Any) -> tuple[int, int]:
    """(stored bits, weights) of a replaced layer; diagonals at 16 bits an entry."""
    if isinstance(layer, Rounded):
        return layer.bits, layer.shape.numel()
    shape = m, n = layer.d1.numel(), layer.d3.numel()
    return stored_bits(shape, layer.k), m * n


def layer_bits(model: nn.Module) -> float | None:
    """Stored bits for each weight over the replaced layers."""
    sizes = [bits_of(layer) for layer in compressed_layers(model)]
    return sum(bits for bits, _ in sizes) / sum(weights for _, weights in sizes) if sizes else None


def stored_bytes(model: nn.Module) -> float:
    """On disk: replaced layers as they are, everything else at 16 bits a number."""
    layers = compressed_layers(model)
    inside = {id(p) for layer in layers for name, p in layer.named_parameters() if name != "bias"}
    others = {id(p): p.numel() for p in model.parameters() if id(p) not in inside}
    return sum(bits for bits, _ in map(bits_of, layers)) / 8 + 2 * sum(others.values())


torch.manual_seed(0)
