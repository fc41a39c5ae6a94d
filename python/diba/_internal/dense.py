"""Dense forms of the factors, block by block: temporaries stay at a few MB."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..bits import BitMatrix
from . import diagonal16
from .check_arrays import saturated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from .check import FloatArray

__all__ = ["dense_blocks", "snr_of_blocks"]

_BLOCK_BYTES = 8 << 20
_LEAST_EXPONENT, _MOST_EXPONENT = -100, 126  # of what is safe in float32
_SMALL = -400  # an exponent; squares of such numbers leave float64


def dense_blocks(
    d1: NDArray[np.float32],
    b1: BitMatrix,
    d2: NDArray[np.float32],
    b2: BitMatrix,
    d3: NDArray[np.float32],
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Column slices and the (m, width) blocks of ``D1 B1 D2 B2 D3``, whole words of columns each.

    Entries beyond float32's range are its largest numbers, never infinite. Where an intermediate result might
    leave the range, the outer diagonals are multiplied in float64.
    """
    (m, k), n = b1.shape, b2.shape[1]
    words_per_block = max(1, _BLOCK_BYTES // (4 * 64 * (m + k)))
    words = b2.words
    e1, e2, e3 = (diagonal16.exponent(d) + 1 for d in (d1, d2, d3))
    most = e2 + e3 + k.bit_length() + max(0, e1)
    safe = _least_exponent(d2) + _least_exponent(d3) > _LEAST_EXPONENT and most < _MOST_EXPONENT
    for first in range(0, words.shape[1], words_per_block):
        columns = slice(64 * first, min(n, 64 * (first + words_per_block)))
        part = BitMatrix(words[:, first : first + words_per_block], columns.stop - columns.start, b2.alphabet)
        inner = part.to_dense()
        if safe:
            inner *= d3[columns]
            inner *= d2[:, None]
            block = b1.matmul(inner)
            block *= d1[:, None]
        else:
            inner *= np.ldexp(d2, -e2)[:, None]
            exact = b1.matmul(inner).astype(np.float64)
            exact *= np.ldexp(d1.astype(np.float64), e2)[:, None]
            exact *= d3[columns]
            block = saturated(exact)
        yield columns, block


def _least_exponent(d: NDArray[np.float32]) -> int:
    """Of the smallest entry that is not zero."""
    sizes = np.abs(d[d != 0])
    return int(np.frexp(sizes.min())[1]) if sizes.size else 0


def snr_of_blocks(A: FloatArray, blocks: Iterable[tuple[slice, NDArray[np.float32]]]) -> float:
    """``10 log10(|A|^2 / |A - blocks|^2)`` in dB, sums in float64.

    ``inf`` for an exact fit, ``-inf`` for a zero A that is not met exactly.
    """
    signal = noise = 0.0
    exponent = math.frexp(max(float(A.max()), -float(A.min())))[1]
    raised = -exponent if exponent < _SMALL else 0  # squares of such numbers would vanish
    for columns, block in blocks:
        exact = A[:, columns].astype(np.float64)
        if raised:
            exact, block = np.ldexp(exact, raised), np.ldexp(block.astype(np.float64), raised)
        signal += float(np.vdot(exact, exact))
        exact -= block
        noise += float(np.vdot(exact, exact))
    if noise == 0:
        return math.inf
    return 10 * (math.log10(signal) - math.log10(noise)) if signal else -math.inf
