"""APB: a matrix of one magnitude and two signs, apart from a few entries that are stored as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from . import _core
from ._internal import binarized_file, check, check_arrays, storage
from ._internal.check_arrays import saturated
from ._internal.disk import PathLike, open_regular
from ._internal.sparse_rows import SparseRows, stored_bits
from ._internal.tabulated import TabulatedMatrix
from .bits import BitMatrix, column_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

__all__ = ["APB"]


class APB(TabulatedMatrix):
    """An immutable m x n matrix in the form ``diag(alpha) S + E``, S a sign matrix and E sparse.

    It multiplies like a dense matrix, with the methods of :class:`diba.Factorization`: the signs from tables
    at the fast precision, E always in float32. Transposed products (``X @ f``, ``rmatvec``) are exact.

    Args:
        alpha: One finite number for the matrix, shape (1,), or one for each row, shape (m,).
        signs: Bit matrix of shape (m, n) and alphabet ``"sign"``.
        starts: Where the entries of E begin in each row, and their number: integers (m + 1), ascending.
        columns: Columns of the entries of E, ascending in each row.
        values: The entries of E: what is added to ``alpha`` times the sign.

    Raises:
        TypeError: ``signs`` is not a BitMatrix, or another argument is not an array of such numbers.
        ValueError: shapes disagree, the alphabet is not ``"sign"``, an entry is not finite in float32 or out
            of order.

    Source:
        Nardini et al., "Neural Network Compression using Binarization and Few Full-Precision Weights",
        arXiv 2306.08960.
    """

    __slots__ = ("__weakref__", "_alpha", "_signs", "_sparse")

    def __init__(
        self, alpha: ArrayLike, signs: BitMatrix, starts: ArrayLike, columns: ArrayLike, values: ArrayLike
    ) -> None:
        check.instance(signs, "signs", BitMatrix, "use BitMatrix.from_dense for plain arrays")
        check.equal(signs.alphabet, "the alphabet of signs", "sign", "alphabet of entries -1 and +1")
        self._signs = signs
        one = np.shape(alpha) == (1,)
        self._alpha = check_arrays.diagonal(alpha, "alpha", 1 if one else signs.shape[0], "rows of signs")
        self._sparse = SparseRows(starts, columns, values, signs.shape)
        self._packed: _core.Packed | None = None

    # ------------------------------------------------------------ parts

    @property
    def alpha(self) -> NDArray[np.float32]:
        """The magnitude, read-only, of shape (1,), or one of each row, (m,)."""
        return self._alpha

    @property
    def signs(self) -> BitMatrix:
        """The sign matrix S, of shape (m, n)."""
        return self._signs

    @property
    def starts(self) -> NDArray[np.uint32]:
        """Where the entries of E begin in each row, read-only, of shape (m + 1,)."""
        return self._sparse.starts

    @property
    def columns(self) -> NDArray[Any]:
        """The columns of the entries of E, read-only: uint8, uint16 or uint32, as small as n allows."""
        return self._sparse.columns

    @property
    def values(self) -> NDArray[np.float32]:
        """The entries of E, read-only."""
        return self._sparse.values

    # ------------------------------------------------------------ facts

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self._signs.shape

    @property
    def exceptions(self) -> float:
        """The share of the entries of the matrix that E has, from 0 to 1."""
        m, n = self.shape
        return self._sparse.values.size / (m * n)

    @property
    def bits_per_weight(self) -> float:
        """``[m n + q |alpha| + c m + s (w + v)] / (m n)``; padding not counted.

        q and v are the bits of an alpha and of a value: 16 if all of them are one power of two times float16
        values exactly, else 32. c: bits of the number of entries of a row, 16, or 32 from 65536 columns on.
        s: entries of E. w: bits of a column, 8 up to 256 columns, 16 up to 65536, else 32.
        """
        m, n = self.shape
        alpha = self._alpha.size * (16 if storage.fits_16(self._alpha) else 32)
        sparse = stored_bits(m, n, self._sparse.values.size, self._sparse.value_bits)
        return (m * n + alpha + sparse) / (m * n)

    @property
    def nbytes(self) -> int:
        """Bytes in memory: packed words, float32 alpha and values, starts and columns."""
        return self._signs.nbytes + self._alpha.nbytes + self._sparse.nbytes

    @property
    def T(self) -> APB:
        """The transposed matrix, a new object (not a view).

        Raises:
            ValueError: alpha has an entry for each row, and the transposed matrix none for its columns.
        """
        if self._alpha.size > 1:
            raise ValueError(
                "alpha has an entry for each row, so the transpose has no such form: use x @ M or rmatvec"
            )
        turned = self._sparse.T
        return APB(self._alpha, self._signs.T, turned.starts, turned.columns, turned.values)

    # ------------------------------------------------------------ files

    def save(self, path: PathLike) -> None:
        """Write a file (``_internal/binarized_file.py`` has its format), whole or not at all.

        Raises:
            TypeError: ``path`` is not a path.
            OSError: the folder does not exist or cannot be written.
        """
        binarized_file.write(check.path(path), self._alpha, self._signs, self._sparse)

    @classmethod
    def load(cls, path: PathLike) -> APB:
        """Read a file that :meth:`save` wrote.

        Raises:
            OSError: the file cannot be opened.
            diba.FormatError: it is not such a file, is damaged, or has a newer format version.
        """
        name = check.path(path)
        with open_regular(name) as file:
            return cls._decoded(file, name)

    @classmethod
    def _decoded(cls, file: BinaryIO, name: str) -> APB:
        """Read an open file, or bytes in memory, like :meth:`load`; ``name`` is used in messages."""
        alpha, signs, sparse = binarized_file.decode(file, name)
        return cls(alpha, signs, sparse.starts, sparse.columns, sparse.values)

    # ------------------------------------------------------------ what the base classes need

    def _pack(self) -> _core.Packed:
        check.fits_tables(self.shape[1])
        E = self._sparse
        return _core.pack_binarized(
            self._alpha, self._signs.words, self.shape[1], E.starts, E.columns, E.values
        )

    def _blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        for columns, block in column_blocks(self._signs):
            block *= self._alpha[:, None]
            with np.errstate(over="ignore"):
                self._sparse.add_to(block, columns)
            yield columns, saturated(block)

    def _apply(self, x: NDArray[Any], transposed: bool, threads: int) -> NDArray[Any]:
        """In steps of float32: ``alpha * (S x) + E x``, or ``S' (alpha * x) + E' x``."""
        alpha = self._alpha[:, None]
        if transposed:
            result = self._signs._apply(alpha * x, True, threads)
            result += self._sparse.T.multiply(x, threads)
        else:
            result = self._signs._apply(x, False, threads)
            result *= alpha
            result += self._sparse.multiply(x, threads)
        return result

    def _parts(self) -> tuple[Any, ...]:
        return self._alpha, self._signs, self.starts, self.columns, self.values

    def __repr__(self) -> str:
        m, n = self.shape
        return f"APB({m}x{n}, {self.exceptions:.2%} exceptions, {self.bits_per_weight:.2f} bits/weight)"
