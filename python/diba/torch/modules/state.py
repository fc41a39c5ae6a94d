"""The base class of compressed layers: how casts, moves, loading and copying treat their tensors."""

from __future__ import annotations

import copy
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..ops import packed
from .averaging import Origin
from .weight import Weight

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from numpy.typing import NDArray

__all__ = ["CodeSizes", "CompressedLayer", "as_numpy", "compressed_layers", "floating"]


class CodeSizes(NamedTuple):
    """Sizes of a coded layer to be built; ``codes.Codes`` has the same attributes."""

    shape: tuple[int, int]
    bits: int
    group: int


class CompressedLayer(nn.Module):
    """A layer whose m x n weight is stored in few bits, the base of all layers of ``diba.torch``.

    Its tensors are diagonals, trainable and not cast to 16-bit dtypes, packed bits, which are uint8 buffers,
    and a bias or None.

    Attributes:
        d1: The diagonal of the rows, (m,).
        bias: (m,), or None.
    """

    diagonal_names: ClassVar[tuple[str, ...]]
    """Names of the diagonals."""

    stored: ClassVar[str]
    """What the weight is computed from, for messages."""

    _setter: ClassVar[str]
    """The method that changes it."""

    d1: nn.Parameter
    bias: nn.Parameter | None
    _dtype: torch.dtype  # of the dense weight, where there is no bias to tell it
    _origin: Origin  # only copies have one
    _kept: tuple[str, ...] = ()
    """Names of the attributes that were set on the dense layer and are kept."""

    bias_added: bool = False
    """Whether the dense layer had no bias."""

    # ------------------------------------------------------------ facts

    kinds: ClassVar[tuple[Any, ...]] = ()
    """The kinds of dense layers that this class replaces (``dense.Kind``); filled from ``kinds.KINDS``."""

    @property
    def kind(self) -> Any:
        """The kind of dense layer that this layer replaces: a ``dense.Kind``."""
        return next(kind for kind in self.kinds if kind.made(self))

    @property
    def bit_names(self) -> tuple[str, ...]:
        """Names of the packed bits; layers that are tied share these tensors, and the diagonals."""
        raise NotImplementedError

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of all tensors but the bias."""
        return *self.diagonal_names, *self.bit_names

    @property
    def identity(self) -> int:
        """A key: equal for layers that share their tensors."""
        return id(getattr(self, self.bit_names[0]))

    @property
    def rows(self) -> int:
        """m, the number of outputs."""
        return self.d1.numel()

    def diagonals(self) -> tuple[nn.Parameter, ...]:
        """The trainable diagonals; the first one is d1, (m,), or alpha."""
        return tuple(getattr(self, name) for name in self.diagonal_names)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the bias and of the dense weight; the diagonals have a dtype of their own."""
        return self._dtype if self.bias is None else self.bias.dtype

    @property
    def weight_shape(self) -> torch.Size:
        """Shape of the dense layer's weight."""
        raise NotImplementedError

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of bits and diagonals in memory; the bias is not counted."""
        return sum(getattr(self, name).nbytes for name in self.tensor_names)

    # ------------------------------------------------------------ dense weight

    def dense_weight(self) -> Tensor:
        """Build the dense weight in ``dtype``; it is differentiable in the diagonals."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """A stand-in for the dense weight: shape, dtype and device cost nothing, any other use builds it.

        The dense values are not kept: to use them more than once, store the result of ``dense_weight()``. The
        stand-in is not a parameter; it cannot be assigned or written to, and the initialisers of transformers
        skip it.
        """
        if torch.compiler.is_compiling():  # the compiler drops the dense weight where it is not used
            return self.dense_weight()
        return Weight.of(self)

    def _in_dtype(self, values: Tensor) -> Tensor:
        """Entries of the weight in ``dtype``; those beyond its range become its largest number."""
        largest = torch.finfo(self.dtype).max
        return values.clamp(-largest, largest).to(self.dtype)

    def to_dense_module(self) -> nn.Module:
        """Make the dense layer, of the class that was replaced, on the same device and in the same dtype."""
        result: nn.Module = self.kind.restored(self)
        return result

    # ------------------------------------------------------------ tensors

    def reset_parameters(self) -> None:
        """Set random bits, and diagonals that make the weights as large as those of a new dense layer."""
        raise NotImplementedError

    def _fill(self, found: Any, bias: Tensor | None, device: torch.device | str | None) -> Self:
        """Move the layer from the meta device to ``device`` and set its factors or codes, and its bias."""
        self.to_empty(device=torch.get_default_device() if device is None else device)
        getattr(self, self._setter)(found)
        if bias is not None and self.bias is not None:
            with torch.no_grad():
                self.bias.copy_(bias)
        return self

    def add_bias(self) -> None:
        """Give the layer a bias of zeros, which the dense layer did not have."""
        first, *_ = self.diagonals()
        values = torch.zeros(self.rows, device=first.device, dtype=self.dtype)
        self.bias = nn.Parameter(values, first.requires_grad)
        self.bias_added = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and cast as in ``nn.Module``, but diagonals and bits are not cast, and shared bits stay so."""
        free = () if self.bias is None else (self.bias, self.bias.grad)
        bits = [getattr(self, name) for name in self.bit_names]
        self._dtype = fn(torch.empty(0, dtype=self._dtype, device="cpu")).dtype

        def apply(t: Tensor) -> Tensor:
            result = fn(t)
            if any(t is other for other in free):
                return result
            kept = _kept(t.dtype, result.dtype)
            result = result if result.dtype == kept else t.to(result.device, kept)
            return _together(t, result) if any(t is other for other in bits) else result

        self._forget()
        super()._apply(apply, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load as in ``nn.Module``; dtypes are kept, also with ``assign=True``."""
        errors: list[str] = args[-1]
        dense = state_dict.get(prefix + "weight")  # checkpoints of diba.hf have an empty tensor here
        if isinstance(dense, Tensor) and dense.numel() and prefix + self.diagonal_names[0] not in state_dict:
            errors.append(
                f"{prefix}weight is the weight of a dense layer, and this {type(self).__name__} holds "
                f"{self.stored}; load it into the dense model, before diba.torch.convert."
            )
        for name in self.bit_names:
            bits = state_dict.get(prefix + name)
            if isinstance(bits, Tensor) and bits.dtype != torch.uint8:
                errors.append(f"{prefix + name} is {bits.dtype}; it must be torch.uint8 (packed bits).")
        for name in self.diagonal_names:
            d = state_dict.get(prefix + name)
            if isinstance(d, Tensor):
                state_dict[prefix + name] = d.to(_kept(torch.float32, d.dtype))
        self._forget()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _save_to_state_dict(self, *args: Any) -> None:
        self._settle()
        super()._save_to_state_dict(*args)

    def bits_changed(self) -> None:
        """Tell the layer that its bits were changed in a way that torch does not notice.

        Call it after writing through ``.data``, NumPy or shared memory. Without the call, a change of a few
        bits of a large layer may be noticed only after up to 128 products with single vectors. All other
        changes are noticed at once (docs/promises.md).
        """
        self._forget()

    def _forget(self) -> None:
        """Drop everything that was computed from the bits, which are about to change or just did."""
        self.__dict__.pop("_origin", None)
        for name in self.bit_names:
            packed.forget(getattr(self, name))

    # ------------------------------------------------------------ what is refused

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(
                f"weight of {type(self).__name__} cannot be set, because it is computed from its "
                f"{self.stored}; use {self._setter}, or replace the layer by the result of its "
                "to_dense_module()"
            )
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register as in ``nn.Module``; refuse ``weight_orig``, by which ``torch.nn.utils.prune`` begins."""
        if name == "weight_orig":
            raise AttributeError(
                f"weight of {type(self).__name__} cannot be pruned, because it is computed from diba's "
                f"{self.stored}; prune the dense layer before diba.torch.convert, or the result of "
                "to_dense_module()"
            )
        super().register_parameter(name, param)

    def __prepare_scriptable__(self) -> Any:
        """Refuse ``torch.jit.script``, which calls this method and cannot compile the layer.

        Raises:
            TypeError: Always; the message says what to use instead.
        """
        raise TypeError(
            f"torch.jit.script cannot compile {type(self).__name__}, whose operators are diba's own; "
            "use torch.jit.trace(model, example), torch.export.export or torch.compile"
        )

    # ------------------------------------------------------------ copies

    def __getstate__(self) -> dict[str, Any]:
        """The state without ``_origin``."""
        return {name: value for name, value in self.__dict__.items() if name != "_origin"}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the layer; the copy remembers the original bits for :meth:`_settle`."""
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        if not any(getattr(self, name).is_meta for name in self.bit_names):
            object.__setattr__(new, "_origin", Origin(new, self))
        return new

    def _settle(self) -> None:
        """Undo what averaging may have done to the bits of a copy: see :class:`Origin`."""
        origin = self.__dict__.get("_origin")
        if origin is not None:
            origin.settle(self)


_moves: Any = WeakTensorKeyDictionary()  # bits -> where the first of tied layers has them


def _together(bits: Tensor, moved: Tensor) -> Tensor:
    """What packed bits become where a layer is moved: of tied layers, what they became for the first one.

    ``nn.Module`` moves shared parameters once, and shared buffers as often as they are found: the second
    layer would get bits of its own, and memory and files would hold them twice.
    """
    if moved is bits:
        return bits
    versions = bits._version, moved._version
    before = _moves.get(bits)
    if before is not None:
        first: Tensor | None = before[0]()
        then = before[1]
        if first is not None and first.device == moved.device and then == (bits._version, first._version):
            return first  # neither was written to meanwhile
    _moves[bits] = weakref.ref(moved), versions
    return moved


def _kept(old: torch.dtype, new: torch.dtype) -> torch.dtype:
    """The dtype that a diagonal or packed bits get when a module is cast from ``old`` to ``new``."""
    if not old.is_floating_point:
        return old
    return torch.float64 if new == torch.float64 else torch.float32


def as_numpy(t: Tensor) -> NDArray[Any]:
    """The values of a tensor as a NumPy array, 16-bit floats as float32; copied only where necessary."""
    t = t.detach().cpu()
    return (t.float() if t.is_floating_point() and t.itemsize < 4 else t).numpy()


def floating(dtype: Any) -> torch.dtype:
    """A floating-point dtype; None: torch's default.

    Raises:
        TypeError: it is another one.
    """
    found = torch.get_default_dtype() if dtype is None else dtype
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    raise TypeError(f"dtype is {found}; it must be a floating-point dtype, such as torch.bfloat16")


def compressed_layers(model: nn.Module) -> list[CompressedLayer]:
    """The compressed layers of a model in module order; of layers that share their tensors only the first."""
    found: dict[int, CompressedLayer] = {}
    for module in model.modules():
        if isinstance(module, CompressedLayer):
            found.setdefault(module.identity, module)
    return list(found.values())
