"""The bars that benchmarks/matvec.py is held to, and where dense products are faster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

__all__ = ["BIG", "FAST", "ONE", "TWO", "Row", "Rows", "bars", "dense_faster", "size_text"]

DENSE = ("torch float32", "NumPy float32")
FAST = {bits: f"diba {bits:g} bit{'s' if bits > 1 else ''}, fast" for bits in (1.0, 1.5, 2.0)}
ONE, TWO = FAST[1.0], FAST[2.0]
BIG, SMALL, HUGE = (4096, 4096), (384, 384), (8192, 8192)

# Published times of a 4096 x 4096 product in us, beside torch float32 on the machine they were taken on.
TORCH_THERE, T_MAC, I2_S = (3300 + 3650) / 2, 102, 147

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
        self, name: str, shape: tuple[int, int] = BIG, batch: int = 1, threads: int = 1, cache: str = "warm",
        column: str = "us",
    ) -> float | None:  # fmt: skip
        """One number; None if it was not measured."""
        row = self.row(name, shape, batch, threads, cache)
        return row[column] if row else None

    def ratio(
        self, slow: str, quick: str, shape: tuple[int, int] = BIG, batch: int = 1, threads: int = 1
    ) -> float | None:
        """How many times as fast as ``slow`` ``quick`` is, warm."""
        times = [self.value(name, shape, batch, threads) for name in (slow, quick)]
        return times[0] / times[1] if times[0] and times[1] else None


# ---------------------------------------------------------------- the bars


def bars(rows: Sequence[Row], isa: str) -> list[Row]:
    """Each bar: name, what is required and measured, whether it is met (None: not measured)."""
    here, avx2 = Rows(rows, isa), Rows(rows, "avx2")
    torch = DENSE[0]
    big, batch = "4096x4096, 1 bit", "4096x4096, 1 bit, batch"
    converted = "from published times: {} us where torch float32 took 3300-3650"
    found = [
        bar(f"{big}: times torch float32", 60, here.ratio(torch, ONE)),
        bar(f"{big}: times onnxruntime 4-bit", 4, here.ratio("onnxruntime 4-bit", ONE)),
        bar(
            f"{big}: times torch float32, which is 2 times T-MAC W1",
            2 * TORCH_THERE / T_MAC,
            here.ratio(torch, ONE),
            note=converted.format(T_MAC),
        ),
        bar("4096x4096, 2 bits: times onnxruntime 2-bit", 2, here.ratio("onnxruntime 2-bit", TWO)),
        bar(
            "4096x4096, 2 bits: times torch float32, which is 1.4 times bitnet.cpp I2_S",
            1.4 * TORCH_THERE / I2_S,
            here.ratio(torch, TWO),
            note=converted.format(I2_S),
        ),
        bar("8192x8192, 1 bit, warm: GB/s of weights", 45, here.value(ONE, HUGE, column="gb_per_s")),
        bar(
            "8192x8192, 1 bit, cold: share of memory bandwidth",
            0.8,
            here.value(ONE, HUGE, cache="cold", column="read_share"),
        ),
        bar("384x384, 1 bit: us", 8, here.value(ONE, SMALL), at_most=True),
        bar("384x384, 1 bit: times torch float32", 2, here.ratio(torch, ONE, SMALL)),
        bar(f"{batch} 8: times torch float32", 8, here.ratio(torch, ONE, batch=8)),
        bar(f"{batch} 8: times torch int8", 1.7, here.ratio("torch int8, dynamic", ONE, batch=8)),
    ]
    for size in (64, 512):
        found.append(bar(f"{batch} {size}: times torch float32", 5, here.ratio(torch, ONE, batch=size)))
        int8 = here.ratio("torch int8, dynamic", ONE, batch=size)
        found.append(bar(f"{batch} {size}: times torch int8", 1.5, int8))
    more = here.value(ONE + ", 1 thread", threads=2), here.value(ONE, threads=2)
    gain = more[0] / more[1] if more[0] and more[1] else None
    return [
        *found,
        never_slower(here),
        bar(f"{big}: 2 threads, times 1 thread", 1.6, gain),
        bar(f"{big}, AVX2 alone: times torch float32", 35, avx2.ratio(torch, ONE)),
        *(lowest_snr(here, *what) for what in (("Gaussian", "snr_db"), ("heavy-tailed", "snr_heavy_db"))),
    ]


def bar(name: str, required: float, measured: float | None, at_most: bool = False, note: str = "") -> Row:
    met = None if measured is None else measured <= required if at_most else measured >= required
    return {
        "name": name,
        "required": required,
        "at_most": at_most,
        "measured": measured,
        "met": met,
        "note": note,
    }


def never_slower(rows: Rows) -> Row:
    """The worst cell of one thread, warm, 1 bit, shapes of 384x1536 and up."""
    worst: tuple[float, str] | None = None
    for row in rows:
        shape, batch = tuple(row["shape"]), row["batch"]
        if row["name"] not in DENSE or row["threads"] != 1 or shape[0] * shape[1] < 384 * 1536:
            continue
        ratio = rows.ratio(row["name"], ONE, shape, batch) if row["cache"] == "warm" else None
        if ratio is not None and (worst is None or ratio < worst[0]):
            worst = ratio, f"worst: {size_text(shape)}, batch {batch}, {row['name']}"
    name = "384x1536 and up, 1 bit, any batch: times dense float32"
    return bar(name, 1, worst[0] if worst else None, note=worst[1] if worst else "")


def lowest_snr(rows: Rows, kind: str, column: str) -> Row:
    found = [row for row in rows if is_fast(row["name"]) and row[column] is not None]
    worst = min(found, key=lambda row: row[column], default=None)
    note = f"lowest: {size_text(worst['shape'])}, {worst['name']}" if worst else ""
    return bar(f"fast products, {kind} activations: SNR in dB", 40, worst and worst[column], note=note)


# ---------------------------------------------------------------- where dense is faster


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
