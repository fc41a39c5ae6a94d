"""The base classes of approximations of dense matrices: of all, and of those by bits and diagonals."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bits import BitMatrix
from ..operator import PackedOperator
from . import check, check_arrays, storage
from .snr import energy_and_error, snr_db

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["ApproximateMatrix", "FactoredMatrix"]


class ApproximateMatrix(PackedOperator):
    """An immutable packed matrix that stands for a dense one: its size, its dense form, and its error."""

    __slots__ = ()

    @abstractmethod
    def _blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Column slices and the dense blocks of shape (m, width)."""

    @property
    @abstractmethod
    def bits_per_weight(self) -> float:
        """Stored bits for each entry of the matrix."""

    @property
    def storage_ratio(self) -> float:
        """``bits_per_weight / 32``: size relative to a float32 matrix."""
        return self.bits_per_weight / 32

    def to_dense(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """The dense matrix, computed in float32, of shape (m, n); temporaries take a few MB."""
        dense = np.empty(self.shape, dtype=dtype)
        for columns, block in self._blocks():
            dense[:, columns] = block
        return dense

    def snr_db(self, A: ArrayLike) -> float:
        """Signal-to-noise ratio against A in dB: ``10 log10(|A|^2 / |A - f|^2)``.

        Sums are in float64. ``inf`` for an exact fit, ``-inf`` if A is zero and f is not.

        Raises:
            TypeError: ``A`` is not an array of real numbers.
            ValueError: ``A`` does not have this shape or is not finite.
        """
        A = check_arrays.real_matrix(A, "A")
        check.equal(A.shape, "the shape of A", self.shape, f"shape of the {type(self).__name__}")
        return snr_db(*energy_and_error(A, self))


class FactoredMatrix(ApproximateMatrix):
    """An immutable product of alternating diagonals and bit matrices, with a diagonal at both ends."""

    __slots__ = ()

    # ------------------------------------------------------------ facts

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        parts = self._parts()
        return parts[0].size, parts[-1].size

    @property
    def diagonal_bits(self) -> int:
        """16 if every diagonal is one power of two times float16 values exactly, else 32."""
        return 16 if all(storage.fits_16(d) for d in self._parts()[::2]) else 32

    @property
    def nbytes(self) -> int:
        """Bytes in memory: packed words and float32 diagonals.

        ``8 * nbytes`` is the number of entries of the bit matrices, plus 32 for each entry of a diagonal,
        plus ``padding_bits``.
        """
        return sum(part.nbytes for part in self._parts())

    @property
    def padding_bits(self) -> int:
        """Unused bits in memory, where every row of a bit matrix fills whole 64-bit words."""
        return self._padding(64)

    def _padding(self, unit: int) -> int:
        return sum(b.shape[0] * (-b.shape[1] % unit) for b in self._parts()[1::2])

    # ------------------------------------------------------------ products

    def _apply(self, x: NDArray[Any], transposed: bool, threads: int) -> NDArray[Any]:
        """In steps of float32: ``d1 * (B1 (d2 * (B2 (d3 * x))))``, or the transpose of that."""
        made: NDArray[Any] | None = None  # an array that may be overwritten: not the operand
        for part in self._parts() if transposed else reversed(self._parts()):
            if isinstance(part, BitMatrix):
                x = made = part._apply(x, transposed, threads)
            else:
                x = np.multiply(x, part[:, None], out=made)
        return x
