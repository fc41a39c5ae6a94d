"""The C++ DiBA-Greedy against the same algorithm in vectorised PyTorch: time, peak memory, SNR.

    python benchmarks solve --json benchmarks/results/solve.json

Every run is a process of its own, with one thread for everything, and the two implementations take
turns; ratios are medians over the rounds. Both start from the same random bits and stop by the same
rule. Peak memory is what the process grew by over the state with all libraries and the data loaded.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from diba._internal.timing import blas_threads

from ..common import results, weights
from ..common.command import at_least_one, finish, parser
from ..common.process import forget_peak, in_process, memory
from ..common.tables import markdown, measured

SHAPES = ("384x384", "1536x384", "2048x512")
BITS = (1.0, 2.0)
MAX_ITER, TOL = 100, 1e-4
GREEDY = {"method": "greedy", "seed": 0, "threads": 1}


def matrix(shape: str) -> tuple[str, np.ndarray]:
    """(what it is, the matrix): real weights of all-MiniLM-L6-v2 where it has the shape."""
    if shape == "2048x512":
        return "iid Gaussian", np.random.default_rng(0).standard_normal((2048, 512), dtype=np.float32)
    wanted = {"384x384": "layer.0.attention.self.query", "1536x384": "layer.3.intermediate.dense"}[shape]
    found = next(m for m in weights.minilm() if wanted in m.name)
    return f"{found.source} {found.name}", np.asarray(found.array, dtype=np.float32)


class Watch:
    """Seconds from here on, and by how many bytes the process grows at most (Linux)."""

    def __init__(self) -> None:
        forget_peak()
        self._held = memory()["resident"] or 0
        self._started = time.perf_counter()

    def read(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._started
        return {"seconds": seconds, "bytes": (memory()["peak"] or 0) - self._held}


def run_cpp(A: np.ndarray, bits: float, alphabet: str) -> dict[str, Any]:
    import diba

    watch = Watch()
    f = diba.solve(A, bits_per_weight=bits, alphabet=alphabet, max_iter=MAX_ITER, tol=TOL, **GREEDY)
    return watch.read() | {"snr": f.snr_db(A), "k": f.k, "isa": diba.isa()}


def run_torch(A: np.ndarray, bits: float, alphabet: str, drop_finished: bool) -> dict[str, Any]:
    import torch

    import diba
    from diba._internal.snr import energy_and_error, snr_db

    from . import torch_greedy

    torch.set_num_threads(1)
    random = diba.solve(A, bits_per_weight=bits, alphabet=alphabet, max_iter=0, **GREEDY)  # flips no bit
    start = [torch.from_numpy(b.to_dense()) for b in (random.b1, random.b2)]
    scaled = A / np.abs(A).max()
    watch = Watch()
    d1, B1, d2, B2, d3 = torch_greedy.solve(
        torch.from_numpy(scaled), *start, alphabet == "sign", MAX_ITER, TOL, drop_finished
    )
    taken = watch.read()
    snr = snr_db(*energy_and_error(scaled, ((B1 * d1[:, None] * d2) @ (B2 * d3)).numpy()))
    return taken | {"snr": snr, "k": random.k}


RUNS = {
    "diba": run_cpp,
    "torch": lambda *args: run_torch(*args, drop_finished=True),
    "torch, all rows": lambda *args: run_torch(*args, drop_finished=False),
}


def work(task: dict[str, Any]) -> dict[str, Any]:
    """One run, in a process of its own."""
    return RUNS[task["name"]](matrix(task["shape"])[1], task["bits"], task["alphabet"])


def compare(shape: str, bits: float, alphabet: str, rounds: int) -> dict[str, Any]:
    place = {"shape": shape, "bits": bits, "alphabet": alphabet}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
    for _ in range(rounds):
        for name, found in runs.items():
            found.append(in_process("solve", place | {"name": name}, blas_threads(1)))
    row: dict[str, Any] = place | {"matrix": matrix(shape)[0]}
    for name, found in runs.items():
        row[name] = {key: found[0][key] for key in found[0] if key not in ("seconds", "bytes")}
        row[name]["seconds"] = [r["seconds"] for r in found]
        row[name]["bytes"] = statistics.median(r["bytes"] for r in found)
    for name in list(RUNS)[1:]:
        pairs = zip(row[name]["seconds"], row["diba"]["seconds"], strict=True)
        row[name]["time_ratio"] = statistics.median(theirs / ours for theirs, ours in pairs)
    return row


# ---- the table

COLUMNS = (
    "matrix", "bits per weight", "alphabet", "k", "diba, s", "PyTorch, s", "ratio", "ratio, all rows kept",
    "SNR, dB", "peak memory, MB",
)  # fmt: skip


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One row of the table; SNR and memory are diba's, then PyTorch's."""
    ours, theirs, plain = (row[name] for name in RUNS)
    return (
        row["shape"],
        f"{row['bits']:g}",
        row["alphabet"],
        str(ours["k"]),
        f"{statistics.median(ours['seconds']):.2f}",
        f"{statistics.median(theirs['seconds']):.2f}",
        f"{theirs['time_ratio']:.1f}",
        f"{plain['time_ratio']:.1f}",
        f"{ours['snr']:.2f} / {theirs['snr']:.2f}",
        f"{ours['bytes'] / 1e6:.0f} / {theirs['bytes'] / 1e6:.0f}",
    )


def table(report: dict[str, Any]) -> str:
    note = (
        "One thread each, medians of "
        f"{report['rounds']} interleaved rounds. SNR and memory: diba / PyTorch; memory is what the "
        f"process grew by while it solved. {measured(report)}."
    )
    return f"{markdown(COLUMNS, [cells(row) for row in report['rows']])}\n\n{note}"


# ---- the command


def main(arguments: Sequence[str]) -> None:
    made = parser("solve", __doc__)
    made.add_argument("--rounds", type=at_least_one, default=3, metavar="N", help="runs of each (3)")
    made.add_argument("--shapes", nargs="+", default=SHAPES, choices=SHAPES)
    made.add_argument("--bits", nargs="+", type=float, default=BITS, metavar="B")
    made.add_argument("--alphabets", nargs="+", default=["binary"], choices=["binary", "sign"])
    options = made.parse_args(arguments)
    settings = {"max_iter": MAX_ITER, "tol": TOL, "rounds": options.rounds}
    fresh = {"machine": results.machine(), **settings, "rows": []}
    report = results.go_on(options.json, fresh, ("machine", *settings))
    there = {(row["shape"], row["bits"], row["alphabet"]) for row in report["rows"]}
    for alphabet in options.alphabets:
        for shape in options.shapes:
            for bits in options.bits:
                if (shape, bits, alphabet) not in there:
                    report["rows"].append(compare(shape, bits, alphabet, options.rounds))
                    results.write(options.json, report)
                    print(*cells(report["rows"][-1]), flush=True)
    print()
    finish(table(report), report, options)
