"""Tables of numbers at 32, 16, 8 or 4 bits: dense embeddings and output layers of an exported model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .._internal.codes import fitted_codes

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Table", "TableBits", "rounded"]

TableBits = Literal[16, 8, 4]

_ROWS = 2**20  # entries rounded at once, so that temporaries stay small


@dataclass(frozen=True, eq=False)
class Table:
    """A matrix, stored in few bits.

    Attributes:
        bits: Bits of an entry: 32 and 16 are floats, 8 and 4 are codes.
        codes: (rows, columns) float32 or float16; or uint8, (rows, columns * bits / 8), with the zero point
            ``2 ** (bits - 1)`` and of two codes in a byte the first one in the low bits.
        scales: float32, (rows, blocks): what a step of the codes of a block is worth; None for floats.
    """

    bits: int
    codes: NDArray[Any]
    scales: NDArray[np.float32] | None = None

    @property
    def columns(self) -> int:
        """Entries of a row."""
        return int(self.codes.shape[1]) * (1 if self.scales is None else 8 // self.bits)

    @property
    def block(self) -> int:
        """Entries that share a scale."""
        assert self.scales is not None
        return self.columns // int(self.scales.shape[1])

    def rows(self, chosen: Any = slice(None)) -> NDArray[np.float32]:
        """The values of some rows in float32, shape (..., columns)."""
        codes = self.codes[chosen]
        if self.scales is None:
            return np.asarray(codes, np.float32)
        if self.bits == 4:
            codes = np.stack((codes & 15, codes >> 4), axis=-1).reshape(*codes.shape[:-1], -1)
        steps = codes.astype(np.float32) - np.float32(1 << self.bits - 1)
        blocks = steps.reshape(*steps.shape[:-1], -1, self.block) * self.scales[chosen][..., None]
        return np.asarray(blocks.reshape(steps.shape))


def rounded(matrix: NDArray[Any], bits: int, block: int) -> Table:
    """Store a matrix (rows, columns) at 32, 16, 8 or 4 bits.

    Args:
        matrix: Finite numbers.
        bits: Bits of an entry.
        block: Entries of a row that share a scale; divides the columns. Floats have no scales.
    """
    if bits >= 16:
        kind = np.float16 if bits == 16 else np.float32
        largest = np.finfo(kind).max
        return Table(bits, np.clip(matrix, -largest, largest).astype(kind))
    step = max(1, _ROWS // matrix.shape[1])
    parts = [fitted_codes(matrix[i : i + step], bits, block) for i in range(0, len(matrix), step)]
    codes, scales = (np.concatenate(both) for both in zip(*parts, strict=True))
    if bits == 4:
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    return Table(bits, codes, scales)
