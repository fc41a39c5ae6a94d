"""ADMM in stages: for more bits per weight, k is split, and each part factors what those before leave of A.

The parts share the outer diagonals of the first; later ones fit their signs and their piece of d2. A row or
column that the first part needs far larger than others, such as that of a "super weight" (Yu et al., arXiv
2411.07191), is no larger than they are in what is left: with its scale, its signs would turn from step to
step and spoil all other rows. So later parts are made with such scales bounded. Together the parts are
factors of A like any others, and the descent that follows works on all of them, there most of all.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..bits import BitMatrix
from ..factorization import Factorization
from .admm import Admm
from .metric import Metric, MetricAdmm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._internal.check import Alphabet
    from .schedule import Deadline, Stage

__all__ = ["Ramps", "check_device", "metric_for", "part_sizes", "ramps"]

_BITS_OF_A_PART = 1.6  # at most this many bits per weight, but for the most parts
_MOST_PARTS = 3
_SMALLEST_PART = 24  # inner dimension
_LARGEST_SCALE = 4.0  # of a row or column in later parts, in medians of all
_LEAST_LENGTH = 0.7  # what is left of the length of an outer diagonal


class Ramps(NamedTuple):
    """Factors before any descent.

    Attributes:
        factors: All parts together.
        empty: Whether A is zero in what is minimised.
        pace: Seconds of a step for all of k at once, or a little more.
    """

    factors: Factorization
    empty: bool
    pace: float


def part_sizes(m: int, n: int, k: int) -> list[int]:
    """The inner dimension of each stage for a matrix of shape (m, n)."""
    bits = k * (m + n) / (m * n)
    count = max(1, min(math.ceil(bits / _BITS_OF_A_PART), _MOST_PARTS, k // _SMALLEST_PART))
    return [k // count + (part < k % count) for part in range(count)]


def metric_for(C: NDArray[np.float64], device: str | None) -> Any:
    """Second moments with a diagonal of ones, as the ramps on a device, or in compiled code, need them."""
    return Metric(C) if device is None else _on(device).DeviceMetric(C, device)


def check_device(device: str) -> None:
    """Require that there is torch, and that it can use a device.

    Raises:
        ImportError: torch is missing.
        ValueError: It cannot.
    """
    _on(device).usable(device)


def _on(device: str) -> Any:
    """The steps in PyTorch, imported when a device asks for them."""
    try:
        from . import device as steps
    except ImportError as error:
        raise ImportError(
            f"device is {device!r}, which needs PyTorch; use python -m pip install 'diba[torch]'"
        ) from error
    return steps


def ramps(
    A: NDArray[np.float32],
    sizes: list[int],
    alphabet: Alphabet,
    seed: int,
    balance: float,
    threads: int,
    *,
    steps: int,
    deadline: Deadline,
    stage: Stage,
    metric: Any = None,
    published: bool = False,
    device: str | None = None,
) -> Ramps:
    """Run the stages.

    Args:
        A: Matrix to factor, float32, shape (m, n), magnitudes up to about 1.
        sizes: Inner dimension of each.
        alphabet: Of the factors.
        seed: Of the first; later ones have the next.
        balance: See :class:`Admm`.
        threads: Threads of the compiled code.
        steps: Of each.
        deadline: When to stop: each stage has an equal share of the time.
        stage: Where steps are reported.
        metric: What :func:`metric_for` made of the second moments of the inputs; None for the squared
            error.
        published: See :class:`Admm`.
        device: Name of a device of torch; None: compiled code does it.
    """
    found: list[Factorization] = []
    rest, energy, pace = A, 0.0, 0.0
    outer, unit = None, np.float32(1)
    for part, k in enumerate(sizes):
        if device is not None:
            run: Admm = _on(device).DeviceAdmm(device, metric, rest, k, seed + part, balance, outer=outer)
        elif metric is not None:
            run = MetricAdmm(metric, rest, k, seed + part, balance, threads, outer=outer)
        else:
            run = Admm(rest, k, seed + part, balance, threads, published=published, outer=outer)
        energy = energy or run.energy
        for step in run.iterate(steps, deadline.rest(1 / (len(sizes) - part))):
            stage.report(part * steps + step, energy, run.objective)
        pace = max(pace, run.pace)
        found.append(Factorization(*run.factors(alphabet)))
        del run  # frees its memory
        if len(found) == len(sizes):
            break
        rest = rest - found[-1].to_dense()
        if outer is None:
            (d1, unit_1), (d3, unit_3) = _bounded(found[0].d1), _bounded(found[0].d3)
            outer, unit = (d1, d3), unit_1 * unit_3
    return Ramps(_together(found, unit), not energy, pace * len(sizes) ** 2)


def _bounded(scales: NDArray[np.float32]) -> tuple[NDArray[np.float32], np.float32]:
    """An outer diagonal for later parts, of length one: the same, or with no scale far above the median.

    Returns:
        (the diagonal, what the scales of all other rows or columns were multiplied by).
    """
    most = np.float32(_LARGEST_SCALE) * np.median(scales[scales > 0]) if scales.any() else 0
    bounded = np.minimum(scales, most)
    length = np.linalg.norm(bounded)
    # Where large ones are most of the diagonal, as with a single row that is not zero, they are the matrix.
    if scales.max() <= most or length < _LEAST_LENGTH:
        return scales, np.float32(1)
    unit = np.float32(1 / length)
    return bounded * unit, unit


def _together(parts: list[Factorization], unit: np.float32) -> Factorization:
    """All parts, with the outer diagonals of the first.

    Args:
        parts: Of the same shape and alphabet.
        unit: What d2 of the later ones is multiplied by, as they were made with other outer diagonals.
    """
    first, *others = parts
    if not others:
        return first
    m, n = first.shape
    left = BitMatrix(np.concatenate([f.b1.T.words for f in parts]), m, first.alphabet).T
    right = BitMatrix(np.concatenate([f.b2.words for f in parts]), n, first.alphabet)
    d2 = np.concatenate([first.d2, *(f.d2 * unit for f in others)])
    return Factorization(first.d1, left, d2, right, first.d3)
