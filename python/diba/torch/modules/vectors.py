"""The vectors a dense layer multiplies its matrix by, and sums over them.

Rows of the flattened input for ``nn.Linear`` and transformers' ``Conv1D``; for convolutions the unfolded
patches, entries in the order of ``weight.flatten(1)``. An embedding multiplies nothing: it reads rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "PATCHES",
    "Products",
    "input_of",
    "input_size",
    "kind",
    "mark",
    "mark_like",
    "marked",
    "output_rows",
    "sampled",
    "vectors",
]

PATCHES = 8192
"""Patches of one call of a convolution that are taken at most: a golden-ratio sequence over all positions of
all images, even, the same at every call, and out of step with the rows of any image."""

_ROWS = 4096  # vectors whose products are summed in float32 before they are added in float64
_Conv = (nn.Conv1d, nn.Conv2d)


def input_size(module: nn.Module) -> int | None:
    """Length n of the vectors of a layer; None if the module is no dense layer with inputs."""
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, _Conv) and module.groups == 1:
        return module.weight[0].numel()
    if _is_transformers_conv1d(module):
        return int(module.weight.shape[0])  # type: ignore[index]
    return None


def kind(module: nn.Module) -> object:
    """Layers of equal kinds make the same vectors of the same input."""
    if isinstance(module, _Conv):
        return module.kernel_size, module.stride, module.padding, module.dilation, module.padding_mode
    return None


def _is_transformers_conv1d(module: nn.Module) -> bool:
    # by name, since torch users need no transformers; its weight has shape (in, out)
    return type(module).__name__ == "Conv1D" and isinstance(getattr(module, "nf", None), int)


def input_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The tensor a layer was called with."""
    x: Tensor = args[0] if args else next(iter(kwargs.values()))
    return x


def mark(x: Tensor, rows: Tensor, count: int) -> Tensor:
    """Note on a tensor which ones of ``count`` vectors of the model its own are, shape (len(x),)."""
    x._diba_rows = rows, count  # type: ignore[attr-defined]
    return x


def marked(x: Tensor) -> tuple[Tensor, int] | None:
    """What :func:`mark` noted on this very tensor; None: nothing."""
    return getattr(x, "_diba_rows", None)


def mark_like(x: Tensor, other: Tensor) -> Tensor:
    """The first tensor, with the mark of the other, if that has one."""
    known = marked(other)
    return x if known is None else mark(x, *known)


def vectors(module: nn.Module, x: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
    """A copy of a layer's input vectors, shape (count, n), float32 (float64 if x is).

    Args:
        module: A layer that ``input_size`` knows.
        x: What it is called with.
        masks: Shape (batch, tokens), False for padding; positions of an x of shape (batch, tokens, ..., n)
            that every mask of that shape calls padding are left out. So are vectors that are marked as one of
            batch times tokens. Marks stay on what remains.
    """
    rows = _patches(module, x.detach()) if isinstance(module, _Conv) else _unpadded(x, masks)
    return mark_like(rows.to(torch.float64 if x.dtype == torch.float64 else torch.float32, copy=True), rows)


def output_rows(module: nn.Module, y: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
    """A layer's output, or the gradient of it, as rows of shape (count, m), padding left out."""
    if isinstance(module, _Conv):
        return y.movedim(-1 - len(module.kernel_size), -1).flatten(0, -2)
    return _unpadded(y, masks)


def _unpadded(x: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Vectors of shape (count, n)."""
    known, x = marked(x), x.detach()
    if known is not None:
        rows, count = known
        fitting = [mask.flatten().to(x.device) for mask in masks if mask.numel() == count]
        kept = torch.stack(fitting).any(0)[rows] if fitting else slice(None)
        return mark(x[kept], rows[kept], count)
    fitting = [mask.to(x.device) for mask in masks if x.ndim > 2 and mask.shape == x.shape[:2]]
    x = x[torch.stack(fitting).any(0)] if fitting else x
    return x.reshape(-1, x.shape[-1])


def _patches(conv: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    spatial = len(conv.kernel_size)
    if x.ndim == spatial + 1:
        x = x[None]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    windows = F.pad(x, _padding(conv), mode=mode)
    for axis in range(spatial):  # views only: (batch, C, *out, *kernel)
        step = conv.dilation[axis]
        length = step * (conv.kernel_size[axis] - 1) + 1
        windows = windows.unfold(2 + axis, length, conv.stride[axis])[..., ::step]
    windows = windows.movedim(1, 1 + spatial)
    positions = windows.shape[: 1 + spatial]
    return windows[torch.unravel_index(_spread(math.prod(positions)).to(x.device), positions)].flatten(1)


def _padding(conv: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Pairs of paddings, last axis first, as F.pad takes them."""
    pairs: list[int] = []
    for axis in reversed(range(len(conv.kernel_size))):
        if conv.padding == "same":
            total = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
            pairs += [total // 2, total - total // 2]
        else:
            pairs += [0, 0] if isinstance(conv.padding, str) else [conv.padding[axis]] * 2
    return pairs


def _spread(total: int) -> Tensor:
    """All of ``range(total)``, or some ``PATCHES`` of it, evenly."""
    if total <= PATCHES:
        return torch.arange(total)
    steps = torch.arange(1, PATCHES + 1, dtype=torch.float64) * ((math.sqrt(5) - 1) / 2)
    return torch.unique((steps.frac() * total).long())  # type: ignore[no-any-return]


def sampled(module: nn.Module, rows: Tensor) -> Tensor:
    """Of one row for every vector a layer multiplies, those of the vectors that ``vectors`` takes."""
    return rows[_spread(len(rows)).to(rows.device)] if isinstance(module, _Conv) else rows


class Products:
    """The mean of x y' over pairs of vectors: float32 sums over blocks of rows, float64 over blocks."""

    def __init__(self, n: int) -> None:
        self.total = torch.zeros(n, n, dtype=torch.float64)
        self.count = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count the rows of x and y, both of shape (count, n)."""
        bounds = [*range(0, len(x), _ROWS), len(x)]
        for begin, end in pairwise(bounds):
            self.total += (x[begin:end].T @ y[begin:end]).to("cpu", torch.float64)
        self.count += len(x)

    def mean(self) -> Tensor:
        """The mean of x y', float64, shape (n, n)."""
        return self.total / self.count

    def finite(self) -> bool:
        """Whether all sums of squares are, which one entry that is not finite spoils."""
        return bool(self.total.diagonal().isfinite().all())
