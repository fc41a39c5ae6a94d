"""The base class of factored layers: the factors as plain parameters and buffers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

import diba

from ..._internal import check, storage
from ..._internal.storage import BITS, DIAGONALS
from ..ops import reference
from .state import CompressedLayer, as_numpy, compressed_layers, floating

if TYPE_CHECKING:
    from typing import Self

    from ..._internal.check import Alphabet

__all__ = ["FactoredLayer", "Sizes", "check_factorization", "factored_layers"]


class Sizes(NamedTuple):
    """Sizes of a layer to be built; a ``diba.Factorization`` has the same attributes."""

    shape: tuple[int, int]
    k: int
    alphabet: Alphabet


class FactoredLayer(CompressedLayer):
    """A layer whose m x n weight is stored as ``D1 B1 D2 B2 D3``; the base of all layers with factors.

    Everything is a plain parameter or buffer, so ``state_dict``, safetensors, ``copy.deepcopy``, pickle, the
    meta device, optimizers and trainers treat the layer like any other:

    - parameters ``d1`` (m), ``d2`` (k), ``d3`` (n), and ``bias`` (m) or None;
    - buffers ``b1`` of shape (m, ceil(k / 8)) and ``b2`` of shape (k, ceil(n / 8)), uint8: rows of bits
      packed by ``numpy.packbits(bits, axis=1, bitorder="little")``, unused bits zero. They get no gradients.

    ``to(dtype)``, ``half()`` and ``bfloat16()`` change the dtype of the bias and ``weight.dtype``. The
    diagonals stay float32 under any default dtype: they are few, and rounding one entry would change a whole
    row or column of the weight. Only ``double()`` makes them float64, for checks; any other cast makes them
    float32 again. Bits are never cast. Moving to another device moves everything.

    Args:
        m: Rows of the matrix, the size of the outputs.
        n: Columns of the matrix, the size of the inputs.
        k: Inner dimension.
        alphabet: ``"binary"`` (entries 0/1) or ``"sign"`` (-1/+1).
        bias: Whether there is a bias of m entries.
        device: Device of the tensors; None: torch's default.
        dtype: Dtype of the bias and of the dense weight; None: torch's default.

    Raises:
        TypeError: A size is not an integer, or ``dtype`` is not a floating-point dtype.
        ValueError: A size is below 1, or the alphabet is unknown.
    """

    diagonal_names = DIAGONALS
    stored, _setter = "factors", "set_factorization"
    d2: nn.Parameter
    d3: nn.Parameter
    b1: Tensor
    b2: Tensor

    def __init__(
        self,
        m: int,
        n: int,
        k: int,
        *,
        alphabet: Alphabet,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.k = check.positive_int(k, "k")
        self.sign = check.alphabet(alphabet) == "sign"
        self._dtype = floating(dtype)
        # The bias comes first, because transformers takes a model's dtype from its first parameter.
        values = torch.empty(m, device=device, dtype=self._dtype) if bias else None
        self.register_parameter("bias", None if values is None else nn.Parameter(values))
        for name, size in zip(DIAGONALS, (m, k, n), strict=True):
            d = torch.empty(size, device=device, dtype=torch.float32)
            self.register_parameter(name, nn.Parameter(d))
        for name, rows, columns in zip(BITS, (m, k), (k, n), strict=True):
            bits = torch.empty(rows, -(-columns // 8), device=device, dtype=torch.uint8)
            self.register_buffer(name, bits)
        self.reset_parameters()

    # ------------------------------------------------------------ facts

    @property
    def alphabet(self) -> Alphabet:
        """``"binary"`` (0/1) or ``"sign"`` (-1/+1)."""
        return "sign" if self.sign else "binary"

    @property
    def bit_names(self) -> tuple[str, ...]:
        """``b1`` and ``b2``."""
        return BITS

    @property
    def weight_shape(self) -> torch.Size:
        """Shape of the dense layer's weight."""
        return torch.Size((self.d1.numel(), self.d3.numel()))

    @property
    def diagonal_bits(self) -> int:
        """16 if 16-bit floats hold every diagonal exactly, else 32; 32 on the meta device."""
        known = not self.d1.is_meta
        return 16 if known and all(storage.fits_16(as_numpy(d)) for d in self.diagonals()) else 32

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight; diagonals take ``diagonal_bits`` an entry."""
        return storage.bits_per_weight(self.d1.numel(), self.d3.numel(), self.k, self.diagonal_bits)

    def extra_repr(self) -> str:
        """Sizes and dtype for ``print(model)``."""
        facts = f"k={self.k}, alphabet={self.alphabet!r}, bits_per_weight={self.bits_per_weight:.2f}"
        return facts if self.dtype == torch.float32 else f"{facts}, dtype={self.dtype}"

    # ------------------------------------------------------------ factors

    def diagonals(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        """The three trainable diagonals: shapes (m,), (k,), (n,)."""
        return self.d1, self.d2, self.d3

    def factorization(self) -> diba.Factorization:
        """Copy the factors, with float32 diagonals, into a ``diba.Factorization``.

        Raises:
            RuntimeError: The layer is on the meta device.
            ValueError: A diagonal is not finite.
        """
        if self.d1.is_meta:
            raise RuntimeError("the layer is on the meta device and has no values; load its state first")
        self._settle()
        b1 = diba.BitMatrix.from_packed_rows(as_numpy(self.b1), self.k, self.alphabet)
        b2 = diba.BitMatrix.from_packed_rows(as_numpy(self.b2), self.d3.numel(), self.alphabet)
        d1, d2, d3 = (as_numpy(d) for d in self.diagonals())
        return diba.Factorization(d1, b1, d2, b2, d3)

    @torch.no_grad()
    def set_factorization(self, f: diba.Factorization) -> None:
        """Overwrite bits and diagonals in place, so that optimizers and others that hold them stay valid.

        Raises:
            TypeError: ``f`` is not a Factorization.
            ValueError: The shape, k or alphabet of ``f`` is not that of the layer.
        """
        check_factorization(f)
        m, n = self.d1.numel(), self.d3.numel()
        check.equal(f.shape, "the shape of f", (m, n), "shape of the layer's matrix")
        check.equal(f.k, "k of f", self.k, "k of the layer")
        check.equal(f.alphabet, "the alphabet of f", self.alphabet, "alphabet of the layer")
        for mine, value in zip(self.diagonals(), (f.d1, f.d2, f.d3), strict=True):
            mine.copy_(torch.tensor(value))
        self.b1.copy_(torch.from_numpy(f.b1.packed_rows()))
        self.b2.copy_(torch.from_numpy(f.b2.packed_rows()))
        self._forget()

    @torch.no_grad()
    def round_diagonals(self) -> None:
        """Round the diagonals in place to what 16 bits an entry hold exactly, as those of solved factors are.

        A diagonal with an entry that is not finite stays as it is.
        """
        for d in self.diagonals():
            if d.isfinite().all():
                d.copy_(torch.from_numpy(storage.round_to_16(as_numpy(d))))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set random bits, and diagonals that make the weights as large as those of a new dense layer."""
        if self.d1.is_meta:  # there are no values to set, and trying to makes torch import its compiler
            return
        n = self.d3.numel()
        for bits, columns in ((self.b1, self.k), (self.b2, n)):
            bits.random_(0, 256)
            if columns % 8:  # unused bits are zero
                bits[:, -1].bitwise_and_((1 << columns % 8) - 1)
        self._forget()
        # B1 D2 B2 sums k terms of variance 1 (signs) or 3/16 (0/1; the alternating signs of d2 cancel
        # their means).
        size = self._initial_rms() / (self.k * (1 if self.sign else 3 / 16)) ** 0.5
        for d in self.diagonals():
            d.fill_(size ** (1 / 3))
        self.d2[1::2].neg_()
        if self.bias is not None:
            self.bias.uniform_(-(n**-0.5), n**-0.5)

    def _initial_rms(self) -> float:
        """Root mean square of the weights of a new dense layer, uniform within 1 / sqrt(n)."""
        return float((3 * self.d3.numel()) ** -0.5)

    # ------------------------------------------------------------ dense weight

    def dense_weight(self) -> Tensor:
        """Build the dense weight in ``dtype``; it is differentiable in the diagonals.

        Values beyond the range of ``dtype`` become its largest number.
        """
        self._settle()
        matrix = reference.to_dense(self.d1, self.b1, self.d2, self.b2, self.d3, self.sign)
        return self._in_dtype(self._as_weight(matrix))

    def _as_weight(self, matrix: Tensor) -> Tensor:
        """Reshape the matrix (m, n) to ``weight_shape``."""
        return matrix.view(self.weight_shape)

    # ------------------------------------------------------------ from and to dense layers

    @classmethod
    def from_dense(cls, module: nn.Module, f: diba.Factorization | None = None, **solve_options: Any) -> Self:
        """Make a factored layer from a dense one, on its device and in its dtype.

        The bias is copied. Training mode, ``requires_grad`` (that of the weight becomes that of the
        diagonals) and attributes that were set on the dense layer are kept. Hooks are not copied.

        Args:
            module: The dense layer.
            f: Factors of its matrix; None: ``diba.solve(matrix, **solve_options)``.
            **solve_options: Arguments of ``diba.solve``, such as ``bits_per_weight=2``.

        Raises:
            TypeError: ``module`` is not a dense layer of this kind, or ``f`` and options are both given.
            ValueError: A factored layer lacks one of its settings, it computes or holds more than a plain
                layer of its kind, or ``f`` has another shape.
        """
        kind = next((kind for kind in cls.kinds if kind.covers(module)), None)
        if kind is None:
            possible = " or ".join(kind.described for kind in cls.kinds)
            raise TypeError(f"module is a {type(module).__name__}; it must be {possible}")
        result: Self = dataclasses.replace(kind, factored=cls).replacement(module, f, **solve_options)
        return result


def factored_layers(model: nn.Module) -> list[FactoredLayer]:
    """The factored layers of a model in module order; of layers that share factors only the first."""
    return [layer for layer in compressed_layers(model) if isinstance(layer, FactoredLayer)]


def check_factorization(f: Any) -> None:
    """Require a ``diba.Factorization``."""
    check.instance(f, "f", diba.Factorization, "use diba.solve")
