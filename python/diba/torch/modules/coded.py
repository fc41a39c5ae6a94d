"""The base class of layers whose weight has 8 or 4 bits an entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..._internal import check
from ..._internal.codes import (
    COLUMNS_MAX,
    Codes,
    check_bits,
    check_group,
    code_bits,
    group_count,
    quantize,
    row_bytes,
)
from ..ops import codes as operators
from .state import CompressedLayer, as_numpy, floating

if TYPE_CHECKING:
    from typing import Self

__all__ = ["CodedLayer"]


class CodedLayer(CompressedLayer):
    """A layer whose weight is ``W[i, j] = d1[i] * E[i, j]`` with whole numbers E of 8 or 4 bits.

    Tensors: the parameter ``d1`` (m), float32; the buffers ``codes`` and, with 4 bits, ``steps``, uint8. With
    8 bits, ``E = codes - 128``. With 4 bits, ``group`` entries of a row share a step, and
    ``E = (code - 8) * (step - 128)``; ``codes`` has two in a byte, the first one in the low bits. Casts treat
    them as :class:`FactoredLayer` does its diagonals and bits.

    Args:
        m: Rows of the matrix.
        n: Columns of the matrix, at most 65,536.
        bits: 8 or 4.
        group: Entries that share a step, with 4 bits: a power of two, at least 32.
        bias: Whether there is a bias of m entries.
        device: Device of the tensors; None: torch's default.
        dtype: Dtype of the bias and of the dense weight; None: torch's default.

    Raises:
        TypeError: A size is not an integer, or ``dtype`` is not a floating-point dtype.
        ValueError: A size is out of range.
    """

    diagonal_names = ("d1",)
    stored, _setter = "codes", "set_codes"
    codes: Tensor
    steps: Tensor | None

    def __init__(
        self,
        m: int,
        n: int,
        *,
        bits: int,
        group: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if n > COLUMNS_MAX:
            raise ValueError(f"the rows have {n} entries; they must have at most {COLUMNS_MAX}")
        self.bits = check_bits(bits)
        self.group = check_group(group)
        self._dtype, self._columns = floating(dtype), n
        values = torch.empty(m, device=device, dtype=self._dtype) if bias else None
        self.register_parameter("bias", None if values is None else nn.Parameter(values))
        self.register_parameter("d1", nn.Parameter(torch.empty(m, device=device, dtype=torch.float32)))
        widths = {"codes": row_bytes(n, bits), "steps": group_count(n, group) if bits == 4 else None}
        for name, width in widths.items():
            made = None if width is None else torch.empty(m, width, device=device, dtype=torch.uint8)
            self.register_buffer(name, made)
        self.reset_parameters()

    @property
    def bit_names(self) -> tuple[str, ...]:
        """``codes``, and with 4 bits ``steps``."""
        return ("codes",) if self.bits == 8 else ("codes", "steps")

    @property
    def weight_shape(self) -> torch.Size:
        """Shape of the dense layer's weight."""
        return torch.Size((self.d1.numel(), self._columns))

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight; d1 takes 32 an entry."""
        m, n = self.weight_shape
        return code_bits(m, n, self.bits, self.group) / (m * n)

    def extra_repr(self) -> str:
        """Sizes and dtype for ``print(model)``."""
        group = f", group={self.group}" if self.bits == 4 else ""
        facts = f"bits={self.bits}{group}, bits_per_weight={self.bits_per_weight:.2f}"
        return facts if self.dtype == torch.float32 else f"{facts}, dtype={self.dtype}"

    # ------------------------------------------------------------ codes

    def matrix_codes(self) -> Codes:
        """Copy the tensors into a ``Codes``.

        Raises:
            RuntimeError: The layer is on the meta device.
        """
        if self.d1.is_meta:
            raise RuntimeError("the layer is on the meta device and has no values; load its state first")
        self._settle()
        d1, codes = (as_numpy(t).copy() for t in (self.d1, self.codes))
        steps = None if self.steps is None else as_numpy(self.steps).copy()
        m, n = self.weight_shape
        return Codes((m, n), self.bits, self.group, d1, codes, steps)

    @torch.no_grad()
    def set_codes(self, found: Codes) -> None:
        """Overwrite the tensors in place, so that optimizers and others that hold them stay valid.

        Raises:
            TypeError: ``found`` is no ``Codes``.
            ValueError: It has another shape, number of bits or group.
        """
        check.instance(found, "found", Codes, "use diba.torch.DibaCodedLinear.from_dense")
        check.equal(found.shape, "the shape", tuple(self.weight_shape), "shape of the layer's matrix")
        check.equal(found.bits, "bits", self.bits, "bits of the layer")
        check.equal(found.group, "group", self.group, "group of the layer")
        self.d1.copy_(torch.from_numpy(found.d1))
        self.codes.copy_(torch.from_numpy(found.codes))
        if self.steps is not None and found.steps is not None:
            self.steps.copy_(torch.from_numpy(found.steps))
        self._forget()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set random codes, as large as the weights of a new dense layer."""
        if self.d1.is_meta:
            return
        self.codes.random_(0, 256)
        if self.bits == 4 and self._columns % 2:
            self.codes[:, -1].bitwise_and_(15).bitwise_or_(128)  # the unused code is a zero
        rms = 2.0**self.bits / 12**0.5
        if self.steps is not None:
            self.steps.fill_(129)
        self.d1.fill_(self._initial_rms() / rms)
        if self.bias is not None:
            bound = float(self._columns**-0.5)
            self.bias.uniform_(-bound, bound)

    def _initial_rms(self) -> float:
        """Root mean square of the weights of a new dense layer, uniform within 1 / sqrt(n)."""
        return float((3 * self._columns) ** -0.5)

    def dense_weight(self) -> Tensor:
        """Build the dense weight in ``dtype``; it is differentiable in d1."""
        self._settle()
        e = operators.entries(self.codes, self.steps, self._columns, self.group, self.d1.dtype)
        return self._in_dtype(e * self.d1[:, None])

    # ------------------------------------------------------------ from dense layers

    @classmethod
    def from_dense(
        cls, module: nn.Module, found: Codes | None = None, *, bits: int = 8, group: int = 32
    ) -> Self:
        """Make a coded layer from a dense one, on its device and in its dtype.

        Bias, training mode, ``requires_grad`` and attributes are kept as by :meth:`FactoredLayer.from_dense`.

        Args:
            module: The dense layer.
            found: Codes of its matrix; None: they are made.
            bits: 8 or 4; with ``found``, its own count.
            group: Entries that share a step, with 4 bits.

        Raises:
            TypeError: ``module`` is not a dense layer of this kind.
            ValueError: It cannot be replaced, or an argument is out of range.
        """
        [kind] = cls.kinds
        if not kind.covers(module):
            raise TypeError(f"module is a {type(module).__name__}; it must be {kind.described}")
        if found is None:
            check_bits(bits)
            reason = kind.obstacle(module)
            if reason is not None:
                raise ValueError(f"module cannot be replaced: {reason}; leave it dense")
            found = quantize(as_numpy(kind.matrix(module)), bits, check_group(group))
        result: Self = kind.replacement(module, found)
        return result
