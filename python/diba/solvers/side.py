"""One binary factor with its outer diagonal, as ADMM and greedy both use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import _core

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..bits import BitMatrix

__all__ = ["Side"]


class Side:
    """``X = diag(scale) B``, shape (rows, k): a binary factor with its outer diagonal.

    The left side is ``D1 B1``; the right side is ``D3 B2'``, with A transposed. Products of X are computed
    when they are first asked for, and kept until X changes.

    Args:
        bits: Start of B, shape (rows, k).
        scale: Start of the diagonal, shape (rows,); None for ones.
        A: Matrix to factor, float32, shape (rows, p), or (p, rows) if ``transposed``.
        threads: Threads of the compiled code.
        transposed: Whether to use the transpose of A.
        unit: Number to divide A by.

    Attributes:
        words: B, packed, shape (rows, ceil(k / 64)).
        scale: The diagonal, shape (rows,).
    """

    def __init__(
        self,
        bits: BitMatrix,
        scale: NDArray[np.float32] | None,
        A: NDArray[np.float32],
        threads: int,
        *,
        transposed: bool = False,
        unit: float = 1.0,
    ) -> None:
        self.rows, self.k = bits.shape
        self.signs = bits.signs
        self.words = bits.words.copy()
        self.scale = np.ones(self.rows, dtype=np.float32) if scale is None else scale.astype(np.float32)
        self._A = _core.TiledMatrix(A, transposed, unit)
        self.threads = threads
        self._gram = np.empty((self.k, self.k), dtype=np.float32)
        self._correlations = np.empty((A.shape[0 if transposed else 1], self.k), dtype=np.float32)
        self._columns = np.empty((self.k, -(-self.rows // 64)), dtype=np.uint64)
        self.bits_changed()

    def bits_changed(self) -> None:
        """To be called after ``words`` was changed."""
        _core.transpose(self.words, self.k, self._columns)
        self.scale_changed()

    def scale_changed(self) -> None:
        """To be called after ``scale`` was changed."""
        self._has_gram = False
        self._has_correlations = False

    def dense(self) -> NDArray[np.float32]:
        """B as a dense matrix, shape (rows, k)."""
        entries = np.empty((self.rows, self.k), dtype=np.float32)
        _core.unpack(self.words, self.k, -1.0 if self.signs else 0.0, 1.0, entries, self.threads)
        return entries

    @property
    def gram(self) -> NDArray[np.float32]:
        """X'X, shape (k, k); the array is overwritten after the next change."""
        if not self._has_gram:
            self._fill_gram(np.square(self.scale))
            self._has_gram = True
        return self._gram

    @property
    def correlations(self) -> NDArray[np.float32]:
        """A'X, shape (p, k); the array is overwritten after the next change."""
        if not self._has_correlations:
            self._fill_correlations()
            self._has_correlations = True
        return self._correlations

    def _fill_gram(self, weights: NDArray[np.float32]) -> None:
        """B' diag(weights) B."""
        _core.gram(self._columns, self.rows, weights, self.signs, self._gram, self.threads)

    def _fill_correlations(self) -> None:
        _core.correlate(self._columns, self._A, self.scale, self.signs, self._correlations, self.threads)
