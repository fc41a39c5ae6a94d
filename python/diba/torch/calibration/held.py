"""Tensors that are held from one pass over the batches to the next, apart from the heap."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["apart", "mapped"]

_ALIGNMENT = 64  # bytes: what torch's own tensors have


def mapped(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros in pages of their own, which go back to the system when the tensor is freed.

    What is held for long among the large tensors of a pass that come and go would else cut the heap into
    pieces too small for them: the process then grows with every batch, by many times of what is held.
    """
    count = math.prod(shape)
    if not count:
        return torch.zeros(*shape, dtype=dtype)
    pages = mmap.mmap(-1, count * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(*shape)


def apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies on the CPU, together in pages of their own (:func:`mapped`)."""
    places, size = [], 0
    for tensor in tensors:
        places.append(size)
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    pages = mapped((size,), torch.uint8)
    copies = [
        pages[place : place + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for place, tensor in zip(places, tensors, strict=True)
    ]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor)
    return copies
