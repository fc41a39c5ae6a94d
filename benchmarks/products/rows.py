"""The rows that the matvec benchmark measures, and where dense products are faster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

__all__ = ["BIG", "FAST", "ONE", "TWO", "Row", "Rows", "dense_faster", "size_text"]

DENSE = ("torch float32", "NumPy float32")
FAST = {bits: f"diba {bits:g} bit{'s' if bits > 1 else ''}, fast" for bits in (1.0, 1.5, 2.0)}
ONE, TWO = FAST[1.0], FAST[2.0]
BIG = (4096, 4096)

Row = dict[str, Any]


class Rows:
    """Rows by what they are of; of several the last."""

    def __init__(self, rows: Iterable[Row], isa: str) -> None:
        self._rows = {
            (tuple(r["shape"]), r["batch"], r["threads"], r["cache"], r["name"]): r
            for r in rows
            if r["isa"] == isa
        }

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def row(
        self, name: str, shape: tuple[int, int], batch: int, threads: int, cache: str = "warm"
    ) -> Row | None:
        """None if it was not measured."""
        return self._rows.get((shape, batch, threads, cache, name))

    def value(
        self, name: str, shape: tuple[int, int] = BIG, batch: int = 1, threads: int = 1
    ) -> float | None:
        """Microseconds, warm; None if it was not measured."""
        row = self.row(name, shape, batch, threads)
        return row["us"] if row else None

    def ratio(
        self, slow: str, quick: str, shape: tuple[int, int] = BIG, batch: int = 1, threads: int = 1
    ) -> float | None:
        """How many times as fast as ``slow`` ``quick`` is, warm."""
        times = [self.value(name, shape, batch, threads) for name in (slow, quick)]
        return times[0] / times[1] if times[0] and times[1] else None


def dense_faster(rows: Sequence[Row], isa: str) -> list[Row]:
    """Every shape, batch, number of threads and cache where a dense float32 product beats a fast one."""
    cells: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if row["isa"] == isa:
            key = tuple(row["shape"]), row["batch"], row["threads"], row["cache"]
            cells.setdefault(key, {})[row["name"]] = row["us"]
    found = []
    for (shape, batch, threads, cache), times in cells.items():
        dense = min((name for name in DENSE if name in times), key=times.__getitem__, default=None)
        if dense is None:
            continue
        slower = {
            name: us / times[dense] for name, us in times.items() if is_fast(name) and us > times[dense]
        }
        if slower:
            cell = {"shape": list(shape), "batch": batch, "threads": threads, "cache": cache}
            found.append(cell | {"dense": dense, "times_as_fast": slower})
    return found


def is_fast(name: str) -> bool:
    """Whether it is diba's fast product, at any number of bits, with all threads."""
    return name.startswith("diba ") and name.endswith(", fast")


def size_text(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"
