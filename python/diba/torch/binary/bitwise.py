"""Linear layers and convolutions that are trained with 1 or 2 bits on both sides of the product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...checkpoints.layers import BITWISE
from ..modules.bitwise import check_bits
from ..modules.patches import PatchProduct
from ..ops.bits import bit_linear, packed_levels, rounded, within
from .trained import TrainedConv2d, TrainedLayer, TrainedLinear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["BitConv2d", "BitLayer", "BitLinear"]


class _Product(torch.autograd.Function):
    """The product of rounded vectors and weights; gradients straight through both roundings.

    ``taken`` makes vectors (..., n) of the inputs, such as patches. They are made again for the gradients, so
    that not they, but the inputs alone, are held until then.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bits: tuple[int, int], taken: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.bits, ctx.taken = bits, taken
        planes, scale = packed_levels(w, bits[1])
        y: Tensor = bit_linear(taken(x), planes, scale, None, w.shape[1], bits[0])
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        [grad], [x, w] = grads, ctx.saved_tensors
        x = x.detach().requires_grad_(ctx.needs_input_grad[0])
        with torch.enable_grad():
            taken = ctx.taken(x)
        above, vectors = grad.reshape(-1, len(w)).to(w.dtype), taken.detach().reshape(-1, w.shape[1])
        vectors = vectors.to(w.dtype)
        numbers, steps = rounded(vectors, ctx.bits[0])
        weights, scale = rounded(w, ctx.bits[1])
        of_x = of_w = None
        if ctx.needs_input_grad[0]:
            of_vectors = ((above * scale) @ weights).mul_(within(vectors, steps, ctx.bits[0]))
            [of_x] = torch.autograd.grad(taken, x, of_vectors.to(x.dtype).view_as(taken))
        if ctx.needs_input_grad[1]:
            of_w = (above * steps[:, None]).T @ numbers
        return of_x, of_w, None, None


class BitLayer(TrainedLayer):
    """The base of :class:`BitLinear` and :class:`BitConv2d`: inputs and weights are rounded to 1 or 2 bits.

    With 1 bit on both sides these are the layers of XNOR-Net. Every input vector, and every patch of a
    convolution's input, gets a step of its own, and every row of the weight a scale, both from its values,
    see :meth:`diba.Levels.rounded`; sums of products are whole numbers, exact. Gradients pass straight
    through the roundings; those of inputs farther out than a step from the outermost number are zero. The
    numbers lie symmetrically about zero, so the inputs should: put a normalization before the layer, and not
    a ReLU.

    Attributes:
        weight: The latent weight, of the shape of the dense layer's.
        activation_bits: 1 or 2.
        weight_bits: 1 or 2.
    """

    activation_bits: int
    weight_bits: int
    _form = "bitwise"
    _diba_own = frozenset({"activation_bits", "weight_bits"})
    _tensors = frozenset(BITWISE)

    def _set_bits(self, activation_bits: int, weight_bits: int) -> None:
        self.activation_bits = check_bits(activation_bits, "activation_bits")
        self.weight_bits = check_bits(weight_bits, "weight_bits")

    def _product(self, x: Tensor, taken: Callable[[Tensor], Tensor]) -> Tensor:
        """The matrix times the vectors (..., n) that are taken from x, plus the bias."""
        bits = self.activation_bits, self.weight_bits
        y: Tensor = _Product.apply(x, self.matrix, bits, taken)  # type: ignore[no-untyped-call]
        bias: Tensor | None = self.bias
        return y if bias is None else y + bias.to(y.dtype)

    def _facts(self) -> str:
        return f"activation_bits={self.activation_bits}, weight_bits={self.weight_bits}"


class BitLinear(BitLayer, TrainedLinear):
    """``nn.Linear`` with 1 or 2 bits on both sides of the product; :class:`BitLayer` says how it is trained.

    Args:
        in_features: n, the size of the inputs.
        out_features: m, the size of the outputs.
        bias: Whether a bias is added.
        activation_bits: 1 or 2.
        weight_bits: 1 or 2.
        device: Device of the parameters; None: torch's default.
        dtype: Dtype of the parameters; None: torch's default.

    Raises:
        TypeError: A value is of the wrong kind.
        ValueError: A number of bits is neither 1 nor 2.

    Example:
        >>> import torch
        >>> layer = BitLinear(64, 48, activation_bits=2)
        >>> layer(torch.randn(5, 64)).shape
        torch.Size([5, 48])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        activation_bits: int = 1,
        weight_bits: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._set_bits(activation_bits, weight_bits)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return self._product(x, _itself)


class BitConv2d(BitLayer, PatchProduct, TrainedConv2d):
    """``nn.Conv2d`` with 1 or 2 bits on both sides of the product; :class:`BitLayer` says how it is trained.

    The zeros of ``padding_mode="zeros"`` are entries of a patch like all others, which count for its step and
    are rounded: zero is no number of 1 or 2 bits, and becomes -1. ``"replicate"`` pads with values of the
    input instead.

    Args:
        in_channels: Channels of the input.
        out_channels: m, channels of the output.
        kernel_size: Pixels along each axis; here and below, one number stands for both axes.
        stride: Steps between patches.
        padding: Pixels added on each side, or ``"same"`` or ``"valid"``.
        dilation: Steps between the pixels of a patch.
        bias: Whether a bias is added.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        activation_bits: 1 or 2.
        weight_bits: 1 or 2.
        device: Device of the parameters; None: torch's default.
        dtype: Dtype of the parameters; None: torch's default.

    Raises:
        TypeError: A value is of the wrong kind.
        ValueError: A number of bits is neither 1 nor 2, or a setting of the convolution is not possible.

    Example:
        >>> import torch
        >>> layer = BitConv2d(16, 32, 3, padding=1, padding_mode="replicate")
        >>> layer(torch.randn(5, 16, 8, 8)).shape
        torch.Size([5, 32, 8, 8])
    """

    axes = 2

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
        activation_bits: int = 1,
        weight_bits: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": padding_mode}
        made = {"bias": bias, "device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, kernel_size, **geometry, **made)
        self._set_bits(activation_bits, weight_bits)

    def _times_patches(self, x: Tensor) -> Tensor:
        return self._product(x, self._patches)


def _itself(x: Tensor) -> Tensor:
    return x
