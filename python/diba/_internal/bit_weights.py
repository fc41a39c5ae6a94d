"""Matrices of 1 or 2 bits an entry that are multiplied by vectors of 1 or 2 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BitWeights"]


@dataclass(frozen=True, eq=False)
class BitWeights:
    """Rows of numbers of few bits times a scale, see :class:`diba.Levels`.

    Attributes:
        shape: (m, n).
        weight_bits: 1 or 2.
        activation_bits: Bits of the vectors, 1 or 2.
        scale: float32, (m,).
        planes: uint8, (weight_bits, m, ceil(n / 8)): planes of bits, low bits first.
    """

    shape: tuple[int, int]
    weight_bits: int
    activation_bits: int
    scale: NDArray[np.float32]
    planes: NDArray[np.uint8]

    def rows(self, chosen: Any = slice(None)) -> NDArray[np.float32]:
        """Some rows, (..., n)."""
        bits = np.unpackbits(self.planes[:, chosen], axis=-1, bitorder="little", count=self.shape[1])
        numbers = 2.0 * sum(plane * np.float32(2**p) for p, plane in enumerate(bits)) - (
            2**self.weight_bits - 1
        )
        return np.asarray(numbers * self.scale[chosen][..., None], np.float32)
