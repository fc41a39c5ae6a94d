"""Compiled layers by the tensors that hold their bits: packed when first used, kept while these tensors live.

What is kept is found by the identity of the tensors, and made again when one of them was changed in place
(torch counts that) or another instruction set was selected. Changes that torch does not count, through
``tensor.data`` or ``tensor.numpy()``, are not seen: change bits by torch's in-place operations.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from .. import _core

__all__ = ["gradients", "linear", "times_bits", "try_linear"]


class _Kept:
    """A compiled object, the tensors it was made of and how often these had been changed."""

    __slots__ = ("compiled", "left", "right", "shape", "version_left", "version_right")

    def __init__(
        self, table: dict[Any, _Kept], key: Any, left: Tensor, right: Tensor, shape: Any, compiled: Any
    ):
        def forget(dead: weakref.ref[Tensor]) -> None:
            kept = table.get(key)
            if kept is not None and (kept.left is dead or kept.right is dead):
                del table[key]

        self.left, self.right = weakref.ref(left, forget), weakref.ref(right, forget)
        self.version_left, self.version_right = _version(left), _version(right)
        self.shape, self.compiled = shape, compiled
        table[key] = self

    def fits(self, left: Tensor, right: Tensor, shape: Any) -> bool:
        """Whether it is still what these tensors say."""
        return (
            self.left() is left
            and self.right() is right
            and self.version_left == _version(left)
            and self.version_right == _version(right)
            and self.shape == shape
            and self.compiled.current
        )


_layers: dict[int, _Kept] = {}
_matrices: dict[tuple[int, bool], _Kept] = {}


def _version(bits: Tensor) -> int:
    """How often the tensor was changed in place; tensors of inference mode do not count it."""
    try:
        return bits._version
    except RuntimeError:
        return -1


def _layer(d1: Tensor, b1: Tensor, d2: Tensor, b2: Tensor, d3: Tensor, sign: bool) -> Any:
    shape = m, k, n, _ = d1.numel(), d2.numel(), d3.numel(), sign
    kept = _layers.get(id(b1))
    if kept is not None and kept.fits(b1, b2, shape):
        return kept.compiled
    _check_bits(b1, "b1", m, k)
    _check_bits(b2, "b2", k, n)
    return _Kept(_layers, id(b1), b1, b2, shape, _core.Layer(b1.data_ptr(), b2.data_ptr(), *shape)).compiled


def _check_bits(bits: Tensor, name: str, rows: int, columns: int) -> None:
    if bits.dtype != torch.uint8 or bits.shape != (rows, -(-columns // 8)) or not bits.is_contiguous():
        raise ValueError(
            f"{name} is a {bits.dtype} tensor of shape {tuple(bits.shape)}; it must be contiguous uint8 of "
            f"shape ({rows}, {-(-columns // 8)}): rows of {columns} bits as numpy.packbits(bits, axis=1, "
            "bitorder='little') makes them"
        )


def try_linear(
    x: Tensor, d1: Tensor, b1: Tensor, d2: Tensor, b2: Tensor, d3: Tensor, bias: Tensor | None, sign: bool
) -> Tensor | None:
    """``linear`` if the bits are packed already and nothing has to be converted or checked; else None.

    A product of microseconds goes this way, so every line counts.
    """
    kept = _layers.get(id(b1))
    if kept is None or not x.shape:
        return None
    m, k, n, signs = kept.shape
    *above, length = x.shape
    plain = torch.float32
    if (
        length != n
        or kept.left() is not b1
        or kept.right() is not b2
        or signs is not sign
        or x.dtype is not plain
        or d1.dtype is not plain
        or d2.dtype is not plain
        or d3.dtype is not plain
        or d1.numel() != m
        or d2.numel() != k
        or d3.numel() != n
        or kept.version_left != _version(b1)
        or kept.version_right != _version(b2)
        or not (x.is_contiguous() and d1.is_contiguous() and d2.is_contiguous() and d3.is_contiguous())
        or not kept.compiled.current
    ):
        return None
    shift = 0
    if bias is not None:
        if bias.dtype is not plain or bias.shape != d1.shape or not bias.is_contiguous():
            return None
        shift = bias.data_ptr()
    count = 1
    for size in above:
        count *= size
    y = x.new_empty((*above, m))
    kept.compiled.multiply(
        (d1.data_ptr(), b1.data_ptr(), d2.data_ptr(), b2.data_ptr(), d3.data_ptr()),
        x.data_ptr(),
        count,
        shift,
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


def linear(
    x: Tensor, d1: Tensor, b1: Tensor, d2: Tensor, b2: Tensor, d3: Tensor, bias: Tensor | None, sign: bool
) -> Tensor:
    """``d1 * (B1 (d2 * (B2 (d3 * x)))) + bias`` along the last axis of x.

    Everything is on the CPU and contiguous, bits uint8, the rest float32.
    """
    _layer(d1, b1, d2, b2, d3, sign)
    y = try_linear(x, d1, b1, d2, b2, d3, bias, sign)
    assert y is not None, "just packed"
    return y


def gradients(
    grad: Tensor,
    x: Tensor,
    d1: Tensor,
    b1: Tensor,
    d2: Tensor,
    b2: Tensor,
    d3: Tensor,
    sign: bool,
    input_needed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(gradient of x, or empty if it is not needed; of d1; of d2; of d3), under the same conditions."""
    of_x = torch.empty_like(x) if input_needed else x.new_empty(0)
    of_d1, of_d2, of_d3 = (torch.empty_like(d) for d in (d1, d2, d3))
    _layer(d1, b1, d2, b2, d3, sign).gradients(
        (d1.data_ptr(), b1.data_ptr(), d2.data_ptr(), b2.data_ptr(), d3.data_ptr()),
        x.data_ptr(),
        grad.data_ptr(),
        x.numel() // x.shape[-1],
        (of_x.data_ptr() if input_needed else 0, of_d1.data_ptr(), of_d2.data_ptr(), of_d3.data_ptr()),
        torch.get_num_threads(),
    )
    return of_x, of_d1, of_d2, of_d3


def times_bits(x: Tensor, bits: Tensor, columns: int, sign: bool, transposed: bool) -> Tensor:
    """``x @ B`` if transposed, else ``x @ B'``: float32 x, B of ``columns`` columns, contiguous."""
    rows = bits.shape[0]
    shape, key = (rows, columns, sign), (id(bits), transposed)
    kept = _matrices.get(key)
    if kept is None or not kept.fits(bits, bits, shape):
        _check_bits(bits, "bits", rows, columns)
        matrix = _core.PreparedMatrix(bits.data_ptr(), *shape, transposed)
        kept = _Kept(_matrices, key, bits, bits, shape, matrix)
    y = x.new_empty((*x.shape[:-1], columns if transposed else rows))
    kept.compiled.multiply(x.data_ptr(), x.numel() // x.shape[-1], y.data_ptr(), torch.get_num_threads())
    return y
