"""How convolutions take the patches of their inputs, and multiply them by a matrix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..._internal import check
from ..ops.operators import undispatched

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SETTINGS", "Geometry", "PatchProduct", "Patches", "windows"]

SETTINGS = ("stride", "padding", "dilation", "padding_mode")
"""Attributes that decide, with ``kernel_size``, how patches are taken."""

_PADDINGS = ("same", "valid")
_PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


class Geometry(NamedTuple):
    """The arguments of a convolution, checked.

    Attributes:
        shape: (m, n) of its matrix.
        facts: The attributes of the layer, by name.
    """

    shape: tuple[int, int]
    facts: dict[str, Any]


class PatchProduct:
    """The product of a convolution with its patches; a module that has ``_multiply`` inherits from it, too.

    A patch of the input, flattened like ``weight.flatten(1)``, is a vector of n = in_channels * kernel
    entries. Kernels of one pixel use the input as it is; others copy the patches, which takes kernel / stride
    times the memory of the input.
    """

    axes: ClassVar[int]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Any  # a tuple or a name; Any, as nn.Conv2d has types of its own for these
    padding_mode: Any
    bias: Any
    _pads: list[int] | None = None  # None: found for every product

    if TYPE_CHECKING:

        def _multiply(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, *pixels) to (batch, out_channels, *pixels), with or without a batch axis.

        The output is contiguous if ``x`` is; otherwise it has the channels-last format.

        Raises:
            ValueError: ``x`` has a wrong number of channels or axes.
        """
        channel = x.dim() - self.axes - 1
        if channel not in (0, 1) or x.shape[channel] != self.in_channels:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; it must be (batch, {self.in_channels} channels, and "
                f"{self.axes} axes of pixels), or the same without a batch"
            )
        y = self._times_patches(x).movedim(-1, channel)
        return y.contiguous() if x.is_contiguous() else y

    def _times_patches(self, x: Tensor) -> Tensor:
        """The products (batch, *positions, out_channels) of all patches."""
        return self._multiply(self._patches(x))

    def _patches(self, x: Tensor) -> Tensor:
        """The patches as vectors, (batch, *positions, n)."""
        channel = x.dim() - self.axes - 1
        taken = windows(self, x, channel, self._pads)
        pixels = math.prod(self.kernel_size)
        if pixels == 1 or not undispatched(x):
            return taken.flatten(channel + self.axes)
        found = taken.new_empty((*taken.shape[: -self.axes], pixels))
        for p, place in enumerate(np.ndindex(*self.kernel_size)):
            found[..., p] = taken[(..., *place)]  # thrice as fast as rows of a few pixels
        return found.flatten(-2)


class Patches(PatchProduct):
    """What convolutions have in common whose kernel is stored as a matrix."""

    _pads: list[int]

    @classmethod
    def _geometry(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int] | str,
        dilation: int | Sequence[int],
        groups: int,
        padding_mode: str,
    ) -> Geometry:
        """Check the arguments of a convolution."""
        channels = check.positive_int(in_channels, "in_channels")
        m = check.positive_int(out_channels, "out_channels")
        if groups != 1:
            raise ValueError(f"groups is {groups}; it must be 1: leave grouped convolutions dense")
        kernel, steps = cls._sizes(kernel_size, "kernel_size", 1), cls._sizes(stride, "stride", 1)
        facts: dict[str, Any] = {"in_channels": channels, "out_channels": m, "groups": 1}
        facts |= {"kernel_size": kernel, "stride": steps, "dilation": cls._sizes(dilation, "dilation", 1)}
        facts["padding_mode"] = check.one_of(padding_mode, "padding_mode", tuple(_PADDING_MODES))
        named = isinstance(padding, str)
        facts["padding"] = (
            check.one_of(padding, "padding", _PADDINGS) if named else cls._sizes(padding, "padding", 0)
        )
        if padding == "same" and any(step != 1 for step in steps):
            raise ValueError(f"stride is {steps}; it must be 1 where padding is 'same'")
        return Geometry((m, channels * math.prod(kernel)), facts)

    def _set_geometry(self, geometry: Geometry) -> None:
        """Set the attributes."""
        for name, value in geometry.facts.items():
            setattr(self, name, value)
        self._pads = _pads(self)

    @classmethod
    def _sizes(cls, value: Any, name: str, minimum: int) -> tuple[int, ...]:
        """One number for each axis, from one number or a tuple."""
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * cls.axes
        if len(values) != cls.axes:
            raise ValueError(f"{name} is {values}; it must be one number, or {cls.axes}")
        return tuple(check.integer(size, name, minimum=minimum) for size in values)

    @property
    def weight_shape(self) -> torch.Size:
        """(out_channels, in_channels, *kernel_size)."""
        return torch.Size((self.out_channels, self.in_channels, *self.kernel_size))

    def extra_repr(self) -> str:
        """The arguments of the layer and its size."""
        facts = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        usual = {"padding": (0,) * self.axes, "dilation": (1,) * self.axes, "padding_mode": "zeros"}
        for name, value in usual.items():
            found = getattr(self, name)
            facts += "" if found == value else f", {name}={found!r}"
        return f"{facts}, bias={self.bias is not None}, {super().extra_repr()}"  # type: ignore[misc]


def windows(conv: Any, x: Tensor, channel: int, pads: list[int] | None = None) -> Tensor:
    """The patches that a convolution, dense or factored, multiplies: a view of the padded input.

    Args:
        conv: A layer with the settings of ``nn.Conv1d`` or ``nn.Conv2d``.
        x: Shape (batch, channels, *pixels), or without a batch.
        channel: The axis of the channels: 1 or 0.
        pads: ``_pads(conv)``; None: computed here.

    Returns:
        Shape (batch, *positions, channels, *kernel); the last axes are those of ``weight.flatten(1)``.
    """
    pads = _pads(conv) if pads is None else pads
    if any(pads):
        x = functional.pad(x, pads, mode=_PADDING_MODES[conv.padding_mode])
    sizes = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
    for axis, (size, stride, dilation) in enumerate(sizes, channel + 1):
        x = x.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return x.movedim(channel, channel + len(conv.kernel_size))


def _pads(conv: Any) -> list[int]:
    """Pixels to add before and after, last axis first, as ``functional.pad`` takes them."""
    pads: list[int] = []
    for axis in reversed(range(len(conv.kernel_size))):
        if conv.padding == "same":
            total = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
            pads += [total // 2, total - total // 2]
        else:
            pads += [0 if isinstance(conv.padding, str) else conv.padding[axis]] * 2
    return pads
