"""The tensors of a factored layer: what casts, moves, loads, copies and averages do to them; its weight."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..._internal.storage import BITS, DIAGONALS
from ..ops import packed

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from numpy.typing import NDArray

__all__ = ["FactorState", "Weight", "as_numpy"]


class FactorState(nn.Module):
    """The parameters and buffers of ``FactoredLayer``, which states what they hold and when they are cast."""

    d1: nn.Parameter
    d2: nn.Parameter
    d3: nn.Parameter
    b1: Tensor
    b2: Tensor
    bias: nn.Parameter | None
    _dtype: torch.dtype  # the dense weight's, if there is no bias
    _origin: _Origin  # copies alone have one

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """``nn.Module``'s way to move and cast; diagonals and bits only move."""
        free = () if self.bias is None else (self.bias, self.bias.grad)
        self._dtype = fn(torch.empty(0, dtype=self._dtype, device="cpu")).dtype

        def apply(t: Tensor) -> Tensor:
            result = fn(t)
            if any(t is other for other in free):
                return result
            kept = _kept(t.dtype, result.dtype)
            return result if result.dtype == kept else t.to(result.device, kept)

        self._forget()
        super()._apply(apply, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Keep the dtypes where loaded tensors replace the old ones (``assign=True``)."""
        errors: list[str] = args[-1]
        dense = state_dict.get(prefix + "weight")  # empty in checkpoints of diba.hf
        if isinstance(dense, Tensor) and dense.numel() and prefix + "d1" not in state_dict:
            errors.append(
                f"{prefix}weight is that of a dense layer, and this {type(self).__name__} has factors; load "
                "it into the dense model, before diba.torch.convert."
            )
        for name in BITS:
            bits = state_dict.get(prefix + name)
            if isinstance(bits, Tensor) and bits.dtype != torch.uint8:
                errors.append(f"{prefix + name} is {bits.dtype}; it must be torch.uint8, packed bits.")
        for name in DIAGONALS:
            d = state_dict.get(prefix + name)
            if isinstance(d, Tensor):
                state_dict[prefix + name] = d.to(_kept(torch.float32, d.dtype))
        self._forget()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _save_to_state_dict(self, *args: Any) -> None:
        self._settle()
        super()._save_to_state_dict(*args)

    def bits_changed(self) -> None:
        """Say that ``b1`` or ``b2`` were written to past torch: products use what they hold from now on.

        Needed after writes that torch does not count (through ``.data``, NumPy, shared memory) to a few bits
        of a large layer: products with single vectors could go on with the old ones for up to 128 calls. All
        else is noticed (docs/promises.md).
        """
        self._forget()

    def _forget(self) -> None:
        """The bits are about to change, or just did: nothing that was made of them is of use."""
        self.__dict__.pop("_origin", None)
        for name in BITS:
            packed.forget(getattr(self, name))

    # ------------------------------------------------------------ copies

    def __getstate__(self) -> dict[str, Any]:
        """Without what ties a copy to its origin."""
        return {name: value for name, value in self.__dict__.items() if name != "_origin"}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that knows whose bits it has, for :meth:`_settle`."""
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        if not any(getattr(self, name).is_meta for name in BITS):
            object.__setattr__(new, "_origin", _Origin(new, self))
        return new

    def _settle(self) -> None:
        """Undo what averaging did to the bits of a copy, if it did: see :class:`_Origin`."""
        origin = self.__dict__.get("_origin")
        if origin is not None:
            origin.settle(self)


def _kept(old: torch.dtype, new: torch.dtype) -> torch.dtype:
    """The dtype of a diagonal or of bits after a cast."""
    if not old.is_floating_point:
        return old
    return torch.float64 if new == torch.float64 else torch.float32


class _Origin:
    """The bits that a copy of a layer began with, to put them back after they were averaged.

    ``torch.optim.swa_utils.AveragedModel(use_buffers=True)`` averages buffers as numbers: for equal bytes v,
    ``v * decay + v * (1 - decay)``, rounded down. For many decays, 0.9999 among them, some v become v - 1.
    No other change does the same to every byte of a value and lowers a 25th of all bytes.
    """

    def __init__(self, layer: FactorState, source: FactorState) -> None:
        self._bits = tuple(getattr(source, name) for name in BITS)
        self._versions = self._count(layer)

    @staticmethod
    def _count(layer: FactorState) -> tuple[int, ...]:
        return tuple(packed.version(getattr(layer, name)) for name in BITS)

    @torch.no_grad()
    def settle(self, layer: FactorState) -> None:
        """Put the bits back if they were averaged since the last call."""
        if self._versions == self._count(layer):
            return
        mine = [getattr(layer, name) for name in BITS]
        theirs = [b.to(m.device) for m, b in zip(mine, self._bits, strict=True)]
        if [b.shape for b in theirs] == [m.shape for m in mine] and _averaged(mine, theirs):
            for m, b in zip(mine, theirs, strict=True):
                m.copy_(b)
        self._versions = self._count(layer)


def _averaged(found: list[Tensor], equal: list[Tensor]) -> bool:
    """Whether these bytes are averages of equal ones, rounded down."""
    new, old = (torch.cat([bits.flatten() for bits in both]).int() for both in (found, equal))
    lower = old - new
    count = int((lower != 0).sum())
    if count < max(2, len(old) // 25) or int(lower.min()) < 0 or int(lower.max()) > 2:
        return False
    return len(torch.unique(old * 256 + new)) == len(torch.unique(old))


# ---------------------------------------------------------------- the dense weight's stand-in

_METADATA = {
    *(
        getattr(Tensor, name).__get__
        for name in (
            *("device", "dtype", "grad", "grad_fn", "is_cpu", "is_cuda", "is_leaf", "is_meta", "is_mps"),
            *("is_quantized", "is_sparse", "is_xpu", "itemsize", "layout", "nbytes", "ndim"),
            *("requires_grad", "retains_grad", "shape"),
        )
    ),
    *(Tensor.__len__, Tensor.dim, Tensor.element_size, Tensor.get_device, Tensor.is_complex),
    *(Tensor.is_contiguous, Tensor.is_floating_point, Tensor.is_inference, Tensor.is_signed),
    *(Tensor.ndimension, Tensor.nelement, Tensor.numel, Tensor.size, Tensor.stride, Tensor.storage_offset),
    # Of the stand-in, which has no storage, rather than of values about to be freed.
    *(Tensor.data_ptr, Tensor.storage, Tensor.untyped_storage),
    *(torch.is_complex, torch.is_floating_point, torch.numel),
}
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_WRITING = {
    *("__set__", "__delete__", "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__"),
    *(
        "__ifloordiv__",
        "__imod__",
        "__ipow__",
        "__iand__",
        "__ior__",
        "__ixor__",
        "__ilshift__",
        "__irshift__",
    ),
}


class Weight(Tensor):
    """What ``FactoredLayer.weight`` returns: metadata of the dense weight, values on demand.

    Every torch function that needs values gets ``layer.dense_weight()`` in its place, built anew each time
    and differentiable in the diagonals. Functions that write into it raise.
    """

    _is_hf_initialized = True  # transformers' initialisers leave such tensors alone
    _layer: Any
    _detached: bool

    @staticmethod
    def of(layer: Any, detached: bool = False) -> Weight:
        """The weight of a layer; ``detached``: without gradients."""
        weight = Tensor._make_wrapper_subclass(
            Weight,
            layer.weight_shape,
            dtype=layer.dtype,
            device=layer.d1.device,
            requires_grad=not detached and any(d.requires_grad for d in layer.diagonals()),
        )
        weight._layer, weight._detached = layer, detached
        return weight

    def dense(self) -> Tensor:
        """The values."""
        dense: Tensor = self._layer.dense_weight()
        return dense.detach() if self._detached else dense

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Metadata only."""
        return f"Weight(shape={tuple(self.shape)}, dtype={self.dtype}, of {type(self._layer).__name__})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Metadata as they are, ``.data`` as a weight again, and the dense weight to all else."""
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        target: Any = args[0] if args else kwargs.get("tensor")
        if func == _DATA:
            return Weight.of(target._layer, detached=True)
        for written in (target if _writes(func.__name__) else None, kwargs.get("out")):
            if isinstance(written, Weight):
                raise RuntimeError(
                    f"{func.__name__} would change the weight of {type(written._layer).__name__}, which is "
                    f"computed from its factors; change its d1, d2, d3, or call set_factorization, "
                    f"reset_parameters or requires_grad_ of the layer"
                )
        return func(*_dense(args), **_dense(kwargs))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Only reached below autograd, where the gradient would be lost."""
        raise RuntimeError(f"{func} got a stand-in for a diba layer's weight; use the layer's dense_weight()")


def _writes(name: str) -> bool:
    """Whether a torch function of this name changes its first argument, as ``add_`` and ``__iadd__`` do."""
    return (name.endswith("_") and not name.endswith("__")) or name in _WRITING


def _dense(value: Any) -> Any:
    """Dense weights for the stand-ins within arguments."""
    if isinstance(value, Weight):
        return value.dense()
    if type(value) in (tuple, list):
        return type(value)(_dense(item) for item in value)
    if type(value) is dict:
        return {key: _dense(item) for key, item in value.items()}
    return value


def as_numpy(t: Tensor) -> NDArray[Any]:
    """The values of a tensor as NumPy has them: 16-bit floats as float32; a copy only where it must be."""
    t = t.detach().cpu()
    return (t.float() if t.is_floating_point() and t.itemsize < 4 else t).numpy()
