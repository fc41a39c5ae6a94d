"""Sparse matrices in compressed rows, with column numbers in as few bits as the shape allows.

Entries of row i are those from ``starts[i]`` up to ``starts[i + 1]``; their columns ascend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from . import check, check_arrays, storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SparseRows", "column_dtype", "count_bits", "stored_bits"]

_MOST_ENTRIES = 2**32 - 1


def column_dtype(cols: int) -> np.dtype[Any]:
    """The smallest unsigned integers that number ``cols`` columns: 8, 16 or 32 bits."""
    return np.dtype(np.uint8 if cols <= 2**8 else np.uint16 if cols <= 2**16 else np.uint32)


def count_bits(cols: int) -> int:
    """Bits of the stored number of entries of a row: 16, or 32 where a row may have more than 65535."""
    return 16 if cols < 2**16 else 32


def stored_bits(rows: int, cols: int, entries: int, value_bits: int = 16) -> int:
    """Stored bits: of each row the number of its entries, of each entry its column and value.

    ``rows * c + entries * (w + v)`` with c of :func:`count_bits`, w of :func:`column_dtype` and v bits of a
    value.
    """
    return rows * count_bits(cols) + entries * (8 * column_dtype(cols).itemsize + value_bits)


class SparseRows:
    """An immutable sparse m x n matrix of float32 values.

    Args:
        starts: Integers (m + 1), from 0, ascending, up to the number of entries.
        columns: Integers, one for each entry, ascending in each row, below n.
        values: Finite numbers, one for each entry.
        shape: (m, n).

    Raises:
        TypeError: an argument is not an array of such numbers.
        ValueError: arguments disagree, or an entry is out of order or out of range.
    """

    __slots__ = ("_turned", "columns", "shape", "starts", "values")

    def __init__(self, starts: Any, columns: Any, values: Any, shape: tuple[int, int]) -> None:
        m, n = shape
        self.shape = shape
        entries = _integers(columns, "columns", n - 1, "number of the last column")
        if entries.size > _MOST_ENTRIES:
            raise ValueError(
                f"columns has {entries.size} entries; it must have at most 2^32 - 1: split the rows"
            )
        ends = _integers(starts, "starts", entries.size, "number of entries")
        check.equal(ends.size, "the length of starts", m + 1, "number of rows and one")
        if ends[0] != 0 or ends[-1] != entries.size or (ends[1:] < ends[:-1]).any():
            raise ValueError(
                f"starts must ascend from 0 to {entries.size}, the length of columns: entries of row i are "
                "those from starts[i] up to starts[i + 1]"
            )
        _ascending(entries, ends)
        self.starts = _own(ends, np.dtype(np.uint32))
        self.columns = _own(entries, column_dtype(n))
        self.values = check_arrays.diagonal(values, "values", entries.size, "entries in columns")
        self._turned: dict[str, SparseRows] = {}  # T, once it was asked for

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.starts.nbytes + self.columns.nbytes + self.values.nbytes

    @property
    def value_bits(self) -> int:
        """16 if all values are one power of two times float16 values exactly, else 32."""
        return 16 if not self.values.size or storage.fits_16(self.values) else 32

    @property
    def counts(self) -> NDArray[np.int64]:
        """Entries of each row, shape (m,)."""
        starts = self.starts.astype(np.int64)
        return starts[1:] - starts[:-1]

    @property
    def row_of_entry(self) -> NDArray[np.int64]:
        """The row of each entry."""
        return np.repeat(np.arange(self.shape[0]), self.counts)

    @property
    def T(self) -> SparseRows:
        """The transposed matrix; made once, then kept."""
        kept = self._turned.get("T")
        if kept is None:
            m, n = self.shape
            order = np.argsort(self.columns, kind="stable")
            starts = np.zeros(n + 1, np.int64)
            np.cumsum(np.bincount(self.columns, minlength=n), out=starts[1:])
            made = SparseRows(starts, self.row_of_entry[order], self.values[order], (n, m))
            made._turned["T"] = self
            kept = self._turned.setdefault("T", made)  # atomic: all threads get the same one
        return kept

    def multiply(self, x: NDArray[Any], threads: int) -> NDArray[Any]:
        """The product with columns x, (n, p), in the precision of x; shape (m, p)."""
        if x.dtype == np.float32:
            sums = np.zeros((x.shape[1], self.shape[0]), np.float32)
            self.add_products(np.ascontiguousarray(x.T), sums, threads)
            return sums.T
        products = self.values.astype(x.dtype, copy=False)[:, None] * x[self.columns]
        result = np.zeros((self.shape[0], x.shape[1]), x.dtype)
        filled = np.flatnonzero(self.counts)
        if filled.size:
            result[filled] = np.add.reduceat(products, self.starts[filled].astype(np.int64), axis=0)
        return result

    def add_products(self, x: NDArray[np.float32], y: NDArray[np.float32], threads: int) -> None:
        """Add the product with each row of x (count, n) to that row of y (count, m); both contiguous."""
        _core.add_sparse(self.starts, self.columns, self.values, self.shape[1], x, y, threads)

    def add_to(self, block: NDArray[np.float32], columns: slice) -> None:
        """Add these columns of the matrix to a dense block of shape (m, width)."""
        chosen = (self.columns >= columns.start) & (self.columns < columns.stop)
        rows, place = self.row_of_entry[chosen], self.columns[chosen].astype(np.int64) - columns.start
        block[rows, place] += self.values[chosen]


def _integers(value: Any, name: str, most: int, against: str) -> NDArray[np.int64]:
    """A vector of integers from 0 to ``most`` as int64."""
    array = np.asarray(value)
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{name} has dtype {array.dtype}; it must be integers: use numpy.asarray({name}, int)"
        )
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; it must be 1-D: use {name}.ravel()")
    if array.size and not (array.min() >= 0 and array.max() <= most):
        wrong = int(((array < 0) | (array > most)).argmax())
        raise ValueError(f"{name}[{wrong}] is {array[wrong]}; it must be from 0 to {most}, the {against}")
    return array.astype(np.int64)


def _ascending(columns: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
    """Require the columns of each row to ascend."""
    wrong = columns[1:] <= columns[:-1]
    first = starts[(starts > 0) & (starts < columns.size)]
    wrong[first - 1] = False  # the first entry of a row follows no other
    if wrong.any():
        place = int(wrong.argmax())
        row = int(np.searchsorted(starts, place, "right")) - 1
        raise ValueError(
            f"columns has {columns[place + 1]} after {columns[place]} in row {row}; the columns of a row "
            "must ascend: sort the entries of each row"
        )


def _own(array: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
    own = array.astype(dtype)
    own.flags.writeable = False
    return own
