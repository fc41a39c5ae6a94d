"""The cells of the models benchmark: what is done to a model before it is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

import diba.torch
from diba.solvers.size import stored_bits
from diba.torch.modules.layer import FactoredLayer

from .control import convert_random
from .plan import PLAN, Cell
from .rounding import Rounded, convert_rounded, retune_scales
from .shared import HELD_OUT, Made, loss_of, made, once, seen, share_out, teacher, unseen_first
from .task import Task

__all__ = ["run"]

Maker = Callable[..., Made]

# ---- running one


def run(cell: Cell, quick: bool) -> dict[str, Any]:
    """Make the model of a cell and measure it."""
    task = made(cell.task, quick)
    torch.manual_seed(cell.seed)
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


MORE = 1.5  # bits of the model whose components are scored, over those that stay


def config(cell: Cell, task: Task) -> diba.torch.Config:
    return diba.torch.Config(
        bits_per_weight=cell.bits, alphabet=cell.alphabet, effort="fast", seed=cell.seed, **task.config
    )


def steps_of(cell: Cell, quick: bool) -> int:
    return 4 if quick else PLAN[cell.task].steps


def dense(cell: Cell, task: Task, quick: bool) -> Made:
    return teacher(task), {}


def replaced(cell: Cell, task: Task, quick: bool) -> Made:
    model = task.load()
    diba.torch.convert(model, config(cell, task), progress=False)
    return model, solved(diba.torch.report(model))


def calibrated(cell: Cell, task: Task, quick: bool) -> Made:
    return once(cell, "calibrated", lambda: convert_seeing(cell, task, quick))


def unweighted(cell: Cell, task: Task, quick: bool) -> Made:
    return convert_seeing(cell, task, quick, weigh=False)


def convert_seeing(
    cell: Cell, task: Task, quick: bool, k: Mapping[str, int] | None = None, weigh: bool = True
) -> Made:
    """Convert layer by layer, on the batches for calibration; k: of every layer, where they differ."""
    model = task.load()
    layers = {name: {"k": value} for name, value in (k or {}).items()}
    chosen = replace(config(cell, task), layers=layers)
    options = {"loss": fisher(cell, task) if weigh else None, "progress": False}
    diba.torch.convert(model, chosen, batches=seen(task, quick), **options)
    return model, solved(diba.torch.report(model)) | ({"k": dict(k)} if k else {})


def fisher(cell: Cell, task: Task) -> Any:
    return diba.torch.fisher(seed=cell.seed, features=task.loss == "hidden")


def solved(report: diba.torch.Report) -> dict[str, Any]:
    levels = [layer.snr_db for layer in report.layers]
    outputs = [layer.output_snr_db for layer in report.layers if layer.output_snr_db is not None]
    return {
        "layers": len(levels),
        "mean_snr_db": sum(levels) / len(levels),
        "mean_output_snr_db": sum(outputs) / len(outputs) if outputs else None,
        "convert_seconds": report.seconds,
    }


def retuned(cell: Cell, task: Task, quick: bool, origin: Maker = calibrated, flips: bool = False) -> Made:
    model, facts = origin(cell, task, quick)
    return train(cell, task, quick, model, facts, flips)


def train(
    cell: Cell, task: Task, quick: bool, model: nn.Module, facts: dict[str, Any], flips: bool = False
) -> Made:
    steps = steps_of(cell, quick)
    moving = diba.torch.Flips(every=max(1, steps // 2)) if flips else None
    options = {"max_steps": steps, "bits": moving, "norms": task.norms, "seed": cell.seed, "progress": False}
    report = diba.torch.retune(model, unseen_first(task), loss_of(task), **options)
    facts |= {
        "retune_seconds": report.seconds,
        "losses": [float(report.losses[:5].mean()), float(report.losses[-20:].mean())],
        "checked": [report.loss_before, report.loss_after],
        "restored": report.restored,
        "trained": report.trained,
        "training_bytes": report.training_bytes,
        "dense_training_bytes": report.dense_training_bytes,
        "flips": sum(report.flips.values()),
        "flip_seconds": report.flip_seconds,
    }
    return model, facts


def allocated(cell: Cell, task: Task, quick: bool, by: str = "fisher") -> Made:
    """As calibrated, with bits where they lower most noise at the model's answers, or most of its loss."""

    def make() -> Made:
        chosen = config(cell, task)
        options: dict[str, Any] = {"loss": fisher(cell, task), "progress": False}
        moments = diba.torch.calibrate(teacher(task), seen(task, quick), config=chosen, **options)
        unseen = unseen_first(task)[: 2 if quick else HELD_OUT]
        options = {"config": chosen, "calibration": moments}
        began = time.perf_counter()
        shares = share_out(teacher(task), cell.bits, by, loss_of(task), unseen, **options)
        spent = time.perf_counter() - began
        model, facts = convert_seeing(cell, task, quick, shares.k)
        return model, facts | {"allocate_seconds": spent}

    return once(cell, "allocated" if by == "fisher" else "by loss", make)


def scored(cell: Cell, task: Task, quick: bool) -> Made:
    """As calibrated, with the components that score best in a model of half as many bits again."""

    def make() -> Made:
        large, _ = convert_seeing(replace(cell, bits=MORE * cell.bits), task, quick)
        scores = diba.torch.scores(large, seen(task, quick), loss_of(task))
        return convert_seeing(cell, task, quick, diba.torch.keep_best(large, scores, cell.bits))

    return once(cell, "scored", make)


def random(cell: Cell, task: Task, quick: bool) -> Made:
    model = task.load()
    levels = convert_random(model, config(cell, task), cell.seed)
    facts = {"layers": len(levels), "mean_snr_db": sum(levels.values()) / len(levels)}
    return train(cell, task, quick, model, facts)


def rounded(cell: Cell, task: Task, quick: bool, retune: bool = False) -> Made:
    model = task.load()
    chosen = diba.torch.Config(bits_per_weight=cell.bits, **task.config)
    bits = convert_rounded(model, chosen, int(cell.bits))
    facts: dict[str, Any] = {"bits_per_weight": bits}
    if retune:
        options = {"steps": steps_of(cell, quick), "norms": task.norms}
        losses = retune_scales(model, unseen_first(task), loss_of(task), **options)
        facts["losses"] = [sum(losses[:5]) / 5, sum(losses[-20:]) / len(losses[-20:])]
    return model, facts


MAKERS: dict[str, Maker] = {
    "dense": dense,
    "replaced": replaced,
    "unweighted": unweighted,
    "calibrated": calibrated,
    "dibard": retuned,
    "flips": partial(retuned, flips=True),
    "random": random,
    "allocated": allocated,
    "allocated, retuned": partial(retuned, origin=allocated),
    "by loss": partial(allocated, by="loss"),
    "by loss, retuned": partial(retuned, origin=partial(allocated, by="loss")),
    "scored": scored,
    "scored, retuned": partial(retuned, origin=scored),
    "rounded": rounded,
    "rounded, retuned": partial(rounded, retune=True),
}


# ---- sizes


def compressed_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, (FactoredLayer, Rounded))]


def bits_of(layer: Any) -> tuple[int, int]:
    """(stored bits, weights) of a replaced layer; diagonals at 16 bits an entry."""
    if isinstance(layer, Rounded):
        return layer.bits, layer.shape.numel()
    shape = m, n = layer.d1.numel(), layer.d3.numel()
    return stored_bits(*shape, layer.k), m * n


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
