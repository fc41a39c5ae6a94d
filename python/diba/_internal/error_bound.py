"""A bound of the error of a fast product, and its derivation.

A fast product looks up sums of two vectors ``a``: first ``d3 * x``, then the middle vector ``v``. Write
``R_g`` for the sum of ``|a|`` over the group g of four entries, ``R`` for the largest ``R_g`` (at least
2^-100), G for the number of groups, A for the sum of all ``|a|``, and u = 2^-24. The kernels
(``cpp/src/kernels/lookup.hpp``) quantise group g in units s_g = weight_g R / 4064 with weight_g <= 16 R_g / R
+ 1, so that

    S = sum of s_g  <=  A / 254 + G R / 4064.

Each entry of a is rounded to a multiple of s_g / 128 (an error of 1/2 of that, and less than 0.01 more from
float32 steps), each table entry to a multiple of s_g. The error of a lookup is therefore at most
s_g (1/2 + 4 * 0.51 / 128), that of the sum of all a at most s_g * 4 * 0.51 / 128 per group, and that of
``B a - sum(a) / 2`` less than

    E(a) = 0.525 S + 8 u A,

where the last term is for the float32 operations after the integer sums. For signs it is twice that, since
S a = 2 (B a - sum(a) / 2). The first product thus has an error of at most ``|d2_j| E(d3 x)`` (signs: twice)
in ``v_j``; the second product carries it on and adds its own. A 0/1 factorization also adds ``sum(d3 x) / 2``
times ``D1 B1 d2`` outside the second tables (``shift``). All this is multiplied by ``|d1|``.

A factor of 1 + 2^-10 covers the second-order terms and the rounding of the bound itself; 2^-148 covers
underflow in the last steps. Where a step may exceed 2^126 the bound is NaN: such products are computed in
float64.
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
    """Bound ``|fast - exact|`` for each row of ``D1 B1 D2 B2 D3 x``, shape (m,).

    NaN where there is no bound: ``x`` is not finite, or the product or a step of it may leave float32's
    range.
    """
    gain = 2.0 if b1.signs else 1.0
    with np.errstate(invalid="ignore"):  # inf * 0
        a = d3.astype(np.float64) * x
    ranges = _group_sums(np.abs(a))
    if not ranges.sum() < _OVERFLOW:
        return np.full(d1.shape, np.nan)
    inner = np.abs(d2, dtype=np.float64)
    first = gain * _lookup_error(ranges.sum(), ranges.size, ranges.max())

    # The middle vector in float32, and bounds of its error and of the fast one's.
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
        # shift = D1 B1 d2, and its rounding: k + 2 float32 operations on at most ``through``.
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
    """Sums over groups of four neighbours; the last group may be smaller."""
    return np.add.reduceat(a, np.arange(0, a.size, 4))


def _lookup_error(total: float, groups: int, largest: float) -> float:
    """E(a) of the module docstring, with A = ``total``."""
    units = total / 254 + groups * max(largest, _SMALLEST_RANGE) / 4064
    return 0.525 * units + 8 * _U * total
