"""Bit matrices: packed 0/1 or -1/+1 matrices and their exact products.

The storage layout is specified in ``cpp/src/layout/bit_matrix.hpp``: row-major,
bit j of a row is bit ``j % 64`` of its 64-bit word ``j // 64``, every row starts
on a new word, bits past the last column are zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from ._internal import check
from ._internal.check import describe
from ._internal.check_arrays import bad_entries, matrix_shape, real_array
from .operator import PackedOperator
from .runtime import resolve_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from ._internal.check import Alphabet

__all__ = ["BitMatrix", "column_blocks"]

_WORD_BITS = 64
_BLOCK_WORDS = 16  # so 1024 columns, of a dense block


class BitMatrix(PackedOperator):
    """An immutable matrix of single bits, read as 0/1 or as -1/+1.

    It multiplies dense arrays from either side, always exactly (sums in float32): ``b @ x``, ``b @ X``,
    ``X @ b``, ``linear``, ``matvec``, ``rmatvec``, ``matmat``, ``rmatmat``.

    Args:
        words: uint64 array of shape (rows, ceil(cols / 64)), bits past ``cols`` zero.
        cols: Number of columns.
        alphabet: ``"binary"``: bits 0 and 1 are the entries 0 and 1; ``"sign"``: they are -1 and +1.
        copy: False takes ownership of ``words`` instead of copying it: the array
            is made read-only, and the caller must hold no other view of it.

    Raises:
        TypeError: ``words`` is not a uint64 array.
        ValueError: wrong shape, or a bit past the last column is set.

    Example:
        >>> import numpy as np
        >>> b = BitMatrix.from_dense(np.array([[1, 0, 1], [0, 1, 1]]), "binary")
        >>> b
        BitMatrix(2x3, binary)
        >>> b @ np.array([1, 2, 3], dtype=np.float32)
        array([4., 5.], dtype=float32)
    """

    __slots__ = ("__weakref__", "_alphabet", "_cols", "_words")

    def __init__(
        self, words: NDArray[np.uint64], cols: int, alphabet: Alphabet, *, copy: bool = True
    ) -> None:
        cols = check.positive_int(cols, "cols")
        _packed(words, "words", np.dtype(np.uint64), cols)
        own = np.array(words, order="C", copy=True) if copy else np.ascontiguousarray(words)
        own.flags.writeable = False
        if not _core.tails_are_zero(own, cols):
            raise ValueError(
                f"words has ones past column {cols - 1}, the last; they must be 0: clear them or correct cols"
            )
        self._words: NDArray[np.uint64] = own
        self._cols = cols
        self._alphabet = check.alphabet(alphabet)

    # ------------------------------------------------------------ other representations

    @classmethod
    def from_dense(cls, entries: ArrayLike, alphabet: Alphabet, *, threads: int | None = None) -> BitMatrix:
        """Pack a dense matrix whose entries are all 0/1 or all -1/+1.

        Raises:
            TypeError: ``entries`` is not of a real number type.
            ValueError: not a non-empty matrix, or an entry outside the alphabet.
        """
        return cls._from_entries(entries, "entries", alphabet, resolve_threads(threads))

    @classmethod
    def _from_entries(cls, value: ArrayLike, name: str, alphabet: Alphabet, threads: int) -> BitMatrix:
        """:meth:`from_dense` for an argument called ``name``."""
        alphabet = check.alphabet(alphabet)
        entries = real_array(value, name)
        matrix_shape(entries.shape, name)
        zero, other = (0, "sign") if alphabet == "binary" else (-1, "binary")
        outside = (entries != zero) & (entries != 1)
        if outside.any():
            raise ValueError(
                f"{name} has entries other than {zero} and 1 ({bad_entries(outside, entries, name)}); "
                f"alphabet {alphabet!r} allows only these: correct them or use alphabet={other!r}"
            )
        rows, cols = entries.shape
        words = np.zeros((rows, _words_per_row(cols)), dtype=np.uint64)
        _core.pack(np.ascontiguousarray(entries, dtype=np.float32), words, threads)
        return cls(words, cols, alphabet, copy=False)

    @classmethod
    def from_packed_rows(cls, packed: NDArray[np.uint8], cols: int, alphabet: Alphabet) -> BitMatrix:
        """Make a BitMatrix from rows packed to bytes: the inverse of :meth:`packed_rows`.

        Args:
            packed: uint8 array of shape (rows, ceil(cols / 8)), as
                ``numpy.packbits(bits, axis=1, bitorder="little")`` makes it.
            cols: Number of columns.
            alphabet: ``"binary"`` or ``"sign"``.

        Raises:
            TypeError: ``packed`` is not a uint8 array.
            ValueError: wrong shape, or a bit past the last column is set.
        """
        cols = check.positive_int(cols, "cols")
        _packed(packed, "packed", np.dtype(np.uint8), cols)
        rows = packed.shape[0]
        padded = np.zeros((rows, 8 * _words_per_row(cols)), dtype=np.uint8)
        padded[:, : packed.shape[1]] = packed
        return cls(padded.view("<u8").astype(np.uint64, copy=False), cols, alphabet, copy=False)

    def packed_rows(self) -> NDArray[np.uint8]:
        """The bits as a new uint8 array of shape (rows, ceil(cols / 8)), each row in whole bytes.

        Equals ``numpy.packbits(bits, axis=1, bitorder="little")``.
        """
        rows, cols = self.shape
        as_bytes = self._words.astype("<u8", copy=False).view(np.uint8).reshape(rows, -1)
        return as_bytes[:, : -(-cols // 8)].copy()

    def to_dense(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """The entries as a dense matrix of shape (rows, cols): 0/1 or -1/+1."""
        wanted: np.dtype[Any] = np.dtype(dtype)
        if wanted.kind not in "fiubc" or (self.signs and wanted.kind in "ub"):
            kind = "a signed number type such as int8" if self.signs else "a number type such as uint8"
            raise TypeError(f"dtype is {wanted}; it must be {kind} for alphabet {self._alphabet!r}")
        dense = np.empty(self.shape, dtype=np.float32)
        zero = -1.0 if self.signs else 0.0
        _core.unpack(self._words, self._cols, zero, 1.0, dense, resolve_threads(None))
        return dense.astype(wanted, copy=False)

    # ------------------------------------------------------------ facts

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self._words.shape[0], self._cols

    @property
    def alphabet(self) -> Alphabet:
        """``"binary"`` (0/1) or ``"sign"`` (-1/+1)."""
        return self._alphabet

    @property
    def signs(self) -> bool:
        """Whether the bits stand for -1/+1."""
        return self._alphabet == "sign"

    @property
    def words(self) -> NDArray[np.uint64]:
        """The packed words, read-only, of shape (rows, ceil(cols / 64))."""
        return self._words

    @property
    def nbytes(self) -> int:
        """Bytes of the packed words, row padding included."""
        return self._words.nbytes

    @property
    def T(self) -> BitMatrix:
        """The transposed matrix, a new object (not a view)."""
        rows, cols = self.shape
        words = np.zeros((cols, _words_per_row(rows)), dtype=np.uint64)
        _core.transpose(self._words, cols, words)
        return BitMatrix(words, rows, self._alphabet, copy=False)

    # ------------------------------------------------------------ what the base class needs

    def _apply(self, x: NDArray[Any], transposed: bool, threads: int) -> NDArray[Any]:
        if x.dtype == np.float64:
            exponents = np.frexp(np.abs(x).max(axis=0))[1]
            scaled = np.ldexp(x, -exponents).astype(np.float32)
            return np.ldexp(self._apply(scaled, transposed, threads).astype(np.float64), exponents)
        rows, cols = self.shape
        result = np.zeros((cols if transposed else rows, x.shape[1]), dtype=np.float32)
        if x.shape[1] == 1:  # there is a kernel for one vector
            vector_kernel = _core.matvec_t if transposed else _core.matvec
            vector_kernel(self._words, cols, x.reshape(-1), self.signs, result.reshape(-1), threads)
        elif x.size:
            kernel = _core.matmul_t if transposed else _core.matmul
            kernel(self._words, cols, x, self.signs, result, threads)
        return result

    def _parts(self) -> tuple[NDArray[np.uint64], int, Alphabet]:
        return self._words, self._cols, self._alphabet

    def __repr__(self) -> str:
        rows, cols = self.shape
        return f"BitMatrix({rows}x{cols}, {self._alphabet})"


def column_blocks(matrix: BitMatrix) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Some columns after others, and their entries as float32: little memory, however wide the matrix is."""
    n, words = matrix.shape[1], matrix.words
    for first in range(0, words.shape[1], _BLOCK_WORDS):
        columns = slice(_WORD_BITS * first, min(n, _WORD_BITS * (first + _BLOCK_WORDS)))
        part = BitMatrix(
            words[:, first : first + _BLOCK_WORDS], columns.stop - columns.start, matrix.alphabet
        )
        yield columns, part.to_dense()


def _words_per_row(cols: int) -> int:
    return -(-cols // _WORD_BITS)


def _packed(array: Any, name: str, dtype: np.dtype[Any], cols: int) -> None:
    """Require an array of packed bits: shape (rows, ceil(cols / bits of ``dtype``)), at least one row."""
    units = -(-cols // (8 * dtype.itemsize))
    wanted = f"a {dtype} array of shape (rows, {units}) for {cols} columns"
    mend = "use BitMatrix.from_dense to pack a dense matrix"
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        what = f"of dtype {array.dtype}" if isinstance(array, np.ndarray) else describe(array)
        raise TypeError(f"{name} is {what}; it must be {wanted}; {mend}")
    if array.ndim != 2 or array.shape[0] == 0 or array.shape[1] != units:
        raise ValueError(f"{name} has shape {array.shape}; it must be {wanted}; {mend}")
