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
    """Means over weighted pairs of vectors (x, y): of x y', of x and of y.

    Summed in float32 within blocks and in float64 over blocks. What is summed is the distance from an origin
    near the first vectors, so that moments about the mean, which may be far smaller, are as exact.
    """

    def __init__(self, n: int) -> None:
        self.count = 0
        self._weight = 0.0
        self._n = n
        self._origins: tuple[Tensor, Tensor] | None = None  # float64, as everything that is summed
        self._product = self._x = self._y = torch.zeros(0)

    def add(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """Add the pairs of rows of x and y, both of shape (count, n); weights (count,), None: all 1."""
        if not len(x):
            return
        if self._origins is None:
            self._origins = _origin(x), _origin(y)
            zeros = torch.zeros(self._n, dtype=torch.float64, device=x.device)
            self._x, self._y, self._product = zeros, zeros.clone(), torch.outer(zeros, zeros)
        a, b = (origin.to(x) for origin in self._origins)
        bounds = [*range(0, len(x), _ROWS), len(x)]
        for begin, end in pairwise(bounds):
            u = x[begin:end] - a
            v = u if x is y else y[begin:end] - b
            root = torch.ones(1).to(u) if weights is None else weights[begin:end, None].to(u).sqrt()
            u, v = u * root, v * root  # on both sides: the product of x with itself stays symmetric
            self._product = self._product.to(u.device).add_((u.T @ v).double())
            self._x = self._x.to(u.device).add_((u * root).sum(0, dtype=torch.float64))
            self._y = self._y.to(u.device).add_((v * root).sum(0, dtype=torch.float64))
        self.count += len(x)
        self._weight += len(x) if weights is None else float(weights.double().sum())

    def mean(self) -> Tensor:
        """The mean of x y', float64, shape (n, n)."""
        a, b = self._origins_like(self._product)
        shifts = torch.outer(a, self._y + self._weight * b) + torch.outer(self._x, b)
        return ((self._product + shifts) / self._weight).cpu()

    def means(self) -> tuple[Tensor, Tensor]:
        """The means of x and of y, float64, shape (n,)."""
        a, b = self._origins_like(self._product)
        return (a + self._x / self._weight).cpu(), (b + self._y / self._weight).cpu()

    def _origins_like(self, other: Tensor) -> tuple[Tensor, Tensor]:
        assert self._origins is not None, "something was added"
        a, b = (origin.to(other) for origin in self._origins)
        return a, b

    def finite(self) -> bool:
        """Whether all vectors were finite: one bad entry makes its sum of squares NaN or infinite."""
        if self._origins is None:
            return True
        squares = (origin.float().square() for origin in self._origins)
        return all(bool(sums.isfinite().all()) for sums in (self._product.diagonal(), *squares))


def _origin(x: Tensor) -> Tensor:
    """A vector near the mean of the first rows of x, (n,), float64.

    Its entries are multiples of a power of two, 1/256 of the largest entry or more, so that sums over whole
    numbers stay exact.
    """
    first = x[:_ROWS].double()
    exponents = torch.frexp(first.abs().amax(0)).exponent.clamp(min=-100)
    steps = torch.ldexp(torch.ones_like(first[0]), exponents - 8)
    return (first.mean(0) / steps).round() * steps
