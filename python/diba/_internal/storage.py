"""How factors are stored: their names, the bits they take, and diagonals in 16 bits an entry.

A diagonal d is held as ``d = 2^e * h`` with ``e = floor(log2(max |d|))`` (0 for
an all-zero diagonal) and h float16. The largest |h| is then in [1, 2), so the
range of float16 is never left at the top, and entries down to 2^-14 of the
largest keep all 11 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BITS",
    "DIAGONALS",
    "EXPONENT_MAX",
    "EXPONENT_MIN",
    "bits_per_weight",
    "decode",
    "encode",
    "exponent",
    "fits_16",
    "round_to_16",
    "spread",
    "stored_bits",
]

DIAGONALS = ("d1", "d2", "d3")
BITS = ("b1", "b2")

# Exponents of the smallest (subnormal) and the largest float32.
EXPONENT_MIN, EXPONENT_MAX = -149, 127

_LARGEST_BELOW_TWO = np.float16(2 - 2**-10)
_ROOM = range(-100, 121)  # exponents of a diagonal's largest entry that leave room on both sides


# ---------------------------------------------------------------- the bits they take


def stored_bits(m: int, n: int, k: int, diagonal_bits: int) -> int:
    """Stored bits of the factors of an m x n matrix: ``k (m + n) + q (m + k + n)``.

    Args:
        m: Rows.
        n: Columns.
        k: Inner dimension.
        diagonal_bits: q, bits of one diagonal entry.
    """
    return k * (m + n) + diagonal_bits * (m + k + n)


def bits_per_weight(m: int, n: int, k: int, diagonal_bits: int) -> float:
    """The same for each entry of the matrix."""
    return stored_bits(m, n, k, diagonal_bits) / (m * n)


# ---------------------------------------------------------------- diagonals in 16 bits


def exponent(d: NDArray[Any]) -> int:
    """``floor(log2(max |d|))``, exactly; 0 if all entries are zero."""
    largest = float(np.abs(d).max())
    return int(np.frexp(largest)[1]) - 1 if largest else 0


def fits_16(d: NDArray[np.float32]) -> bool:
    """Whether ``d * 2^-e`` is exactly float16 in every entry."""
    scaled = np.ldexp(d.astype(np.float64), -exponent(d))
    return bool((scaled.astype(np.float16) == scaled).all())


def encode(d: NDArray[np.float32]) -> tuple[NDArray[np.float16], int]:
    """(h, e) of a diagonal that fits; entries of one that does not are rounded."""
    e = exponent(d)
    return np.ldexp(d.astype(np.float64), -e).astype(np.float16), e


def decode(h: NDArray[np.float16], e: int) -> NDArray[np.float32]:
    """``2^e * h`` as float32; rounded only where that is below float32's normal numbers."""
    return np.ldexp(h.astype(np.float64), e).astype(np.float32)


def round_to_16(d: NDArray[np.float32]) -> NDArray[np.float32]:
    """The diagonal of 16-bit form next to d.

    Entries above 2^-13 of the largest move by at most 2^-11 of themselves,
    smaller ones by at most 2^-24 of the largest (float32 subnormals apart).
    """
    while not fits_16(d):
        h, e = encode(d)
        if e == EXPONENT_MAX:  # rounding up to 2 * 2^127 would leave float32
            h = np.clip(h, -_LARGEST_BELOW_TWO, _LARGEST_BELOW_TWO)
        # The largest entry may round up to 2^(e+1); the next round then takes that exponent.
        d = decode(h, e)
    return d


def spread(
    d1: NDArray[Any], d2: NDArray[Any], d3: NDArray[Any], exponent_of_all: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Diagonals whose product is ``2^exponent_of_all`` times that of the given ones, for float32 to hold.

    The exponent goes to all three alike; where one would come near an end of float32's range, all get
    largest entries of one size. What is zero in float32 all the same stays zero.
    """
    share = exponent_of_all // 3
    exponents = share, exponent_of_all - 2 * share, share
    parts = [np.ldexp(d.astype(np.float64), e) for d, e in zip((d1, d2, d3), exponents, strict=True)]
    if not all(exponent(d) in _ROOM for d in parts):
        own = [exponent(d) for d in (d1, d2, d3)]
        each = min(max((sum(own) + exponent_of_all) // 3, _ROOM[0] - 60), _ROOM[-1])
        rest = min(sum(own) + exponent_of_all - 2 * each, _ROOM[-1])
        sizes = each, rest, each
        parts = [
            np.ldexp(d.astype(np.float64), e - before)
            for d, e, before in zip((d1, d2, d3), sizes, own, strict=True)
        ]
    return parts[0], parts[1], parts[2]
