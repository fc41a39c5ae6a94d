"""Layers of few bits on both sides of the product as they are stored."""

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

__all__ = ["BitSizes", "DibaBitLayer", "check_bits"]


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


class DibaBitLayer(CompressedLayer):
    """The base of layers whose inputs and weights have 1 or 2 bits: :func:`diba.bitgemm`, and scales.

    Every input vector, and every patch of a convolution's input, is rounded to numbers times a step of its
    own, see :meth:`diba.Levels.rounded`; the sums of products of numbers are exact.
    :func:`diba.torch.freeze` makes the layers from trained ones, whose outputs they have, in float32 to the
    last bit.

    Tensors: the parameter ``scale`` (m), float32, the steps of the weight's rows; and the uint8 buffer
    ``planes`` of shape (weight_bits, m, ceil(n / 8)): planes of bits, low bits first.

    Args:
        m: Rows of the matrix.
        n: Columns of the matrix.
        activation_bits: 1 or 2.
        weight_bits: 1 or 2.
        bias: Whether there is a bias of m entries.
        device: Device of the tensors; None: torch's default.
        dtype: Dtype of bias and dense weight; None: torch's default.

    Raises:
        TypeError: A size is not an integer, or ``dtype`` is not a floating-point dtype.
        ValueError: A size is out of range.
    """

    diagonal_names = ("scale",)
    stored, _setter = "bits", "set_weight"
    scale: nn.Parameter
    planes: Tensor

    def __init__(
        self,
        m: int,
        n: int,
        *,
        activation_bits: int,
        weight_bits: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.activation_bits = check_bits(activation_bits, "activation_bits")
        weight_bits = check_bits(weight_bits, "weight_bits")
        self._dtype, self._matrix_shape = floating(dtype), (m, n)
        values = torch.empty(m, device=device, dtype=self._dtype) if bias else None
        self.register_parameter("bias", None if values is None else nn.Parameter(values))
        self.scale = nn.Parameter(torch.empty(m, device=device, dtype=torch.float32))
        planes = torch.empty(weight_bits, m, -(-n // 8), device=device, dtype=torch.uint8)
        self.register_buffer("planes", planes)
        self.reset_parameters()

    def _multiply(self, x: Tensor) -> Tensor:
        """Multiply every vector along the last axis by the matrix, and add the bias."""
        self._settle()
        n = self._matrix_shape[1]
        return bit_linear(x, self.planes, self.scale, self.bias, n, self.activation_bits)

    # ------------------------------------------------------------ facts

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
        return self._matrix_shape[0]

    @property
    def weight_shape(self) -> torch.Size:
        """Shape of the dense layer's weight."""
        return torch.Size(self._matrix_shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self._matrix_shape

    @property
    def diagonal_bits(self) -> int:
        """16 if 16-bit floats hold the scales exactly, else 32; 32 on the meta device."""
        return 16 if not self.scale.is_meta and storage.fits_16(as_numpy(self.scale)) else 32

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight; a scale takes ``diagonal_bits``."""
        return self.weight_bits + self.diagonal_bits / self._matrix_shape[1]

    def extra_repr(self) -> str:
        """Bits and dtype for ``print(model)``."""
        facts = f"activation_bits={self.activation_bits}, weight_bits={self.weight_bits}"
        return facts if self.dtype == torch.float32 else f"{facts}, dtype={self.dtype}"

    # ------------------------------------------------------------ values

    @torch.no_grad()
    def set_weight(self, weight: Tensor | BitWeights) -> None:
        """Round a weight of shape ``weight_shape``, or take one that is rounded, into the tensors in place.

        Raises:
            ValueError: It has another shape.
        """
        rounded = isinstance(weight, BitWeights)
        wanted = self._matrix_shape if rounded else tuple(self.weight_shape)
        check.equal(tuple(weight.shape), "the shape of weight", wanted, "shape of the layer")
        if isinstance(weight, BitWeights):
            check.equal(weight.weight_bits, "weight_bits", self.weight_bits, "bits of the layer")
            self._store(torch.tensor(weight.planes), torch.tensor(weight.scale))
        else:
            self._store(*packed_levels(weight.flatten(1), self.weight_bits))

    def _store(self, planes: Tensor, steps: Tensor) -> None:
        self._forget()
        self.planes.copy_(planes)
        self.scale.copy_(steps)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set random weights, as large as those of a new dense layer."""
        if self.scale.is_meta:
            return
        m, n = self._matrix_shape
        bound = n**-0.5
        matrix = torch.empty(m, n, device=self.scale.device).uniform_(-bound, bound)
        self._store(*packed_levels(matrix, self.weight_bits))
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)

    def dense_weight(self) -> Tensor:
        """Build the dense weight in ``dtype``; it is differentiable in scale."""
        self._settle()
        numbers = numbers_of(self.planes, self._matrix_shape[1], self.scale.dtype)
        return self._in_dtype((self.scale[:, None] * numbers).view(self.weight_shape))

    @classmethod
    def from_dense(cls, module: nn.Module, *, activation_bits: int = 1, weight_bits: int = 1) -> Self:
        """Make a layer from a dense one without any training, on its device and in its dtype.

        Args:
            module: The dense layer.
            activation_bits: 1 or 2.
            weight_bits: 1 or 2.

        Raises:
            TypeError: ``module`` is not a dense layer of this kind.
            ValueError: It cannot be replaced, or a number of bits is out of range.
        """
        [kind] = cls.kinds
        if not kind.covers(module):
            raise TypeError(f"module is a {type(module).__name__}; it must be {kind.described}")
        reason = kind.obstacle(module)
        if reason is not None:
            raise ValueError(f"module cannot be replaced: {reason}; leave it dense")
        dense: Any = module
        m, n = kind.matrix(dense).shape
        bits = check_bits(weight_bits, "weight_bits"), check_bits(activation_bits, "activation_bits")
        new: Self = kind.empty(dense, BitSizes((m, n), *bits))
        return new._fill(dense.weight, dense.bias, dense.weight.device)
