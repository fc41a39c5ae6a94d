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
import time
from typing import TYPE_CHECKING

import numpy as np

from .. import _core
from .._internal import diagonal16
from ..bits import BitMatrix
from ..factorization import Factorization
from ..progress import Progress
from ..runtime import resolve_threads
from .deadline import NEVER
from .greedy import Greedy, Side, snr_db

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .._internal.check import FloatArray
    from .deadline import Deadline

__all__ = [
    "SHRINK",
    "Correlated",
    "descend",
    "input_scales",
    "missing_power",
    "output_error",
    "shrinkage",
    "shrunk",
]

SHRINK = 0.1
"""Share of the diagonal in S by default.

Held out, on all-MiniLM-L6-v2 (benchmarks/solver/objectives.py), 0.1 is within 0.04 dB of the best share with
16,000 tokens and 0.08 to 0.16 dB better than none with 2,000; 0.4 costs 0.1 to 0.3 dB with 16,000.
"""

LEAST_POWER = 0.01
"""Of an input's mean square, relative to the median over the inputs."""

_NO_POWER = 2.0**-60  # of an input's mean square, the largest being about 1: it would drown in rounding
_BEYOND = 2.0**127  # no diagonal of float32 gets there
_BLOCK = 32  # columns that are brought up to date one by one


def shrinkage(n: int, count: int) -> float:
    """Share of the diagonal in an S that is the mean over ``count`` vectors of length n.

    SHRINK, or more where there are few vectors: n / (2 (n + count)). Held out, with moments of 500 and 1,500
    tokens, shares of 0.2 to 0.5 are 0.1 to 0.5 dB better than SHRINK (objectives_500.json and _1500 in
    benchmarks/results; n is 384 and 1536).
    """
    return max(SHRINK, n / (2 * (n + count)))


def shrunk(S: FloatArray, shrink: float = SHRINK) -> NDArray[np.float64]:
    """``(1 - shrink) S + shrink diag(S)``, made exactly symmetric."""
    result = S.astype(np.float64)
    result += result.T.copy()
    diagonal = result.diagonal() / 2
    result *= (1 - shrink) / 2
    np.fill_diagonal(result, diagonal)
    return result


def input_scales(S: FloatArray) -> NDArray[np.float64]:
    """Root mean square of every input, for ``importance``: positive, also where an input is always 0."""
    power = S.diagonal().astype(np.float64)
    result: NDArray[np.float64] = np.sqrt(np.maximum(power, 1e-6 * power.mean()))
    return result


def missing_power(S: FloatArray) -> NDArray[np.float64]:
    """What the diagonal of S lacks to LEAST_POWER of its median, shape (n,).

    Added to S, it keeps the columns of inputs that hardly came up near those of A. Without, they would serve
    to mend errors of others, with entries thousands of times larger, which other data would bring to light.
    """
    power = np.asarray(S.diagonal(), np.float64)
    known = power[power > 0]
    result: NDArray[np.float64] = (
        np.maximum(0, LEAST_POWER * np.median(known) - power) if len(known) else 0 * power
    )
    return result


def output_error(A: FloatArray, f: Factorization, S: FloatArray) -> float:
    """``tr((A - F) S (A - F)')`` in float64: the mean of ``|A x - F x|^2`` over inputs x."""
    error = A.astype(np.float64)
    error -= f.to_dense()
    return float(np.vdot(error @ S, error))


class _InputSide(Side):
    """The right side under S: its Gram matrix is ``X' S X``.

    Args:
        bits: B2', shape (n, k).
        scale: d3.
        AS: ``(A S)'``, shape (n, m), so that ``correlations`` are those with A S.
        S: Float32, shape (n, n).
        threads: Threads of the bit kernels.
    """

    def __init__(
        self,
        bits: BitMatrix,
        scale: NDArray[np.float32],
        AS: NDArray[np.float32],
        S: NDArray[np.float32],
        threads: int,
    ) -> None:
        super().__init__(bits, scale, AS, threads)
        self._S = S

    def entries(self) -> NDArray[np.float32]:
        """B2' as a dense matrix, shape (n, k)."""
        dense = np.empty((self.rows, self.k), dtype=np.float32)
        zero = -1.0 if self.signs else 0.0
        _core.unpack(self.words, self.k, zero, 1.0, dense, self._threads)
        return dense

    @property
    def gram(self) -> NDArray[np.float32]:
        """X' S X, shape (k, k)."""
        if not self._has_gram:
            X = self.entries()
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
        AS = A @ S
        super().__init__(AS, b1, b2, threads, d1=d1, d2=np.zeros(b2.shape[0], np.float32), d3=d3)
        self._S = S
        self.energy = float(np.vdot(A.astype(np.float64), AS))
        self.right = _InputSide(b2.T, d3, np.ascontiguousarray(AS.T), S, threads)
        self._buffers[self.right] = np.empty((self.right.rows, self.right.k), np.float32)
        self.fit_inner()

    def steps(self) -> tuple[Callable[[], None], ...]:
        """One iteration: d1 and rows, d3 and columns, d2 (fitted at the start, too)."""
        return self.fit_rows, self.flip_rows, self.flip_columns, self.fit_inner

    def fit_columns(self) -> None:
        """Nothing: flip_columns fits the scale of each column before its bits.

        All of d3 at once, an n x n system, doubles the time and ends within 0.03 dB on either side.
        """

    def flip_columns(self) -> None:
        """Columns in order: the scale of each in closed form, then its bits; later ones see the change."""
        right, (gram, aims) = self.right, self._against_left()
        entries = right.entries()
        curves = entries @ gram  # rows G b_q
        squares = np.einsum("ij,ij->i", entries, curves)
        weights = self._S.diagonal()
        W = aims - right.image @ gram  # (n, k), row q: correlations of the residual with column q
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
        self._rows_aim = None

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
    S: FloatArray,
    *,
    iterations: int = 20,
    tol: float = 1e-4,
    threads: int | None = None,
    deadline: Deadline = NEVER,
    report: Callable[[Progress], object] | None = None,
) -> Factorization:
    """Lower ``tr((A - F) S (A - F)')`` from given factors by descent on diagonals and bits.

    Args:
        A: Checked matrix, shape (m, n).
        start: Factors of A, best those of ``importance=(None, input_scales(S))``.
        S: Second moments of the inputs, symmetric positive semidefinite, shape (n, n): see :func:`shrunk`.
        iterations: At most.
        tol: Stop when an iteration lowers the objective by less than this share of it.
        threads: Threads of the bit kernels.
        deadline: When to stop: no step begins after it.
        report: Called at the start and after every iteration; objective and SNR are those in S.

    Returns:
        Factors with 16-bit diagonals, never worse than ``start`` (rounded so, too) in float64.
    """
    if deadline.over():
        return start.round_diagonals()
    began = time.perf_counter()
    exponents = math.frexp(float(np.abs(A).max()))[1], math.frexp(float(S.diagonal().max()))[1]
    scaled, weights = (
        np.ldexp(x, -e).astype(np.float32, order="C") for x, e in zip((A, S), exponents, strict=True)
    )
    d1, d3 = (np.ldexp(d, -diagonal16.exponent(d)) for d in (start.d1, start.d3))
    run = Correlated(scaled, weights, start.b1, start.b2, d1, d3, resolve_threads(threads))

    def tell(iteration: int) -> None:
        if report is not None:
            objective = math.ldexp(run.objective, 2 * exponents[0] + exponents[1])
            elapsed = time.perf_counter() - began
            decibels = snr_db(run.energy, run.objective)
            report(
                Progress(
                    "solve",
                    iteration,
                    iterations,
                    elapsed,
                    snr_db=decibels,
                    objective=objective,
                    flips=run.flips,
                )
            )

    tell(0)
    for iteration in range(1, iterations + 1):
        before = run.objective
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is not taken
            run.sweep(deadline)
        if not math.isfinite(run.objective):
            break
        tell(iteration)
        if not before - run.objective > tol * before:
            break
    return min(_finished(run, start, exponents[0]), key=lambda f: output_error(A, f, S))


def _finished(run: Correlated, start: Factorization, exponent: int) -> list[Factorization]:
    """Factors of the unscaled A, if finite, d1 and d3 at the scales of ``start``; and ``start``."""
    e1, e3 = diagonal16.exponent(start.d1), diagonal16.exponent(start.d3)
    parts = [np.ldexp(d.astype(np.float64), e) for d, e in ((run.left.scale, e1), (run.right.scale, e3))]
    d2 = np.ldexp(run.d2.astype(np.float64), exponent - e1 - e3)
    b1, b2 = run.bits()
    start = start.round_diagonals()
    if not np.abs(np.concatenate((*parts, d2))).max() < _BEYOND:
        return [start]
    return [Factorization(parts[0], b1, d2, b2, parts[1]).round_diagonals(), start]
