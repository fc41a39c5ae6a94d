"""ADMM in stages: for more bits per weight, k is split, and each part factors what those before leave of A.

The parts share the outer diagonals of the first; later ones fit their signs and their piece of d2. Together
they are factors of A like any others, and the descent that follows works on all of them.
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
    for part, k in enumerate(sizes):
        outer = (found[0].d1, found[0].d3) if found else None
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
        if len(found) < len(sizes):
            rest = rest - found[-1].to_dense()
    return Ramps(_together(found), not energy, pace * len(sizes) ** 2)


def _together(parts: list[Factorization]) -> Factorization:
    """The sum of parts that have the same outer diagonals."""
    if len(parts) == 1:
        return parts[0]
    m, n = parts[0].shape
    alphabet = parts[0].alphabet
    left = BitMatrix(np.concatenate([f.b1.T.words for f in parts]), m, alphabet).T
    right = BitMatrix(np.concatenate([f.b2.words for f in parts]), n, alphabet)
    return Factorization(parts[0].d1, left, np.concatenate([f.d2 for f in parts]), right, parts[0].d3)
