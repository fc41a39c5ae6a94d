"""A cell of the curves benchmark that diba makes; it goes on where an earlier run was stopped."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import diba.hf  # so that converted models of transformers can be saved
import diba.torch

from ..common import BenchmarkError
from .curves_plan import IMPORTANCE, WHOLE, Cell
from .curves_work import Clock, Facts, Work
from .shared import HELD_OUT, share_out, teacher

__all__ = ["converted"]

UNFINISHED = "unfinished.pt"
DATA = ("joined", "windows", "spoken", "table_last")  # what says which batches conversion sees, and where


def converted(cell: Cell, work: Work, clock: Clock) -> Facts:
    """Converted by everything that data can do, block by block, then retuned, and saved."""
    task, recipe = work.task, work.recipe
    folder = work.folder / f"{cell.task}-{cell.form.replace(',', '').replace(' ', '-')}-{cell.seed}"
    settings = {
        "bits_per_weight": cell.bits, "effort": "fast", "seed": cell.seed,
        "embeddings": WHOLE if recipe.table_last else cell.table, **task.config, **recipe.config,
    }  # fmt: skip
    reconstruct = {"seed": cell.seed, **recipe.reconstruct}
    source = {"batches": len(work.seen), **{name: getattr(recipe, name) for name in DATA}}
    about = {"settings": settings, "shared": recipe.shared, "reconstruct": reconstruct, "data": source}
    model, facts = unfinished(folder, about) or (task.load().to(work.device), {"about": about, "layers": {}})
    for name in ("seconds", "cpu_seconds"):
        setattr(clock, name, facts.get(name, 0.0))
    if "metrics" not in facts:
        gradients = diba.torch.fisher(seed=cell.seed, features=task.loss == "hidden")
        with clock:
            if recipe.shared and not facts["layers"]:
                facts["layers"] = shares(cell, work, settings, gradients)
            layers = settings.get("layers", {}) | facts["layers"]
            diba.torch.convert(
                model, **settings | {"layers": layers}, threads=work.threads, batches=work.there(work.seen),
                loss=gradients, reconstruct=reconstruct, teacher=task.load().to(work.device),
                progress=functools.partial(after_block, folder, model, facts, clock),
            )  # fmt: skip
            if recipe.table_last and cell.table != WHOLE:
                round_tables(model, cell, work)
        facts |= {"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds, "metrics": work.metrics(model)}
        say(folder, "before retuning", facts["metrics"])
        keep(folder, model, facts)
    retuned: Facts = {}
    options: dict[str, Any] = {"norms": True, "seed": cell.seed, "progress": False}
    data = work.there(work.unseen_first)
    with clock:
        report = diba.torch.retune(model, data, work.loss, max_steps=recipe.steps, **options)
    if recipe.flip_steps:
        retuned = {"before_flips": work.metrics(model)}
        say(folder, "before bits move", retuned["before_flips"])
        keep(folder, model, facts)
        with clock:
            last = diba.torch.retune(
                model, data, work.loss, max_steps=recipe.flip_steps, bits="flip", **options
            )
        retuned |= {"flips": sum(last.flips.values()), "flip_losses": [last.loss_before, last.loss_after]}
    model.cpu()
    return {
        "model": model,
        "bytes": saved(model, folder),
        "bits": diba.torch.report(model).bits_per_weight,
        "before_retuning": facts["metrics"],
        "losses": [report.loss_before, report.loss_after],
        **retuned,
        "recipe": words(cell, work),
    }


def shares(cell: Cell, work: Work, settings: dict[str, Any], gradients: Any) -> dict[str, dict[str, int]]:
    """Every layer's k, as rules of ``diba.torch.Config``: bits where they do most."""
    dense, config = teacher(work.task).to(work.device), diba.torch.Config(**settings)
    few, unseen = work.there(work.seen[:IMPORTANCE]), work.there(work.unseen_first[:HELD_OUT])
    known = diba.torch.calibrate(dense, few, config=config, loss=gradients, progress=False)
    options = {"config": config, "calibration": known, "threads": work.threads}
    found = share_out(dense, cell.bits, work.recipe.shared, work.loss, unseen, **options)
    return {name: {"k": k} for name, k in found.k.items()}


def round_tables(model: nn.Module, cell: Cell, work: Work) -> None:
    """Give embeddings and output layers of a converted model the bits of the cell, from the dense ones."""
    dense = work.task.load().to(work.device)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, diba.torch.CodedLayer):
            model.set_submodule(name, dense.get_submodule(name))
    for ties in ("_tied_weights_keys", "all_tied_weights_keys"):  # of a model of transformers
        if hasattr(dense, ties):
            setattr(model, ties, getattr(dense, ties))
    diba.torch.convert(
        model, bits_per_weight=cell.bits, embeddings=cell.table, **work.task.config, threads=work.threads,
        batches=work.there(work.seen[: work.recipe.table_last]), progress=False,
    )  # fmt: skip


def words(cell: Cell, work: Work) -> str:
    """What made a model, in one line."""
    recipe = work.recipe
    rows = sum(len(next(iter(batch.values()))) for batch in work.seen)
    changed = "".join(f", {name} {value}" for name, value in (recipe.reconstruct | recipe.config).items())
    drawn = f", first on {recipe.drawn} texts of each kind that the model wrote" if recipe.drawn else ""
    spoken = ", half of them of synthesized speech" if recipe.spoken else ""
    shared = f", bits shared out by {recipe.shared}" if recipe.shared else ""
    flips = f", then {recipe.flip_steps} in which bits move" if recipe.flip_steps else ""
    late = recipe.table_last and cell.table != WHOLE
    table = f"; its table of {WHOLE} bits was rounded to {cell.table} between the two" if late else ""
    return (
        f"blocks reconstructed on {len(work.seen)} batches ({rows} rows{spoken}){changed}{shared}, "
        f"retuned for {recipe.steps} steps{flips}{drawn}, on {work.device}{table}"
    )


def after_block(folder: Path, model: nn.Module, facts: Facts, clock: Clock, state: diba.Progress) -> None:
    """For ``progress`` of ``convert``: keep the model whenever a block is done."""
    if isinstance(state.detail, diba.torch.BlockRecipe):
        facts |= clock.lap()
        say(folder, state.item, {"loss": state.detail.loss, "flips": state.detail.flips})
        keep(folder, model, facts)


def say(folder: Path, what: str | None, values: dict[str, float]) -> None:
    shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    print(f"{folder.name}: {what}, {shown}", file=sys.stderr, flush=True)


def keep(folder: Path, model: nn.Module, facts: Facts) -> None:
    """Write a model whole, or not at all; without hooks, by which conversion watches its modules."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{UNFINISHED}.part"
    watched = [(module, module._forward_pre_hooks) for module in model.modules()]
    try:
        for module, hooks in watched:
            module._forward_pre_hooks = type(hooks)()
        torch.save((model, facts), part)
    finally:
        for module, hooks in watched:
            module._forward_pre_hooks = hooks
    part.replace(folder / UNFINISHED)


def unfinished(folder: Path, about: Facts) -> tuple[nn.Module, Facts] | None:
    """What an earlier run kept.

    Raises:
        BenchmarkError: it was made by other settings.
    """
    path = folder / UNFINISHED
    if not path.exists():
        return None
    model, facts = torch.load(path, weights_only=False)  # a whole model, which this script has written
    if facts["about"] != about:
        raise BenchmarkError(f"{path} was made by {facts['about']}, now it is {about}; use another --keep")
    return model, facts


def saved(model: nn.Module, folder: Path) -> int:
    """Bytes of the tensors' files of the saved model; the unfinished one is deleted."""
    whole = folder / "model"
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(whole)
    else:
        from safetensors.torch import save_model

        whole.mkdir(parents=True, exist_ok=True)
        save_model(model, str(whole / "model.safetensors"))
    (folder / UNFINISHED).unlink(missing_ok=True)
    return sum(path.stat().st_size for path in whole.glob("*.safetensors"))
