"""Compiled layers by the memory that holds their bits: packed when first used, kept while that memory lives.

The bits of a layer are plain tensors, which anybody may write to; a packed copy must not outlive what it was
made of. Three things see to that, from the cheapest to the surest:

- a copy belongs to a place in a storage and goes with it (``.data =``, ``swap_tensors`` and ``set_`` bring
  another storage);
- torch counts the changes that its own operations make in place. Where the count is another, or torch does
  not count (tensors of inference mode), all bits are compared with what was packed, and only other bits are
  packed again: a broadcast of equal bits costs a comparison;
- what torch does not count (``.data``, NumPy, collectives) shows in the bits themselves. Every product looks
  at some of them, and at all for 32 vectors or more and for gradients: ``cpp/src/layout/fingerprint.hpp``.

``forget`` drops a copy at once.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from ... import _core

__all__ = ["forget", "gradients", "linear", "times_bits", "try_linear", "version"]

_NOT_COUNTED = -1


class _Kept:
    """A compiled object, where the bits lie that it was made of, and how often these had been changed."""

    __slots__ = ("compiled", "places", "shape", "storages", "versions", "whole")

    def __init__(
        self, table: dict[Any, _Kept], key: Any, bits: tuple[Tensor, ...], shape: Any, compiled: Any
    ):
        def forget(dead: object) -> None:
            kept = table.get(key)
            if kept is not None and any(dead is storage for storage in kept.storages):
                del table[key]

        # Of the storages, not of the tensors: torch.utils.swap_tensors refuses tensors with weak references.
        self.storages = tuple(weakref.ref(b.untyped_storage(), forget) for b in bits)
        self.places = tuple(b.data_ptr() for b in bits)
        self.shape, self.compiled = shape, compiled
        self.note_versions(bits)
        table[key] = self

    def note_versions(self, bits: tuple[Tensor, ...]) -> None:
        """The bits were just compared, or packed."""
        self.versions = tuple(version(b) for b in bits)
        self.whole = _NOT_COUNTED in self.versions  # then every product looks at all bits

    def fits(self, bits: tuple[Tensor, ...], shape: Any) -> bool:
        """Whether it is still what these tensors say; all bits are compared."""
        places = tuple(b.data_ptr() for b in bits)
        same = self.shape == shape and self.places == places and all(b.is_contiguous() for b in bits)
        if not same or not self.compiled.current:
            return False
        if not self.compiled.holds(*places):
            return False
        self.note_versions(bits)
        return True


_layers: dict[int, _Kept] = {}
_matrices: dict[tuple[int, bool], _Kept] = {}


def version(bits: Tensor) -> int:
    """How often torch changed the tensor in place; -1 for those of inference mode, which it does not."""
    try:
        return bits._version
    except RuntimeError:
        return _NOT_COUNTED


def forget(bits: Tensor) -> None:
    """Drop what was made of these bits, if anything was: of a layer, by its b1."""
    if bits.device.type == "cpu" and type(bits) is Tensor:
        place = bits.data_ptr()
        _layers.pop(place, None)
        for transposed in (False, True):
            _matrices.pop((place, transposed), None)


def _layer(d1: Tensor, b1: Tensor, d2: Tensor, b2: Tensor, d3: Tensor, sign: bool) -> Any:
    shape = m, k, n, _ = d1.numel(), d2.numel(), d3.numel(), sign
    place = b1.data_ptr()
    kept = _layers.get(place)
    if kept is not None and kept.fits((b1, b2), shape):
        return kept.compiled
    _check_bits(b1, "b1", m, k)
    _check_bits(b2, "b2", k, n)
    return _Kept(_layers, place, (b1, b2), shape, _core.Layer(place, b2.data_ptr(), *shape)).compiled


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
    left, right = b1.data_ptr(), b2.data_ptr()
    kept = _layers.get(left)
    if kept is None or not x.shape:
        return None
    m, k, n, signs = kept.shape
    *above, length = x.shape
    plain = torch.float32
    try:
        before = kept.versions
        counted = kept.whole or (b1._version == before[0] and b2._version == before[1])
    except RuntimeError:  # in inference mode the tensors of others come by, too
        return None
    if (
        length != n
        or kept.places[1] != right
        or signs is not sign
        or x.dtype is not plain
        or d1.dtype is not plain
        or d2.dtype is not plain
        or d3.dtype is not plain
        or d1.numel() != m
        or d2.numel() != k
        or d3.numel() != n
        or not counted
        or not (b1.is_contiguous() and b2.is_contiguous())  # another view may begin at the same place
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
    y = x.new_empty(*above, m)  # sooner read than a tuple
    done = kept.compiled.multiply(
        (d1.data_ptr(), left, d2.data_ptr(), right, d3.data_ptr()),
        x.data_ptr(),
        count,
        shift,
        y.data_ptr(),
        torch.get_num_threads(),
        kept.whole,
    )
    if done:
        return y
    _layers.pop(left, None)  # else the next look, at other bits, might find nothing
    return None


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
    rows, place = bits.shape[0], bits.data_ptr()
    shape, key = (rows, columns, sign), (place, transposed)
    y = x.new_empty((*x.shape[:-1], columns if transposed else rows))
    call = place, x.data_ptr(), x.numel() // x.shape[-1], y.data_ptr(), torch.get_num_threads()
    kept = _matrices.get(key)
    fits = (
        kept is not None
        and kept.shape == shape
        and kept.versions == (version(bits),)
        and bits.is_contiguous()
    )
    if kept is None or not fits or not kept.compiled.current:
        kept = _matrix(bits, key, shape)
    if not kept.compiled.multiply(*call, kept.whole):
        _matrix(bits, key, shape).compiled.multiply(*call, False)
    return y


def _matrix(bits: Tensor, key: tuple[int, bool], shape: tuple[int, int, bool]) -> _Kept:
    kept = _matrices.get(key)
    if kept is None or not kept.fits((bits,), shape):
        _check_bits(bits, "bits", *shape[:2])
        matrix = _core.PreparedMatrix(bits.data_ptr(), *shape, key[1])
        kept = _Kept(_matrices, key, (bits,), shape, matrix)
    return kept
