"""A cache of bits in the layout of the kernels, filled when tensors of bits are first used.

The bits of a layer are plain tensors, which any code may write to, so a packed copy can become stale. Three
checks, from the cheapest to the most thorough, find that out:

- A copy belongs to an address in a storage and is dropped with that storage (``.data =``, ``swap_tensors``
  and ``set_`` bring another storage).
- torch counts in-place changes by its own operations (the version of a tensor). If the version differs, or
  torch does not count (tensors of inference mode), all bits are compared with the packed ones, and packed
  again only if they differ. So a broadcast of equal bits costs one comparison.
- Writes that torch does not count (through ``.data``, NumPy, collectives) are found in the bits themselves:
  every product compares some of them, and products with 32 vectors or more and gradients compare all
  (``cpp/src/product/fingerprint.hpp``).

``forget`` drops a copy at once.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from ... import _core

__all__ = [
    "binarized",
    "forget",
    "gradients",
    "linear",
    "times_bits",
    "try_binarized",
    "try_linear",
    "version",
]

_NOT_COUNTED = -1

_kept: dict[Any, _Kept] = {}
"""Key: the address of b1 for a layer, (address, transposed) for a single matrix."""


class _Kept:
    """Packed bits, with the addresses and versions of the tensors that they were made of.

    Args:
        key: Its key in ``_kept``.
        bits: (b1, b2) of a layer, or (bits,).
        shape: (m, k, n, sign) of a layer, (rows, columns, sign, transposed) of a matrix.

    Raises:
        ValueError: The tensors do not have the shape, dtype or layout that ``shape`` requires.
    """

    __slots__ = ("compiled", "places", "shape", "storages", "versions", "whole")

    def __init__(self, key: Any, bits: tuple[Tensor, ...], shape: Any):
        layer = len(bits) == 2
        names = ("b1", "b2") if layer else ("bits",)
        for name, b, rows, columns in zip(names, bits, shape[:-1], shape[1:], strict=False):
            _check_bits(b, name, rows, columns)

        def forget(dead: object) -> None:
            kept = _kept.get(key)
            if kept is not None and any(dead is storage for storage in kept.storages):
                del _kept[key]

        self.places = tuple(b.data_ptr() for b in bits)
        self.shape = shape
        make: Any = _core.PackedTensors if layer else _core.PackedTensors.matrix
        self.compiled = make(*self.places, *shape)
        # The storages, not the tensors: torch.utils.swap_tensors refuses tensors with weak references.
        self.storages = tuple(weakref.ref(b.untyped_storage(), forget) for b in bits)
        self.note_versions(bits)
        _kept[key] = self

    def note_versions(self, bits: tuple[Tensor, ...]) -> None:
        """Note the versions of bits that were just compared or packed."""
        self.versions = tuple(version(b) for b in bits)
        self.whole = _NOT_COUNTED in self.versions  # then every product compares all bits

    def fits(self, bits: tuple[Tensor, ...], shape: Any) -> bool:
        """Whether the packed bits equal these tensors; all bits are compared."""
        places = tuple(b.data_ptr() for b in bits)
        same = self.shape == shape and self.places == places and all(b.is_contiguous() for b in bits)
        if not (same and self.compiled.current and self.compiled.holds(*places, *(0,) * (2 - len(places)))):
            return False
        self.note_versions(bits)
        return True


def _packed(key: Any, bits: tuple[Tensor, ...], shape: Any) -> _Kept:
    """The packed bits from the cache if they are up to date; else the tensors are packed now."""
    kept = _kept.get(key)
    return kept if kept is not None and kept.fits(bits, shape) else _Kept(key, bits, shape)


def _layer(d1: Tensor, b1: Tensor, d2: Tensor, b2: Tensor, d3: Tensor, sign: bool) -> _Kept:
    return _packed(b1.data_ptr(), (b1, b2), (d1.numel(), d2.numel(), d3.numel(), sign))


def version(bits: Tensor) -> int:
    """How often torch has changed the tensor in place; -1 in inference mode, where it does not count."""
    try:
        return bits._version
    except RuntimeError:
        return _NOT_COUNTED


def forget(bits: Tensor) -> None:
    """Drop the packed copy of these bits, if there is one; that of a layer is found by its b1."""
    if bits.device.type == "cpu" and type(bits) is Tensor:
        place = bits.data_ptr()
        for key in (place, (place, False), (place, True)):
            _kept.pop(key, None)


def _check_bits(bits: Tensor, name: str, rows: int, columns: int) -> None:
    if bits.dtype != torch.uint8 or bits.shape != (rows, -(-columns // 8)) or not bits.is_contiguous():
        raise ValueError(
            f"{name} is a {bits.dtype} tensor of shape {tuple(bits.shape)}; it must be contiguous uint8 of "
            f"shape ({rows}, {-(-columns // 8)}): rows of {columns} bits packed by numpy.packbits(bits, "
            "axis=1, bitorder='little')"
        )


def try_linear(
    x: Tensor, d1: Tensor, b1: Tensor, d2: Tensor, b2: Tensor, d3: Tensor, bias: Tensor | None, sign: bool
) -> Tensor | None:
    """``linear`` if the bits are packed already and no tensor must be converted or checked; else None.

    This is the path of products that take microseconds, so every line here costs measurable time.
    """
    left, right = b1.data_ptr(), b2.data_ptr()
    kept = _kept.get(left)
    if kept is None or not x.shape:
        return None
    m, k, n, signs = kept.shape
    *above, length = x.shape
    plain = torch.float32
    try:
        before = kept.versions
        counted = kept.whole or (b1._version == before[0] and b2._version == before[1])
    except RuntimeError:  # a tensor of inference mode has no version
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
    y = x.new_empty(*above, m)  # faster to parse than a tuple
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
    _kept.pop(left, None)  # else the next product, which compares other bits, might not notice
    return None


def linear(
    x: Tensor, d1: Tensor, b1: Tensor, d2: Tensor, b2: Tensor, d3: Tensor, bias: Tensor | None, sign: bool
) -> Tensor:
    """``d1 * (B1 (d2 * (B2 (d3 * x)))) + bias`` along the last axis of x.

    Everything is on the CPU and contiguous, bits uint8, the rest float32.
    """
    _layer(d1, b1, d2, b2, d3, sign)
    y = try_linear(x, d1, b1, d2, b2, d3, bias, sign)
    assert y is not None, "the bits were just packed"
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
    """Gradients for x (empty if not needed), d1, d2 and d3, under the same conditions as ``linear``."""
    of_x = torch.empty_like(x) if input_needed else x.new_empty(0)
    of_d1, of_d2, of_d3 = (torch.empty_like(d) for d in (d1, d2, d3))
    _layer(d1, b1, d2, b2, d3, sign).compiled.gradients(
        (d1.data_ptr(), b1.data_ptr(), d2.data_ptr(), b2.data_ptr(), d3.data_ptr()),
        x.data_ptr(),
        grad.data_ptr(),
        x.numel() // x.shape[-1],
        (of_x.data_ptr() if input_needed else 0, of_d1.data_ptr(), of_d2.data_ptr(), of_d3.data_ptr()),
        torch.get_num_threads(),
    )
    return of_x, of_d1, of_d2, of_d3


def times_bits(x: Tensor, bits: Tensor, columns: int, sign: bool, transposed: bool) -> Tensor:
    """``x @ B`` if transposed, else ``x @ B'``; x is float32, B has ``columns`` columns, both contiguous."""
    rows, place = bits.shape[0], bits.data_ptr()
    key, shape = (place, transposed), (rows, columns, sign, transposed)
    y = x.new_empty((*x.shape[:-1], columns if transposed else rows))
    kept = _kept.get(key)
    if (
        kept is None
        or kept.shape != shape
        or kept.versions != (version(bits),)
        or not bits.is_contiguous()
        or not kept.compiled.current
    ):
        kept = _packed(key, (bits,), shape)
    call = place, x.data_ptr(), x.numel() // x.shape[-1], y.data_ptr(), torch.get_num_threads()
    if not kept.compiled.multiply_matrix(*call, kept.whole):
        _packed(key, (bits,), shape).compiled.multiply_matrix(*call, False)
    return y


def try_binarized(
    x: Tensor, alpha: Tensor, signs: Tensor, sparse: tuple[int, int, int, int], bias: Tensor | None
) -> Tensor | None:
    """``binarized`` if the signs are packed already and no tensor must be converted; else None."""
    place = signs.data_ptr()
    kept = _kept.get((place, False))
    if kept is None or not x.shape:
        return None
    m, n, sign, _ = kept.shape
    *above, length = x.shape
    plain, scales = torch.float32, alpha.numel()
    try:
        counted = kept.whole or signs._version == kept.versions[0]
    except RuntimeError:  # a tensor of inference mode has no version
        return None
    if (
        length != n
        or sign is not True
        or scales not in (1, m)
        or x.dtype is not plain
        or alpha.dtype is not plain
        or not counted
        or not (x.is_contiguous() and alpha.is_contiguous() and signs.is_contiguous())
        or not kept.compiled.current
    ):
        return None
    shift = 0
    if bias is not None:
        if bias.dtype is not plain or bias.shape != (m,) or not bias.is_contiguous():
            return None
        shift = bias.data_ptr()
    count = 1
    for size in above:
        count *= size
    y = x.new_empty(*above, m)
    done = kept.compiled.multiply_binarized(
        place,
        alpha.data_ptr(),
        scales,
        sparse,
        x.data_ptr(),
        count,
        shift,
        y.data_ptr(),
        torch.get_num_threads(),
        kept.whole,
    )
    if done:
        return y
    _kept.pop((place, False), None)  # as in try_linear
    return None


def binarized(
    x: Tensor,
    alpha: Tensor,
    signs: Tensor,
    columns: int,
    sparse: tuple[int, int, int, int],
    bias: Tensor | None,
) -> Tensor:
    """``alpha * (S x) + bias + E x`` along the last axis of x; alpha has 1 entry or one for each row.

    Everything is on the CPU and contiguous, signs uint8 with so many columns, the rest float32. ``sparse``
    is E: addresses of starts, columns and values, and the bytes of a column, of arrays that are valid; zeros
    for no E.
    """
    _packed((signs.data_ptr(), False), (signs,), (signs.shape[0], columns, True, False))
    y = try_binarized(x, alpha, signs, sparse, bias)
    assert y is not None, "the bits were just packed"
    return y
