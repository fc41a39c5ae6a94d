"""Dense forms of the factors, block by block: temporaries stay at a few MB."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .bits import BitMatrix

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from ._check import FloatArray

__all__ = ["dense_blocks", "snr_of_blocks"]

_BLOCK_BYTES = 8 << 20


def dense_blocks(
    d1: NDArray[np.float32],
    b1: BitMatrix,
    d2: NDArray[np.float32],
    b2: BitMatrix,
    d3: NDArray[np.float32],
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Column slices and the (m, width) blocks of ``D1 B1 D2 B2 D3``, whole words of columns each."""
    (m, k), n = b1.shape, b2.shape[1]
    words_per_block = max(1, _BLOCK_BYTES // (4 * 64 * (m + k)))
    words = b2.words
    for first in range(0, words.shape[1], words_per_block):
        columns = slice(64 * first, min(n, 64 * (first + words_per_block)))
        part = BitMatrix(words[:, first : first + words_per_block], columns.stop - columns.start, b2.alphabet)
        inner = part.to_dense()
        inner *= d3[columns]
        inner *= d2[:, None]
        block = b1.matmul(inner)
        block *= d1[:, None]
        yield columns, block


def snr_of_blocks(A: FloatArray, blocks: Iterable[tuple[slice, NDArray[np.float32]]]) -> float:
    """``10 log10(|A|^2 / |A - blocks|^2)`` in dB, sums in float64.

    ``inf`` for an exact fit, ``-inf`` for a zero A that is not met exactly.
    """
    signal = noise = 0.0
    for columns, block in blocks:
        exact = A[:, columns].astype(np.float64)
        signal += float(np.vdot(exact, exact))
        exact -= block
        noise += float(np.vdot(exact, exact))
    if noise == 0:
        return math.inf
    return 10 * (math.log10(signal) - math.log10(noise)) if signal else -math.inf
