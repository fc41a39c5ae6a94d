"""Descent on the error of a layer's outputs, ``tr((A - F) S (A - F)')`` with ``S = E[x x']`` of its inputs x.

The method is that of ``greedy`` in the inner product of S, started from good factors; no step raises the
objective. With ``C = D2 B2 D3`` and ``L = D1 B1 D2``:

- Steps on D1, B1 and D2 change little: ``C S C'`` takes the place of ``C C'``, and A S that of A.
- The columns of B2 are no longer independent. With ``G = L'L`` and ``W = L'(A - F) S`` (k x n), column q is a
  subproblem with the Gram matrix ``S_qq G`` and the residual correlations ``W_q``. If its step changes
  ``G d3_q b_q`` by u, later columns p of W change by ``-u S_qp``. As in GPTQ (Frantar et al., arXiv
  2210.17323), these updates are made at once within a block of columns, and for all later columns in one
  matrix product.

S comes from a sample and is shrunk towards its diagonal beforehand.
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

_NO_POWER = 2.0**-60  # inputs with a smaller mean square than this, the largest being about 1, are skipped
_BEYOND = 2.0**127  # largest diagonal entry to accept, for float32
_BLOCK = 32  # columns per block
_ROWS_AT_ONCE = 1024  # rows of A in float64


class _InputSide(Side):
    """The right side, ``X = D3 B2'``, with the Gram matrix ``X' S X``.

    Args:
        bits: B2', shape (n, k).
        scale: d3.
        AS: ``A S``, shape (m, n), in place of A.
        S: Second moments, float32, shape (n, n).
        threads: Threads of the compiled code.
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
    """Greedy in the inner product of S: ``objective = tr((A - F) S (A - F)')``, ``energy = tr(A S A')``.

    Args:
        A: Matrix to factor, float32, shape (m, n), entries of magnitude up to about 1.
        S: Symmetric positive semidefinite, float32, shape (n, n), of the same magnitude.
        b1: Start of B1, shape (m, k).
        b2: Start of B2, shape (k, n).
        d1: Start of the row scales, shape (m,).
        d3: Start of the column scales, shape (n,).
        threads: Threads of the compiled code.
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
        """The steps of one iteration: d1, bits of B1, d3 with bits of B2, d2 (also fitted at the start)."""
        return self.fit_rows, self.flip_rows, self.flip_columns, self.fit_inner

    def fit_columns(self) -> None:
        """Does nothing: flip_columns fits the scale of each column before its bits.

        Fitting d3 as a whole is an n x n system; it doubles the time and changes the result by up to 0.03 dB.
        """

    def flip_columns(self) -> None:
        """Fit the scale of each column in closed form, then flip its bits; later columns see the change."""
        right, (gram, correlations) = self.right, self._against_left()
        entries = right.dense()
        images = entries @ gram  # row q: G b_q
        squares = np.einsum("ij,ij->i", entries, images)  # b_q' G b_q
        weights = self._S.diagonal()
        W = correlations - right.image @ gram  # (n, k), row q: correlations of the residual with column q
        for first in range(0, right.rows, _BLOCK):
            if self._deadline.over():
                break
            block = range(first, min(first + _BLOCK, right.rows))
            steps = np.zeros((len(block), right.k), dtype=np.float32)
            for q in block:
                if not weights[q] > _NO_POWER:
                    continue  # an input that is always 0, or nearly
                g = W[q] / weights[q]
                step = steps[q - first]
                step[:] = g
                self._best_column(q, g, entries[q], images[q], float(squares[q]), gram, float(weights[q]))
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
        image: NDArray[np.float32],
        square: float,
        gram: NDArray[np.float32],
        weight: float,
    ) -> None:
        """Set the scale and bits of column q, and update g, its residual correlations divided by S_qq.

        Args:
            q: Index of the column.
            g: ``W_q / S_qq``, shape (k,); updated.
            b: Its entries, shape (k,).
            image: ``G b``, shape (k,).
            square: ``b' G b``.
            gram: G, shape (k, k).
            weight: S_qq.
        """
        right = self.right
        before = right.scale[q]
        if square > 0:  # a column of zeros keeps its scale until a bit is set
            right.scale[q] += np.float32(float(b @ g) / square)
        moved = right.scale[q] - before
        decrease = float(moved) * (2 * float(b @ g) - float(moved) * square)
        g -= moved * image
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
        """``G = L'L``, shape (k, k), and ``(L'A S)'``, shape (n, k), for ``L = D1 B1 D2``."""
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
        start: Factors of A, of :class:`~diba.solvers.metric.MetricAdmm` or for the diagonal of S.
        S: Second moments of the inputs, shrunk, shape (n, n).
        schedule: Counts and reports the iterations.
        deadline: When to stop: no step begins after it.
        threads: Threads of the compiled code.
        iterations: Largest number of iterations.
        tol: Stop when an iteration lowers the objective by less than this share of it.

    Returns:
        The last factors, if they are finite, and ``start``, all with 16-bit diagonals. The caller has to
        compare them in float64: rounding may have made the first worse.
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
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            run.sweep(deadline)
        if not math.isfinite(run.objective):
            break
        stage.report(iteration, run.energy, run.objective, run.flips)
        if not before - run.objective > tol * before:
            break
    found = _finished(run, start, exponent)
    return [rounded] if found is None else [found, rounded]


def _finished(run: Correlated, start: Factorization, exponent: int) -> Factorization | None:
    """Factors of A, with d1 and d3 scaled as in ``start``; None if they are not finite."""
    e1, e3 = storage.exponent(start.d1), storage.exponent(start.d3)
    d1, d3 = (np.ldexp(d.astype(np.float64), e) for d, e in ((run.left.scale, e1), (run.right.scale, e3)))
    d2 = np.ldexp(run.d2.astype(np.float64), exponent - e1 - e3)
    if not np.abs(np.concatenate((d1, d2, d3))).max() < _BEYOND:
        return None
    b1, b2 = run.bits()
    return Factorization(d1, b1, d2, b2, d3).round_diagonals()
