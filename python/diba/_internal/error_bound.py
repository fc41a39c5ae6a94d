"""How far a fast product can be from the exact one: the bound, and where it comes from.

Write ``a`` for the vector that is looked up (``d3 * x``, then the middle vector
``v``), ``R_g`` for the sum of ``|a|`` over the group g of four entries, ``R`` for
the largest ``R_g`` (at least 2^-100), G for the number of groups, A for the sum of
all ``|a|``, and u = 2^-24. The kernels (``cpp/src/kernels/lookup.hpp``) work in
units s_g = weight_g R / 4064 with weight_g <= 16 R_g / R + 1, so that

    S = sum of s_g  <=  A / 254 + G R / 4064.

Each a is rounded to s_g / 128 (1/2 of it, and less than 0.01 more for the float32
steps on the way), a table's entry to s_g. A lookup is therefore off by at most
s_g (1/2 + 4 * 0.51 / 128), the sum of all a by s_g * 4 * 0.51 / 128 for each group.
``B a - sum(a) / 2`` is then off by less than

    E(a) = 0.525 S + 8 u A,

the last term for the float32 operations after the integer sums, and signs by
twice that, since S a = 2 (B a - sum(a) / 2). The first product so changes ``v_j``
by at most ``|d2_j| E(d3 x)`` (signs: twice), which the second carries on and adds
its own error to; a 0/1 factorization also takes ``sum(d3 x) / 2`` times
``D1 B1 d2`` around the second tables (``shift``). All this is multiplied by ``|d1|``.

A factor (1 + 2^-10) on the whole covers the second-order terms and the rounding
of the bound itself, 2^-148 what underflow takes from the last steps. Where a step
may overflow, beyond 2^126, the bound is NaN: such products are made in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..bits import BitMatrix

__all__ = ["bound"]

_U = 2.0**-24
_SMALLEST_RANGE = 2.0**-100
_SLACK = 1 + 2.0**-10
_UNDERFLOW = 2.0**-148
_OVERFLOW = 2.0**126


def bound(
    d1: NDArray[np.float32],
    b1: BitMatrix,
    d2: NDArray[np.float32],
    b2: BitMatrix,
    d3: NDArray[np.float32],
    x: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Bound of ``|fast - exact|`` for each row of ``D1 B1 D2 B2 D3 x``, of shape (m,).

    NaN where nothing is stated: ``x`` is not finite, or the product itself or a step on
    the way may be beyond float32.
    """
    gain = 2.0 if b1.signs else 1.0
    with np.errstate(invalid="ignore"):  # inf * 0
        a = d3.astype(np.float64) * x
    ranges = _group_sums(np.abs(a))
    if not ranges.sum() < _OVERFLOW:
        return np.full(d1.shape, np.nan)
    inner = np.abs(d2, dtype=np.float64)
    first = gain * _lookup_error(ranges.sum(), ranges.size, ranges.max())

    # The middle vector in float32, and how far both it and the fast one may be from the exact one.
    v = b2.matvec(a.astype(np.float32), threads=1).astype(np.float64)
    if not b1.signs:
        v -= a.sum() / 2
    spread = _group_sums(inner * (first + gain * 2 * (a.size + 2) * _U * ranges.sum()))
    middle = _group_sums(np.abs(v) * inner) + spread
    if not max(middle.sum(), inner.sum()) < _OVERFLOW:
        return np.full(d1.shape, np.nan)
    second = gain * _lookup_error(middle.sum(), middle.size, middle.max())

    if b1.signs:
        carried = first * inner.sum()
        around = np.zeros(d1.shape)
        underflow, level = _UNDERFLOW, np.zeros(d1.shape)
    else:
        through = b1.matvec(inner.astype(np.float32), threads=1).astype(np.float64)
        carried = first * through
        # shift = D1 B1 d2, and its own rounding: k + 2 float32 operations on at most `through`.
        shift = np.abs(b1.matvec(d2, threads=1).astype(np.float64))
        rounding = 2 * (d2.size + 4) * _U * through
        total = abs(a.sum()) / 2 + first
        around = first * (shift + rounding) + total * rounding + 8 * _U * total * shift
        underflow, level = _UNDERFLOW * (1 + total), (1 + total) * through
    left = np.abs(d1, dtype=np.float64)
    bounds: NDArray[np.float64] = _SLACK * left * (carried + second + around) + underflow
    bounds[left * (gain * middle.sum() + level) >= _OVERFLOW] = np.nan
    return bounds


def _group_sums(a: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over groups of four neighbours, the last one filled up with zeros."""
    return np.add.reduceat(a, np.arange(0, a.size, 4))


def _lookup_error(total: float, groups: int, largest: float) -> float:
    """E(a) of the module's text, with A = ``total``."""
    units = total / 254 + groups * max(largest, _SMALLEST_RANGE) / 4064
    return 0.525 * units + 8 * _U * total
