"""Linear layers that are trained with 1 or 2 bits on both sides of the product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..modules.bitwise import check_bits
from ..modules.dense import assigned
from ..modules.kinds import kind_of
from ..ops.bits import bit_linear, packed_levels, rounded, within
from .layer import dense_layer

if TYPE_CHECKING:
    from typing import Self

__all__ = ["BitLinear"]


class _Product(torch.autograd.Function):
    """The product of rounded inputs and weights; gradients straight through both roundings."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, activation_bits: int, weight_bits: int) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.bits = activation_bits, weight_bits
        planes, scale = packed_levels(w, weight_bits)
        y: Tensor = bit_linear(x, planes, scale, None, w.shape[1], activation_bits)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        [grad], [x, w] = grads, ctx.saved_tensors
        above, vectors = grad.reshape(-1, len(w)).to(w.dtype), x.reshape(-1, w.shape[1]).to(w.dtype)
        numbers, steps = rounded(vectors, ctx.bits[0])
        weights, scale = rounded(w, ctx.bits[1])
        of_x = of_w = None
        if ctx.needs_input_grad[0]:
            of_x = (above * scale) @ weights * within(vectors, steps, ctx.bits[0])
            of_x = of_x.to(x.dtype).view_as(x)
        if ctx.needs_input_grad[1]:
            of_w = above.T @ (numbers * steps[:, None])
        return of_x, of_w, None, None


class BitLinear(nn.Linear):
    """``nn.Linear`` that rounds its inputs and weights to 1 or 2 bits, and is trained so.

    With 1 bit on both sides these are the layers of XNOR-Net. Every input vector gets a step of its own, and
    every row of the weight a scale, both from its values, see :meth:`diba.Levels.rounded`; sums of products
    are whole numbers, exact. Gradients pass straight through the roundings; those of inputs farther out than
    a step from the outermost number are zero. The numbers lie symmetrically about zero, so the inputs should:
    put a normalization before the layer, and not a ReLU.

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

    _diba_own = frozenset({"activation_bits", "weight_bits"})

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
        self_bits = check_bits(activation_bits, "activation_bits"), check_bits(weight_bits, "weight_bits")
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.activation_bits, self.weight_bits = self_bits

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        y: Tensor = _Product.apply(x, self.weight, self.activation_bits, self.weight_bits)  # type: ignore[no-untyped-call]
        bias: Tensor | None = self.bias
        return y if bias is None else y + bias.to(y.dtype)

    def extra_repr(self) -> str:
        """The arguments of the layer."""
        bits = f"activation_bits={self.activation_bits}, weight_bits={self.weight_bits}"
        return f"{super().extra_repr()}, {bits}"

    @classmethod
    def from_dense(cls, module: nn.Module, **settings: Any) -> Self:
        """Make a layer that trains on from a dense one, whose parameters it takes.

        Args:
            module: An ``nn.Linear``.
            **settings: ``activation_bits`` and ``weight_bits``.

        Raises:
            TypeError: ``module`` is no ``nn.Linear``.
            ValueError: It cannot be replaced, or a setting is out of range.
        """
        dense = dense_layer(module, "Linear")
        with torch.device("meta"):
            new = cls(dense.in_features, dense.out_features, dense.bias is not None, **settings)
        new.weight, new.bias = dense.weight, dense.bias
        kind = kind_of(module)
        assert kind is not None, "checked"
        new.__dict__.update(assigned(kind, module))
        return new.train(dense.training)
