"""Convolutions whose kernel, a matrix with one row for each output channel, is factored."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..._internal import check
from .dense import Kind
from .layer import FactoredLayer, check_factorization
from .linear import multiply

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    import diba

    from ..._internal.check import Alphabet
    from .layer import Sizes

__all__ = ["Convolution", "ConvolutionKind", "DibaConv1d", "DibaConv2d"]

_PADDINGS = ("same", "valid")
_SETTINGS = ("stride", "padding", "dilation", "padding_mode")
_PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


class Convolution(FactoredLayer):
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

    axes: ClassVar[int]

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
        channels = check.positive_int(in_channels, "in_channels")
        m = check.positive_int(out_channels, "out_channels")
        if groups != 1:
            raise ValueError(f"groups is {groups}; it must be 1: leave grouped convolutions dense")
        kernel = self._sizes(kernel_size, "kernel_size", 1)
        n = channels * math.prod(kernel)
        super().__init__(m, n, k, alphabet=alphabet, bias=bias, device=device, dtype=dtype)
        self.in_channels, self.out_channels, self.groups = channels, m, 1
        self.kernel_size = kernel
        self.stride = self._sizes(stride, "stride", 1)
        self.dilation = self._sizes(dilation, "dilation", 1)
        self.padding_mode = check.one_of(padding_mode, "padding_mode", tuple(_PADDING_MODES))
        named = isinstance(padding, str)
        self.padding = (
            check.one_of(padding, "padding", _PADDINGS) if named else self._sizes(padding, "padding", 0)
        )
        if self.padding == "same" and any(step != 1 for step in self.stride):
            raise ValueError(f"stride is {self.stride}; it must be 1 where padding is 'same'")
        self._pads = _pads(self)

    @classmethod
    def _sizes(cls, value: Any, name: str, minimum: int) -> tuple[int, ...]:
        """One number for each axis, from one number or a tuple."""
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * cls.axes
        if len(values) != cls.axes:
            raise ValueError(f"{name} is {values}; it must be one number, or {cls.axes}")
        return tuple(check.integer(size, name, minimum=minimum) for size in values)

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
        patches = windows(self, x, channel, self._pads).flatten(channel + self.axes)
        y = multiply(self, patches).movedim(-1, channel)
        return y.contiguous() if x.is_contiguous() else y

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
        return f"{facts}, bias={self.bias is not None}, {super().extra_repr()}"

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
        return (module.kernel_size, *(getattr(module, name) for name in _SETTINGS))

    def windows(self, module: Any, x: Tensor) -> Tensor:
        """See :meth:`Kind.windows`."""
        return windows(module, x if x.ndim == self.axes + 2 else x[None], 1)

    def _plain(self) -> nn.Module:
        module: nn.Module = self.dense(1, 1, 1, device="meta")
        return module

    def _built(self, module: Any, sizes: Sizes | diba.Factorization) -> Any:
        options = {name: getattr(module, name) for name in _SETTINGS}
        options |= {"bias": module.bias is not None, "alphabet": sizes.alphabet, "dtype": module.weight.dtype}
        channels = module.in_channels, module.out_channels
        return self.factored(*channels, module.kernel_size, sizes.k, **options, device="meta")

    def _dense(self, layer: Any) -> Any:
        options = {name: getattr(layer, name) for name in _SETTINGS}
        options |= {"bias": layer.bias is not None, "dtype": layer.dtype}
        return self.dense(layer.in_channels, layer.out_channels, layer.kernel_size, **options, device="meta")
