"""Linear layers and convolutions that are trained with binary weights and exact exceptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

from .layer import APBLayer
from .trained import TrainedConv2d, TrainedLinear

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

__all__ = ["APBConv2d", "APBLinear"]


class APBLinear(APBLayer, TrainedLinear):
    """``nn.Linear`` with a binary weight and exact exceptions; :class:`APBLayer` says how it is trained.

    Args:
        in_features: n, the size of the inputs.
        out_features: m, the size of the outputs.
        bias: Whether a bias is added.
        exceptions: The share of weights that stay exact, from 0 (all are binary) to below 1.
        learn_delta: Whether delta is learned; else it holds the share.
        scales: ``"layer"``: one alpha, as published; ``"rows"``: one for each output, at 16 bits each.
        device: Device of the parameters; None: torch's default.
        dtype: Dtype of the parameters; None: torch's default.

    Raises:
        TypeError: A value is of the wrong kind.
        ValueError: ``exceptions`` is out of range, or ``scales`` unknown.

    Example:
        >>> import torch
        >>> layer = APBLinear(64, 48, exceptions=0.01)
        >>> round(layer.share, 4), layer(torch.zeros(5, 64)).shape
        (0.0098, torch.Size([5, 48]))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        exceptions: float = 0.01,
        learn_delta: bool = False,
        scales: str = "layer",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._binarize(exceptions, learn_delta, scales)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return functional.linear(x, self.dense_weight(), self.bias)


class APBConv2d(APBLayer, TrainedConv2d):
    """``nn.Conv2d`` with a binary kernel and exact exceptions; :class:`APBLayer` says how it is trained.

    Args:
        in_channels: Channels of the input.
        out_channels: m, channels of the output.
        kernel_size: Pixels along each axis; here and below, one number stands for both axes.
        stride: Steps between patches.
        padding: Pixels added on each side, or ``"same"`` or ``"valid"``.
        dilation: Steps between the pixels of a patch.
        bias: Whether a bias is added.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        exceptions: The share of weights that stay exact, from 0 (all are binary) to below 1.
        learn_delta: Whether delta is learned; else it holds the share.
        scales: ``"layer"``: one alpha, as published; ``"rows"``: one for each channel of the output.
        device: Device of the parameters; None: torch's default.
        dtype: Dtype of the parameters; None: torch's default.

    Raises:
        TypeError: A value is of the wrong kind.
        ValueError: ``exceptions`` is out of range, or ``scales`` unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        exceptions: float = 0.01,
        learn_delta: bool = False,
        scales: str = "layer",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": padding_mode}
        made = {"bias": bias, "device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, kernel_size, **geometry, **made)
        self._binarize(exceptions, learn_delta, scales)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height, width)."""
        y: Tensor = self._conv_forward(x, self.dense_weight(), self.bias)
        return y
