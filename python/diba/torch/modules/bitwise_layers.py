"""Linear layers and convolutions of few bits on both sides of the product, as they are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..._internal import check
from .bitwise import DibaBitLayer
from .patches import Patches

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DibaBitConv2d", "DibaBitLinear"]


class DibaBitLinear(DibaBitLayer):
    """``nn.Linear`` whose inputs and weights have 1 or 2 bits; the frozen form of :class:`BitLinear`.

    Args:
        in_features: n, the size of the inputs.
        out_features: m, the size of the outputs.
        activation_bits: 1 or 2.
        weight_bits: 1 or 2.
        bias: Whether a bias is added.
        device: Device of the tensors; None: torch's default.
        dtype: Dtype of bias and dense weight; None: torch's default.

    Raises:
        TypeError: A size is not an integer, or ``dtype`` is not a floating-point dtype.
        ValueError: A size is out of range.
    """

    fan_in_fan_out = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation_bits: int = 1,
        weight_bits: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        n = check.positive_int(in_features, "in_features")
        m = check.positive_int(out_features, "out_features")
        bits: dict[str, Any] = {"activation_bits": activation_bits, "weight_bits": weight_bits}
        super().__init__(m, n, **bits, bias=bias, device=device, dtype=dtype)
        self.in_features, self.out_features = n, m

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), in the dtype of ``x``."""
        return self._multiply(x)

    def extra_repr(self) -> str:
        """The arguments of the layer and its size."""
        facts = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{facts}, bias={self.bias is not None}, {super().extra_repr()}"


class DibaBitConv2d(Patches, DibaBitLayer):
    """``nn.Conv2d`` whose patches and weights have 1 or 2 bits; the frozen form of :class:`BitConv2d`.

    Patches are taken as by :class:`Convolution`, and those of zero padding are rounded like all others.

    Args:
        in_channels: Channels of the input.
        out_channels: m, channels of the output.
        kernel_size: Pixels along each axis; here and below, one number stands for both axes.
        activation_bits: 1 or 2.
        weight_bits: 1 or 2.
        stride: Steps between patches.
        padding: Pixels added on each side, or ``"same"`` or ``"valid"``.
        dilation: Steps between the pixels of a patch.
        groups: Must be 1.
        bias: Whether a bias is added.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device: Device of the tensors; None: torch's default.
        dtype: Dtype of bias and dense weight; None: torch's default.

    Raises:
        TypeError: A size is not an integer, or ``dtype`` is not a floating-point dtype.
        ValueError: ``groups`` is not 1, or a size, the padding or a name is not possible.
    """

    axes = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        activation_bits: int = 1,
        weight_bits: int = 1,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry = self._geometry(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        bits: dict[str, Any] = {"activation_bits": activation_bits, "weight_bits": weight_bits}
        super().__init__(*geometry.shape, **bits, bias=bias, device=device, dtype=dtype)
        self._set_geometry(geometry)
