"""The sizes at which noise is measured, so that a budget of bits can be shared out.

Small sizes are measured for all matrices, larger ones only where water-filling spends that many bits: a large
solve takes several times as long as a small one, and most matrices never get so many bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal import check
from .curves import Curve

if TYPE_CHECKING:
    from ..progress import Steps
    from .waterfill import Allocation

__all__ = ["FIRST", "LARGEST", "STEPS", "check_sizes", "first_and_end", "first_part", "grown"]

FIRST = (0.5, 1.0)
"""Sizes at which all noise is measured, as shares of the bits per weight asked for."""

LARGEST = 2.25
"""The most that a matrix can get: wider, noise falls further, but it says less of a model's loss."""

STEPS = 40
"""ADMM steps of each solve: few, since only the shape of the curve matters here."""

_BEYOND = 1.2  # a curve is trusted this far beyond its last k: noise in dB is nearly straight there


def first_and_end(
    k_of: Callable[[float], int], sizes: Sequence[float] | None, asked: float
) -> tuple[list[int], int]:
    """The k that are measured at first, and the largest that may be chosen.

    Args:
        k_of: The k for a number of bits per weight.
        sizes: Shares of ``asked`` that are all measured; None: ``FIRST``, and more where they are needed.
        asked: Bits per weight.
    """
    first = sorted({k_of(size * asked) for size in sizes or FIRST})
    end = first[-1] if sizes else max(first[-1], k_of(LARGEST * asked))
    return (first if len(first) > 1 else sorted({first[0], end})), end


def first_part(sizes: Sequence[float] | None) -> float:
    """What the first sizes of a matrix count for, in steps: less than a whole one if more may follow."""
    return 1.0 if sizes else 0.5


def grown(
    curves: Callable[[], Mapping[str, Curve]],
    measure: Callable[[str, int, float, float], object],
    ends: Mapping[str, int],
    fill: Callable[[Mapping[str, Curve]], Allocation],
    steps: Steps,
    done: float,
) -> Allocation:
    """Share bits out, and measure again where a matrix gets more than is known about it, until none does.

    Args:
        curves: What was measured until now.
        measure: Measures a matrix, of this name, at one more k, larger than all before; the task goes from
            the third argument to the fourth, in steps.
        ends: Dict of names to the largest k.
        fill: Shares bits out by curves: ``waterfill`` with a budget.
        steps: Of the task, one for each matrix.
        done: How many of them are done.

    Returns:
        The allocation. Its curves reach to ``ends``, beyond what was measured by a straight line.
    """
    while True:
        known = curves()
        found = fill({name: _continued(curve, ends[name]) for name, curve in known.items()})
        unknown = {name: k for name, k in found.k.items() if k > _BEYOND * known[name].k[-1]}
        if not unknown:
            if done < len(known):
                steps.done(len(known))
            return found
        each = 0.8 * (len(known) - done) / len(unknown)  # there may be more to measure afterwards
        for name, k in unknown.items():
            measure(name, k, done, done + each)
            done += each


def _continued(curve: Curve, end: int) -> Curve:
    """The curve up to ``end``: noise in dB goes on in a line through its last two points, never up."""
    last = int(curve.k[-1])
    if end <= last:
        return curve
    falls = 1.0
    if len(curve.k) > 1 and curve.noise[-1] < curve.noise[-2]:
        falls = (curve.noise[-1] / curve.noise[-2]) ** ((end - last) / (last - int(curve.k[-2])))
    k, noise = np.append(curve.k, end), np.append(curve.noise, curve.noise[-1] * falls)
    return replace(curve, k=k, noise=noise, seconds=None)


def check_sizes(sizes: Any) -> tuple[float, ...]:
    """Require positive numbers around 1, so that the uniform allocation lies on the curves."""
    checked = sorted({check.number(size, "an entry of sizes", minimum=0, exclusive=True) for size in sizes})
    if not checked or checked[0] > 1 or checked[-1] < 1:
        raise ValueError(
            f"sizes is {tuple(sizes)}; it must hold shares of the budget around 1, such as (0.5, 1, 2)"
        )
    return tuple(checked)
