"""One cell: train a network in one way, write its file, test what the file holds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import diba.torch

from .files import rebuilt, stored
from .networks import NETWORKS, accuracy_of, data, inner_layers
from .plan import Cell
from .quantizers import quantize
from .training import groups, train

__all__ = ["run", "trained"]

FIRST_RATE = 0.001  # of the training in float32 that all arms begin with
FALLING = 0.6  # of the training, in which exceptions become fewer
MOST = 0.999  # of the weights are exceptions at first
CALIBRATION = 4  # blocks of 256 images that a factorization sees


def run(cell: Cell, keep: Path, distilled: bool = False) -> dict[str, Any]:
    """Facts of a cell.

    Args:
        cell: Its rate is known.
        keep: Folder of the networks in float32, and of the files that come out.
        distilled: Whether the loss has the answers of the network in float32 too.
    """
    began, spent = time.perf_counter(), time.process_time()
    model = trained(cell.network, cell.seed, keep, cell.width)
    teacher = trained(cell.network, cell.seed, keep) if distilled else None
    parameters = MAKERS[cell.arm](model, cell)
    before_step = partial(falling, model, number(cell) / 100) if cell.arm == "falling" else None
    extras: dict[str, Any] = {"teacher": teacher, "before_step": before_step}
    train(model, data(), NETWORKS[cell.network].tuning, parameters, cell.seed, **extras)
    if cell.arm in ("APB", "falling"):
        diba.torch.freeze(model)
    file = stored(model, narrow=cell.arm != "float32")
    (keep / f"{cell.key.replace(' | ', '-').replace(' ', '')}.safetensors").write_bytes(file)
    network = rebuilt(file, NETWORKS[cell.network].make(cell.width))
    return {
        **dataclasses.asdict(cell),
        "bytes": len(file),
        "bits": bits_per_weight(file, cell),
        "validation": round(accuracy_of(network, data().validation), 6),
        "test": round(accuracy_of(network, data().test), 6),
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - spent, 1),
    }


def trained(name: str, seed: int, keep: Path, width: float = 1.0) -> nn.Module:
    """The network in float32 that all arms of a seed and a width begin with; trained once."""
    network, path = NETWORKS[name], keep / f"{name}-{seed}{f'-{width:g}' if width != 1 else ''}.pt"
    torch.manual_seed(seed)
    model = network.make(width)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    train(model, data(), network.epochs, groups(model, FIRST_RATE), seed)
    keep.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(model.state_dict(), part)
    part.replace(path)
    return model


# ---- makers: change a network in place; (model, cell) -> groups of parameters for the optimizer


def float32(model: nn.Module, cell: Cell) -> list[dict[str, Any]]:
    return groups(model, cell.rate)


def few_levels(model: nn.Module, cell: Cell) -> list[dict[str, Any]]:
    for layer in inner_layers(model).values():
        quantize(layer, 1 if cell.width != 1 else int(number(cell)))
    return groups(model, cell.rate)


def binarized(model: nn.Module, cell: Cell) -> list[dict[str, Any]]:
    diba.torch.binarize(model, number(cell) / 100, skip=outer(model))
    return groups(model, cell.rate)


def falling(model: nn.Module, share: float, done: float) -> None:
    """Hold as many exceptions as suit this part of the training: all at first, the share from 60 % on."""
    left = max(0.0, 1 - done / FALLING)
    for layer in model.modules():
        if isinstance(layer, diba.torch.APBLayer):
            layer.exceptions = share + (MOST - share) * left**3


def factored(model: nn.Module, cell: Cell) -> list[dict[str, Any]]:
    """Factors fitted to what training images put into layers; diagonals, biases and norms train."""
    config = diba.torch.Config(
        bits_per_weight=number(cell),
        alphabet="binary" if cell.arm == "DiBA" else "sign",
        skip=outer(model),
        convolutions=True,
        effort="fast",
        seed=cell.seed,
    )
    images = data().train[0][:: len(data().train[0]) // (256 * CALIBRATION)]
    diba.torch.convert(model, config, batches=list(images.split(256)), progress=False)
    parameters = diba.torch.trainable(model, norms=True, lr=cell.rate)
    dense = [p for name in config.skip for p in model.get_submodule(name).parameters()]
    for parameter in dense:
        parameter.requires_grad_(True)
    return [*parameters, {"params": dense, "lr": FIRST_RATE}]


MAKERS: dict[str, Callable[[nn.Module, Cell], list[dict[str, Any]]]] = {
    "float32": float32,
    "binary": few_levels,
    "wider": few_levels,
    "LSQ": few_levels,
    "APB": binarized,
    "falling": binarized,
    "DiBA": factored,
    "DBF": factored,
}


def number(cell: Cell) -> float:
    """That the form begins with."""
    return float(cell.form.split()[0])


def outer(model: nn.Module) -> list[str]:
    """Names of the layers that stay dense in all arms."""
    inner = inner_layers(model)
    kinds = (nn.Linear, nn.Conv2d)
    return [name for name, layer in model.named_modules() if isinstance(layer, kinds) and name not in inner]


def bits_per_weight(file: bytes, cell: Cell) -> float:
    """Of the layers that are made small: what their names hold in the file, over their weights."""
    from safetensors.numpy import load

    layers = inner_layers(NETWORKS[cell.network].make(cell.width))
    weights = sum(layer.weight.numel() for layer in layers.values())
    held = sum(
        array.nbytes
        for name, array in load(file).items()
        if name.rpartition(".")[0] in layers and not name.endswith(".bias")
    )
    return round(8 * held / weights, 4)
