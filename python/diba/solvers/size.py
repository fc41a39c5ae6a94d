"""From a size the caller asks for to the inner dimension k, and which k pay."""

from __future__ import annotations

from .._internal.storage import bits_per_weight
from .target_snr import largest_k

__all__ = ["DIAGONAL_BITS", "PAYING_BITS", "inner_dimension", "paying_k", "sizes_to_try"]

DIAGONAL_BITS = 16
"""q: solvers return diagonals that 16 bits an entry hold exactly, and budgets count them so."""

PAYING_BITS = 4
"""Bits of the binary factors for each weight, above which plain integers of as many bits lose less."""

_HURRIED = 8  # with a time limit, sizes begin at this share of what pays


def inner_dimension(m: int, n: int, name: str, size: float) -> int:
    """The inner dimension k for a size by its name: k, bits_per_weight or storage_ratio.

    For a size b in bits per weight it is the largest k whose factors take at most b:
    ``k = (b m n - q (m + n)) / (m + n + q)`` with q = 16, rounded down.

    Raises:
        ValueError: even k = 1 takes more than asked for.
    """
    if name == "k":
        return int(size)
    target = size if name == "bits_per_weight" else 32 * size
    largest = int((target * m * n - DIAGONAL_BITS * (m + n)) / (m + n + DIAGONAL_BITS))
    while bits_per_weight(m, n, largest + 1, DIAGONAL_BITS) <= target:  # division rounded down too far
        largest += 1
    while largest > 0 and bits_per_weight(m, n, largest, DIAGONAL_BITS) > target:
        largest -= 1
    smallest = bits_per_weight(m, n, 1, DIAGONAL_BITS)
    if name == "storage_ratio":
        smallest /= 32
    if largest < 1:
        raise ValueError(
            f"{name} is {size:g}, too small for a {m} x {n} matrix: k = 1 already takes {smallest:.4g}; "
            f"use {name}={smallest * 1.0001:.4g} or more"
        )
    return largest


def paying_k(m: int, n: int) -> int:
    """The largest k that pays: binary factors of PAYING_BITS for each entry, so 2 to 4 times min(m, n)."""
    return max(1, PAYING_BITS * m * n // (m + n))


def sizes_to_try(m: int, n: int, k: int, *, limited: bool) -> list[int]:
    """The inner dimensions to solve for, rising, of which the best result counts for k.

    Up to what pays k itself. Beyond, a solver may do worse with more components, the more so in little time
    (``limited``): k, but at most ``largest_k``, is then the last of a few sizes, each twice the one before.
    """
    pays = paying_k(m, n)
    if k <= pays:
        return [k]
    sizes = [min(k, largest_k(m, n))]
    least = max(1, pays // _HURRIED) if limited else pays
    while sizes[-1] > least:
        sizes.append(sizes[-1] // 2)
    return sizes[::-1]
