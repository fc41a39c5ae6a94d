"""What the quality benchmark compares diba with besides double binary factorization.

Each function returns the approximation in float64, as what it stores decodes to, and its true bits per
weight: every scale and every zero point counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diba._internal.snr import energy_and_error, snr_db

__all__ = ["Approximation", "decibels", "round_to_nearest", "truncated_svd"]

SCALE_BITS = 16  # float16
DECIBELS_PER_BIT = 20 * math.log10(2)
CLIPS = np.linspace(1.0, 0.2, 41)  # shares of a group's full range that the search tries
Array = NDArray[np.float64]


class Approximation(NamedTuple):
    """A matrix that stands for another one, and its size."""

    dense: Array
    bits_per_weight: float
    note: str


def decibels(A: NDArray[np.floating], approximation: Array) -> float:
    """``10 log10(|A|^2 / |A - approximation|^2)`` in float64."""
    return snr_db(*energy_and_error(A, approximation))


def truncated_svd(A: NDArray[np.floating], bits: float) -> Approximation:
    """The largest rank r whose float16 factors (m x r) and (r x n) take at most so many bits per weight.

    Raises:
        ValueError: even rank one takes more.
    """
    m, n = A.shape
    rank = min(int(bits * m * n / (SCALE_BITS * (m + n))), m, n)
    if rank < 1:
        raise ValueError(f"{bits:g} bits per weight are too few for rank one of a {m} x {n} matrix")
    exponent = math.frexp(float(np.abs(A).max()))[1]  # a power of two keeps float16 away from its limits
    u, s, vt = np.linalg.svd(np.ldexp(A.astype(np.float64), -exponent), full_matrices=False)
    root = np.sqrt(s[:rank])
    left, right = ((u[:, :rank] * root).astype(np.float16), (root[:, None] * vt[:rank]).astype(np.float16))
    product = left.astype(np.float64) @ right.astype(np.float64)
    return Approximation(np.ldexp(product, exponent), SCALE_BITS * rank * (m + n) / (m * n), f"rank {rank}")


def round_to_nearest(A: NDArray[np.floating], bits: int, group: int | None) -> Approximation:
    """Integers of so many bits times a float16 scale for each row, or each ``group`` entries of a row.

    Three grids are tried, each with the scale of least squared error among CLIPS in every group: halves
    (-1.5, -0.5, 0.5, 1.5 for two bits), two's complement (-2 to 1), and a zero point of as many bits, whose
    storage counts. The best one for the matrix is returned: most SNR after 6.02 dB for every bit.
    """
    rows, cols = A.shape
    width = min(group or cols, cols)
    padded = np.pad(A.astype(np.float64), ((0, 0), (0, -cols % width)))  # zeros at the end of short groups
    counted = np.pad(np.ones(A.shape), ((0, 0), (0, -cols % width))).reshape(-1, width)
    groups = padded.reshape(-1, width)
    best: Approximation | None = None
    for name, quantised, extra_bits in grids(groups, counted, bits):
        dense = quantised.reshape(padded.shape)[:, :cols]
        size = bits + (SCALE_BITS + extra_bits) * len(groups) / (rows * cols)
        found = Approximation(dense, size, name)
        if best is None or worth(A, found) > worth(A, best):
            best = found
    assert best is not None
    return best


def worth(A: NDArray[np.floating], found: Approximation) -> float:
    return decibels(A, found.dense) - DECIBELS_PER_BIT * found.bits_per_weight


def grids(groups: Array, counted: Array, bits: int) -> Iterator[tuple[str, Array, int]]:
    """(name, quantised groups, bits of zero points) of every grid; only counted entries weigh."""
    levels = 2**bits
    low, high = groups.min(axis=1), groups.max(axis=1)
    reach = np.maximum(np.abs(low), np.abs(high))
    middle = np.full_like(low, (levels - 1) / 2)
    yield "halves", clipped(groups, counted, 2 * reach / (levels - 1), middle, levels), 0
    if bits > 1:
        # Both signs of the scale: the longer side of two's complement may be the positive one.
        signed = np.where(high > -low, -1.0, 1.0) * reach / (levels // 2)
        yield "integers", clipped(groups, counted, signed, np.full_like(low, levels // 2), levels), 0
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    step = np.where(high > low, high - low, 1.0) / (levels - 1)
    zero = np.rint(-low / step)
    yield "zero points", clipped(groups, counted, step, zero, levels), bits


def clipped(groups: Array, counted: Array, full: Array, zero: Array, levels: int) -> Array:
    """``scale * (q - zero)``, q in 0 ... levels - 1, at the best share of the full scale in every group."""
    result = np.zeros_like(groups)
    least = np.full(len(groups), np.inf)
    offset = zero[:, None]
    for share in CLIPS:
        scale = (share * full).astype(np.float16).astype(np.float64)[:, None]
        divisor = np.where(scale == 0, 1.0, scale)
        q = np.clip(np.rint(groups / divisor + offset), 0, levels - 1)
        found = scale * (q - offset)
        error = (np.square(groups - found) * counted).sum(axis=1)
        better = error < least
        least[better] = error[better]
        result[better] = found[better]
    return result
