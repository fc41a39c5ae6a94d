"""From the size or quality a caller asks for to the inner dimension k, and which k pay."""

from __future__ import annotations

import logging
import math
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from .._internal import storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..factorization import Factorization

__all__ = [
    "DIAGONAL_BITS",
    "PAYING_BITS",
    "advise",
    "inner_dimension",
    "largest_k",
    "no_advice",
    "paying_k",
    "sizes_to_try",
    "smallest_k",
    "stored_bits",
    "uniform_k",
]

T = TypeVar("T")
_advising: ContextVar[bool] = ContextVar("diba_advising", default=True)

DIAGONAL_BITS = 16
"""q: solvers return diagonals that 16 bits an entry hold exactly, and budgets count them so."""

PAYING_BITS = 4
"""Bits of the binary factors for each weight, above which plain integers of as many bits lose less."""

_FIRST_SHARE = 8  # with a time limit, sizes begin at this share of what pays
_LARGEST_BITS = 16  # per weight, of the binary factors
_DB_PER_BIT = 5.0  # of a first guess
_ROUGH_SOLVES = 5
_NEAR = 0.1  # dB
_FINITE = 300.0  # stands for infinite dB


def inner_dimension(m: int, n: int, name: str, size: float) -> int:
    """The inner dimension k for a size by its name: k, bits_per_weight or storage_ratio.

    For a size b in bits per weight it is the largest k whose factors take at most b:
    ``k = (b m n - q (m + n)) / (m + n + q)`` with q = 16, rounded down.

    Raises:
        ValueError: even k = 1 takes more than asked for.
    """
    if name == "k":
        return int(size)
    target = size if name == "bits_per_weight" else 32 * size
    largest = int((target * m * n - DIAGONAL_BITS * (m + n)) / (m + n + DIAGONAL_BITS))
    while (
        storage.bits_per_weight(m, n, largest + 1, DIAGONAL_BITS) <= target
    ):  # division rounded down too far
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
    """The largest k of at most this many bits per weight, at least 1."""
    try:
        return inner_dimension(m, n, "bits_per_weight", bits_per_weight)
    except ValueError:  # even k = 1 takes more
        return 1


def stored_bits(m: int, n: int, k: int) -> int:
    """Bits of factors of that size, diagonals at 16 bits an entry."""
    return storage.stored_bits(m, n, k, DIAGONAL_BITS)


def paying_k(m: int, n: int) -> int:
    """The largest k that pays: binary factors of PAYING_BITS for each entry, so 2 to 4 times min(m, n)."""
    return max(1, PAYING_BITS * m * n // (m + n))


def largest_k(m: int, n: int) -> int:
    """The largest k worth trying: binary factors of 16 bits for each entry of A."""
    return max(1, _LARGEST_BITS * m * n // (m + n))


def sizes_to_try(m: int, n: int, k: int, *, limited: bool) -> list[int]:
    """The inner dimensions to solve for, rising, of which the best result counts for k.

    Up to what pays k itself. Beyond, a solver may do worse with more components, the more so in little time
    (``limited``): k, but at most ``largest_k``, is then the last of a few sizes, each twice the one before.
    """
    pays = paying_k(m, n)
    if k <= pays:
        return [k]
    sizes = [min(k, largest_k(m, n))]
    least = max(1, pays // _FIRST_SHARE) if limited else pays
    while sizes[-1] > least:
        sizes.append(sizes[-1] // 2)
    return sizes[::-1]


def advise(f: Factorization) -> None:
    """Say it where k is beyond what pays."""
    (m, n), k = f.shape, f.k
    pays = paying_k(m, n)
    if k <= pays or not _advising.get():
        return
    text = (
        f"k is {k}, beyond what pays for a {m} x {n} matrix: its binary factors take "
        f"{k * (m + n) / (m * n):.3g} bits for each entry, where plain integers of as many bits lose less; "
        f"k = {pays} ({PAYING_BITS} bits) is enough"
    )
    try:
        warnings.warn(text, UserWarning, stacklevel=3)
    except UserWarning:  # a filter that makes it an error must not cost the factors
        logging.getLogger("diba").warning("%s", text)


@contextmanager
def no_advice() -> Iterator[None]:
    """Within it, :func:`solve` says nothing of k in this thread: for sizes that no user chose."""
    token = _advising.set(False)
    try:
        yield
    finally:
        _advising.reset(token)


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
