"""Water-filling: share a budget of bits among matrices for the least total noise.

Each matrix has a curve of noise against stored bits. The least total noise for a number of bits is reached by
spending each bit where it removes the most noise: along the lower convex hulls of the curves, steepest pieces
first, until the budget is used up.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from .._internal import check
from .._internal.check import describe
from ..solvers.size import stored_bits, uniform_k
from .curves import Curve

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Allocation", "shared_k", "waterfill"]

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
        curves: Dict of names to the :class:`diba.Curve` that each k was chosen on.
        groups: Names of the matrices that share one k, a tuple for each group.
    """

    k: dict[str, int]
    total_bits: int
    bits_per_weight: float
    noise: float
    uniform_noise: float | None
    curves: Mapping[str, Curve] = field(default_factory=dict, repr=False, compare=False)
    groups: tuple[tuple[str, ...], ...] = field(default=(), repr=False, compare=False)

    def at(self, bits_per_weight: float) -> Allocation:
        """The allocation for another budget, on the same curves: nothing is measured again.

        Raises:
            TypeError: ``bits_per_weight`` is not a number.
            ValueError: it is not positive, or below the smallest sizes measured.
        """
        return waterfill(self.curves, bits_per_weight=bits_per_weight, groups=self.groups)


def waterfill(
    curves: Mapping[str, Curve],
    *,
    bits_per_weight: float | None = None,
    total_bits: int | None = None,
    groups: Iterable[Sequence[str]] = (),
) -> Allocation:
    """Choose k for each matrix: the least total noise for a budget of bits.

    Between measured points, noise in dB is interpolated linearly in k. There is no extrapolation: each k
    stays within its curve.

    Args:
        curves: Dict of names to :class:`diba.Curve`; use ``Curve.weighted`` where noise matters more.
        bits_per_weight: Sets the budget to the total when each matrix, or each group, gets this many bits per
            weight (at least k = 1). Give either this or ``total_bits``.
        total_bits: The budget in bits.
        groups: Names of curves that share one k, for each group; a name belongs to one group at most. The k
            lies within all of their curves.

    Returns:
        The allocation. It takes at most the budget, and what is left is too little for one more k of a matrix
        or group that would lower the noise.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: there is no curve, the budget is below the smallest sizes measured, or a group has an
            unknown name, one that is in another group, or curves that have no k in common.

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
    joined = tuple(tuple(group) for group in groups)
    shares = _shares(curves, joined)
    budget = _budget(shares, bits_per_weight, total_bits)
    k = [share.sizes[0] for share in shares]
    left = budget - sum(share.bits(size) for share, size in zip(shares, k, strict=True))
    if left < 0:
        raise ValueError(
            f"the budget is {budget:,} bits; it must be at least {budget - left:,}, for the smallest k of "
            "each curve: measure smaller sizes, or allow more bits"
        )
    ended: set[int] = set()
    for _, at, end in sorted(_pieces(shares), key=lambda piece: piece[0]):
        step = shares[at].step
        if at not in ended:
            taken = min(end - k[at], left // step)
            k[at] += taken
            left -= taken * step
            if k[at] < end:
                ended.add(at)
    chosen = {name: size for share, size in zip(shares, k, strict=True) for name in share.curves}
    noise = _total(_noise_at(curve, chosen[name]) for name, curve in curves.items())
    entries = sum(share.entries for share in shares)
    uniform = None if bits_per_weight is None else _uniform_noise(shares, bits_per_weight)
    ordered = {name: chosen[name] for name in curves}
    return Allocation(ordered, budget - left, (budget - left) / entries, noise, uniform, dict(curves), joined)


def shared_k(shapes: Sequence[tuple[int, int]], bits_per_weight: float) -> int:
    """The largest k that matrices of these shapes (m, n) can share at ``bits_per_weight`` over all of them.

    It is 1 if even that takes more.
    """
    if len(shapes) == 1:
        return uniform_k(*shapes[0], bits_per_weight)
    fixed = sum(stored_bits(m, n, 0) for m, n in shapes)
    step = sum(stored_bits(m, n, 1) for m, n in shapes) - fixed
    return max(1, math.floor((bits_per_weight * sum(m * n for m, n in shapes) - fixed) / step))


class _Share:
    """One matrix, or several that share their k, and what k costs and brings.

    Attributes:
        curves: Dict of names to curves.
        sizes: The measured k that all of these curves reach, rising.
        step: Stored bits for k + 1 minus those for k.
        entries: Number of entries.
    """

    def __init__(self, curves: Mapping[str, Curve]) -> None:
        self.curves = curves
        first = max(int(curve.k[0]) for curve in curves.values())
        last = min(int(curve.k[-1]) for curve in curves.values())
        measured = {int(size) for curve in curves.values() for size in curve.k}
        self.sizes = sorted(size for size in measured if first <= size <= last)
        if not self.sizes:
            raise ValueError(
                f"the curves of the group {', '.join(curves)} have no k in common; measure them at the same k"
            )
        self.step = self.bits(1) - self.bits(0)
        self.entries = sum(math.prod(curve.shape) for curve in curves.values())

    def bits(self, k: int) -> int:
        """Stored bits at this k."""
        return sum(stored_bits(*curve.shape, k) for curve in self.curves.values())

    def uniform(self, bits_per_weight: float) -> int:
        """The largest k of at most ``bits_per_weight``."""
        return shared_k([curve.shape for curve in self.curves.values()], bits_per_weight)

    def noise(self, k: int, exponent: int = 0) -> float:
        """Noise at this k, times 2^exponent."""
        return math.fsum(math.ldexp(_noise_at(curve, k), exponent) for curve in self.curves.values())

    def sampled(self) -> list[int]:
        """The measured k and some between them."""
        parts = [np.linspace(a, b, min(b - a, _PIECES) + 1).round() for a, b in pairwise(self.sizes)]
        return sorted({*self.sizes, *(int(size) for part in parts for size in part)})


def _shares(curves: Mapping[str, Curve], groups: tuple[tuple[str, ...], ...]) -> list[_Share]:
    """Groups and single curves, in the order of the first name of each."""
    group_of: dict[str, tuple[str, ...]] = {}
    for group in groups:
        for name in group:
            if name not in curves:
                raise ValueError(f"groups has the name {name!r}; it must be one of curves")
            if name in group_of:
                raise ValueError(
                    f"groups has the name {name!r} twice; it can share its k with one group only"
                )
            group_of[name] = group
    found = dict.fromkeys(group_of.get(name, (name,)) for name in curves)
    return [_Share({name: curves[name] for name in group}) for group in found]


def _total(noises: Iterable[float]) -> float:
    """The sum, at most float64's largest number."""
    return min(sum(noises), sys.float_info.max)


def _pieces(shares: Sequence[_Share]) -> list[tuple[float, int, int]]:
    """(slope in noise per bit, index of the share, k at the end) of the falling pieces of convex hulls."""
    pieces = []
    largest = max(float(curve.noise.max()) for share in shares for curve in share.curves.values())
    lowered = min(0, _LARGEST_EXPONENT - math.frexp(largest)[1])  # avoids overflow in products
    for at, share in enumerate(shares):
        k = np.array(share.sampled())
        noise = np.array([share.noise(size, lowered) for size in k.tolist()])
        hull = _lower_hull(k, noise)
        for start, end in pairwise(hull):
            slope = (noise[end] - noise[start]) / (share.step * (k[end] - k[start]))
            if slope < 0:
                pieces.append((float(slope), at, int(k[end])))
    return pieces


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


def _budget(shares: Sequence[_Share], bits_per_weight: float | None, total_bits: int | None) -> int:
    if (bits_per_weight is None) == (total_bits is None):
        raise ValueError(
            f"bits_per_weight is {bits_per_weight!r} and total_bits is {total_bits!r}; give exactly one"
        )
    if total_bits is not None:
        return check.positive_int(total_bits, "total_bits")
    asked = check.number(bits_per_weight, "bits_per_weight", minimum=0, exclusive=True)
    return sum(share.bits(share.uniform(asked)) for share in shares)


def _uniform_noise(shares: Sequence[_Share], bits_per_weight: float) -> float | None:
    sizes = [share.uniform(bits_per_weight) for share in shares]
    pairs = list(zip(shares, sizes, strict=True))
    if any(not share.sizes[0] <= size <= share.sizes[-1] for share, size in pairs):
        return None
    return _total(_noise_at(curve, size) for share, size in pairs for curve in share.curves.values())
