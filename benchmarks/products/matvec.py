"""Products on one machine, side by side: diba, NumPy, torch, onnxruntime, openvino.

    python benchmarks matvec --json benchmarks/results/matvec.json

Every shape and number of threads is a process of its own; in it the contestants take turns. A cold row
cycles through copies of the weights that together exceed the last-level cache, so that each product
finds its weights in main memory only. See rivals.py for what is timed. A second run goes on where the first
was stopped; --update measures its shapes and threads again.
"""

from __future__ import annotations

import argparse
import gc
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diba import info, set_num_threads
from diba._internal import machine as _system
from diba._internal.snr import energy_and_error, snr_db
from diba._internal.timing import (
    activations,
    blas_threads,
    fastest,
    interleaved,
    random_factorization,
    read_bandwidth,
)

from ..common import results
from ..common.command import at_least_one, finish, parser
from ..common.process import in_process
from .rivals import RIVALS, Call, Contestant, diba_contestant
from .table import rows_text, table

SHAPES = ("384x384", "384x1536", "768x3072", "4096x4096", "4096x14336", "8192x8192")
BITS, BATCHES, THREADS = (1.0, 1.5, 2.0), (1, 8, 64, 512), (1, 2)
QUICK = {"shapes": ["384x384", "384x1536"], "bits": [1.0], "batches": [1, 8], "repeats": 3, "seconds": 0.03}
SETTINGS = ("bits", "batches", "rivals", "repeats", "seconds", "cold")  # settings that every process gets
SNR_ROWS = 4  # vectors that an SNR is measured on
COLD, COLD_AT_LEAST = 4, 2  # caches that the copies of cold weights should fill, and must fill
REST = 0.02  # seconds: idle threads of OpenMP, onnxruntime and TBB wait for work by spinning, for a while
ONE_THREAD = ", 1 thread"
AVX2 = {"shape": "4096x4096", "bits": [1.0], "batches": [1], "threads": 1, "rivals": ["torch-float32"]}


def options(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser("matvec", __doc__, plot=True)
    add = made.add_argument
    add("--update", action="store_true", help="measure these cells again, keep the others of --json")
    add("--shapes", nargs="+", default=list(SHAPES), metavar="MxN", type=shape_text)
    add("--bits", nargs="+", default=list(BITS), type=float, metavar="B")
    add("--batches", nargs="+", default=list(BATCHES), type=at_least_one, metavar="P")
    add("--threads", nargs="+", default=list(THREADS), type=at_least_one, metavar="N")
    add("--rivals", nargs="*", default=list(RIVALS), choices=list(RIVALS))
    add("--repeats", type=at_least_one, default=9, help="samples of every time (9)")
    add("--seconds", type=float, default=0.25, help="for all samples of a time (0.25)")
    add("--no-cold", dest="cold", action="store_false", help="warm weights only")
    add("--quick", action="store_true", help="two small shapes, 1 bit, few samples")
    found = made.parse_args(arguments)
    if found.quick:
        given = {word.partition("=")[0].lstrip("-") for word in arguments}
        vars(found).update({name: value for name, value in QUICK.items() if name not in given})
    if min([*found.bits, found.seconds]) <= 0:
        made.error("bits and seconds must be above 0")
    return found


def shape_text(text: str) -> str:
    m, _, n = text.partition("x")
    if not (m.isdigit() and n.isdigit() and int(m) and int(n)):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; it must be like 4096x1024")
    return text


# ---------------------------------------------------------------- one shape, one number of threads


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Every row of one shape and number of threads, measured in this process."""
    m, n = map(int, task["shape"].split("x"))
    threads, notes = task["threads"], []
    set_num_threads(threads)
    contestants = list(prepare(m, n, task, notes))
    facts = [describe(contestant, n, threads) for contestant in contestants]
    rows = []
    for batch in task["batches"]:
        X = activations(batch, n)
        calls = {contestant.name: fastest(*contestant.ways(X)) for contestant in contestants}
        samples = interleaved(calls, task["repeats"], task["seconds"], REST if threads > 1 else 0.0)
        rows += [row(fact, samples[fact["name"]], batch, "warm", fact["read"]) for fact in facts]
        del calls
    if task["cold"]:
        rows += cold_rows(contestants, facts, task, notes)
    about = {"shape": [m, n], "threads": threads, "isa": info()["isa"]}
    return {"rows": [about | found for found in rows], "notes": [about | note for note in notes]}


def prepare(m: int, n: int, task: dict[str, Any], notes: list[dict[str, Any]]) -> Iterator[Contestant]:
    threads = task["threads"]
    if any(name.startswith("torch") for name in task["rivals"]):
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
    for bits in task["bits"]:
        f = random_factorization(m, n, bits)
        yield diba_contestant(f, "fast", bits, threads)
        if bits == min(task["bits"]):
            yield diba_contestant(f, "exact", bits, threads)
            if threads > 1:  # what more threads gain, measured side by side
                yield diba_contestant(f, "fast", bits, 1, suffix=ONE_THREAD)
    for name in task["rivals"]:
        try:
            yield RIVALS[name](m, n, threads)
        except Exception as error:  # of any type, by the library: becomes a row
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            notes.append({"name": name, "note": f"refused: {reason}"})


def describe(contestant: Contestant, n: int, threads: int) -> dict[str, Any]:
    """What does not depend on the batch."""
    inputs = [activations(SNR_ROWS, n, heavy) for heavy in (False, True)]
    exact = np.split(contestant.exact(np.concatenate(inputs)), 2)
    decibels = [
        snr_db(*energy_and_error(known, contestant.product(X)))
        for known, X in zip(exact, inputs, strict=True)
    ]
    snr = dict(zip(("snr_db", "snr_heavy_db"), decibels, strict=True))
    return {
        "name": contestant.name,
        "bits_per_weight": contestant.bits_per_weight,
        "weight_bytes": contestant.weight_bytes,
        "read": read_bandwidth(
            contestant.weight_bytes, 1 if contestant.name.endswith(ONE_THREAD) else threads
        ),
        **{name: value if math.isfinite(value) else None for name, value in snr.items()},
        **contestant.details,
    }


def row(fact: dict[str, Any], samples: list[float], batch: int, cache: str, read: float) -> dict[str, Any]:
    low, middle, high = np.quantile(samples, [0.25, 0.5, 0.75])
    rate = fact["weight_bytes"] / middle
    times = {"us": 1e6 * middle, "us_quartile_1": 1e6 * low, "us_quartile_3": 1e6 * high}
    speed = {"gb_per_s": rate / 1e9, "read_gb_per_s": read / 1e9, "read_share": rate / read}
    known = {name: value for name, value in fact.items() if name != "read"}
    return {"batch": batch, "cache": cache, **known, **times, "samples": len(samples), **speed}


def cold_rows(
    contestants: list[Contestant],
    facts: list[dict[str, Any]],
    task: dict[str, Any],
    notes: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """One vector times weights that no cache holds."""
    cache = last_level_cache()
    goal = min(COLD * cache, (_system.available_memory() or 2**33) // 3 // len(contestants))
    x = activations(1, int(task["shape"].partition("x")[2]))
    calls, copies = {}, {}
    for contestant in contestants:
        if contestant.name.endswith((", exact", ONE_THREAD)):
            continue
        count = min(-(-goal // contestant.weight_bytes), contestant.max_copies)
        total = count * contestant.weight_bytes
        if total < COLD_AT_LEAST * cache:
            size = f"{count} copies are {total / 1e6:.0f} MB"
            notes.append(
                {"name": contestant.name, "note": f"no cold row: {size}, the cache {cache / 1e6:.0f} MB"}
            )
            if contestant is contestants[0]:
                return []  # a shape whose packed weights are never in main memory alone
            continue
        first = contestant.ways(x)
        chosen = first.index(fastest(*first))
        others = [contestant.another() for _ in range(count - 1)]
        calls[contestant.name] = Cycle([first[chosen], *(other.ways(x)[chosen] for other in others)])
        copies[contestant.name] = count
    samples = {name: [s / copies[name] for s in taken] for name, taken in timed_passes(calls, task).items()}
    read = read_bandwidth(COLD * cache, task["threads"], 0.3) if samples else 0.0
    return [
        row(fact, samples[fact["name"]], 1, "cold", read) | {"copies": copies[fact["name"]]}
        for fact in facts
        if fact["name"] in samples
    ]


def timed_passes(calls: dict[str, Cycle], task: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of going through all copies once; the contestants take turns."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    for turn in range(1 + task["repeats"]):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:  # the first pass is not timed
                samples[name].append(time.perf_counter() - start)
    gc.enable()
    return samples


class Cycle:
    """Calls one after the other."""

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls

    def __call__(self) -> None:
        for call in self._calls:
            call()


def last_level_cache() -> int:
    """Bytes of the largest cache of the first processor; 32 MB if the system does not say."""
    units = {"K": 2**10, "M": 2**20}
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    texts = [path.read_text(encoding="ascii").strip() for path in folder.glob("index*/size")]
    return max((int(text[:-1]) * units[text[-1]] for text in texts), default=2**25)


# ---------------------------------------------------------------- all of it


def tasks(chosen: argparse.Namespace) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """What to run in turn: a task, and what its environment adds."""
    common = settings(chosen)
    for threads in sorted(chosen.threads):
        for shape in chosen.shapes:
            yield common | {"shape": shape, "threads": threads}, {}
    if AVX2["shape"] in chosen.shapes and info()["isa"] != "avx2" and "avx2" in info()["supported_isas"]:
        yield common | AVX2 | {"cold": False}, {"DIBA_ISA": "avx2"}


def settings(chosen: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(chosen, name) for name in SETTINGS}


def cell(row: dict[str, Any]) -> tuple[Any, ...]:
    """What one process measures."""
    return *row["shape"], row["threads"], row["isa"]


def main(arguments: Sequence[str]) -> None:
    chosen = options(arguments)
    fresh = {"machine": results.machine(), "cache_bytes": last_level_cache(), "arguments": settings(chosen)}
    report = results.go_on(chosen.json, fresh | {"rows": [], "notes": []}, ("machine", "arguments"))
    before = report.get("seconds", 0)
    started = time.perf_counter()
    for task, environment in tasks(chosen):
        place = (
            *map(int, task["shape"].split("x")),
            task["threads"],
            environment.get("DIBA_ISA", info()["isa"]),
        )
        if not chosen.update and place in {cell(row) for row in report["rows"]}:
            continue
        found = in_process("matvec", task, blas_threads(task["threads"]) | environment)
        for part in ("rows", "notes"):
            report[part] = [old for old in report[part] if cell(old) != place] + found[part]
        report["seconds"] = before + round(time.perf_counter() - started)
        print(rows_text(found), flush=True)
        results.write(chosen.json, report)
    print()
    finish(table(report), report, chosen, "products.figure")
