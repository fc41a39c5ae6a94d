"""How factors are stored: their names, their number of bits, and diagonals in 16 bits per entry.

A diagonal is stored as ``d = 2^e h`` with ``e = floor(log2(max |d|))`` (0 for an all-zero diagonal) and h in
float16. The largest |h| is then in [1, 2), so h never overflows, and entries down to 2^-14 of the largest
keep all 11 bits.
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
_SAFE_EXPONENTS = range(-100, 121)  # a diagonal's largest entry is then far from both ends of float32


# ---------------------------------------------------------------- number of bits


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
    """Stored bits for each entry of the matrix; see :func:`stored_bits`."""
    return stored_bits(m, n, k, diagonal_bits) / (m * n)


# ---------------------------------------------------------------- diagonals in 16 bits


def exponent(d: NDArray[Any]) -> int:
    """``floor(log2(max |d|))``, exactly; 0 if all entries are zero."""
    largest = float(np.abs(d).max())
    return int(np.frexp(largest)[1]) - 1 if largest else 0


def fits_16(d: NDArray[np.float32]) -> bool:
    """Whether float16 holds every entry of ``2^-e d`` exactly."""
    scaled = np.ldexp(d.astype(np.float64), -exponent(d))
    return bool((scaled.astype(np.float16) == scaled).all())


def encode(d: NDArray[np.float32]) -> tuple[NDArray[np.float16], int]:
    """(h, e) with ``d = 2^e h``; entries that float16 does not hold are rounded."""
    e = exponent(d)
    return np.ldexp(d.astype(np.float64), -e).astype(np.float16), e


def decode(h: NDArray[np.float16], e: int) -> NDArray[np.float32]:
    """``2^e h`` as float32; exact, except below float32's normal numbers."""
    return np.ldexp(h.astype(np.float64), e).astype(np.float32)


def round_to_16(d: NDArray[np.float32]) -> NDArray[np.float32]:
    """d rounded to a diagonal that 16 bits per entry hold exactly.

    Entries above 2^-13 of the largest change by at most 2^-11 of themselves, smaller ones by at most 2^-24 of
    the largest (except where float32 is subnormal).
    """
    while not fits_16(d):
        h, e = encode(d)
        if e == EXPONENT_MAX:  # rounding up to 2 * 2^127 would leave float32
            h = np.clip(h, -_LARGEST_BELOW_TWO, _LARGEST_BELOW_TWO)
        # If the largest entry rounds up to 2^(e+1), its exponent has changed: round once more.
        d = decode(h, e)
    return d


def spread(
    d1: NDArray[Any], d2: NDArray[Any], d3: NDArray[Any], exponent_change: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Multiply ``D1 B1 D2 B2 D3`` by ``2^exponent_change`` through its diagonals, within float32's range.

    Each diagonal gets a third of the exponent. If one would come near an end of float32's range, all three
    are scaled to largest entries of about the same magnitude instead. Products beyond float32's range at the
    lower end become zero.
    """
    share = exponent_change // 3
    exponents = share, exponent_change - 2 * share, share
    parts = [np.ldexp(d.astype(np.float64), e) for d, e in zip((d1, d2, d3), exponents, strict=True)]
    if not all(exponent(d) in _SAFE_EXPONENTS for d in parts):
        own = [exponent(d) for d in (d1, d2, d3)]
        outer = min(max((sum(own) + exponent_change) // 3, _SAFE_EXPONENTS[0] - 60), _SAFE_EXPONENTS[-1])
        inner = min(sum(own) + exponent_change - 2 * outer, _SAFE_EXPONENTS[-1])
        parts = [
            np.ldexp(d.astype(np.float64), e - before)
            for d, e, before in zip((d1, d2, d3), (outer, inner, outer), own, strict=True)
        ]
    return parts[0], parts[1], parts[2]
