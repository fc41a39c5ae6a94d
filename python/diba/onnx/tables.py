"""Tables of numbers at 32, 16, 8 or 4 bits: embeddings and output layers of an exported model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .._internal.codes import COLUMNS_MAX, Codes, quantize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Table", "TableBits", "check_bits", "coded", "rounded"]

TableBits = Literal[16, 8, 4]


@dataclass(frozen=True, eq=False)
class Table:
    """A matrix, stored in few bits.

    Attributes:
        bits: Bits of an entry: 32 and 16 are floats, 8 and 4 are codes.
        floats: (rows, columns) float32 or float16; None for codes.
        source: The codes; None for floats.
    """

    bits: int
    floats: NDArray[Any] | None = None
    source: Codes | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        if self.source is not None:
            return self.source.shape
        assert self.floats is not None
        rows, columns = self.floats.shape
        return rows, columns

    @property
    def columns(self) -> int:
        """Entries of a row."""
        return self.shape[1]

    def rows(self, chosen: Any = slice(None)) -> NDArray[np.float32]:
        """The values of some rows in float32, shape (..., columns)."""
        if self.source is not None:
            return self.source.rows(chosen)
        assert self.floats is not None
        return np.asarray(self.floats[chosen], np.float32)

    # ------------------------------------------------------------ codes as operators take them

    @property
    def block(self) -> int:
        """Entries that share a scale, for operators that know one scale for a block: divides the columns."""
        assert self.source is not None
        return self.columns if self.bits == 8 else math.gcd(self.columns, self.source.group)

    def block_scales(self) -> NDArray[np.float32]:
        """Scales of the blocks, (rows, blocks)."""
        source = self.source
        assert source is not None
        if source.steps is None:
            return source.d1[:, None]
        blocks = self.columns // self.block
        each = np.repeat(source.steps.astype(np.float32) - 128, source.group // self.block, axis=1)[
            :, :blocks
        ]
        return np.asarray(each * source.d1[:, None])

    def packed(self) -> NDArray[np.uint8]:
        """The codes of each row and then, with 4 bits, its steps: the table of diba's operators."""
        source = self.source
        assert source is not None
        return source.codes if source.steps is None else np.concatenate((source.codes, source.steps), axis=1)


def check_bits(bits: Any, name: str, allowed: Sequence[Any]) -> None:
    """Require one of the widths that an export knows.

    Raises:
        ValueError: It is another; the message names the argument.
    """
    if bits not in allowed or isinstance(bits, bool):
        *first, last = map(str, allowed)
        raise ValueError(f"{name} is {bits!r}; it must be {', '.join(first)} or {last}")


def coded(source: Codes) -> Table:
    """A table of codes."""
    return Table(source.bits, source=source)


def rounded(matrix: NDArray[Any], bits: int) -> Table:
    """Store a matrix (rows, columns) of finite numbers at 32, 16, 8 or 4 bits; very long rows at 16 or 32."""
    bits = max(bits, 16) if matrix.shape[1] > COLUMNS_MAX else bits
    if bits < 16:
        return coded(quantize(np.asarray(matrix, np.float32), bits))
    kind = np.float16 if bits == 16 else np.float32
    largest = np.finfo(kind).max
    return Table(bits, np.clip(matrix, -largest, largest).astype(kind))
