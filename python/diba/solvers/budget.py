"""From a size the caller asks for to the inner dimension k."""

from __future__ import annotations

from ..storage import bits_per_weight

__all__ = ["DIAGONAL_BITS", "inner_dimension"]

DIAGONAL_BITS = 16
"""q: solvers return diagonals that 16 bits an entry hold exactly, and budgets count them so."""


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
