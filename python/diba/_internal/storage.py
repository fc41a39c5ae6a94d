"""What factors take to store: their names, and the one place of the formula that every report prints."""

from __future__ import annotations

__all__ = ["BITS", "DIAGONALS", "bits_per_weight", "padding_bits"]

DIAGONALS = ("d1", "d2", "d3")
BITS = ("b1", "b2")


def bits_per_weight(m: int, n: int, k: int, diagonal_bits: int) -> float:
    """Stored bits for each entry of an m x n matrix: ``[k (m + n) + q (m + k + n)] / (m n)``.

    Args:
        m: Rows.
        n: Columns.
        k: Inner dimension.
        diagonal_bits: q, bits of one diagonal entry.
    """
    return (k * (m + n) + diagonal_bits * (m + k + n)) / (m * n)


def padding_bits(m: int, n: int, k: int, *, unit: int) -> int:
    """Unused bits where every row of B1 (m x k) and B2 (k x n) fills whole units of ``unit`` bits."""
    return m * (-k % unit) + k * (-n % unit)
