"""Bits that were averaged as if they were numbers, and how to restore them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops import packed

__all__ = ["Origin"]


class Origin:
    """The bits that a copy of a layer started with, to restore them after they were averaged.

    ``torch.optim.swa_utils.AveragedModel(use_buffers=True)`` averages buffers as numbers: for equal bytes v,
    ``v * decay + v * (1 - decay)``, rounded down. For many decays, such as 0.9999, some v become v - 1.
    Averaging is recognised by two signs: bytes of one value all change alike, and at least one in 25 of all
    bytes decreases. No other change of bits does both.
    """

    def __init__(self, layer: Any, source: Any) -> None:
        self._bits = tuple(getattr(source, name) for name in source.bit_names)
        self._versions = self._count(layer)

    @staticmethod
    def _count(layer: Any) -> tuple[int, ...]:
        return tuple(packed.version(getattr(layer, name)) for name in layer.bit_names)

    @torch.no_grad()
    def settle(self, layer: Any) -> None:
        """Restore the bits if they were averaged since the last call."""
        if self._versions == self._count(layer):
            return
        mine = [getattr(layer, name) for name in layer.bit_names]
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
