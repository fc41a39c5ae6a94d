"""Convolutions whose kernel, a matrix with one row for each output channel, is factored."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .dense import Kind
from .layer import FactoredLayer, check_factorization
from .linear import multiply
from .patches import SETTINGS, Patches, windows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    import diba

    from ..._internal.bit_weights import BitWeights
    from ..._internal.check import Alphabet
    from .apb import APBSizes
    from .bitwise import BitSizes
    from .layer import Sizes

__all__ = ["Convolution", "ConvolutionKind", "DibaConv1d", "DibaConv2d"]


class Convolution(Patches, FactoredLayer):
    """The base of :class:`diba.torch.DibaConv1d` and :class:`diba.torch.DibaConv2d`.

    A patch of the input, flattened like ``weight.flatten(1)``, is a vector of n = in_channels * kernel
    entries. Kernels of one pixel use the input as it is; others copy the patches, which takes kernel / stride
    times the memory of the input.

    Args:
        in_channels: Channels of the input.
        out_channels: m, channels of the output.
        kernel_size: Pixels along each axis; here and below, one number stands for all axes.
        k: Inner dimension.
        stride: Steps between patches.
        padding: Pixels added on each side, or ``"same"`` or ``"valid"``.
        dilation: Steps between the pixels of a patch.
        groups: Must be 1: each group would need a factorization of its own small matrix.
        bias: Whether a bias is added.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        alphabet: ``"binary"`` (entries 0/1) or ``"sign"`` (-1/+1).
        device: Device of the tensors; None: torch's default.
        dtype: Dtype of bias and dense weight; None: torch's default. The diagonals are float32.

    Raises:
        TypeError: A size is not an integer, or ``dtype`` is not a floating-point dtype.
        ValueError: ``groups`` is not 1, or a size, the padding or a name is not possible.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        k: int,
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        alphabet: Alphabet = "binary",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry = self._geometry(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        super().__init__(*geometry.shape, k, alphabet=alphabet, bias=bias, device=device, dtype=dtype)
        self._set_geometry(geometry)

    def _multiply(self, x: Tensor) -> Tensor:
        return multiply(self, x)

    @classmethod
    def from_factorization(
        cls,
        f: diba.Factorization,
        kernel_size: int | Sequence[int],
        *,
        bias: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> Self:
        """Make a layer from factors of ``weight.flatten(1)``.

        Args:
            f: The factors, of shape (out_channels, in_channels * kernel).
            kernel_size: Pixels along each axis.
            bias: Copied, shape (m,); None: no bias.
            device: Device of the layer; None: that of ``bias`` if given, else torch's default.
            dtype: Dtype of the layer; None: that of ``bias`` if given, else torch's default.
            **settings: ``stride``, ``padding``, ``dilation`` and ``padding_mode``.

        Raises:
            ValueError: The number of columns is not a multiple of the kernel's pixels.
        """
        if bias is not None:
            device, dtype = device or bias.device, dtype or bias.dtype
        check_factorization(f)
        (m, n), pixels = f.shape, math.prod(cls._sizes(kernel_size, "kernel_size", 1))
        if n % pixels:
            raise ValueError(f"f has {n} columns; they must be a multiple of the kernel's {pixels} pixels")
        facts: dict[str, Any] = {"bias": bias is not None, "alphabet": f.alphabet, "dtype": dtype, **settings}
        layer = cls(n // pixels, m, kernel_size, f.k, **facts, device="meta")
        return layer._fill(f, bias, device)


class DibaConv1d(Convolution):
    """``nn.Conv1d`` with a factored kernel; :class:`Convolution` describes arguments, errors and cost."""

    axes = 1


class DibaConv2d(Convolution):
    """``nn.Conv2d`` with a factored kernel; :class:`Convolution` describes arguments, errors and cost."""

    axes = 2


class ConvolutionKind(Kind):
    """The kind of ``nn.Conv1d`` or ``nn.Conv2d``."""

    def computes(self, module: nn.Module) -> bool:
        """Whether neither ``forward`` nor ``_conv_forward`` is overridden."""
        kind: Any = type(module)
        return super().computes(module) and kind._conv_forward is self.dense._conv_forward

    def _impossible(self, module: Any) -> str | None:
        return None if module.groups == 1 else f"groups is {module.groups}, must be 1"

    def matrix(self, module: Any) -> Tensor:
        """The kernel with one row for each output channel."""
        weight: Tensor = module.weight
        return weight.flatten(1)

    def input_size(self, module: Any) -> int | None:
        """Entries of a patch; None for grouped convolutions."""
        return int(module.weight[0].numel()) if module.groups == 1 else None

    def input_layout(self, module: Any) -> object:
        """All settings that decide how patches are taken."""
        return (module.kernel_size, *(getattr(module, name) for name in SETTINGS))

    def windows(self, module: Any, x: Tensor) -> Tensor:
        """See :meth:`Kind.windows`."""
        return windows(module, x if x.ndim == self.axes + 2 else x[None], 1)

    def _plain(self) -> nn.Module:
        module: nn.Module = self.dense(1, 1, 1, device="meta")
        return module

    def _built(self, module: Any, sizes: Sizes | diba.Factorization) -> Any:
        return self._like(module, self.factored, sizes.k, alphabet=sizes.alphabet, dtype=module.weight.dtype)

    def _binary(self, module: Any, sizes: APBSizes) -> Any:
        own = {"entries": sizes.entries, "alphas": sizes.alphas}
        return self._like(module, self.apb, **own, dtype=module.weight.dtype)

    def _bitwise(self, module: Any, sizes: BitSizes | BitWeights) -> Any:
        own = {"weight_bits": sizes.weight_bits, "activation_bits": sizes.activation_bits}
        return self._like(module, self.bitwise, **own, dtype=module.weight.dtype)

    def _dense(self, layer: Any) -> Any:
        return self._like(layer, self.dense, dtype=layer.dtype)

    def _like(self, module: Any, made: Any, *sizes: int, **own: Any) -> Any:
        """A layer of class ``made`` on the meta device that takes patches as ``module`` does."""
        channels = module.in_channels, module.out_channels
        own |= {name: getattr(module, name) for name in SETTINGS} | {"bias": module.bias is not None}
        return made(*channels, module.kernel_size, *sizes, **own, device="meta")
