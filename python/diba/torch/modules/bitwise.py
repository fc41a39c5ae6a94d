"""A linear layer of few bits on both sides of the product, as it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..._internal import check, storage
from ..._internal.bit_weights import BitWeights
from ..ops.bits import bit_linear, numbers_of, packed_levels
from .state import CompressedLayer, as_numpy, floating

if TYPE_CHECKING:
    from typing import Self

__all__ = ["BitSizes", "DibaBitLinear", "check_bits"]


class BitSizes(NamedTuple):
    """Sizes of a layer to be built.

    Attributes:
        shape: (m, n) of its matrix.
        weight_bits: 1 or 2.
        activation_bits: 1 or 2.
    """

    shape: tuple[int, int]
    weight_bits: int
    activation_bits: int


def check_bits(bits: Any, name: str) -> int:
    """Require 1 or 2."""
    if check.integer(bits, name, minimum=1) not in (1, 2):
        raise ValueError(f"{name} is {bits}; it must be 1 or 2")
    return int(bits)


class DibaBitLinear(CompressedLayer):
    """``nn.Linear`` whose inputs and weights have 1 or 2 bits: :func:`diba.bitgemm`, and scales.

    Every input vector is rounded to numbers times a step of its own, see :meth:`diba.Levels.rounded`; the
    sums of products of numbers are exact. :func:`diba.torch.freeze` makes the layer from a trained
    :class:`BitLinear`, whose outputs it has, in float32 to the last bit.

    Tensors: the parameter ``scale`` (m), float32, the steps of the weight's rows; and the uint8 buffer
    ``planes`` of shape (weight_bits, m, ceil(n / 8)): planes of bits, low bits first.

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

    diagonal_names, fan_in_fan_out = ("scale",), False
    stored, _setter = "bits", "set_weight"
    scale: nn.Parameter
    planes: Tensor

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
        super().__init__()
        self.in_features = n = check.positive_int(in_features, "in_features")
        self.out_features = m = check.positive_int(out_features, "out_features")
        self.activation_bits = check_bits(activation_bits, "activation_bits")
        weight_bits = check_bits(weight_bits, "weight_bits")
        self._dtype = floating(dtype)
        values = torch.empty(m, device=device, dtype=self._dtype) if bias else None
        self.register_parameter("bias", None if values is None else nn.Parameter(values))
        self.scale = nn.Parameter(torch.empty(m, device=device, dtype=torch.float32))
        planes = torch.empty(weight_bits, m, -(-n // 8), device=device, dtype=torch.uint8)
        self.register_buffer("planes", planes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), in the dtype of ``x``."""
        self._settle()
        y: Tensor = bit_linear(x, self.planes, self.scale, self.bias, self.in_features, self.activation_bits)
        return y

    @property
    def weight_bits(self) -> int:
        """Bits of a weight."""
        return len(self.planes)

    @property
    def bit_names(self) -> tuple[str, ...]:
        """``planes``."""
        return ("planes",)

    @property
    def rows(self) -> int:
        """m, the number of outputs."""
        return self.out_features

    @property
    def weight_shape(self) -> torch.Size:
        """(out_features, in_features)."""
        return torch.Size((self.out_features, self.in_features))

    @property
    def diagonal_bits(self) -> int:
        """16 if 16-bit floats hold the scales exactly, else 32; 32 on the meta device."""
        return 16 if not self.scale.is_meta and storage.fits_16(as_numpy(self.scale)) else 32

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight; a scale takes ``diagonal_bits``."""
        return self.weight_bits + self.diagonal_bits / self.in_features

    def extra_repr(self) -> str:
        """The arguments of the layer and its size."""
        facts = (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )
        facts += f", activation_bits={self.activation_bits}, weight_bits={self.weight_bits}"
        return facts if self.dtype == torch.float32 else f"{facts}, dtype={self.dtype}"

    @torch.no_grad()
    def set_weight(self, weight: Tensor | BitWeights) -> None:
        """Round a weight (m, n), or take one that is rounded; the tensors are overwritten in place.

        Raises:
            ValueError: It has another shape.
        """
        check.equal(
            tuple(weight.shape), "the shape of weight", tuple(self.weight_shape), "shape of the layer"
        )
        if isinstance(weight, BitWeights):
            check.equal(weight.weight_bits, "weight_bits", self.weight_bits, "bits of the layer")
            planes, steps = torch.tensor(weight.planes), torch.tensor(weight.scale)
        else:
            planes, steps = packed_levels(weight, self.weight_bits)
        self._forget()
        self.planes.copy_(planes)
        self.scale.copy_(steps)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set random weights, as large as those of a new dense layer."""
        if self.scale.is_meta:
            return
        bound = self.in_features**-0.5
        self.set_weight(torch.empty(self.weight_shape, device=self.scale.device).uniform_(-bound, bound))
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)

    def dense_weight(self) -> Tensor:
        """Build the dense weight in ``dtype``; it is differentiable in scale."""
        self._settle()
        numbers = numbers_of(self.planes, self.in_features, self.scale.dtype)
        return self._in_dtype(self.scale[:, None] * numbers)

    @classmethod
    def from_dense(cls, module: nn.Module, *, activation_bits: int = 1, weight_bits: int = 1) -> Self:
        """Make a layer from a dense one without any training, on its device and in its dtype.

        Args:
            module: An ``nn.Linear``.
            activation_bits: 1 or 2.
            weight_bits: 1 or 2.

        Raises:
            TypeError: ``module`` is no ``nn.Linear``.
            ValueError: It cannot be replaced, or a number of bits is out of range.
        """
        [kind] = cls.kinds
        if not kind.covers(module):
            raise TypeError(f"module is a {type(module).__name__}; it must be {kind.described}")
        reason = kind.obstacle(module)
        if reason is not None:
            raise ValueError(f"module cannot be replaced: {reason}; leave it dense")
        dense: Any = module
        m, n = dense.weight.shape
        bits = check_bits(weight_bits, "weight_bits"), check_bits(activation_bits, "activation_bits")
        new: Self = kind.empty(dense, BitSizes((m, n), *bits))
        return new._fill(dense.weight, dense.bias, dense.weight.device)
