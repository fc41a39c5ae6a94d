"""Water-filling: share a budget of bits among matrices for the least total noise.

Each matrix has a curve of noise against stored bits. The least total noise for a number of bits is reached by
spending each bit where it removes the most noise: along the lower convex hulls of the curves, steepest pieces
first, until the budget is used up.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from .._internal import check
from .._internal.check import describe
from ..solvers.size import stored_bits, uniform_k
from .curves import Curve

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Allocation", "waterfill"]

_LARGEST_EXPONENT = 900  # noise is scaled down to this power of two, so that products stay in float64
_PIECES = 64  # points to interpolate between two measured ones, at most


@dataclass(frozen=True)
class Allocation:
    """Inner dimensions for a budget of bits; made by :func:`diba.allocate` and :func:`waterfill`.

    Attributes:
        k: Dict of names to inner dimensions.
        total_bits: Stored bits of all matrices, diagonals at 16 bits per entry.
        bits_per_weight: Stored bits for each entry.
        noise: Total noise according to the curves.
        uniform_noise: Total noise if every matrix gets the bits per weight asked for; None if the budget was
            given in bits, or if a curve does not reach that far.
    """

    k: dict[str, int]
    total_bits: int
    bits_per_weight: float
    noise: float
    uniform_noise: float | None


def waterfill(
    curves: Mapping[str, Curve],
    *,
    bits_per_weight: float | None = None,
    total_bits: int | None = None,
) -> Allocation:
    """Choose k for each matrix: the least total noise for a budget of bits.

    Between measured points, noise in dB is interpolated linearly in k. There is no extrapolation: each k
    stays within its curve.

    Args:
        curves: Dict of names to :class:`diba.Curve`; use ``Curve.weighted`` where noise matters more.
        bits_per_weight: Sets the budget to the total when each matrix gets this many bits per weight (at
            least k = 1). Give either this or ``total_bits``.
        total_bits: The budget in bits.

    Returns:
        The allocation. It takes at most the budget, and what is left is too little for one more k of a matrix
        that would lower the noise.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: there is no curve, or the budget is below the smallest sizes measured.

    Source:
        Reverse water-filling (Shannon); greedy on convex hulls is optimal for separable convex costs (Fox,
        Management Science 13, 1966).

    Example:
        >>> big, small = (64, 64), (32, 32)
        >>> curves = {"a": Curve(big, [8, 32], [9.0, 1.0]), "b": Curve(small, [4, 16], [0.3, 0.1])}
        >>> waterfill(curves, bits_per_weight=1.5).k
        {'a': 29, 'b': 4}
    """
    if not isinstance(curves, Mapping):
        raise TypeError(f"curves is {describe(curves)}; it must be a dict of names to Curves")
    if not curves:
        raise ValueError("curves is empty; it must hold at least one Curve")
    for name, curve in curves.items():
        check.instance(curve, f"curves[{name!r}]", Curve, "diba.curve makes them")
    budget = _budget(curves, bits_per_weight, total_bits)
    k = {name: int(curve.k[0]) for name, curve in curves.items()}
    left = budget - sum(stored_bits(*curve.shape, k[name]) for name, curve in curves.items())
    if left < 0:
        raise ValueError(
            f"the budget is {budget:,} bits; it must be at least {budget - left:,}, for the smallest k of "
            "each curve: measure smaller sizes, or allow more bits"
        )
    ended: set[str] = set()
    for _, name, end in sorted(_pieces(curves), key=lambda piece: piece[0]):
        step = _bits_of_a_component(curves[name])
        if name not in ended:
            taken = min(end - k[name], left // step)
            k[name] += taken
            left -= taken * step
            if k[name] < end:
                ended.add(name)
    noise = _total(_noise_at(curve, k[name]) for name, curve in curves.items())
    entries = sum(math.prod(curve.shape) for curve in curves.values())
    uniform = None if bits_per_weight is None else _uniform_noise(curves, bits_per_weight)
    return Allocation(k, budget - left, (budget - left) / entries, noise, uniform)


def _bits_of_a_component(curve: Curve) -> int:
    """Stored bits for k + 1 minus those for k."""
    return stored_bits(*curve.shape, 1) - stored_bits(*curve.shape, 0)


def _total(noises: Iterable[float]) -> float:
    """The sum, at most float64's largest number."""
    return min(sum(noises), sys.float_info.max)


def _pieces(curves: Mapping[str, Curve]) -> list[tuple[float, str, int]]:
    """(slope in noise per bit, name, k at the end) of each falling piece of the lower convex hulls."""
    pieces = []
    largest = max(float(curve.noise.max()) for curve in curves.values())
    lowered = min(0, _LARGEST_EXPONENT - math.frexp(largest)[1])  # avoids overflow in products
    for name, curve in curves.items():
        k = np.array(_sampled(curve.k))
        noise = np.ldexp([_noise_at(curve, size) for size in k.tolist()], lowered)
        hull = _lower_hull(k, noise)
        step = _bits_of_a_component(curve)
        for start, end in pairwise(hull):
            slope = (noise[end] - noise[start]) / (step * (k[end] - k[start]))
            if slope < 0:
                pieces.append((float(slope), name, int(k[end])))
    return pieces


def _sampled(k: NDArray[np.int64]) -> list[int]:
    """The measured k and some between them."""
    parts = [np.linspace(a, b, min(b - a, _PIECES) + 1).round() for a, b in pairwise(k)]
    return sorted({*k.tolist(), *(int(size) for part in parts for size in part)})


def _lower_hull(x: NDArray[np.int64], y: NDArray[np.float64]) -> list[int]:
    """Indices of the points on the lower convex hull; x rises."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) > 1:
            a, b = hull[-2:]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(i)
    return hull


def _noise_at(curve: Curve, k: int) -> float:
    """Noise at a k within the curve: linear in dB between points, or linear if one of them is 0."""
    after = int(np.searchsorted(curve.k, k))
    if curve.k[after] == k:
        return float(curve.noise[after])
    a, b = curve.noise[after - 1 : after + 1].tolist()
    part = float((k - curve.k[after - 1]) / (curve.k[after] - curve.k[after - 1]))
    return float(a ** (1 - part) * b**part) if a > 0 and b > 0 else a + part * (b - a)


# ---------------------------------------------------------------- budgets


def _budget(curves: Mapping[str, Curve], bits_per_weight: float | None, total_bits: int | None) -> int:
    if (bits_per_weight is None) == (total_bits is None):
        raise ValueError(
            f"bits_per_weight is {bits_per_weight!r} and total_bits is {total_bits!r}; give exactly one"
        )
    if total_bits is not None:
        return check.positive_int(total_bits, "total_bits")
    asked = check.number(bits_per_weight, "bits_per_weight", minimum=0, exclusive=True)
    return sum(stored_bits(*curve.shape, uniform_k(*curve.shape, asked)) for curve in curves.values())


def _uniform_noise(curves: Mapping[str, Curve], bits_per_weight: float) -> float | None:
    sizes = {name: uniform_k(*curve.shape, bits_per_weight) for name, curve in curves.items()}
    if any(not curve.k[0] <= sizes[name] <= curve.k[-1] for name, curve in curves.items()):
        return None
    return _total(_noise_at(curve, sizes[name]) for name, curve in curves.items())
