"""The inner dimension k for the size or SNR a caller asks for, and how large a k is useful."""

from __future__ import annotations

import logging
import math
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from .._internal import storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..factorization import Factorization

__all__ = [
    "DIAGONAL_BITS",
    "inner_dimension",
    "largest_k",
    "no_size_warning",
    "sizes_to_try",
    "smallest_k",
    "stored_bits",
    "uniform_k",
    "useful_k",
    "warn_if_too_large",
    "warn_of_size",
]

T = TypeVar("T")
_warns: ContextVar[bool] = ContextVar("diba_warns_of_size", default=True)

DIAGONAL_BITS = 16
"""q: solvers round diagonals to 16 bits per entry, and sizes are counted with that."""

_USEFUL_BITS = 4  # bits per weight of B1 and B2, above which plain integers of as many bits lose less
_LARGEST_BITS = 16  # bits per weight of B1 and B2, above which k is padded with zeros
_FIRST_SHARE = 8  # with a time limit, the first k tried is the useful k divided by this
_DB_PER_BIT = 5.0  # first guess of the SNR per bit
_ROUGH_SOLVES = 5
_NEAR_DB = 0.1  # a rough solve this close to the target ends the search for the first k
_FINITE_DB = 300.0  # used in place of an infinite SNR


def inner_dimension(m: int, n: int, name: str, size: float) -> int:
    """The inner dimension k for a size.

    For b bits per weight it is the largest k whose factors take at most b:
    ``k = (b m n - q (m + n)) / (m + n + q)`` with q = 16, rounded down.

    Args:
        m: Rows of A.
        n: Columns of A.
        name: ``"k"``, ``"bits_per_weight"`` or ``"storage_ratio"``.
        size: Its value.

    Raises:
        ValueError: even k = 1 takes more than ``size``.
    """
    if name == "k":
        return int(size)
    target = size if name == "bits_per_weight" else 32 * size
    largest = int((target * m * n - DIAGONAL_BITS * (m + n)) / (m + n + DIAGONAL_BITS))
    # The division rounds, and may be off by one.
    while storage.bits_per_weight(m, n, largest + 1, DIAGONAL_BITS) <= target:
        largest += 1
    while largest > 0 and storage.bits_per_weight(m, n, largest, DIAGONAL_BITS) > target:
        largest -= 1
    smallest = storage.bits_per_weight(m, n, 1, DIAGONAL_BITS)
    if name == "storage_ratio":
        smallest /= 32
    if largest < 1:
        raise ValueError(
            f"{name} is {size:g}, too small for a {m} x {n} matrix: k = 1 already takes {smallest:.4g}; "
            f"use {name}={smallest * 1.0001:.4g} or more"
        )
    return largest


def uniform_k(m: int, n: int, bits_per_weight: float) -> int:
    """The largest k that takes at most ``bits_per_weight``; 1 if even that takes more."""
    try:
        return inner_dimension(m, n, "bits_per_weight", bits_per_weight)
    except ValueError:
        return 1


def stored_bits(m: int, n: int, k: int) -> int:
    """Stored bits of factors of inner dimension k, diagonals at 16 bits per entry."""
    return storage.stored_bits(m, n, k, DIAGONAL_BITS)


def useful_k(m: int, n: int) -> int:
    """The largest useful k: B1 and B2 take 4 bits per weight. It is 2 to 4 times min(m, n)."""
    return max(1, _USEFUL_BITS * m * n // (m + n))


def largest_k(m: int, n: int) -> int:
    """The largest k that is solved for: B1 and B2 take 16 bits per weight."""
    return max(1, _LARGEST_BITS * m * n // (m + n))


def sizes_to_try(m: int, n: int, k: int, *, limited: bool) -> list[int]:
    """The inner dimensions to solve for, rising, when k is asked for; the best result is used.

    Up to the useful k, that is k alone. A larger k may give worse factors, even more so with little time
    (``limited``). Then a few are tried, each twice the one before, up to k or ``largest_k``.
    """
    useful = useful_k(m, n)
    if k <= useful:
        return [k]
    sizes = [min(k, largest_k(m, n))]
    least = max(1, useful // _FIRST_SHARE) if limited else useful
    while sizes[-1] > least:
        sizes.append(sizes[-1] // 2)
    return sizes[::-1]


def warn_if_too_large(f: Factorization) -> None:
    """Warn if k is larger than useful."""
    (m, n), k = f.shape, f.k
    useful = useful_k(m, n)
    if k <= useful:
        return
    text = (
        f"k is {k}, larger than useful for a {m} x {n} matrix: the binary factors take "
        f"{k * (m + n) / (m * n):.3g} bits per weight, and plain integers of as many bits lose less; "
        f"use k = {useful} ({_USEFUL_BITS} bits per weight) or less"
    )
    warn_of_size(text, partial(warnings.warn, category=UserWarning, stacklevel=4))


def warn_of_size(text: str, warn: Callable[[str], object]) -> None:
    """Warn of a large k, unless in ``no_size_warning``; log it where a filter makes errors of warnings."""
    if not _warns.get():
        return
    try:
        warn(text)
    except UserWarning:  # which must not lose factors
        logging.getLogger("diba").warning("%s", text)


@contextmanager
def no_size_warning() -> Iterator[None]:
    """Context manager: no warning of a large k in this thread, for sizes that no user chose."""
    token = _warns.set(False)
    try:
        yield
    finally:
        _warns.reset(token)


# ---------------------------------------------------------------- the smallest k for an SNR


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

    The SNR is nearly linear in k, but neither smooth nor strictly rising. The result is a k that reaches
    ``snr_db`` while k - 1 (if there is one) was tried and does not; a still smaller k may reach it by chance.

    Args:
        solve_at: ``k -> (result, SNR in dB)`` at full effort; called once for each k, 3 to 8 times in all.
        m: Rows of A.
        n: Columns of A.
        snr_db: SNR to reach.
        rough: ``k -> SNR in dB`` of a cheap solve, called at most 5 times, to start near the right k.
        expired: Whether time is up; called before every solve at full effort except the first.

    Returns:
        (k, result). If time runs out, the smallest k so far that reaches ``snr_db``.

    Raises:
        ValueError: even :func:`largest_k` does not reach ``snr_db``.
        TimeoutError: time is up and no k tried reaches it.
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
                f"{found:.2f} dB: use a smaller snr_db"
            )
        if best is not None and (bracket.width == 1 or expired()):
            return best
        if expired():
            low, found = bracket.low
            raise TimeoutError(
                f"time_limit is over before any k reached {snr_db:g} dB; the largest tried, k = {low}, gave "
                f"{found:.2f} dB: use a longer time_limit or a smaller snr_db"
            )
        k = min(largest, bracket.next())


class _Bracket:
    """The largest k known to miss the target and the smallest known to reach it, with their SNRs."""

    def __init__(self, target: float, slope: float) -> None:
        self._target = target
        self._slope = slope  # dB per unit of k, until both ends are known
        self.low = (0, 0.0)  # k = 0, where the SNR is 0 dB
        self._high: tuple[int, float] | None = None
        self._stride = 0
        self._last: bool | None = None

    @property
    def width(self) -> float:
        return math.inf if self._high is None else self._high[0] - self.low[0]

    def narrow(self, k: int, found: float) -> bool:
        """Use the SNR found at k; whether it reaches the target."""
        found = min(max(found, -_FINITE_DB), _FINITE_DB)
        reached = found >= self._target
        if reached:
            self._high = k, found
        else:
            self.low = k, found
        # Doubled while tries fall on the same side, so that few are needed where the curve is not straight.
        self._stride = max(1, 2 * self._stride) if reached is self._last else 1
        self._last = reached
        return reached

    def next(self) -> int:
        """The next k: where a straight line meets the target, at least a stride or half way from the last."""
        k, found = self.low
        if self._high is None:
            return k + max(self._stride, math.ceil((self._target - found) / self._slope))
        high, above = self._high
        if k:
            line = k + math.ceil((self._target - found) / (above - found) * (high - k))
        else:  # none missed the target yet, and 0 is far away
            line = high - math.floor((above - self._target) / self._slope)
        middle = (k + high) // 2
        line = min(line, max(middle, high - self._stride)) if self._last else line
        line = line if self._last else max(line, min(middle, k + self._stride))
        return max(k + 1, min(high - 1, line))


def _near(rough: Callable[[int], float], target: float, k: int, largest: int) -> tuple[int, float]:
    """About the k where cheap solves reach the target, and the slope in dB per unit of k there."""
    slope = target / k
    tried: dict[int, float] = {0: 0.0}
    for _ in range(_ROUGH_SOLVES):
        tried[k] = found = min(max(rough(k), -_FINITE_DB), _FINITE_DB)
        other = min((p for p in tried if p != k), key=lambda p: abs(tried[p] - target))
        rise = (found - tried[other]) / (k - other)
        slope = rise if rise > 0 else target / k
        following = min(largest, max(1, k + round((target - found) / slope)))
        if abs(found - target) <= _NEAR_DB or following in tried:
            break
        k = following
    return k, slope
