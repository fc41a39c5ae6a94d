"""The tensors of a factored layer: how casts, moves, loading, copying and averaging treat them."""

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

__all__ = ["FactorState", "as_numpy"]


class FactorState(nn.Module):
    """The base of ``FactoredLayer``, whose docstring says what the tensors hold and how they are cast."""

    d1: nn.Parameter
    d2: nn.Parameter
    d3: nn.Parameter
    b1: Tensor
    b2: Tensor
    bias: nn.Parameter | None
    _dtype: torch.dtype  # of the dense weight, where there is no bias to tell it
    _origin: _Origin  # only copies have one

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and cast as in ``nn.Module``, except that diagonals and bits are not cast."""
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
        """Load as in ``nn.Module``; dtypes are kept, also with ``assign=True``."""
        errors: list[str] = args[-1]
        dense = state_dict.get(prefix + "weight")  # checkpoints of diba.hf have an empty tensor here
        if isinstance(dense, Tensor) and dense.numel() and prefix + "d1" not in state_dict:
            errors.append(
                f"{prefix}weight is the weight of a dense layer, and this {type(self).__name__} holds "
                "factors; load it into the dense model, before diba.torch.convert."
            )
        for name in BITS:
            bits = state_dict.get(prefix + name)
            if isinstance(bits, Tensor) and bits.dtype != torch.uint8:
                errors.append(f"{prefix + name} is {bits.dtype}; it must be torch.uint8 (packed bits).")
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
        """Tell the layer that ``b1`` or ``b2`` were changed in a way that torch does not notice.

        Call it after writing through ``.data``, NumPy or shared memory. Without the call, a change of a few
        bits of a large layer may be noticed only after up to 128 products with single vectors. All other
        changes are noticed at once (docs/promises.md).
        """
        self._forget()

    def _forget(self) -> None:
        """Drop everything that was computed from the bits, which are about to change or just did."""
        self.__dict__.pop("_origin", None)
        for name in BITS:
            packed.forget(getattr(self, name))

    # ------------------------------------------------------------ what is refused

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(
                f"weight of {type(self).__name__} cannot be set, because it is computed from the factors; "
                f"use set_factorization, or replace the layer by the result of its to_dense_module()"
            )
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register as in ``nn.Module``; refuse ``weight_orig``, by which ``torch.nn.utils.prune`` begins."""
        if name == "weight_orig":
            raise AttributeError(
                f"weight of {type(self).__name__} cannot be pruned, because it is computed from diba's "
                "factors; prune the dense layer before diba.torch.convert, or the result of to_dense_module()"
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
        if not any(getattr(self, name).is_meta for name in BITS):
            object.__setattr__(new, "_origin", _Origin(new, self))
        return new

    def _settle(self) -> None:
        """Undo what averaging may have done to the bits of a copy: see :class:`_Origin`."""
        origin = self.__dict__.get("_origin")
        if origin is not None:
            origin.settle(self)


def _kept(old: torch.dtype, new: torch.dtype) -> torch.dtype:
    """The dtype that a diagonal or packed bits get when a module is cast from ``old`` to ``new``."""
    if not old.is_floating_point:
        return old
    return torch.float64 if new == torch.float64 else torch.float32


class _Origin:
    """The bits that a copy of a layer started with, to restore them after they were averaged.

    ``torch.optim.swa_utils.AveragedModel(use_buffers=True)`` averages buffers as numbers: for equal bytes v,
    ``v * decay + v * (1 - decay)``, rounded down. For many decays, such as 0.9999, some v become v - 1.
    Averaging is recognised by two signs: bytes of one value all change alike, and at least one in 25 of all
    bytes decreases. No other change of bits does both.
    """

    def __init__(self, layer: FactorState, source: FactorState) -> None:
        self._bits = tuple(getattr(source, name) for name in BITS)
        self._versions = self._count(layer)

    @staticmethod
    def _count(layer: FactorState) -> tuple[int, ...]:
        return tuple(packed.version(getattr(layer, name)) for name in BITS)

    @torch.no_grad()
    def settle(self, layer: FactorState) -> None:
        """Restore the bits if they were averaged since the last call."""
        if self._versions == self._count(layer):
            return
        mine = [getattr(layer, name) for name in BITS]
        theirs = [b.to(m.device) for m, b in zip(mine, self._bits, strict=True)]
        if [b.shape for b in theirs] == [m.shape for m in mine] and _averaged(mine, theirs):
            for m, b in zip(mine, theirs, strict=True):
                m.copy_(b)
        self._versions = self._count(layer)


def _averaged(found: list[Tensor], original: list[Tensor]) -> bool:
    """Whether the bytes found are averages, rounded down, of equal copies of the original ones."""
    new, old = (torch.cat([bits.flatten() for bits in both]).int() for both in (found, original))
    lower = old - new
    count = int((lower != 0).sum())
    if count < max(2, len(old) // 25) or int(lower.min()) < 0 or int(lower.max()) > 2:
        return False
    return len(torch.unique(old * 256 + new)) == len(torch.unique(old))


def as_numpy(t: Tensor) -> NDArray[Any]:
    """The values of a tensor as a NumPy array, 16-bit floats as float32; copied only where necessary."""
    t = t.detach().cpu()
    return (t.float() if t.is_floating_point() and t.itemsize < 4 else t).numpy()
