"""Linear layers and convolutions with binary weights and exceptions, as they are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..._internal import check
from .apb import DibaAPBLayer
from .patches import Patches

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DibaAPBConv2d", "DibaAPBLinear"]


class DibaAPBLinear(DibaAPBLayer):
    """``nn.Linear`` with binary weights and exceptions: ``y = alpha * (S x) + E x + bias``.

    :func:`diba.torch.freeze` makes it from an :class:`APBLinear`; ``DibaAPBLinear.from_dense`` from a dense
    layer.

    Args:
        in_features: n, the size of the inputs.
        out_features: m, the size of the outputs.
        entries: The number of exceptions; ``load_state_dict`` adapts it.
        alphas: 1, or m for one a row.
        bias: Whether a bias is added.
        device: Device of the tensors; None: torch's default.
        dtype: Dtype of bias and dense weight; None: torch's default.

    Example:
        >>> import torch, diba
        >>> dense = torch.nn.Linear(64, 48)
        >>> layer = DibaAPBLinear.from_dense(dense, diba.apb(dense.weight.detach(), exceptions=0.01))
        >>> layer(torch.zeros(5, 64)).shape
        torch.Size([5, 48])
    """

    fan_in_fan_out = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        entries: int = 0,
        alphas: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        n = check.positive_int(in_features, "in_features")
        m = check.positive_int(out_features, "out_features")
        super().__init__(m, n, entries=entries, alphas=alphas, bias=bias, device=device, dtype=dtype)
        self.in_features, self.out_features = n, m

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), in the dtype of ``x``."""
        return self._multiply(x)

    def extra_repr(self) -> str:
        """The arguments of the layer and its size."""
        facts = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{facts}, bias={self.bias is not None}, {super().extra_repr()}"


class DibaAPBConv2d(Patches, DibaAPBLayer):
    """``nn.Conv2d`` with a binary kernel and exceptions; patches are taken as by :class:`Convolution`.

    Args:
        in_channels: Channels of the input.
        out_channels: m, channels of the output.
        kernel_size: Pixels along each axis; here and below, one number stands for both axes.
        entries: The number of exceptions; ``load_state_dict`` adapts it.
        alphas: 1, or m for one a channel of the output.
        stride: Steps between patches.
        padding: Pixels added on each side, or ``"same"`` or ``"valid"``.
        dilation: Steps between the pixels of a patch.
        groups: Must be 1.
        bias: Whether a bias is added.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device: Device of the tensors; None: torch's default.
        dtype: Dtype of bias and dense weight; None: torch's default.
    """

    axes = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        entries: int = 0,
        alphas: int = 1,
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
        sizes: dict[str, Any] = {"entries": entries, "alphas": alphas, "bias": bias}
        super().__init__(*geometry.shape, **sizes, device=device, dtype=dtype)
        self._set_geometry(geometry)
