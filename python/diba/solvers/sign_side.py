"""One sign factor of ADMM: its variables, its products, and a step with the other factor held fixed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .. import _core
from ..bits import BitMatrix
from .side import Side

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["POWER_STEPS", "RIDGE", "SignSide", "divided", "may_round"]

RIDGE = 0.03  # added to the Gram matrix's diagonal of ones, as published
POWER_STEPS = 5  # power iterations of the first projection; later ones start from the one before
_ROUNDED_FROM = 256  # m, n and k from which products may be rounded: for smaller ones, they take no time
_OUTLYING = (
    8.0  # and they may not if a row or column has a largest entry above this many times the median of all
)


def may_round(A: NDArray[np.float32], k: int) -> bool:
    """Whether rounding the terms of products with signs saves time and costs no SNR.

    A word of 64 rows, or of 64 columns, has one unit, so that none of them may be much larger than the rest.
    """
    if min(*A.shape, k) < _ROUNDED_FROM:
        return False
    largest = [np.maximum(A.max(axis=axis), -A.min(axis=axis)) for axis in (0, 1)]
    return all(float(x.max()) <= _OUTLYING * float(np.median(x)) for x in largest)


class SignSide(Side):
    """One side, ``Z = diag(u) S diag(v)`` of shape (rows, k), with its ADMM variables.

    Args:
        A: See :class:`Side`; so are ``threads``, ``transposed`` and ``unit``.
        k: Inner dimension.
        random: Generator of the normal start.
        balance: Weights w (k,) of the penalty ``(w . y)^2`` on every row y of Y; None for no penalty.
        outer: u to keep, of length one; None to fit it.
        rounded: Whether the terms of products with signs are rounded, which is faster: see :func:`may_round`.

    Attributes:
        fixed: Whether u is kept.
        scale: u (rows,), of length one.
        inner: v (k,).
        state: Y + U (rows, k), of which Z is the projection.
        norms: Lengths of the other side's columns (k,) when v was fitted.
    """

    def __init__(
        self,
        A: NDArray[np.float32],
        k: int,
        random: np.random.Generator,
        balance: NDArray[np.float32] | None,
        threads: int,
        *,
        transposed: bool = False,
        unit: float = 1.0,
        outer: NDArray[np.float32] | None = None,
        rounded: bool = False,
    ) -> None:
        rows = A.shape[1 if transposed else 0]
        self.state = random.standard_normal((rows, k), dtype=np.float32)
        words = np.empty((rows, -(-k // 64)), dtype=np.uint64)
        _core.pack(self.state, words, threads)
        super().__init__(
            BitMatrix(words, k, "sign", copy=False), outer, A, threads, transposed=transposed, unit=unit
        )
        self.balance = balance
        self.rounded = rounded
        self.fixed = outer is not None
        self.inner = np.ones(k, dtype=np.float32)
        self.norms = np.ones(k, dtype=np.float32)
        self._tiles = _core.TiledMatrix(k, k)
        self._inverse = _core.QuantizedMatrix(k)
        self.refine(POWER_STEPS)
        self.state = self.projection()  # the dual U starts at zero

    def _fill_gram(self, weights: NDArray[np.float32]) -> None:
        if self.rounded:
            _core.gram_signs(self._columns, self.rows, weights, self._gram, self.threads)
        else:
            super()._fill_gram(weights)

    def _fill_correlations(self) -> None:
        if self.rounded:
            _core.correlate_signs(self._columns, self._A, self.scale, self._correlations, self.threads)
        else:
            super()._fill_correlations()

    def refine(self, steps: int) -> None:
        """Improve the rank-one fit u v' of |Y + U| by power iteration from v."""
        for _ in range(steps):
            _core.fit_magnitudes(self.scale, self.inner, self.state, self.fixed)
        self.scale_changed()

    def as_partner(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """(X'X, A X, lengths of the columns of Z): what the other side's steps take this side X for."""
        return self.gram, self.correlations, self.column_norms()

    def column_norms(self) -> NDArray[np.float32]:
        """Lengths of the columns of Z in the units of A; v was fitted to a unit-length other side."""
        return divided(self.inner, self.norms)

    def along(self, correlations: NDArray[np.float32], d2: NDArray[np.float32]) -> float:
        """``<X diag(d2) Y', A>`` for the other side's Y, of which ``correlations`` are ``A Y``."""
        return _core.product_along(self.words, True, self.scale, correlations, d2)

    @staticmethod
    def energy_with(own: NDArray[np.float32], other: NDArray[np.float32], d2: NDArray[np.float32]) -> float:
        """``|X diag(d2) Y'|^2`` from the Gram matrices of both sides."""
        return _core.product_energy(own, other, d2)

    def excess(self) -> NDArray[np.intc]:
        """Exponents of the norms."""
        return np.frexp(self.norms)[1]

    def shift(self, exponents: NDArray[np.intc]) -> None:
        """Multiply the norms by powers of two."""
        self.norms = np.ldexp(self.norms, exponents)

    def kept(self) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        """The packed signs and u as they are now."""
        return self.words.copy(), self.scale.copy()

    def projection(self) -> NDArray[np.float32]:
        """Z = diag(u) S diag(v), dense."""
        return self.dense() * self.scale[:, None] * self.inner

    def advance(
        self,
        gram: NDArray[np.float32],
        correlations: NDArray[np.float32],
        norms: NDArray[np.float32],
        penalties: tuple[float, ...],
        power_steps: int = 1,
    ) -> float:
        """Make one ADMM step for each penalty, with the other side X held fixed.

        Args:
            gram: X'X, shape (k, k).
            correlations: A X, shape (rows, k).
            norms: Lengths of X's columns before they were scaled to one, shape (k,).
            penalties: rho of each step.
            power_steps: Power iterations of each projection.

        Returns:
            ``<Z diag(norms) X', A>`` of the iterate before the steps.
        """
        d2 = norms * self.column_norms()
        ratio = divided(norms, self.norms)
        self.norms = norms
        variables, along = (self.words, self.scale, self.inner, self.state), math.nan
        for step, penalty in enumerate(penalties):
            if step == 0 or penalty != penalties[step - 1]:
                _core.invert_shifted(
                    gram, RIDGE + penalty, self.balance, self._tiles, self._inverse, self.threads
                )
            product = _core.step_sign_side(
                *variables,
                correlations,
                self._inverse,
                ratio,
                d2,
                penalty,
                self.fixed,
                self.threads,
            )
            if power_steps > 1:
                self.refine(power_steps - 1)
            if step == 0:
                along = product
                ratio = np.ones_like(ratio)
        self.bits_changed()
        return along


def divided(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """a / b, and 0 where b is 0: a component whose scale has become 0."""
    return np.divide(a, b, out=np.zeros_like(b), where=b > 0)
