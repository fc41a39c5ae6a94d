"""Layers with binary weights and exceptions as they are stored: the frozen form of trained ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import diba

from ..._internal import check, storage
from ..._internal.apb_bytes import APB_TENSORS, apb_bits, apb_shapes, decoded_exceptions, encoded_exceptions
from ..ops import apb as operators
from .state import CompressedLayer, as_numpy, floating

if TYPE_CHECKING:
    from typing import Self

__all__ = ["APBSizes", "DibaAPBLayer", "sizes_of"]

_SOME = ("columns", "values")  # None without exceptions
_BUFFERS = ("signs", "counts", *_SOME, "exponent")  # in the order of the operator


class APBSizes(NamedTuple):
    """Sizes of a layer to be built.

    Attributes:
        shape: (m, n) of its matrix.
        alphas: 1, or m.
        entries: The number of exceptions.
    """

    shape: tuple[int, int]
    alphas: int
    entries: int


def sizes_of(f: diba.APB) -> APBSizes:
    """The sizes of a layer for this matrix."""
    return APBSizes(f.shape, f.alpha.size, f.columns.size)


class DibaAPBLayer(CompressedLayer):
    """The base of layers whose weight is ``alpha sign + E`` with few entries in E, see :class:`diba.APB`.

    Tensors: the parameter ``alpha``, float32, one entry or one for each row; and uint8 buffers ``signs``,
    ``counts``, ``columns``, ``values`` and ``exponent``: the bytes that files hold, with entries of E in 16
    bits. Casts treat them as :class:`FactoredLayer` does its diagonals and bits. Exceptions are decoded once;
    changes by torch's own operations are noticed, after any other call :meth:`bits_changed`.

    Args:
        m: Rows of the matrix.
        n: Columns of the matrix.
        entries: The number of exceptions; ``load_state_dict`` adapts it.
        alphas: 1, or m for one a row.
        bias: Whether there is a bias of m entries.
        device: Device of the tensors; None: torch's default.
        dtype: Dtype of the bias and of the dense weight; None: torch's default.

    Raises:
        TypeError: A size is not an integer, or ``dtype`` is not a floating-point dtype.
        ValueError: A size is out of range.
    """

    diagonal_names = ("alpha",)
    stored, _setter = "signs and exceptions", "set_matrix"
    alpha: nn.Parameter
    signs: Tensor
    counts: Tensor
    columns: Tensor | None
    values: Tensor | None
    exponent: Tensor

    def __init__(
        self,
        m: int,
        n: int,
        *,
        entries: int,
        alphas: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if check.positive_int(alphas, "alphas") not in (1, m):
            raise ValueError(f"alphas is {alphas}; it must be 1 or {m}, the number of outputs")
        check.integer(entries, "entries", minimum=0, maximum=m * n)
        self._dtype, self._matrix_shape = floating(dtype), (m, n)
        values = torch.empty(m, device=device, dtype=self._dtype) if bias else None
        self.register_parameter("bias", None if values is None else nn.Parameter(values))
        shapes = apb_shapes(m, n, alphas, entries)
        self.alpha = nn.Parameter(torch.empty(alphas, device=device, dtype=torch.float32))
        for name in APB_TENSORS[1:]:
            shape = shapes.get(name)
            made = None if shape is None else torch.empty(shape, device=device, dtype=torch.uint8)
            self.register_buffer(name, made)
        self.reset_parameters()

    # ------------------------------------------------------------ facts

    @property
    def bit_names(self) -> tuple[str, ...]:
        """All tensors but alpha and the bias."""
        return tuple(name for name in APB_TENSORS[1:] if name not in _SOME or self.columns is not None)

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
    def entries(self) -> int:
        """The number of exceptions."""
        return 0 if self.columns is None else self.columns.shape[0]

    @property
    def diagonal_bits(self) -> int:
        """16 if 16-bit floats hold alpha exactly, else 32; 32 on the meta device."""
        return 16 if not self.alpha.is_meta and storage.fits_16(as_numpy(self.alpha)) else 32

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight; an alpha takes ``diagonal_bits``."""
        m, n = self._matrix_shape
        return apb_bits(m, n, self.alpha.numel(), self.entries, self.diagonal_bits) / (m * n)

    def extra_repr(self) -> str:
        """Sizes and dtype for ``print(model)``."""
        share = self.entries / self.weight_shape.numel()
        facts = f"exceptions={share:.4g}, bits_per_weight={self.bits_per_weight:.2f}"
        return facts if self.dtype == torch.float32 else f"{facts}, dtype={self.dtype}"

    @classmethod
    def from_dense(cls, module: nn.Module, f: diba.APB | None = None, **options: Any) -> Self:
        """Make a layer from a dense one, on its device and in its dtype.

        Bias, training mode, ``requires_grad`` and attributes are kept as by :meth:`FactoredLayer.from_dense`.

        Args:
            module: The dense layer.
            f: Its matrix; None: ``diba.apb(matrix, **options)``.
            **options: Arguments of :func:`diba.apb`, such as ``exceptions=0.01``.

        Raises:
            TypeError: ``module`` is not a dense layer of this kind, or ``f`` and options are both given.
            ValueError: It cannot be replaced, or an argument is out of range.
        """
        [kind] = cls.kinds
        if not kind.covers(module):
            raise TypeError(f"module is a {type(module).__name__}; it must be {kind.described}")
        if f is None and kind.obstacle(module) is None:
            f, options = diba.apb(as_numpy(kind.matrix(module)), **options), {}
        result: Self = kind.replacement(module, f, **options)
        return result

    # ------------------------------------------------------------ values

    def matrix(self) -> diba.APB:
        """Copy the tensors into a :class:`diba.APB`.

        Raises:
            RuntimeError: The layer is on the meta device.
            ValueError: The tensors do not make such a matrix.
        """
        if self.alpha.is_meta:
            raise RuntimeError("the layer is on the meta device and has no values; load its state first")
        self._settle()
        own = {name: as_numpy(getattr(self, name)) for name in self.bit_names}
        signs = diba.BitMatrix.from_packed_rows(own["signs"], self._matrix_shape[1], "sign")
        return diba.APB(as_numpy(self.alpha), signs, *decoded_exceptions(own))

    @torch.no_grad()
    def set_matrix(self, found: diba.APB) -> None:
        """Overwrite the tensors; entries of E that 16 bits do not hold are rounded.

        They are written in place, so that optimizers and others that hold them stay valid; but if the number
        of exceptions changes, ``columns`` and ``values`` are new.

        Raises:
            TypeError: ``found`` is no :class:`diba.APB`.
            ValueError: It has another shape or number of alphas.
        """
        check.instance(found, "found", diba.APB, "use diba.apb")
        check.equal(found.shape, "the shape", self._matrix_shape, "shape of the layer's matrix")
        check.equal(found.alpha.size, "the number of alphas", self.alpha.numel(), "number of the layer")
        self._forget()
        self.alpha.copy_(torch.tensor(found.alpha))
        self.signs.copy_(torch.from_numpy(found.signs.packed_rows()))
        own = encoded_exceptions(found.starts, found.columns, found.values, found.shape[1])
        self._resize(found.columns.size)
        for name, array in own.items():
            getattr(self, name).copy_(torch.from_numpy(array))

    def _resize(self, entries: int) -> None:
        """Make room for so many exceptions."""
        if entries != self.entries:
            shapes = apb_shapes(*self._matrix_shape, self.alpha.numel(), entries)
            for name in _SOME:
                shape = shapes.get(name)
                made = (
                    None if shape is None else torch.empty(shape, dtype=torch.uint8, device=self.signs.device)
                )
                self._buffers[name] = made

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set random signs, as large as the weights of a new dense layer, and exceptions of zero."""
        if self.alpha.is_meta:
            return
        m, n = self._matrix_shape
        self.signs.random_(0, 256)
        if n % 8:
            self.signs[:, -1].bitwise_and_((1 << n % 8) - 1)
        places = np.linspace(0, m * n - 1, self.entries).astype(np.int64)
        starts = np.concatenate(([0], np.cumsum(np.bincount(places // n, minlength=m))))
        own = encoded_exceptions(starts, places % n, np.zeros(len(places), np.float32), n)
        for name, array in own.items():
            getattr(self, name).copy_(torch.from_numpy(array))
        self.alpha.fill_(float((3 * n) ** -0.5))
        if self.bias is not None:
            self.bias.uniform_(-(n**-0.5), n**-0.5)

    def dense_weight(self) -> Tensor:
        """Build the dense weight in ``dtype``; it is differentiable in alpha."""
        self._settle()
        matrix = operators.apb_matrix(*self._parts(), self._matrix_shape[1])
        return self._in_dtype(matrix.view(self.weight_shape))

    def _parts(self) -> operators.Parts:
        return self.alpha, self.signs, self.counts, self.columns, self.values, self.exponent

    def _multiply(self, x: Tensor) -> Tensor:
        """Multiply every vector along the last axis by the matrix, and add the bias."""
        if "_origin" in self.__dict__:
            self._settle()
        p: Any = self._parameters
        b: Any = self._buffers
        try:  # as in DibaLinear: attributes of a module take as long as a small product
            parts = p["alpha"], *(b[name] for name in _BUFFERS)
            bias = p["bias"]
        except KeyError:
            parts, bias = self._parts(), self.bias
        return operators.apb_linear(x, *parts, bias, self._matrix_shape[1])

    def _forget(self) -> None:
        super()._forget()
        operators.forget_exceptions(self.counts)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load as other layers do; the number of exceptions becomes that of the state."""
        found = state_dict.get(f"{prefix}columns")
        if isinstance(found, Tensor) and found.dim() == 2:
            self._forget()
            self._resize(found.shape[0])
        elif found is None and not state_dict.get(f"{prefix}counts", self.signs).any():
            self._resize(0)
        super()._load_from_state_dict(state_dict, prefix, *args)
