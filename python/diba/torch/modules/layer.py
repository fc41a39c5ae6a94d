"""What all layers share: the factors as plain parameters and buffers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

import diba

from ..._internal import check, storage
from ..._internal.storage import BITS, DIAGONALS
from ..ops import reference
from .state import FactorState, Weight, as_numpy

if TYPE_CHECKING:
    from typing import Self

    from ..._internal.check import Alphabet

__all__ = ["FactoredLayer", "Sizes", "check_factorization", "factored_layers"]


class Sizes(NamedTuple):
    """What a layer's tensors are made for; a ``diba.Factorization`` says the same."""

    shape: tuple[int, int]
    k: int
    alphabet: Alphabet


class FactoredLayer(FactorState):
    """A layer whose m x n weight is stored as ``D1 B1 D2 B2 D3``; the base of all layers of ``diba.torch``.

    Everything is a plain parameter or buffer, so ``state_dict``, safetensors, ``copy.deepcopy``, pickle, the
    meta device, optimizers and trainers treat it like any other layer:

    - parameters ``d1`` (m), ``d2`` (k), ``d3`` (n), and ``bias`` (m) or None;
    - buffers ``b1`` of shape (m, ceil(k / 8)), ``b2`` of shape (k, ceil(n / 8)), uint8: rows of bits as
      ``numpy.packbits(bits, axis=1, bitorder="little")`` packs them, unused bits zero. They never train.

    ``to(dtype)``, ``half()`` and ``bfloat16()`` change the bias and what ``weight.dtype`` says. The diagonals
    stay float32, under any default dtype too: they are few, and rounding one would move a whole row or column
    of weights. Only ``double()`` makes them float64, for checks; any other dtype brings them back to float32.
    Bits are never cast. A move to another device moves everything.

    Args:
        m: Rows of the weight as a matrix: outputs.
        n: Columns: inputs.
        k: Inner dimension.
        alphabet: ``"binary"`` (entries 0/1) or ``"sign"`` (-1/+1).
        bias: Whether there is a bias of m entries.
        device: Where the tensors are made; None: torch's default.
        dtype: The dtype of the bias and the dense weight; None: torch's default.

    Raises:
        TypeError: a size is not an integer, or ``dtype`` is not floating.
        ValueError: a size is below 1, or the alphabet is unknown.
    """

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
        self._dtype = _floating(dtype)
        # First, since transformers takes a model's dtype from its first parameter.
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
    def dtype(self) -> torch.dtype:
        """The dtype of the bias and the dense weight; the diagonals have their own."""
        return self._dtype if self.bias is None else self.bias.dtype

    @property
    def weight_shape(self) -> torch.Size:
        """Shape of the dense layer's weight."""
        return torch.Size((self.d1.numel(), self.d3.numel()))

    @property
    def diagonal_bits(self) -> int:
        """16 where 16-bit floats hold every diagonal exactly, else 32; 32 on the meta device."""
        known = not self.d1.is_meta
        return 16 if known and all(storage.fits_16(as_numpy(d)) for d in self.diagonals()) else 32

    @property
    def bits_per_weight(self) -> float:
        """Bits of the factors for each weight; diagonals take ``diagonal_bits`` an entry."""
        return storage.bits_per_weight(self.d1.numel(), self.d3.numel(), self.k, self.diagonal_bits)

    @property
    def nbytes(self) -> int:
        """Bytes of bits and diagonals in memory; the bias is not counted."""
        return sum(t.nbytes for t in (*self.diagonals(), self.b1, self.b2))

    def extra_repr(self) -> str:
        """The facts that ``print(model)`` shows."""
        facts = f"k={self.k}, alphabet={self.alphabet!r}, bits_per_weight={self.bits_per_weight:.2f}"
        return facts if self.dtype == torch.float32 else f"{facts}, dtype={self.dtype}"

    # ------------------------------------------------------------ factors

    def diagonals(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        """The three trainable diagonals: shapes (m,), (k,), (n,)."""
        return self.d1, self.d2, self.d3

    def factorization(self) -> diba.Factorization:
        """A copy of the factors, with float32 diagonals, for everything outside of torch.

        Raises:
            RuntimeError: the layer is on the meta device.
            ValueError: a diagonal is not finite.
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
        """Overwrite bits and diagonals in place: optimizers and others that hold them see the new values.

        Raises:
            TypeError: ``f`` is not a Factorization.
            ValueError: its shape, k or alphabet is not the layer's.
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
    def reset_parameters(self) -> None:
        """A random start: random bits, and weights as large as those of a fresh dense layer."""
        if self.d1.is_meta:  # no values to set, and torch would import its compiler to set them
            return
        n = self.d3.numel()
        for bits, columns in ((self.b1, self.k), (self.b2, n)):
            bits.random_(0, 256)
            if columns % 8:  # unused bits are zero
                bits[:, -1].bitwise_and_((1 << columns % 8) - 1)
        self._forget()
        # B1 D2 B2 sums k terms of variance 1 (signs) or 3/16 (0/1, whose means alternating signs cancel).
        size = self._initial_rms() / (self.k * (1 if self.sign else 3 / 16)) ** 0.5
        for d in self.diagonals():
            d.fill_(size ** (1 / 3))
        self.d2[1::2].neg_()
        if self.bias is not None:
            self.bias.uniform_(-(n**-0.5), n**-0.5)

    def _initial_rms(self) -> float:
        """Root mean square of a fresh dense layer's weights, uniform within 1 / sqrt(n)."""
        return float((3 * self.d3.numel()) ** -0.5)

    # ------------------------------------------------------------ dense weight

    def dense_weight(self) -> Tensor:
        """The weight as the dense layer had it, in ``dtype``; differentiable in the diagonals.

        What is beyond the range of ``dtype`` is its largest number.
        """
        self._settle()
        matrix = reference.to_dense(self.d1, self.b1, self.d2, self.b2, self.d3, self.sign)
        largest = torch.finfo(self.dtype).max
        return self._as_weight(matrix.clamp(-largest, largest)).to(self.dtype)

    def _as_weight(self, matrix: Tensor) -> Tensor:
        """From the matrix, shape (m, n), to the weight, shape ``weight_shape``."""
        return matrix.view(self.weight_shape)

    @property
    def weight(self) -> Tensor:
        """Stands for the dense weight: shape, dtype and device cost nothing, any other use builds it.

        Nothing dense is kept, so give ``dense_weight()`` a name where values are used more than once. It is
        no parameter: it cannot be assigned, and writing into it is refused; transformers' initialisers, which
        would, pass it by.
        """
        if torch.compiler.is_compiling():  # what the traced code leaves unused, the compiler drops
            return self.dense_weight()
        return Weight.of(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(
                f"weight of {type(self).__name__} cannot be set, it is computed from the factors; "
                f"use set_factorization, or replace the layer by its to_dense_module()"
            )
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in ``nn.Module``, but for what ``torch.nn.utils.prune`` makes of a weight."""
        if name == "weight_orig":
            raise AttributeError(
                f"weight of {type(self).__name__} cannot be pruned, it is computed from diba's factors; "
                "prune the dense layer, before diba.torch.convert, or that of to_dense_module()"
            )
        super().register_parameter(name, param)

    def __prepare_scriptable__(self) -> Any:
        """Called by ``torch.jit.script``, which compiles source that it cannot follow here.

        Raises:
            TypeError: always, with what to use instead.
        """
        raise TypeError(
            f"torch.jit.script cannot compile {type(self).__name__}: diba's layers run on operators of their "
            "own; use torch.jit.trace(model, example), torch.export.export or torch.compile"
        )

    # ------------------------------------------------------------ from and to dense layers

    kinds: ClassVar[tuple[Any, ...]] = ()
    """The kinds of dense layers that the class stands for, each a ``dense.Kind``; set by ``kinds.KINDS``."""

    @property
    def kind(self) -> Any:
        """The kind of dense layer that it stands for: a ``dense.Kind``."""
        return next(kind for kind in self.kinds if kind.made(self))

    @classmethod
    def from_dense(cls, module: nn.Module, f: diba.Factorization | None = None, **solve_options: Any) -> Self:
        """The layer that takes a dense one's place, on its device and in its dtype.

        The bias is copied, training mode and ``requires_grad`` are kept (the diagonals take that of the
        weight), and so are attributes that were set on it. Hooks of the dense layer are not copied.

        Args:
            module: The dense layer.
            f: Factors of its matrix; None: ``diba.solve(matrix, **solve_options)``.
            **solve_options: For ``diba.solve``, as ``bits_per_weight=2``.

        Raises:
            TypeError: ``module`` is no dense layer of this kind, or ``f`` and options are both given.
            ValueError: a setting of it is not possible here, it computes or holds more than a layer of its
                kind, or ``f`` has another shape.
        """
        kind = next((kind for kind in cls.kinds if kind.covers(module)), None)
        if kind is None:
            possible = " or ".join(kind.described for kind in cls.kinds)
            raise TypeError(f"module is a {type(module).__name__}; it must be {possible}")
        result: Self = dataclasses.replace(kind, factored=cls).replacement(module, f, **solve_options)
        return result

    def to_dense_module(self) -> nn.Module:
        """The dense layer in this one's place: of the class it had, on its device and in its dtype."""
        result: nn.Module = self.kind.restored(self)
        return result

    _kept: tuple[str, ...] = ()
    """Names of attributes that somebody set on the dense layer."""

    def _fill(self, f: diba.Factorization, bias: Tensor | None, device: torch.device | str | None) -> Self:
        """Come from the meta device with these values."""
        self.to_empty(device=torch.get_default_device() if device is None else device)
        self.set_factorization(f)
        if bias is not None and self.bias is not None:
            with torch.no_grad():
                self.bias.copy_(bias)
        return self


def factored_layers(model: nn.Module) -> list[FactoredLayer]:
    """The factored layers of a model in module order, the first of those that share their factors."""
    found: dict[int, FactoredLayer] = {}
    for module in model.modules():
        if isinstance(module, FactoredLayer):
            found.setdefault(id(module.b1), module)
    return list(found.values())


def check_factorization(f: Any) -> None:
    """Require a ``diba.Factorization``."""
    check.instance(f, "f", diba.Factorization, "use diba.solve")


def _floating(dtype: Any) -> torch.dtype:
    found = torch.get_default_dtype() if dtype is None else dtype
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    raise TypeError(f"dtype is {found}; it must be a floating dtype of torch, as torch.bfloat16")
