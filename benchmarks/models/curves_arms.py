"""The arms of the curves benchmark: how the model of a cell is made, and how many bytes it has on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import diba.torch

from .curves_diba import converted
from .curves_onnx import exported
from .curves_plan import GROUP, IMPORTANCE, WHOLE, Cell
from .curves_work import Clock, Facts, Work
from .gptq import convert_gptq, packed_bytes
from .llama_files import NAMES, importances, quantized, rounded_to, type_bits
from .rounding import retune_scales
from .shared import teacher

__all__ = ["run"]

IMATRIX = f"imatrix of {IMPORTANCE} of the same batches"


def run(cell: Cell, work: Work) -> Facts:
    """Make the model of a cell and measure it.

    The result has the cell's own names; ``bytes`` of the file; ``bits`` of a weight that is compressed, None
    where the file does not say; ``metrics``, and ``before_retuning`` those at that time, None without
    retuning; ``seconds`` and ``cpu_seconds`` of making it, without measuring; and its ``recipe`` in words.
    """
    clock, task = Clock(), work.task
    facts = ARMS[cell.arm](cell, work, clock)
    model = facts.pop("model")
    return {
        "task": cell.task, "title": task.title, "arm": cell.arm, "form": cell.form, "seed": cell.seed,
        "primary": task.primary, "higher_is_better": task.higher_is_better,
        "bits": None, "before_retuning": None, **facts,
        "seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds, "metrics": task.metrics(model),
    }  # fmt: skip


def dense(cell: Cell, work: Work, clock: Clock) -> Facts:
    """All parameters as they are, or of 16 bits."""
    model, half = teacher(work.task), cell.form == "float16"
    if half:
        model = work.task.load()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.half())
    size = sum({id(p): p.numel() for p in model.parameters()}.values())
    return {"model": model, "bytes": size * (2 if half else 4), "recipe": ""}


# ---- GPTQ


def gptq(cell: Cell, work: Work, clock: Clock) -> Facts:
    """Rounded in groups by GPTQ, embeddings as in diba's models, scales and offsets retuned alike."""
    task, recipe = work.task, work.recipe
    model = task.load()
    with clock:
        config = diba.torch.Config(bits_per_weight=cell.bits, **task.config)
        bits = convert_gptq(model, config, work.seen, int(cell.bits), GROUP)
        if any(isinstance(module, nn.Embedding) for module in model.modules()):
            options = {"codes": cell.table, "embeddings": cell.table, "progress": False, **task.config}
            diba.torch.convert(model, batches=None if cell.table == WHOLE else work.seen, **options)
    before = task.metrics(model)
    with clock:
        losses = retune_scales(model, work.unseen_first, work.loss, steps=recipe.steps, norms=True)
    return {
        "model": model,
        "bytes": packed_bytes(model),
        "bits": bits,
        "before_retuning": before,
        "losses": [float(np.mean(losses[:5])), float(np.mean(losses[-20:]))],
        "recipe": f"groups of {GROUP}, {len(work.seen)} batches, retuned for {recipe.steps} steps",
    }


# ---- llama.cpp


def llama_file(cell: Cell, work: Work, clock: Clock) -> Facts:
    """A file of llama.cpp, measured by its weights in torch: activations stay float32."""
    from transformers import LlamaForCausalLM

    from .decode import smollm2_file

    weights = importance(work)
    with clock:
        path = quantized(smollm2_file(), cell.form, floats="F32", importance=weights)
    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = LlamaForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    return {"model": model, "bytes": path.stat().st_size, "recipe": IMATRIX}


def llama_types(cell: Cell, work: Work, clock: Clock) -> Facts:
    """One type on every matrix of the blocks, Q8_0 on the embedding; no program reads such a file."""
    weights = importance(work)
    model = work.task.load()
    table = model.model.embed_tokens
    with clock:
        size = put(table, "Q8_0", np.ones(table.weight.shape[1], np.float32))
        for number, layer in enumerate(model.model.layers):
            for ours, theirs in NAMES.items():
                inputs = weights[f"blk.{number}.{theirs}.weight"]
                size += put(layer.get_submodule(ours), cell.form, inputs)
    size += sum(p.nbytes for p in model.parameters() if p.dim() == 1)  # norms
    facts = {"bytes": size, "bits": type_bits(cell.form)}
    return {"model": model, **facts, "recipe": f"{IMATRIX}, embedding in Q8_0"}


@torch.no_grad()
def put(module: Any, name: str, inputs: NDArray[np.float32]) -> int:
    """Give a layer the weights that a type holds; the bytes of it."""
    weight, size = rounded_to(name, module.weight.detach().numpy(), inputs)
    module.weight.copy_(torch.from_numpy(weight))
    return size


def importance(work: Work) -> dict[str, NDArray[np.float32]]:
    """Of the inputs of the dense model's matrices, on what conversion sees first; kept between runs."""
    path = work.folder / f"{work.task.name}-imatrix.npz"
    if not path.exists():
        found = importances(teacher(work.task), work.seen[:IMPORTANCE])
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(part, **found)
        part.replace(path)
    with np.load(path) as file:
        return dict(file)


ARMS: dict[str, Callable[[Cell, Work, Clock], Facts]] = {
    "dense": dense,
    "diba": converted,
    "GPTQ": gptq,
    "llama.cpp": llama_file,
    "llama.cpp's types": llama_types,
    "onnxruntime": exported,
}
