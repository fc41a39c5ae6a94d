"""How all networks are trained: the same images, steps and loss for every arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .networks import Data

__all__ = ["BATCH", "batches", "groups", "train"]

BATCH = 256


def batches(
    part: tuple[torch.Tensor, torch.Tensor], epoch: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Mixed anew for each epoch and seed, half of the images mirrored; only whole batches."""
    x, y = part
    random = torch.Generator().manual_seed(1000 * seed + epoch)
    order = torch.randperm(len(x), generator=random)
    for rows in order[: len(x) // BATCH * BATCH].view(-1, BATCH):
        mirrored = torch.rand(BATCH, 1, 1, 1, generator=random) < 0.5
        images = x[rows]
        yield torch.where(mirrored, images.flip(-1), images), y[rows]


def groups(model: nn.Module, rate: float) -> list[dict[str, Any]]:
    """All parameters at this rate; of single numbers, which are scales, their logarithms, as it were."""
    plain, scales = [], []
    for name, parameter in model.named_parameters():
        alone = parameter.numel() == 1 and "log" not in name
        (scales if alone else plain).append(parameter)
    alone = [{"params": [scale], "lr": rate * float(scale.detach().abs())} for scale in scales]
    return [{"params": plain, "lr": rate}, *alone]


def train(
    model: nn.Module,
    data: Data,
    epochs: int,
    parameters: list[dict[str, Any]],
    seed: int,
    *,
    teacher: nn.Module | None = None,
    before_step: Callable[[float], object] | None = None,
) -> None:
    """Lower the cross entropy by Adam, its rates falling to zero as a cosine.

    Args:
        model: Changed in place.
        data: Of which the training part is used.
        epochs: Passes over it.
        parameters: Groups of what is trained, with their first rates.
        seed: Of the order of images.
        teacher: The loss is then the mean of the cross entropies to labels and to its probabilities.
        before_step: Called with the part of the steps that are done.
    """
    optimizer = torch.optim.Adam(parameters, fused=True)
    first = [group["lr"] for group in optimizer.param_groups]
    steps, done = epochs * (len(data.train[0]) // BATCH), 0
    model.train()
    for epoch in range(epochs):
        for x, y in batches(data.train, epoch, seed):
            if before_step is not None:
                before_step(done / steps)
            for group, rate in zip(optimizer.param_groups, first, strict=True):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done / steps))
            optimizer.zero_grad()
            loss(model(x), y, teacher, x).backward()
            optimizer.step()
            done += 1
    model.eval()


def loss(logits: torch.Tensor, y: torch.Tensor, teacher: nn.Module | None, x: torch.Tensor) -> torch.Tensor:
    found = F.cross_entropy(logits, y)
    if teacher is None:
        return found
    with torch.no_grad():
        wanted = teacher(x).softmax(1)
    return (found + F.cross_entropy(logits, wanted)) / 2
