"""The progress protocol: what a running solver reports, and to whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "ProgressCallback"]


@dataclass(frozen=True)
class Progress:
    """State of a solver after one outer iteration.

    Attributes:
        iteration: Iterations done so far; 0 reports the starting point.
        max_iter: Iterations after which the solver stops at the latest.
        objective: Squared Frobenius error ``|A - D1 B1 D2 B2 D3|^2``.
        snr_db: ``10 log10(|A|^2 / objective)`` in dB; ``inf`` for an exact fit.
        flips: Bits changed in this iteration, both factors together.
        elapsed: Seconds since the solver started.
        remaining: Seconds until it ends at the latest, estimated from its pace; None at the start.
    """

    iteration: int
    max_iter: int
    objective: float
    snr_db: float
    flips: int
    elapsed: float
    remaining: float | None = None


ProgressCallback = Callable[[Progress], object]
"""Called after every iteration; its result is ignored, its exceptions propagate."""
