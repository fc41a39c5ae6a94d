"""Bit matrices: packed 0/1 or -1/+1 matrices and their exact products.

The storage layout is stated in ``cpp/src/layout/bit_matrix.hpp``: row-major,
bit j of a row is bit ``j % 64`` of its 64-bit word ``j // 64``, every row starts
on a new word, bits past the last column are zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from ._internal import check
from ._internal.operator import PackedOperator
from .runtime import resolve_threads

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from ._internal.check import Alphabet, FloatArray

__all__ = ["BitMatrix"]

_WORD_BITS = 64


class BitMatrix(PackedOperator):
    """An immutable matrix of single bits, read as 0/1 or as -1/+1.

    It multiplies dense arrays from either side: ``b @ x``, ``b @ X``, ``X @ b``,
    and ``matvec``, ``rmatvec``, ``matmul``, ``rmatmul`` with ``threads``.

    Args:
        words: uint64 array of shape (rows, ceil(cols / 64)), bits past ``cols`` zero.
        cols: Number of columns.
        alphabet: ``"binary"``: bits 0, 1 are the entries 0, 1;
            ``"sign"``: they are the entries -1, +1.
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
        check.packed_words(words, cols)
        own = np.array(words, order="C", copy=True) if copy else np.ascontiguousarray(words)
        own.flags.writeable = False
        check.zero_tails(_core.tails_are_zero(own, cols), cols)
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
        alphabet = check.alphabet(alphabet)
        return cls._pack(check.alphabet_matrix(entries, "entries", alphabet), alphabet, threads)

    @classmethod
    def _pack(cls, entries: FloatArray, alphabet: Alphabet, threads: int | None = None) -> BitMatrix:
        """Pack entries already known to be in the alphabet."""
        rows, cols = entries.shape
        words = np.zeros((rows, _words_per_row(cols)), dtype=np.uint64)
        _core.pack(np.ascontiguousarray(entries, dtype=np.float32), words, resolve_threads(threads))
        return cls(words, cols, alphabet, copy=False)

    @classmethod
    def from_packed_rows(cls, packed: NDArray[np.uint8], cols: int, alphabet: Alphabet) -> BitMatrix:
        """The inverse of :meth:`packed_rows`.

        Args:
            packed: uint8 array of shape (rows, ceil(cols / 8)), as
                ``numpy.packbits(bits, axis=1, bitorder="little")`` makes it.
            cols: Number of columns.
            alphabet: How the bits are read.

        Raises:
            TypeError: ``packed`` is not a uint8 array.
            ValueError: wrong shape, or a bit past the last column is set.
        """
        cols = check.positive_int(cols, "cols")
        check.packed_bytes(packed, cols)
        rows = packed.shape[0]
        padded = np.zeros((rows, 8 * _words_per_row(cols)), dtype=np.uint8)
        padded[:, : packed.shape[1]] = packed
        return cls(padded.view("<u8").astype(np.uint64, copy=False), cols, alphabet, copy=False)

    def packed_rows(self) -> NDArray[np.uint8]:
        """The bits as uint8 of shape (rows, ceil(cols / 8)), each row cut to whole bytes.

        Equals ``numpy.packbits(bits, axis=1, bitorder="little")``. A fresh array.
        """
        rows, cols = self.shape
        as_bytes = self._words.astype("<u8", copy=False).view(np.uint8).reshape(rows, -1)
        return as_bytes[:, : -(-cols // 8)].copy()

    def to_dense(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """The entries as a dense matrix of shape (rows, cols): 0/1 or -1/+1."""
        wanted = check.entry_dtype(dtype, self._alphabet)
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

    def _apply(self, x: NDArray[np.float32], transposed: bool, threads: int) -> NDArray[np.float32]:
        rows, cols = self.shape
        result = np.zeros((cols if transposed else rows, *x.shape[1:]), dtype=np.float32)
        if x.ndim == 1:
            kernel = _core.matvec_t if transposed else _core.matvec
        else:
            kernel = _core.matmul_t if transposed else _core.matmul
        if x.size:  # X may have no columns
            kernel(self._words, cols, x, self.signs, result, threads)
        return result

    def _apply_wide(self, x: NDArray[np.float64], transposed: bool, threads: int) -> NDArray[np.float64]:
        exponents = np.frexp(np.abs(x).max(axis=0))[1]
        scaled = np.ldexp(x, -exponents).astype(np.float32)
        if x.shape[1] == 1:  # one vector has a kernel of its own
            scaled = scaled[:, 0]
        sums = self._apply(scaled, transposed, threads).reshape(-1, x.shape[1])
        return np.ldexp(sums.astype(np.float64), exponents)

    # ------------------------------------------------------------ object protocol

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BitMatrix):
            return NotImplemented
        return (
            self.shape == other.shape
            and self._alphabet == other._alphabet
            and np.array_equal(self._words, other._words)
        )

    def __hash__(self) -> int:
        return hash((self.shape, self._alphabet, self._words.tobytes()))

    def __reduce__(self) -> tuple[type[BitMatrix], tuple[NDArray[np.uint64], int, Alphabet]]:
        return BitMatrix, (self._words, self._cols, self._alphabet)

    def __copy__(self) -> BitMatrix:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> BitMatrix:
        return self

    def __repr__(self) -> str:
        rows, cols = self.shape
        return f"BitMatrix({rows}x{cols}, {self._alphabet})"


def _words_per_row(cols: int) -> int:
    return -(-cols // _WORD_BITS)
