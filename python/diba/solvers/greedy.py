"""DiBA-Greedy, Algorithm 1 of Ono, "DiBA", arXiv 2605.05994.

Alternate until the objective ``|A - D1 B1 D2 B2 D3|^2`` stalls; no step ever raises it:

1. the three diagonals, each in closed form;
2. the rows of B1, then the columns of B2, by exact one-bit improvement tests.

Both binary factors are the same problem: rows of bits against a fixed matrix, the columns of
B2 being the rows of B2' for A'. A :class:`Side` is one of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .. import _core
from ..bits import BitMatrix
from .diagonals import best_inner_scale, best_row_scale, inner_objective, weighted_column_products

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

__all__ = ["Greedy", "Side"]

_WORK_PER_CALL = 1 << 30  # rows * k^2 of one C++ call: a fraction of a second, so that Ctrl-C is prompt
_EXACT = 1e-11  # of |A|^2: an objective this small is rounding


class Side:
    """``X = diag(scale) B``: one binary factor with the diagonal outside it, shape (rows, k).

    What follows from X is made when it is first asked for and dropped when X changes.

    Args:
        bits: Start of B, shape (rows, k).
        A: The matrix with this side's rows as its columns, float32, shape (p, rows).
        threads: Threads of the bit kernels.
    """

    def __init__(self, bits: BitMatrix, A: NDArray[np.float32], threads: int) -> None:
        self.rows, self.k = bits.shape
        self.signs = bits.signs
        self.words = bits.words.copy()
        self.scale = np.ones(self.rows, dtype=np.float32)
        self._A = A
        self._threads = threads
        self._scaled_A = np.empty_like(A)
        self.bits_changed()

    def bits_changed(self) -> None:
        """Forget what followed from the bits."""
        self._columns: NDArray[np.uint64] | None = None
        self.scale_changed()

    def scale_changed(self) -> None:
        """Forget what followed from the scale."""
        self._gram: NDArray[np.float32] | None = None
        self._correlations: NDArray[np.float32] | None = None

    def entries(self) -> NDArray[np.float32]:
        """B as float32, shape (rows, k)."""
        return _dense(self.words, self.k, self.signs, self._threads)

    def times(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """B x for x of shape (k, p)."""
        out = np.empty((self.rows, x.shape[1]), dtype=np.float32)
        _core.matmul(self.words, self.k, x, self.signs, out, self._threads)
        return out

    @property
    def gram(self) -> NDArray[np.float32]:
        """X'X, shape (k, k)."""
        if self._gram is None:
            columns = _dense(self._transposed(), self.rows, self.signs, self._threads)
            columns *= np.square(self.scale)
            self._gram = self._times_bits(columns)
        return self._gram

    @property
    def correlations(self) -> NDArray[np.float32]:
        """A X, shape (p, k)."""
        if self._correlations is None:
            self._correlations = self._times_bits(np.multiply(self._A, self.scale, out=self._scaled_A))
        return self._correlations

    def _transposed(self) -> NDArray[np.uint64]:
        if self._columns is None:
            self._columns = np.empty((self.k, -(-self.rows // 64)), dtype=np.uint64)
            _core.transpose(self.words, self.k, self._columns)
        return self._columns

    def _times_bits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """x B for x of shape (p, rows)."""
        out = np.empty((x.shape[0], self.k), dtype=np.float32)
        _core.matmul_rows(self._transposed(), self.rows, x, self.signs, out, self._threads)
        return out


def _dense(words: NDArray[np.uint64], cols: int, signs: bool, threads: int) -> NDArray[np.float32]:
    dense = np.empty((words.shape[0], cols), dtype=np.float32)
    _core.unpack(words, cols, -1.0 if signs else 0.0, 1.0, dense, threads)
    return dense


class Greedy:
    """The state of one run; each step is a method and may be called in any order.

    Args:
        A: Matrix to factor, float32, shape (m, n), entries of magnitude up to about 1.
        b1: Start of B1, shape (m, k).
        b2: Start of B2, shape (k, n).
        threads: Threads of the bit kernels.
        cyclic: Visit the bits of a row in order instead of taking the best flip each time.
    """

    def __init__(
        self, A: NDArray[np.float32], b1: BitMatrix, b2: BitMatrix, threads: int, cyclic: bool = False
    ) -> None:
        self.energy = float(np.vdot(A, A.astype(np.float64)))
        self.left = Side(b1, np.ascontiguousarray(A.T), threads)
        self.right = Side(b2.T, A, threads)
        self.d2 = np.zeros(b1.shape[1], dtype=np.float32)
        self.objective = self.energy
        self.flips = 0
        self._cyclic = cyclic
        self._threads = threads
        self.fit_inner()

    # ------------------------------------------------------------ Algorithm 1

    def iterate(self, max_iter: int, tol: float) -> Iterator[int]:
        """Run, yielding the number of finished iterations after each."""
        for iteration in range(1, max_iter + 1):
            before = self.objective
            self.flips = 0
            for step in self.steps():
                step()
            yield iteration
            if before - self.objective <= tol * before or self.objective <= _EXACT * self.energy:
                break

    def steps(self) -> tuple[Callable[[], None], ...]:
        """One iteration: the diagonals d3, d1, d2, then rows, then columns."""
        return self.fit_columns, self.fit_rows, self.fit_inner, self.flip_rows, self.flip_columns

    def fit_rows(self) -> None:
        """d1 in closed form."""
        self._fit(self.left, self.right)

    def fit_columns(self) -> None:
        """d3 in closed form."""
        self._fit(self.right, self.left)

    def fit_inner(self) -> None:
        """d2 in closed form; kept as it is where rounding would make it worse."""
        gram = np.multiply(self.left.gram, self.right.gram, dtype=np.float64)
        correlations = weighted_column_products(self.left.scale, self.left.entries(), self.right.correlations)
        candidates = [self.d2.astype(np.float64), best_inner_scale(gram, correlations)]
        objectives = [inner_objective(d2, gram, correlations, self.energy) for d2 in candidates]
        best = int(objectives[1] < objectives[0])
        self.d2 = candidates[best].astype(np.float32)
        self.objective = max(objectives[best], 0.0)

    def flip_rows(self) -> None:
        """Bits of B1, row by row."""
        self._flip(self.left, self.right)

    def flip_columns(self) -> None:
        """Bits of B2, column by column."""
        self._flip(self.right, self.left)

    # ------------------------------------------------------------ one side against X of the other

    def _fit(self, side: Side, other: Side) -> None:
        correlations = other.correlations * self.d2
        curvatures = side.times(self._gram_of(other))
        side.scale = best_row_scale(side.entries(), correlations, curvatures)
        side.scale_changed()

    def _flip(self, side: Side, other: Side) -> None:
        gram = self._gram_of(other)
        residual = side.times(gram)  # G = A C' - diag(scale) B H with C = D2 X'
        residual *= -side.scale[:, None]
        residual += other.correlations * self.d2
        rows = max(64, _WORK_PER_CALL // side.k**2)
        for first in range(0, side.rows, rows):
            part = slice(first, first + rows)
            flips, decrease = _core.greedy_rows(
                gram,
                residual[part],
                side.scale[part],
                side.words[part],
                side.signs,
                self._cyclic,
                self._threads,
            )
            self.flips += flips
            self.objective = max(self.objective - decrease, 0.0)
        side.bits_changed()

    def _gram_of(self, other: Side) -> NDArray[np.float32]:
        """H = C C' with C = D2 X'."""
        return other.gram * np.outer(self.d2, self.d2)

    # ------------------------------------------------------------ result

    @property
    def snr(self) -> float:
        """``10 log10(|A|^2 / objective)`` in dB."""
        if self.objective <= 0:
            return math.inf
        return 10 * math.log10(self.energy / self.objective) if self.energy else -math.inf

    def bits(self) -> tuple[BitMatrix, BitMatrix]:
        """B1 (m x k) and B2 (k x n)."""
        alphabet = "sign" if self.left.signs else "binary"
        right = BitMatrix(self.right.words, self.right.k, alphabet)
        return BitMatrix(self.left.words, self.left.k, alphabet), right.T

