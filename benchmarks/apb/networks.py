"""Two small networks and their data: Fashion-MNIST, a part of its training images held out to choose by."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..common.data import fashion_mnist
from ..models.probe import accuracy

__all__ = ["NETWORKS", "Data", "Network", "accuracy_of", "data", "inner_layers"]

HELD_OUT = 12  # every so-many-th training image is for choosing rates: 5,000 of 60,000
MEAN, DEVIATION = 0.2860, 0.3530  # of the training images' pixels, from 0 to 1


# ---- networks


def mlp(width: float = 1.0) -> nn.Module:
    """784-512-512-10: 670 thousand parameters; or so many times as many units in between."""
    units = round(512 * width)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, units),
        nn.ReLU(),
        nn.Linear(units, units),
        nn.ReLU(),
        nn.Linear(units, 10),
    )


class Residual(nn.Module):
    """Two convolutions and a way past them, by a pointwise convolution where shapes differ."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.past = nn.Conv2d(inputs, outputs, 1, 2, bias=False)
        self.past_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return F.relu(y + self.past_norm(self.past(x)))


def cnn(width: float = 1.0) -> nn.Module:
    """Seven convolutions of 7 x 7, 4 x 4 and 2 x 2 pixels: 314 thousand parameters; or wider blocks."""
    inner, outer = round(64 * width), round(136 * width)
    return nn.Sequential(
        nn.Conv2d(1, 32, 6, 4, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Residual(32, inner),
        Residual(inner, outer),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(outer, 10),
    ).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Network:
    """One to measure.

    Attributes:
        title: For people.
        make: The network with random weights; of a width that may be given, relative to its own.
        epochs: Of the first training, in float32.
        tuning: Epochs that every arm has from there.
    """

    title: str
    make: Callable[..., nn.Module]
    epochs: int
    tuning: int


NETWORKS = {
    "mlp": Network("MLP 784-512-512-10", mlp, 6, 4),
    "cnn": Network("residual CNN", cnn, 5, 3),
}


def inner_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that every arm compresses: neither a first convolution nor the output layer."""
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    return {
        name: layer
        for name, layer in layers.items()
        if getattr(layer, "in_channels", 0) != 1 and layer.weight.shape[0] != 10
    }


# ---- data


@dataclass(frozen=True, eq=False)
class Data:
    """(images of shape (count, 1, 28, 28), labels) of each part."""

    train: tuple[torch.Tensor, torch.Tensor]
    validation: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]


@functools.cache
def data() -> Data:
    """All of it, normalised."""
    x, y = part("train")
    held = torch.arange(len(x)) % HELD_OUT == 0
    return Data((x[~held], y[~held]), (x[held], y[held]), part("t10k"))


def part(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = fashion_mnist("train" if name == "train" else "t10k")
    x = (torch.from_numpy(images.copy()).float() / 255 - MEAN) / DEVIATION
    return x[:, None], torch.from_numpy(labels.astype(np.int64))


@torch.no_grad()
def accuracy_of(model: nn.Module, part: tuple[torch.Tensor, torch.Tensor]) -> float:
    """In eval mode; the model stays as it is otherwise."""
    mode = model.training
    model.eval()
    logits = torch.cat([model(block) for block in part[0].split(500)])
    model.train(mode)
    return accuracy(logits, part[1])
