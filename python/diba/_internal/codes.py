"""Matrices of 8 or 4 bits an entry: ``W[i, j] = d1[i] * E[i, j]`` with whole numbers E.

With 8 bits, ``E = codes - 128``. With 4 bits, ``group`` entries of a row share a step of 7 bits, and
``E = (code - 8) * (step - 128)``; two codes lie in a byte, the first one in the low bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import check

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CODE_BITS",
    "COLUMNS_MAX",
    "STEP_MAX",
    "Codes",
    "check_bits",
    "check_group",
    "code_bits",
    "fitted_codes",
    "group_count",
    "packed_nibbles",
    "quantize",
    "row_bytes",
]

CODE_BITS = (8, 4)
COLUMNS_MAX = 2**16
"""Longer rows cannot be multiplied: kCodeMaxCols of cpp/src/product/code_rows.hpp."""

STEP_MAX = 63  # either way from 128
_ENTRIES = 2**20  # rounded at once, so that temporaries stay small
_SHRINK = {8: (1.0,), 4: tuple(np.linspace(0.6, 1.05, 13))}
"""Scales to try, relative to the one that represents the largest entry of a block exactly. At 4 bits a
smaller one wins where the largest entry lies far out; at 8 bits the steps are too fine for it to matter."""


def check_bits(bits: Any, name: str = "bits") -> int:
    """Require 8 or 4."""
    size = check.integer(bits, name, minimum=1)
    if size not in CODE_BITS:
        raise ValueError(f"{name} is {size}; it must be 8 or 4")
    return size


def check_group(group: Any) -> int:
    """Require a power of two of at least 32."""
    size = check.integer(group, "group", minimum=32, maximum=COLUMNS_MAX)
    if size & (size - 1):
        raise ValueError(f"group is {size}; it must be a power of two, such as 32 or 64")
    return size


def row_bytes(columns: int, bits: int) -> int:
    """Bytes of the codes of a row."""
    return columns if bits == 8 else -(-columns // 2)


def group_count(columns: int, group: int) -> int:
    """Groups of a row; the last one may be shorter."""
    return -(-columns // group)


def code_bits(m: int, n: int, bits: int, group: int) -> int:
    """Stored bits of an m x n matrix: codes, steps of 8 bits, and 32 bits of d1 for each row."""
    steps = 8 * group_count(n, group) if bits == 4 else 0
    return m * (8 * row_bytes(n, bits) + steps + 32)


@dataclass(frozen=True, eq=False)
class Codes:
    """A matrix stored in few bits.

    Attributes:
        shape: (m, n).
        bits: 8 or 4.
        group: Entries of a row that share a step, with 4 bits.
        d1: float32, (m,).
        codes: uint8, (m, ``row_bytes(n, bits)``); unused bits are those of a code for zero.
        steps: uint8, (m, ``group_count(n, group)``); None with 8 bits.
    """

    shape: tuple[int, int]
    bits: int
    group: int
    d1: NDArray[np.float32]
    codes: NDArray[np.uint8]
    steps: NDArray[np.uint8] | None

    def entries(self, chosen: Any = slice(None)) -> NDArray[np.int32]:
        """E of some rows, (..., n)."""
        codes = self.codes[chosen]
        if self.bits == 8:
            return np.asarray(codes.astype(np.int32) - 128)
        assert self.steps is not None
        codes = np.stack((codes & 15, codes >> 4), axis=-1).reshape(*codes.shape[:-1], -1)
        steps = np.repeat(self.steps[chosen].astype(np.int32) - 128, self.group, axis=-1)
        n = self.shape[1]
        return np.asarray((codes[..., :n].astype(np.int32) - 8) * steps[..., :n])

    def rows(self, chosen: Any = slice(None)) -> NDArray[np.float32]:
        """W of some rows in float32, within its range, (..., n)."""
        with np.errstate(over="ignore"):
            values = self.entries(chosen).astype(np.float32) * self.d1[chosen][..., None]
        largest = np.finfo(np.float32).max
        return np.asarray(np.clip(values, -largest, largest))


def quantize(matrix: NDArray[Any], bits: int, group: int = 32) -> Codes:
    """Store a matrix (m, n) in 8 or 4 bits an entry, with a small squared error in every row.

    Args:
        matrix: Finite numbers.
        bits: 8 or 4.
        group: Entries that share a step, with 4 bits: a power of two, at least 32.
    """
    m, n = matrix.shape
    step = max(1, _ENTRIES // n)
    # In one order, because sums depend on it.
    parts = [_quantized(np.ascontiguousarray(matrix[i : i + step]), bits, group) for i in range(0, m, step)]
    d1, codes, steps = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Codes((m, n), bits, group, d1, codes, steps if bits == 4 else None)


def _quantized(matrix: NDArray[Any], bits: int, group: int) -> tuple[NDArray[Any], ...]:
    """d1, codes and steps of some rows."""
    m, n = matrix.shape
    if bits == 8:
        codes, scales = fitted_codes(matrix, 8, n)
        return scales[:, 0], codes, scales
    w = np.zeros((m, group_count(n, group) * group))
    w[:, :n] = matrix
    _, scales = fitted_codes(w, 4, group)
    largest = np.abs(scales).max(1, keepdims=True).astype(np.float64)
    d1 = np.where(largest > 0, largest / STEP_MAX, 1)
    steps = np.rint(scales / d1)
    blocks = (w / d1).reshape(m, -1, group)
    q = np.rint(np.divide(blocks, steps[..., None], where=steps[..., None] != 0, out=np.zeros_like(blocks)))
    q = np.clip(q, -8, 7)
    e = (q * steps[..., None]).reshape(m, -1)
    d1 = _projected(w, e)
    return d1, packed_nibbles(q.reshape(m, -1)[:, :n]), (steps + 128).astype(np.uint8)


def packed_nibbles(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    """Numbers from -8 to 7 as codes of 4 bits, (rows, columns) to (rows, bytes); an unused code is a zero."""
    m, n = numbers.shape
    nibbles = np.full((m, 2 * row_bytes(n, 4)), 8, np.uint8)
    nibbles[:, :n] = numbers + 8
    return np.asarray(nibbles[:, ::2] | nibbles[:, 1::2] << 4, np.uint8)


def _projected(w: NDArray[Any], e: NDArray[Any]) -> NDArray[np.float32]:
    """The d1 that takes the rows of E nearest to those of W."""
    power = np.square(e).sum(1)
    d1 = np.divide((w * e).sum(1), power, where=power > 0, out=np.zeros(len(w)))
    return np.asarray(d1, np.float32)


def fitted_codes(
    matrix: NDArray[Any], bits: int, block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """One code an entry (rows, columns), and scales (rows, blocks), of small squared error.

    Args:
        matrix: Finite numbers.
        bits: 8 or 4; a code is a number around ``2 ** (bits - 1)``.
        block: Entries of a row that share a scale; divides the columns.
    """
    zero = 1 << bits - 1
    w = matrix.astype(np.float32).reshape(len(matrix), -1, block)
    extreme = np.take_along_axis(w, np.abs(w).argmax(-1)[..., None], -1)
    scales = extreme / -zero  # the one code without a counterpart, -zero, takes the largest entry
    best, error = np.zeros_like(w, dtype=np.int8), np.full(extreme.shape, np.inf, np.float32)
    chosen = np.zeros_like(scales)
    for shrink in _SHRINK[bits]:
        inverse = np.divide(1, scales * np.float32(shrink), where=scales != 0, out=np.zeros_like(scales))
        q = np.clip(np.rint(w * inverse), -zero, zero - 1)
        power = (q * q).sum(-1, keepdims=True)
        fitted = np.divide((w * q).sum(-1, keepdims=True), power, where=power > 0, out=np.zeros_like(scales))
        found = np.square(w - q * fitted).sum(-1, keepdims=True)
        better = found < error
        best = np.where(better, q.astype(np.int8), best)
        error = np.where(better, found, error)
        chosen = np.where(better, fitted, chosen)
    codes = (best.astype(np.int16) + zero).astype(np.uint8).reshape(matrix.shape)
    return codes, chosen[..., 0].astype(np.float32)
