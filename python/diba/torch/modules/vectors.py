"""The vectors that a dense layer multiplies by its matrix, and sums over them.

For ``nn.Linear`` and the ``Conv1D`` of transformers these are the rows of the flattened input; for
convolutions the patches, with entries in the order of ``weight.flatten(1)``. An embedding has none.
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
"""The most patches taken from one call of a convolution. They follow a golden-ratio sequence over all
positions of all images: evenly spread, the same at every call, and not aligned with the rows of an image."""

_ROWS = 4096  # vectors summed in float32 before the sum is added in float64


def input_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The tensor that a layer was called with."""
    x: Tensor = args[0] if args else next(iter(kwargs.values()))
    return x


def mark(x: Tensor, rows: Tensor, count: int) -> Tensor:
    """Attach to x the positions of its vectors among the model's ``count`` tokens; returns x.

    An expert, for example, gets only some of the tokens.

    Args:
        x: Vectors, shape (len(x), n).
        rows: Position of each vector, shape (len(x),).
        count: Tokens of the model in this batch.
    """
    x._diba_rows = rows, count  # type: ignore[attr-defined]
    return x


def marked(x: Tensor) -> tuple[Tensor, int] | None:
    """The (rows, count) that :func:`mark` attached to this tensor object, or None."""
    return getattr(x, "_diba_rows", None)


def mark_like(x: Tensor, other: Tensor) -> Tensor:
    """Attach the mark of ``other``, if it has one, to x; returns x."""
    known = marked(other)
    return x if known is None else mark(x, *known)


def vectors(module: nn.Module, x: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
    """Copy the input vectors of a layer, shape (count, n), float32 (float64 if x is); padding is left out.

    Args:
        module: A dense layer with an ``input_size``.
        x: The input of the layer.
        masks: Masks of shape (batch, tokens), False for padding. A position of an x of shape (batch, tokens,
            ..., n) is left out if every mask of that shape says padding. For an x with a mark, the mark tells
            the position of each vector among batch times tokens; the vectors that are kept keep their mark.
    """
    rows = _patches(module, x.detach()) if _axes(module) else _unpadded(x, masks)
    return mark_like(rows.to(torch.float64 if x.dtype == torch.float64 else torch.float32, copy=True), rows)


def output_rows(module: nn.Module, y: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
    """A layer's output, or its gradient, as rows of shape (count, m), without padding."""
    axes = _axes(module)
    return y.movedim(-1 - axes, -1).flatten(0, -2) if axes else _unpadded(y, masks)


def _unpadded(x: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """The vectors of x, shape (count, n), without padding."""
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
    """Number of spatial axes of a convolution's input; 0 for other layers."""
    kind = kind_of(module)
    return 0 if kind is None else kind.axes


def _patches(module: nn.Module, x: Tensor) -> Tensor:
    kind = kind_of(module)
    assert kind is not None, "only convolutions have axes"
    windows = kind.windows(module, x)
    positions = windows.shape[: 1 + kind.axes]
    return windows[torch.unravel_index(_spread(math.prod(positions)).to(x.device), positions)].flatten(1)


def _spread(total: int) -> Tensor:
    """``range(total)``, or about ``PATCHES`` evenly spread numbers of it if it is longer."""
    if total <= PATCHES:
        return torch.arange(total)
    steps = torch.arange(1, PATCHES + 1, dtype=torch.float64) * ((math.sqrt(5) - 1) / 2)
    return torch.unique((steps.frac() * total).long())  # type: ignore[no-any-return]


def sampled(module: nn.Module, rows: Tensor) -> Tensor:
    """From one row for each vector of a layer, the rows of the vectors that ``vectors`` takes."""
    return rows[_spread(len(rows)).to(rows.device)] if _axes(module) else rows


class Products:
    """The mean of x y' over pairs of vectors, summed in float32 within blocks and in float64 over blocks."""

    def __init__(self, n: int) -> None:
        self.total = torch.zeros(n, n, dtype=torch.float64)
        self.count = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add the pairs of rows of x and y, both of shape (count, n)."""
        bounds = [*range(0, len(x), _ROWS), len(x)]
        for begin, end in pairwise(bounds):
            product = (x[begin:end].T @ y[begin:end]).double()
            self.total = self.total.to(product.device).add_(product)
        self.count += len(x)

    def mean(self) -> Tensor:
        """The mean of x y', float64, shape (n, n)."""
        return (self.total / self.count).cpu()

    def finite(self) -> bool:
        """Whether all vectors were finite: one bad entry makes its sum of squares NaN or infinite."""
        return bool(self.total.diagonal().isfinite().all())
