"""Weights of few levels that are trained: each is a parametrization of ``weight``.

Training sees the quantized weight, and gradients pass through the rounding as if it were not there (straight-
through), to weights in float32 that are thrown away at the end.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

__all__ = ["LearnedStep", "PlainBinary", "quantize", "quantizer_of", "values"]


class PlainBinary(nn.Module):
    """``alpha sign(w)``, with one alpha for the layer that is learned; it begins as the mean of abs(w)."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(weight.detach().abs().mean())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return self.scale * through(signs(weight), weight / self.scale.detach())

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """0 or 1, for the negative and the positive level."""
        return (weight >= 0).to(torch.uint8)

    bits = 1


class LearnedStep(nn.Module):
    """Esser et al., "Learned step size quantization" (ICLR 2020), for weights of so many bits.

    ``s round(clip(w / s, -Qn, Qp))`` with Qn = 2^(bits-1) and Qp = Qn - 1; s is learned by their gradient,
    scaled by 1 / sqrt(weights Qp), and begins as 2 mean(abs(w)) / sqrt(Qp).
    """

    def __init__(self, weight: torch.Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.low, self.high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.scale = nn.Parameter(2 * weight.detach().abs().mean() / math.sqrt(self.high))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        factor = 1 / math.sqrt(weight.numel() * self.high)
        scale = through(self.scale, self.scale * factor)
        levels = (weight / scale).clamp(self.low, self.high)
        return scale * through(levels.round(), levels)

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """Levels from 0."""
        levels = (weight / self.scale).clamp(self.low, self.high).round() - self.low
        return levels.to(torch.uint8)


def values(codes: torch.Tensor, bits: int, scale: torch.Tensor) -> torch.Tensor:
    """The weights that codes of either class stand for."""
    if bits == 1:
        return scale * (2.0 * codes - 1.0)
    return scale * (codes.float() - 2 ** (bits - 1))


def signs(weight: torch.Tensor) -> torch.Tensor:
    """-1 or 1; 1 for zero."""
    return torch.where(weight < 0, -1.0, 1.0)


def through(value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A value whose gradient is that of another one."""
    return (value - gradient).detach() + gradient


def quantize(layer: nn.Module, bits: int) -> None:
    """Give a layer's weight a quantizer, in place: :class:`PlainBinary` for one bit."""
    weight = layer.weight
    quantizer = PlainBinary(weight) if bits == 1 else LearnedStep(weight, bits)
    parametrize.register_parametrization(layer, "weight", quantizer)


def quantizer_of(layer: nn.Module) -> PlainBinary | LearnedStep:
    return layer.parametrizations.weight[0]
