"""What a solver minimises: ``|A - F|^2``, weighted by importance, or the error of a layer's outputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal import check_arrays, diagonal16
from ..factorization import Factorization
from .covariance import SHRINK, descend, input_scales, output_error, shrunk
from .importance import Importance

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .._internal.check import FloatArray
    from ..progress import Progress
    from .deadline import Deadline

__all__ = ["Objective", "checked"]


class Objective:
    """One of three: plain; ``sum (o_i (A - F)_ij i_j)^2``; ``tr((A - F) S (A - F)')``.

    Args:
        importance: (o, i), either may be None; None for the plain objective.
        S: Second moments of the inputs, shrunk; None without.
    """

    def __init__(self, importance: Importance | None, S: NDArray[np.float64] | None) -> None:
        self._importance = importance
        self.covariance = S

    @property
    def plain(self) -> bool:
        """Whether it is ``|A - F|^2``."""
        return self._importance is None

    def scaled(self, A: FloatArray) -> FloatArray:
        """What to factor in place of A: its plain objective is this one, or stands for it."""
        return A if self._importance is None else self._importance.scaled(A)

    def unscaled(self, f: Factorization, exponent: int) -> Factorization:
        """Factors of A, 16-bit diagonals, from factors of ``scaled(A) 2^-exponent``."""
        if self._importance is not None:
            return self._importance.unscaled(f, exponent)
        return _spread(f, exponent).round_diagonals()

    def inward(self, f: Factorization, exponent: int) -> Factorization:
        """Factors of ``scaled(A) 2^-exponent`` from factors of A."""
        return _spread(f, -exponent) if self._importance is None else self._importance.inward(f, exponent)

    def measure(self, A: FloatArray, f: Factorization) -> tuple[float, float]:
        """(objective of f, SNR ``10 log10(objective of 0 / objective of f)`` in dB), in float64."""
        if self._importance is None:
            decibels = f.snr_db(A)
            energy = float(np.vdot(A.astype(np.float64), A.astype(np.float64)))
            return (energy * 10 ** (-decibels / 10) if energy else 0.0), decibels
        zero = _times(f, 0)
        if self.covariance is not None:
            error, energy = (output_error(A, g, self.covariance) for g in (f, zero))
        else:
            error, energy = (self._importance.error(A, g) for g in (f, zero))
        if error <= 0:
            return 0.0, math.inf
        return error, 10 * math.log10(energy / error) if energy else -math.inf

    def no_worse_than_zero(self, A: FloatArray, f: Factorization) -> tuple[Factorization, float, float]:
        """(f, objective, SNR); where zeros would be better, f times what is best for it, or zeros."""
        error, decibels = self.measure(A, f)
        if decibels >= 0:
            return f, error, decibels
        scaled = _times(f, self._best_multiple(A, f)).round_diagonals()
        error, decibels = self.measure(A, scaled)
        if decibels >= 0:
            return scaled, error, decibels
        return (zero := _times(f, 0)), *self.measure(A, zero)

    def _weighted(self, X: FloatArray) -> NDArray[np.float64]:
        return X.astype(np.float64) if self._importance is None else self._importance.weighted(X)

    def _best_multiple(self, A: FloatArray, f: Factorization) -> float:
        """The multiple of f, from -1 to 1, of the least objective."""
        dense = f.to_dense()
        if self.covariance is not None:
            exact, found = (np.asarray(X, np.float64) for X in (A, dense))
            weighed = found @ self.covariance
        else:
            exact, found = (self._weighted(X) for X in (A, dense))
            weighed = found
        energy = float(np.vdot(weighed, found))
        return min(1.0, max(-1.0, float(np.vdot(weighed, exact)) / energy)) if energy > 0 else 0.0

    def descend(
        self,
        A: FloatArray,
        start: Factorization,
        tol: float,
        threads: int,
        deadline: Deadline,
        report: Callable[[Progress], object] | None,
    ) -> Factorization:
        """Factors made better under the covariance; as they are without one."""
        if self.covariance is None:
            return start
        return descend(A, start, self.covariance, tol=tol, threads=threads, deadline=deadline, report=report)


def _spread(f: Factorization, exponent: int) -> Factorization:
    """2^exponent times f."""
    d1, d2, d3 = diagonal16.spread(f.d1, f.d2, f.d3, exponent)
    return Factorization(d1, f.b1, d2, f.b2, d3)


def _times(f: Factorization, factor: float) -> Factorization:
    return Factorization(f.d1, f.b1, factor * f.d2, f.b2, f.d3)


def checked(importance: Any, covariance: Any, m: int, n: int) -> Objective:
    """The objective that these arguments of ``diba.solve`` ask for.

    Raises:
        TypeError, ValueError: see ``check_arrays``; also where both are given.
    """
    if importance is not None and covariance is not None:
        raise ValueError(
            "importance and covariance are both given; give one: a covariance weighs the columns by itself"
        )
    if importance is not None:
        return Objective(Importance(*check_arrays.importance(importance, m, n)), None)
    if covariance is not None:
        S, shrink = check_arrays.covariance(covariance, n, SHRINK)
        S = shrunk(S, shrink)
        return Objective(Importance(None, input_scales(S)), S)
    return Objective(None, None)
