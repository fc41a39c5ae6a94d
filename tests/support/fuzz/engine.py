"""Mutants by the thousand: what a driver is, and how it is run."""

from __future__ import annotations

import abc
import hashlib
import random
import time
import tracemalloc
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .mutations import mutate

if TYPE_CHECKING:
    from pathlib import Path

    from .mutations import Content

# Objects of Python's own: a header's strings and tuples, exceptions with their messages.
SLACK = 128 * 1024
_MEASURED = 256  # one mutant in so many has its memory measured, which is slow


class Driver(abc.ABC):
    """One kind of content, read by one or more readers.

    Attributes:
        name: On the command line, and of the folder of its faults.
    """

    name: str

    @abc.abstractmethod
    def seeds(self) -> list[Content]:
        """Good contents, small: a file's bytes, or the files of a folder by their names."""

    @abc.abstractmethod
    def check(self, mutant: Content, seed: Content | None) -> int | None:
        """Read a mutant.

        Args:
            mutant: What to read.
            seed: If it is accepted, it must decode to exactly what this does; None where that cannot be
                said: its checksums have been mended, or where it comes from is unknown.

        Returns:
            The bytes that the accepted content holds in memory; None if it was refused, by diba's own error.

        Raises:
            AssertionError: a fault. So is any other exception.
        """

    def mend(self, mutant: Content) -> Content | None:
        """The mutant with right checksums, so that what lies behind them is reached; None if it has none."""
        return None

    def close(self) -> None:  # noqa: B027  (most have nothing to do)
        """End what was started for it."""


@dataclass
class Result:
    """What a run found; ``faults`` are (what happened, the mutant)."""

    driver: str
    mutants: int = 0
    accepted: int = 0
    mended: int = 0
    mended_accepted: int = 0
    measured: int = 0
    seconds: float = 0.0
    faults: list[tuple[str, Content]] = field(default_factory=list, repr=False)

    def summary(self) -> dict[str, Any]:
        """Numbers only, for JSON."""
        return {**asdict(self), "faults": len(self.faults)}


def run(
    driver: Driver,
    *,
    mutants: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    most_faults: int = 20,
) -> Result:
    """Check mutants up to a number or for a time; the n-th is the same in every run with this seed."""
    seeds = driver.seeds()
    result = Result(driver.name)
    for content in seeds:  # a driver that refuses its own seeds would find nothing
        if driver.check(content, content) is None:
            raise AssertionError(f"{driver.name}: a seed was refused")
    start = time.monotonic()
    while mutants is None or result.mutants < mutants:
        if result.mutants % 64 == 0:
            result.seconds = time.monotonic() - start
            if (seconds is not None and result.seconds >= seconds) or len(result.faults) >= most_faults:
                break
        rng = random.Random(f"{seed}/{driver.name}/{result.mutants}")
        _one(driver, seeds, rng, result)
    result.seconds = time.monotonic() - start
    return result


def _one(driver: Driver, seeds: list[Content], rng: random.Random, result: Result) -> None:
    origin = rng.choice(seeds)
    mutant = mutate(origin, rng, seeds)
    mended = driver.mend(mutant) if rng.random() < 0.3 else None
    if mended is not None:
        mutant, result.mended = mended, result.mended + 1
    measured = result.mutants % _MEASURED == 0
    result.mutants += 1
    result.measured += measured
    try:
        expected = None if mended is not None else origin
        held = _measured(driver, mutant, expected) if measured else driver.check(mutant, expected)
    except Exception as error:
        result.faults.append((f"{type(error).__name__}: {error}"[:500], mutant))
        return
    if held is not None:
        result.accepted += 1
        result.mended_accepted += mended is not None


def _measured(driver: Driver, mutant: Content, seed: Content | None) -> int | None:
    """The check, and that it allocates no more than twice the content plus what that holds."""
    driver.check(mutant, seed)  # what is made once, as caches and regular expressions are, is not counted
    tracemalloc.start()
    try:
        held = driver.check(mutant, seed)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    allowed = 2 * size(mutant) + (held or 0) + SLACK
    assert peak <= allowed, f"{peak:,} bytes allocated for {size(mutant):,} of content, allowed {allowed:,}"
    return held


def size(content: Content) -> int:
    """Bytes of a content, all its files together."""
    return len(content) if isinstance(content, bytes) else sum(map(len, content.values()))


def keep(content: Content, folder: Path) -> Path:
    """Write a mutant for later; returns the file, or the folder of its files."""
    parts = [content] if isinstance(content, bytes) else [part for _, part in sorted(content.items())]
    path = folder / hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    if isinstance(content, bytes):
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    else:
        path.mkdir(parents=True, exist_ok=True)
        for name, part in content.items():
            (path / name).write_bytes(part)
    return path


def kept(path: Path) -> Content:
    """What ``keep`` wrote."""
    if path.is_dir():
        return {file.name: file.read_bytes() for file in sorted(path.iterdir())}
    return path.read_bytes()
