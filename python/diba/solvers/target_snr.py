"""The smallest inner dimension whose factors reach a signal-to-noise ratio."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["largest_k", "smallest_k"]

T = TypeVar("T")

_LARGEST_BITS = 16  # per weight, of the binary factors
_DB_PER_BIT = 5.0  # of a first guess
_ROUGH_SOLVES = 5
_NEAR = 0.1  # dB
_FINITE = 300.0  # stands for infinite dB


def largest_k(m: int, n: int) -> int:
    """The largest k worth trying: binary factors of 16 bits for each entry of A."""
    return max(1, _LARGEST_BITS * m * n // (m + n))


def smallest_k(
    solve_at: Callable[[int], tuple[T, float]],
    m: int,
    n: int,
    snr_db: float,
    *,
    rough: Callable[[int], float] | None = None,
    expired: Callable[[], bool] = lambda: False,
) -> tuple[int, T]:
    """Find the smallest k that reaches ``snr_db``.

    The SNR of a solver is nearly linear in k but neither smooth nor quite monotone, so the result is
    defined by what was tried: k reached ``snr_db``, and k - 1 (if there is one) was tried and did not. A
    still smaller k may reach it by luck.

    Args:
        solve_at: ``k -> (result, SNR in dB)`` at full effort; called once for a k, some 3 to 8 times in all.
        m: Rows of A.
        n: Columns of A.
        snr_db: SNR to reach.
        rough: ``k -> SNR`` of a cheap solve, called at most 5 times, to start near the right k.
        expired: Whether time is up; asked before every solve at full effort but the first.

    Returns:
        (k, result). When time is up, the smallest k that has reached ``snr_db`` so far.

    Raises:
        ValueError: even :func:`largest_k` does not reach it.
        TimeoutError: time is up and no k tried has reached it.
    """
    largest = largest_k(m, n)
    k = min(largest, max(1, round(snr_db / _DB_PER_BIT * m * n / (m + n))))
    slope = _DB_PER_BIT * (m + n) / (m * n)
    if rough is not None:
        k, slope = _near(rough, snr_db, k, largest)
    bracket = _Bracket(snr_db, slope)
    best: tuple[int, T] | None = None
    while True:
        result, found = solve_at(k)
        if bracket.narrow(k, found):
            best = k, result
        elif k == largest:
            raise ValueError(
                f"snr_db is {snr_db:g}; even k = {k} ({_LARGEST_BITS} bits per weight) reaches only "
                f"{found:.2f} dB; use a smaller snr_db"
            )
        if best is not None and (bracket.width == 1 or expired()):
            return best
        if expired():
            low, found = bracket.low
            raise TimeoutError(
                f"time is up before any k reached {snr_db:g} dB: the largest tried, k = {low}, gave "
                f"{found:.2f} dB; use a longer time_limit or a smaller snr_db"
            )
        k = min(largest, bracket.next())


class _Bracket:
    """The largest k known to fail below the smallest known to reach the target, with their SNRs."""

    def __init__(self, target: float, slope: float) -> None:
        self._target = target
        self._slope = slope  # dB per unit of k, used until tries have failed and succeeded
        self.low = (0, 0.0)  # no factors, no signal
        self._high: tuple[int, float] | None = None
        self._stride = 0
        self._last: bool | None = None

    @property
    def width(self) -> float:
        return math.inf if self._high is None else self._high[0] - self.low[0]

    def narrow(self, k: int, found: float) -> bool:
        """Take in what k gave: whether it reached the target."""
        found = min(max(found, -_FINITE), _FINITE)
        reached = found >= self._target
        if reached:
            self._high = k, found
        else:
            self.low = k, found
        # Doubles while the tries fall on one side, so that a curve that bends costs only a few of them.
        self._stride = max(1, 2 * self._stride) if reached is self._last else 1
        self._last = reached
        return reached

    def next(self) -> int:
        """Where a straight line meets the target, but a stride away from the last try."""
        k, found = self.low
        if self._high is None:
            return k + max(self._stride, math.ceil((self._target - found) / self._slope))
        high, above = self._high
        if k:
            line = k + math.ceil((self._target - found) / (above - found) * (high - k))
        else:  # nothing failed yet, and 0 is far away
            line = high - math.floor((above - self._target) / self._slope)
        middle = (k + high) // 2
        line = min(line, max(middle, high - self._stride)) if self._last else line
        line = line if self._last else max(line, min(middle, k + self._stride))
        return max(k + 1, min(high - 1, line))


def _near(rough: Callable[[int], float], target: float, k: int, largest: int) -> tuple[int, float]:
    """(k about where cheap solves reach the target, slope in dB per unit of k there)."""
    slope = target / k
    tried: dict[int, float] = {0: 0.0}
    for _ in range(_ROUGH_SOLVES):
        tried[k] = found = min(max(rough(k), -_FINITE), _FINITE)
        other = min((p for p in tried if p != k), key=lambda p: abs(tried[p] - target))
        rise = (found - tried[other]) / (k - other)
        slope = rise if rise > 0 else target / k
        following = min(largest, max(1, k + round((target - found) / slope)))
        if abs(found - target) <= _NEAR or following in tried:
            break
        k = following
    return k, slope
