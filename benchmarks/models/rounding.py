"""Round-to-nearest in groups, the baseline for whole models, with scales that can be trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import diba.torch
from diba.torch.model.selection import targets
from diba.torch.modules.kinds import factored_matrix
from diba.torch.retuning.batches import differentiable
from diba.torch.retuning.settings import Training, grouped, norms_sized, typical_size
from diba.torch.retuning.steps import Trainer

__all__ = ["Codes", "Rounded", "convert_rounded", "retune_scales", "round_groups", "stored"]

Codes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # codes, scales and offsets of ``round_groups``

FLOATS = 2  # a group has a scale and an offset ...
FLOAT_BITS = 16  # ... of 16 bits each
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)  # ranges tried, relative to the whole


class Rounded(nn.Module):
    """A dense layer with weights ``scale * (code - middle code) + offset``, scale and offset of a group.

    Counted from the middle, offsets are small and train apart from the scales. Both are parameters; what is
    used is what 16 bits hold of them. It multiplies by a dense matrix: this measures accuracy, not speed.

    Args:
        dense: A linear layer (also transformers' Conv1D) or a convolution.
        bits: Of a code.
        group: Neighbouring inputs that share scale and offset; the last group of a row may be smaller.
        found: Codes, scales and offsets; None: those of ``round_groups``.
    """

    def __init__(self, dense: nn.Module, bits: int, group: int = 64, found: Codes | None = None) -> None:
        super().__init__()
        matrix = factored_matrix(dense).detach().float()
        self.shape, self.group = matrix.shape, min(group, matrix.shape[1])
        self.levels = 2**bits - 1
        codes, scale, offset = found or round_groups(matrix, bits, self.group)
        self.register_buffer("codes", codes)
        self.scale, self.offset = nn.Parameter(scale), nn.Parameter(offset)
        self.bias = dense.bias
        self.bits = self.shape.numel() * bits + FLOATS * FLOAT_BITS * scale.numel()
        self._convolution: Callable[..., torch.Tensor] | None = None
        if isinstance(dense, (nn.Conv1d, nn.Conv2d)):
            self._convolution = F.conv1d if isinstance(dense, nn.Conv1d) else F.conv2d
            self._kernel = dense.kernel_size
            self._settings = (dense.stride, dense.padding, dense.dilation)

    @property
    def bits_per_weight(self) -> float:
        """All stored bits over the weights."""
        return self.bits / self.shape.numel()

    @property
    def weight(self) -> torch.Tensor:
        """The matrix, shape (m, n)."""
        steps = self.codes - self.levels / 2
        groups = steps * stored(self.scale)[..., None] + stored(self.offset)[..., None]
        return groups.flatten(1)[:, : self.shape[1]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._convolution is None:
            return F.linear(x, self.weight, self.bias)
        weight = self.weight.unflatten(1, (-1, *self._kernel))
        return self._convolution(x, weight, self.bias, *self._settings)


def stored(x: torch.Tensor) -> torch.Tensor:
    """Rounded to 16 bits; the gradient passes."""
    return x.half().float()


@torch.no_grad()
def round_groups(matrix: torch.Tensor, bits: int, group: int) -> Codes:
    """Codes, shape (m, groups, group), uint8; scales and offsets, shape (m, groups), float32 of 16 bits.

    The range of a group, from its smallest to its largest weight, is shrunk about its middle where that makes
    the squared error smaller.
    """
    levels = 2**bits - 1
    m, n = matrix.shape
    missing = -n % group
    padded = F.pad(matrix, (0, missing), value=math.nan).view(m, -1, group)
    low = padded.nan_to_num(nan=math.inf).amin(-1, keepdim=True)
    high = padded.nan_to_num(nan=-math.inf).amax(-1, keepdim=True)
    best: tuple[torch.Tensor, ...] | None = None
    for shrink in SHRINK:
        middle, half = (low + high) / 2, (high - low) / 2 * shrink
        scale = stored(
            (2 * half / levels).clamp_min(2.0**-24)
        )  # the least 16 bits hold: for groups of one value
        offset = stored(middle)
        codes = ((padded - offset) / scale + levels / 2).round().clamp(0, levels).nan_to_num(0)
        error = ((codes - levels / 2) * scale + offset - padded).square().nansum(-1, keepdim=True)
        new = (error, codes, scale, offset)
        better = None if best is None else error < best[0]
        best = (
            new if best is None else tuple(torch.where(better, a, b) for a, b in zip(new, best, strict=True))
        )
    _, codes, scale, offset = best
    return codes.to(torch.uint8), scale[..., 0].clone(), offset[..., 0].clone()


def convert_rounded(model: nn.Module, config: diba.torch.Config, bits: int, group: int = 64) -> float:
    """Replace the layers that diba would, in place.

    Returns:
        Stored bits for each weight, over all replaced layers.
    """
    made = []
    for target in targets(model, config):
        made.append(Rounded(target.module, bits, group))
        for name in (target.name, *target.aliases):
            model.set_submodule(name, made[-1])
    return sum(layer.bits for layer in made) / sum(layer.shape.numel() for layer in made)


def retune_scales(
    model: nn.Module,
    batches: list[Any],
    loss: Callable[[nn.Module, Any], torch.Tensor],
    *,
    steps: int,
    lr: float = 0.002,
    norms: bool = False,
) -> list[float]:
    """Train scales, offsets and biases as ``diba.torch.retune`` trains diagonals and biases.

    Args:
        model: From ``convert_rounded``.
        batches: Gone through as often as needed.
        loss: ``loss(model, batch)``.
        steps: Of the optimizer.
        lr: Relative to the median entry of a parameter.
        norms: Train weights and biases of normalisation too.

    Returns:
        The loss of each step.
    """
    layers = [module for module in model.modules() if isinstance(module, Rounded)]
    sized = [(part, typical_size(part)) for layer in layers for part in (layer.scale, layer.offset)]
    sized += [(layer.bias, typical_size(layer.bias, 0.1)) for layer in layers]
    groups = grouped([*sized, *(norms_sized(model) if norms else [])], lr)
    trainer = Trainer(model, loss, groups, Training())
    with differentiable(model, [parameter for group in groups for parameter in group["params"]]):
        trainer.train(batches, steps)
    return trainer.losses
