"""Descent on the error of a layer's outputs: ``tr((A - F) S (A - F)')`` with S = E[x x'] of its inputs x.

The alternation is that of ``greedy`` under the inner product of S, from factors that are good
already; no step raises the objective. With ``C = D2 B2 D3`` and X = ``D3 B2'``:

- the left side, its scales and d2 need only ``C S C'`` in place of ``C C'`` and A S in place of A;
- the columns of the right side are no longer independent. With ``G = L'L``, ``L = D1 B1 D2`` and
  ``W = L'(A - F) S`` (k x n), column q is a row problem of its own, Gram matrix ``S_qq G`` and residual
  correlations ``W_q``; a step u of ``G d3_q b_q`` moves the columns after it by ``-u S_q``. Blocks of
  columns keep these updates inside, and reach the rest in one matrix product, as GPTQ does
  (Frantar et al., arXiv 2210.17323).

S is shrunk towards its diagonal first, since S is estimated from a sample.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .. import _core
from .._internal import storage
from ..bits import BitMatrix
from ..factorization import Factorization
from .greedy import Greedy
from .objective import normalised
from .side import Side

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .._internal.check import FloatArray
    from .schedule import Deadline, Schedule

__all__ = ["Correlated", "descend"]

_NO_POWER = 2.0**-60  # of an input's mean square, the largest being about 1: it would drown in rounding
_BEYOND = 2.0**127  # no diagonal of float32 gets there
_BLOCK = 32  # columns that are brought up to date one by one
_ROWS_AT_ONCE = 1024  # in float64


class _InputSide(Side):
    """The right side under S: its Gram matrix is ``X' S X``.

    Args:
        bits: B2', shape (n, k).
        scale: d3.
        AS: ``A S``, shape (m, n), so that ``correlations`` are those with A S.
        S: Float32, shape (n, n).
        threads: Threads of the bit kernels.
    """

    def __init__(
        self,
        bits: BitMatrix,
        scale: NDArray[np.float32] | None,
        AS: NDArray[np.float32],
        S: NDArray[np.float32],
        threads: int,
    ) -> None:
        super().__init__(bits, scale, AS, threads, transposed=True)
        self._S = S

    @property
    def gram(self) -> NDArray[np.float32]:
        """X' S X, shape (k, k)."""
        if not self._has_gram:
            X = self.dense()
            X *= self.scale[:, None]
            self._image = self._S @ X
            self._gram = X.T @ self._image
            self._has_gram = True
        return self._gram

    @property
    def image(self) -> NDArray[np.float32]:
        """S X, shape (n, k)."""
        _ = self.gram
        return self._image


class Correlated(Greedy):
    """Greedy in the inner product of S; ``objective`` and ``energy = tr(A S A')`` are in it.

    Args:
        A: Matrix to factor, float32, shape (m, n), entries of magnitude up to about 1.
        S: Symmetric positive semidefinite, float32, shape (n, n), of the same magnitude.
        b1: Start of B1, shape (m, k).
        b2: Start of B2, shape (k, n).
        d1: Start of the row scales.
        d3: Start of the column scales.
        threads: Threads of the bit kernels.
    """

    right: _InputSide

    def __init__(
        self,
        A: NDArray[np.float32],
        S: NDArray[np.float32],
        b1: BitMatrix,
        b2: BitMatrix,
        d1: NDArray[np.float32],
        d3: NDArray[np.float32],
        threads: int,
    ) -> None:
        self._S = S
        AS = A @ S
        super().__init__(AS, b1, b2, threads, d1=d1, d2=np.zeros(b2.shape[0], np.float32), d3=d3)
        parts = (slice(first, first + _ROWS_AT_ONCE) for first in range(0, len(A), _ROWS_AT_ONCE))
        self.energy = sum(float(np.vdot(A[part].astype(np.float64), AS[part])) for part in parts)
        self.fit_inner()

    def _right_side(
        self, bits: BitMatrix, scale: NDArray[np.float32] | None, A: NDArray[np.float32], threads: int
    ) -> Side:
        return _InputSide(bits, scale, A, self._S, threads)

    def steps(self) -> tuple[Callable[[], None], ...]:
        """One iteration: d1 and rows, d3 and columns, d2 (fitted at the start, too)."""
        return self.fit_rows, self.flip_rows, self.flip_columns, self.fit_inner

    def fit_columns(self) -> None:
        """Nothing: flip_columns fits the scale of each column before its bits.

        All of d3 at once, an n x n system, doubles the time and ends within 0.03 dB on either side.
        """

    def flip_columns(self) -> None:
        """Columns in order: the scale of each in closed form, then its bits; later ones see the change."""
        right, (gram, correlations) = self.right, self._against_left()
        entries = right.dense()
        curves = entries @ gram  # rows G b_q
        squares = np.einsum("ij,ij->i", entries, curves)
        weights = self._S.diagonal()
        W = correlations - right.image @ gram  # (n, k), row q: correlations of the residual with column q
        for first in range(0, right.rows, _BLOCK):
            if self._deadline.over():
                break
            block = range(first, min(first + _BLOCK, right.rows))
            steps = np.zeros((len(block), right.k), dtype=np.float32)
            for q in block:
                if not weights[q] > _NO_POWER:
                    continue  # an input that is always 0, or as good as that
                g = W[q] / weights[q]
                step = steps[q - first]
                step[:] = g
                self._best_column(q, g, entries[q], curves[q], float(squares[q]), gram, float(weights[q]))
                step -= g
                W[q + 1 : block.stop] -= np.outer(self._S[q + 1 : block.stop, q], step)
            W[block.stop :] -= self._S[block.stop :, first : block.stop] @ steps
        right.bits_changed()
        self._rows_problem = None

    def _best_column(
        self,
        q: int,
        g: NDArray[np.float32],
        b: NDArray[np.float32],
        curve: NDArray[np.float32],
        square: float,
        gram: NDArray[np.float32],
        weight: float,
    ) -> None:
        """Scale and bits of column q; g, its residual correlations by S_qq, is kept up to date."""
        right = self.right
        before = right.scale[q]
        if square > 0:  # else a column of zeros: its scale waits for a bit
            right.scale[q] += np.float32(float(b @ g) / square)
        moved = right.scale[q] - before
        decrease = float(moved) * (2 * float(b @ g) - float(moved) * square)
        g -= moved * curve
        flips, gained = _core.greedy_rows(
            gram,
            g[None],
            right.scale[q : q + 1],
            right.words[q : q + 1],
            right.signs,
            1,
            self._pairs,
        )
        self.flips += flips
        self._lower_objective(weight * (decrease + gained))

    def _against_left(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(G = L'L, shape (k, k); (L'A S)', shape (n, k)) for L = D1 B1 D2."""
        return self.left.gram * np.outer(self.d2, self.d2), self.left.correlations * self.d2


def descend(
    A: FloatArray,
    start: Factorization,
    S: NDArray[np.float64],
    *,
    schedule: Schedule,
    deadline: Deadline,
    threads: int,
    iterations: int = 20,
    tol: float = 1e-4,
) -> list[Factorization]:
    """Lower ``tr((A - F) S (A - F)')`` from given factors by descent on diagonals and bits.

    Args:
        A: Checked matrix, shape (m, n).
        start: Factors of A, best those of ``importance=(None, input_scales(S))``.
        S: Second moments of the inputs, symmetric positive semidefinite, shape (n, n): see ``shrunk``.
        schedule: Told of the start and every iteration; objective and SNR are those in S.
        deadline: When to stop: no step begins after it.
        threads: Threads of the bit kernels.
        iterations: At most.
        tol: Stop when an iteration lowers the objective by less than this share of it.

    Returns:
        The factors it ends with, where they are finite, and ``start``, all with 16-bit diagonals. To be
        measured in float64: rounding may have made the first ones worse.
    """
    rounded = start.round_diagonals()
    if deadline.over():
        return [rounded]
    scaled, exponent = normalised(A)
    exponent_of_S = math.frexp(float(S.diagonal().max()))[1]
    weights = np.ldexp(S, -exponent_of_S).astype(np.float32)
    d1, d3 = (np.ldexp(d, -storage.exponent(d)) for d in (start.d1, start.d3))
    run = Correlated(scaled, weights, start.b1, start.b2, d1, d3, threads)
    del scaled, weights
    stage = schedule.stage(deadline, 2 * exponent + exponent_of_S, iterations)
    stage.report(0, run.energy, run.objective)
    for iteration in range(1, iterations + 1):
        before = run.objective
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is not taken
            run.sweep(deadline)
        if not math.isfinite(run.objective):
            break
        stage.report(iteration, run.energy, run.objective, run.flips)
        if not before - run.objective > tol * before:
            break
    found = _finished(run, start, exponent)
    return [rounded] if found is None else [found, rounded]


def _finished(run: Correlated, start: Factorization, exponent: int) -> Factorization | None:
    """Factors of A, with d1 and d3 at the scales of ``start``; None where they are not finite."""
    e1, e3 = storage.exponent(start.d1), storage.exponent(start.d3)
    d1, d3 = (np.ldexp(d.astype(np.float64), e) for d, e in ((run.left.scale, e1), (run.right.scale, e3)))
    d2 = np.ldexp(run.d2.astype(np.float64), exponent - e1 - e3)
    if not np.abs(np.concatenate((d1, d2, d3))).max() < _BEYOND:
        return None
    b1, b2 = run.bits()
    return Factorization(d1, b1, d2, b2, d3).round_diagonals()
