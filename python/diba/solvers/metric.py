"""ADMM on the error of a layer's outputs, ``tr((A - L R') C (A - L R')')``, from the first step on.

C are the second moments of the inputs, scaled to a diagonal of ones (A has the scales). The method is that of
``admm`` with its penalty in the plain metric; what changes is the linear solve of each side. With
``C = Q diag(c) Q'``:

- The left side has ``C X`` in place of X: ``X'C X`` for the Gram matrix, ``A C X`` for the correlations. The
  columns of X are scaled to length one in C.
- The right side has the system ``C Y (X'X + ridge) + rho Y = C A'X + rho (Z - U)``. In the coordinates of the
  eigenvectors, ``Y = Q T``, each row of T has a system of its own, ``c_j (X'X + ridge) + rho``. A few steps
  of conjugate gradients from the T of the step before are enough.

Products with signs are packed, those with X'X and Q run in 8-bit integers. The eigenvectors and ``A C`` and
``A Q`` are NumPy's (LAPACK and BLAS), once for each matrix: with a covariance, the last bits of the factors'
start, and so the factors, depend on that library, but not on diba's threads or instruction set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import _core
from .admm import Admm
from .sign_side import RIDGE, SignSide, divided

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FIRST_PENALTY", "Metric", "MetricAdmm", "iterations_for"]

FIRST_PENALTY = 0.1
"""Where the penalty begins."""
_FEW_BITS = 1.2  # up to about this many bits per weight,
_ITERATIONS = 2, 3  # this many steps of conjugate gradients, and this many above


def iterations_for(m: int, n: int, k: int) -> int:
    """Steps of conjugate gradients for a matrix of shape (m, n)."""
    return _ITERATIONS[k * (m + n) > _FEW_BITS * m * n]


class Metric:
    """Second moments as the steps need them.

    Args:
        C: Second moments with a diagonal of ones, float64, shape (n, n).

    Attributes:
        C: The same in float32.
        values: Its eigenvalues, float32, shape (n,).
        vectors: Its eigenvectors, float32, shape (n, n), one a column.
        tiles: The same for packed products.
    """

    def __init__(self, C: NDArray[np.float64]) -> None:
        values, vectors = np.linalg.eigh(C)
        self.C = C.astype(np.float32)
        self.values = np.maximum(values, 0).astype(np.float32)
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        self.tiles = _core.TiledMatrix(self.vectors)


class InputSide(SignSide):
    """The right side, with T and ``Q'(Y + U)`` beside the variables of :class:`SignSide`.

    Args:
        metric: Of the inputs.
        AC: ``A C``, shape (m, n).
        k: See :class:`SignSide`; so are the others.
    """

    def __init__(
        self,
        metric: Metric,
        AC: NDArray[np.float32],
        k: int,
        random: np.random.Generator,
        balance: NDArray[np.float32] | None,
        threads: int,
        *,
        unit: float,
        outer: NDArray[np.float32] | None,
        iterations: int,
    ) -> None:
        self._metric = metric
        self._iterations = iterations
        super().__init__(AC, k, random, balance, threads, transposed=True, unit=unit, outer=outer)
        self._image = np.empty((self.rows, k), np.float32)
        self._system = _core.QuantizedMatrix(k)
        self._solution = self.image * self.inner
        self._eigen_state = self._solution.copy()

    def scale_changed(self) -> None:
        super().scale_changed()
        self._has_image = False

    @property
    def image(self) -> NDArray[np.float32]:
        """``Q'X``, shape (n, k); the array is overwritten after the next change."""
        if not self._has_image:
            _core.correlate(self._columns, self._metric.tiles, self.scale, True, self._image, self.threads)
            self._has_image = True
        return self._image

    @property
    def gram(self) -> NDArray[np.float32]:
        """``X'C X``, shape (k, k)."""
        if not self._has_gram:
            _core.weighted_gram(self.image, self._metric.values, self._gram, self.threads)
            self._has_gram = True
        return self._gram

    def as_partner(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        lengths = np.sqrt(np.maximum(self.gram.diagonal(), 0))
        shares = divided(np.ones_like(lengths), lengths)
        gram = self.gram * np.outer(shares, shares)
        return gram, self.correlations * shares, self.column_norms() * lengths

    def advance(
        self,
        gram: NDArray[np.float32],
        correlations: NDArray[np.float32],
        norms: NDArray[np.float32],
        penalties: tuple[float, ...],
        power_steps: int = 1,
    ) -> float:
        d2 = norms * self.column_norms()
        ratio = divided(norms, self.norms)
        self.norms = norms
        _core.quantize_shifted(gram, RIDGE, self.balance, self._system, self.threads)
        (penalty,) = penalties
        along = _core.step_input_side(
            self.words,
            self.scale,
            self.inner,
            self.state,
            self._solution,
            self._eigen_state,
            self._metric.values,
            self._metric.vectors,
            self._system,
            correlations,
            self.image,
            ratio,
            d2,
            penalty,
            self._iterations,
            self.fixed,
            self.threads,
        )
        self.bits_changed()
        return along


class MetricAdmm(Admm):
    """One ADMM run in the metric of the inputs; ``energy`` and ``objective`` are those of the outputs.

    Args:
        metric: Of the inputs.
        A: Matrix to factor, with the scales of the inputs, float32, shape (m, n), magnitudes up to about 1.
        k: See :class:`Admm`; so are the others.
    """

    def __init__(
        self,
        metric: Metric,
        A: NDArray[np.float32],
        k: int,
        seed: int,
        balance: float,
        threads: int,
        *,
        outer: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    ) -> None:
        self._metric = metric
        super().__init__(A, k, seed, balance, threads, outer=outer)
        self.first_penalty = FIRST_PENALTY

    def _sides(
        self,
        A: NDArray[np.float32],
        square: float,
        k: int,
        random: np.random.Generator,
        balance: tuple[NDArray[np.float32] | None, NDArray[np.float32] | None],
        outer: tuple[NDArray[np.float32] | None, NDArray[np.float32] | None],
        threads: int,
    ) -> tuple[float, SignSide, SignSide]:
        metric, unit, (m, n) = self._metric, float(self._unit), A.shape
        left = SignSide(A @ metric.vectors, k, random, balance[0], threads, unit=unit, outer=outer[0])
        AC = A @ metric.C
        energy = float(np.einsum("ij,ij->i", A, AC).sum(dtype=np.float64))
        right = InputSide(
            metric,
            AC,
            k,
            random,
            balance[1],
            threads,
            unit=unit,
            outer=outer[1],
            iterations=iterations_for(m, n, k),
        )
        return energy, left, right
