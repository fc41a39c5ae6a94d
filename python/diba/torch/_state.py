"""Which dtypes the tensors of a layer keep when a model is cast, moved or loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = ["BITS", "DIAGONALS", "FactorState"]

DIAGONALS = ("d1", "d2", "d3")
BITS = ("b1", "b2")


class FactorState(nn.Module):
    """The parameters and buffers of ``Factors``, which states what they hold and when they are cast."""

    d1: nn.Parameter
    d2: nn.Parameter
    d3: nn.Parameter
    b1: Tensor
    b2: Tensor
    bias: nn.Parameter | None
    _dtype: torch.dtype  # of the dense weight where there is no bias to tell it

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

        super()._apply(apply, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Keep the dtypes where loaded tensors replace the old ones (``assign=True``)."""
        errors: list[str] = args[-1]
        for name in BITS:
            bits = state_dict.get(prefix + name)
            if isinstance(bits, Tensor) and bits.dtype != torch.uint8:
                errors.append(f"{prefix + name} is {bits.dtype}; it must be torch.uint8, packed bits.")
        for name in DIAGONALS:
            d = state_dict.get(prefix + name)
            if isinstance(d, Tensor):
                state_dict[prefix + name] = d.to(_kept(torch.float32, d.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _kept(old: torch.dtype, new: torch.dtype) -> torch.dtype:
    """The dtype of a diagonal or of bits after a cast."""
    if not old.is_floating_point:
        return old
    return torch.float64 if new == torch.float64 else torch.float32
