#!/usr/bin/env python3
"""The C++ DiBA-Greedy against the same algorithm in vectorised PyTorch: time, peak memory, SNR.

    python benchmarks/solve.py --json benchmarks/results/solve.json

Every run is a process of its own, with one thread for everything, and the two implementations take
turns; ratios are medians over the rounds. Both start from the same random bits and stop by the same
rule. Peak memory is what the process grew by over the state with all libraries and the data loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
SHAPES = ("384x384", "1536x384", "2048x512")
BITS = (1.0, 2.0)
MAX_ITER, TOL = 100, 1e-4


def matrix(shape: str) -> tuple[str, np.ndarray]:
    """(what it is, the matrix): real weights of all-MiniLM-L6-v2 where it has the shape."""
    if shape == "2048x512":
        return "iid Gaussian", np.random.default_rng(0).standard_normal((2048, 512), dtype=np.float32)
    import realdata

    wanted = {"384x384": "layer.0.attention.self.query", "1536x384": "layer.3.intermediate.dense"}[shape]
    found = next(m for m in realdata.minilm() if wanted in m.name)
    return f"{found.source} {found.name}", np.asarray(found.array, dtype=np.float32)


class Peak:
    """Peak resident memory of this process from here on, over what it holds now (Linux)."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
        self._held = self._status("VmRSS")

    @staticmethod
    def _status(name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))

    def grown(self) -> int:
        """Bytes."""
        return self._status("VmHWM") - self._held


def run_cpp(A: np.ndarray, bits: float, alphabet: str) -> dict:
    import diba

    seen: list[diba.Progress] = []
    peak, started = Peak(), time.perf_counter()
    f = diba.solve(
        A, bits_per_weight=bits, method="greedy", alphabet=alphabet, max_iter=MAX_ITER, tol=TOL, threads=1,
        progress=seen.append,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds, "bytes": peak.grown(), "snr": f.snr_db(A), "k": f.k,
        "iterations": len(seen) - 1, "flips": sum(p.flips for p in seen), "isa": diba.isa(),
    }  # fmt: skip


def run_torch(A: np.ndarray, bits: float, alphabet: str, drop_finished: bool) -> dict:
    import torch

    import torch_greedy
    from diba.solvers.factoring import scaled_to_one
    from diba.solvers.size import inner_dimension
    from diba.solvers.solver import random_start

    torch.set_num_threads(1)
    m, n = A.shape
    k = inner_dimension(m, n, "bits_per_weight", bits)
    scaled, _ = scaled_to_one(A)
    start = [torch.from_numpy(b.to_dense()) for b in random_start(m, n, k, alphabet, seed=0)]
    peak, started = Peak(), time.perf_counter()
    d1, B1, d2, B2, d3, iterations = torch_greedy.solve(
        torch.from_numpy(scaled), *start, alphabet == "sign", MAX_ITER, TOL, drop_finished
    )
    seconds = time.perf_counter() - started
    used = peak.grown()
    noise = (torch.from_numpy(scaled) - (B1 * d1[:, None] * d2) @ (B2 * d3)).double().square().sum()
    snr = 10 * np.log10(np.square(scaled, dtype=np.float64).sum() / float(noise))
    return {"seconds": seconds, "bytes": used, "snr": snr, "k": k, "iterations": iterations}


RUNS = {
    "diba": run_cpp,
    "torch": lambda *args: run_torch(*args, drop_finished=True),
    "torch, all rows": lambda *args: run_torch(*args, drop_finished=False),
}


def in_process(name: str, shape: str, bits: float, alphabet: str) -> dict:
    """One run in a fresh process."""
    command = [sys.executable, __file__, "--run", name, shape, str(bits), alphabet]
    done = subprocess.run(
        command, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def compare(shape: str, bits: float, alphabet: str, rounds: int) -> dict:
    runs: dict[str, list[dict]] = {name: [] for name in RUNS}
    for _ in range(rounds):
        for name, results in runs.items():
            results.append(in_process(name, shape, bits, alphabet))
    row = {"shape": shape, "matrix": matrix(shape)[0], "bits": bits, "alphabet": alphabet}
    for name, results in runs.items():
        row[name] = {key: results[0][key] for key in results[0] if key not in ("seconds", "bytes")}
        row[name]["seconds"] = [r["seconds"] for r in results]
        row[name]["bytes"] = statistics.median(r["bytes"] for r in results)
    for name in list(RUNS)[1:]:
        pairs = zip(row[name]["seconds"], row["diba"]["seconds"], strict=True)
        row[name]["time_ratio"] = statistics.median(theirs / ours for theirs, ours in pairs)
    return row


COLUMNS = (
    "matrix", "bits per weight", "alphabet", "k", "diba, s", "PyTorch, s", "ratio", "ratio, all rows kept",
    "SNR, dB", "peak memory, MB",
)  # fmt: skip


def cells(row: dict) -> tuple[str, ...]:
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


def markdown(values: tuple[str, ...]) -> str:
    return f"| {' | '.join(values)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=SHAPES)
    parser.add_argument("--alphabets", nargs="+", default=["binary"], choices=["binary", "sign"])
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        name, shape, bits, alphabet = arguments.run
        print(json.dumps(RUNS[name](matrix(shape)[1], float(bits), alphabet)))
        return
    rows = []
    print(markdown(COLUMNS), markdown(("---",) * len(COLUMNS)), sep="\n", flush=True)
    for alphabet in arguments.alphabets:
        for shape in arguments.shapes:
            for bits in BITS:
                rows.append(compare(shape, bits, alphabet, arguments.rounds))
                print(markdown(cells(rows[-1])), flush=True)
    if arguments.json:
        import diba

        info = {key: value for key, value in diba.info().items() if key != "threads"}
        result = {"machine": info, "max_iter": MAX_ITER, "tol": TOL, "rounds": arguments.rounds, "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
