"""Rows of numbers of one or two bits, and their exact products.

A number of one bit is -1 or +1, one of two bits -3, -1, +1 or +3: uniform levels about zero. The bits lie in
planes, as ``cpp/src/product/bit_counts.hpp`` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from ._internal import check
from ._internal.check_arrays import real_array
from .runtime import resolve_threads

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Levels", "bitgemm"]

_MOST_COLUMNS = 2**27  # kMostCountedCols


class Levels:
    """An immutable matrix of numbers of one bit (-1, +1) or two (-3, -1, +1, +3), packed.

    Attributes:
        shape: (rows, columns).
        bits: 1 or 2.

    Example:
        >>> a = Levels.from_dense([[1, -1, 1], [-1, -1, 1]], 1)
        >>> bitgemm(a, a)
        array([[3, 1],
               [1, 3]], dtype=int32)
    """

    __slots__ = ("_words", "bits", "shape")

    def __init__(self, words: NDArray[np.uint64], cols: int) -> None:
        self._words = words
        self.bits = int(words.shape[0])
        self.shape = int(words.shape[1]), cols

    @classmethod
    def from_dense(cls, entries: ArrayLike, bits: int) -> Levels:
        """Pack a matrix whose entries are levels.

        Raises:
            TypeError: ``entries`` are no real numbers.
            ValueError: An entry is no level, there is none, or ``bits`` is neither 1 nor 2.
        """
        array = _matrix(entries)
        numbers = (array + _most(bits)) / 2
        if not np.isin(numbers, np.arange(2**bits)).all():
            known = "-1 or 1" if bits == 1 else "-3, -1, 1 or 3"
            raise ValueError(f"entries has others than {known}; use Levels.rounded(entries, bits={bits})")
        return cls(_packed(numbers.astype(np.uint8), bits), array.shape[1])

    @classmethod
    def rounded(
        cls, entries: ArrayLike, bits: int, step: ArrayLike | None = None, *, threads: int | None = None
    ) -> tuple[Levels, NDArray[np.float32]]:
        """Round the rows of a matrix to levels times a step: ``entries ~ step[:, None] * levels``.

        With one bit that is the sign; zero counts as -1. With two, a number is rounded to the nearest level,
        the one below where two are equally near. Numbers and steps are taken in float32.

        Args:
            entries: Shape (rows, columns).
            bits: 1 or 2.
            step: Of each row, positive, or 0 for a row of zeros. None: the mean of the absolute values with
                one bit, and with two the step of least error for normal numbers of the same root mean square.
            threads: Number of threads; None: ``diba.num_threads()``.

        Returns:
            The levels, and the step of each row, float32.

        Raises:
            TypeError: A value is of the wrong kind.
            ValueError: A shape or number is not possible, or not finite.
        """
        count = _most(bits).bit_length()
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(_matrix(entries), np.float32)
        if not np.isfinite(array).all():
            raise ValueError("entries has numbers beyond the range of float32; scale them down")
        if step is None:
            steps = np.empty(len(array), np.float32)
        else:
            steps = np.array(np.broadcast_to(real_array(step, "step"), array.shape[:1]), np.float32)
            if not ((steps > 0) | ((steps == 0) & ~array.any(1))).all():
                raise ValueError("step has entries that are not positive; all must be, but those of zeros")
        words = np.empty((count, len(array), -(-array.shape[1] // 64)), np.uint64)
        _core.round_rows(array, steps, step is None, words, resolve_threads(threads))
        return cls(words, array.shape[1]), steps

    def to_dense(self) -> NDArray[np.int8]:
        """The numbers, shape (rows, columns)."""
        planes = np.unpackbits(self._words.view(np.uint8), axis=-1, bitorder="little")[..., : self.shape[1]]
        numbers = sum(planes[p].astype(np.int8) << p for p in range(self.bits))
        return np.asarray(2 * numbers - _most(self.bits), np.int8)

    def __eq__(self, other: object) -> bool:
        """Equal shapes, bits and numbers."""
        if not isinstance(other, Levels):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self._words, other._words)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Shape and bits."""
        return f"Levels({self.shape[0]}x{self.shape[1]}, {self.bits} bit{'s' * (self.bits > 1)})"


def bitgemm(a: Levels, b: Levels, *, threads: int | None = None) -> NDArray[np.int32]:
    """The product a b' of packed numbers, exactly.

    Args:
        a: Shape (m, n).
        b: Shape (p, n); its numbers may have other bits than those of ``a``.
        threads: Number of threads; None: ``diba.num_threads()``.

    Returns:
        Shape (m, p).

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: The numbers of columns differ.
    """
    for name, value in (("a", a), ("b", b)):
        if not isinstance(value, Levels):
            raise TypeError(f"{name} is a {type(value).__name__}; it must be diba.Levels")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a has {a.shape[1]} columns and b {b.shape[1]}; they must have as many")
    out = np.empty((a.shape[0], b.shape[0]), np.int32)
    _core.bit_products(a._words, b._words, a.shape[1], out, resolve_threads(threads))
    return out


def _most(bits: Any) -> int:
    """The largest number of so many bits."""
    if check.integer(bits, "bits", minimum=1) not in (1, 2):
        raise ValueError(f"bits is {bits}; it must be 1 or 2")
    return int(2**bits - 1)


def _matrix(entries: ArrayLike) -> NDArray[Any]:
    array = np.asarray(real_array(entries, "entries"))
    if array.ndim != 2 or 0 in array.shape or array.shape[1] > _MOST_COLUMNS:
        raise ValueError(f"entries has shape {array.shape}; it must be a matrix with at most 2^27 columns")
    if not np.isfinite(array).all():
        raise ValueError("entries has NaN or infinite entries; all must be finite")
    return array


def _packed(numbers: NDArray[np.uint8], bits: int) -> NDArray[np.uint64]:
    """Planes of bits in rows of whole words, (bits, rows, words)."""
    rows, columns = numbers.shape
    planes = np.zeros((bits, rows, -(-columns // 64) * 8), np.uint8)
    for p in range(bits):
        packed = np.packbits(numbers >> p & 1, axis=1, bitorder="little")
        planes[p, :, : packed.shape[1]] = packed
    return planes.view(np.uint64)
