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

from .kinds import kind_of

__all__ = [
    "PATCHES",
    "Products",
    "input_of",
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
        module: A dense layer with an ``input_size``.
        x: What it is called with.
        masks: Shape (batch, tokens), False for padding; positions of an x of shape (batch, tokens, ..., n)
            that every mask of that shape calls padding are left out. So are vectors that are marked as one of
            batch times tokens. Marks stay on what remains.
    """
    rows = _patches(module, x.detach()) if _axes(module) else _unpadded(x, masks)
    return mark_like(rows.to(torch.float64 if x.dtype == torch.float64 else torch.float32, copy=True), rows)


def output_rows(module: nn.Module, y: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
    """A layer's output, or the gradient of it, as rows of shape (count, m), padding left out."""
    axes = _axes(module)
    return y.movedim(-1 - axes, -1).flatten(0, -2) if axes else _unpadded(y, masks)


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


def _axes(module: nn.Module) -> int:
    """Spatial axes of the input of a layer whose vectors are patches, else 0."""
    kind = kind_of(module)
    return 0 if kind is None else kind.axes


def _patches(module: nn.Module, x: Tensor) -> Tensor:
    kind = kind_of(module)
    assert kind is not None, "it has axes"
    windows = kind.windows(module, x)
    positions = windows.shape[: 1 + kind.axes]
    return windows[torch.unravel_index(_spread(math.prod(positions)).to(x.device), positions)].flatten(1)


def _spread(total: int) -> Tensor:
    """All of ``range(total)``, or some ``PATCHES`` of it, evenly."""
    if total <= PATCHES:
        return torch.arange(total)
    steps = torch.arange(1, PATCHES + 1, dtype=torch.float64) * ((math.sqrt(5) - 1) / 2)
    return torch.unique((steps.frac() * total).long())  # type: ignore[no-any-return]


def sampled(module: nn.Module, rows: Tensor) -> Tensor:
    """The rows for the vectors that ``vectors`` takes, from one row for every vector of the layer."""
    return rows[_spread(len(rows)).to(rows.device)] if _axes(module) else rows


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
