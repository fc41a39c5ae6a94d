#!/usr/bin/env python3
"""What a call of torch.ops.diba.linear costs beside its kernel: microseconds, one vector, one thread.

    python benchmarks/op_overhead.py --json benchmarks/results/op_overhead.json
    python benchmarks/op_overhead.py --against "other/.venv/bin/python other/benchmarks/op_overhead.py"

The kernel is the compiled layer called with addresses; "operator" and "layer" are what a model calls, without
gradients. Short windows of calls take turns; the least time of each kind is what it takes undisturbed.
``--against`` names this script of another version, in an environment that has it: both run in turn, five
times each, and the medians of these least times stand beside each other.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import diba
from diba.torch import DibaLinear
from diba.torch.ops.operators import packed

SHAPES = ((64, 64), (384, 384), (576, 576), (1536, 576), (576, 1536))  # (outputs, inputs)
WINDOWS, CALLS = 400, 40
ROUNDS = 5
BAR = 15.0  # us


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--against", metavar="COMMAND")
    args = parser.parse_args(argv)
    if args.against:
        return compare(args.against, args.json)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [measure(m, n) for m, n in SHAPES]
    report = {
        "machine": {"cpu": diba.info()["cpu"], "isa": diba.isa(), "torch": torch.__version__},
        "load": os.getloadavg()[0],
        "windows": WINDOWS,
        "calls": CALLS,
        "bar_us": BAR,
        "rows": rows,
    }
    print(table(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def compare(other: str, path: Path | None) -> int:
    """This version and another one in turn; medians of layer calls, and of operator less kernel."""
    commands = {"before": shlex.split(other), "now": [sys.executable, __file__]}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for name, command in commands.items():
                file = Path(folder, "run.json")
                subprocess.run([*command, "--json", str(file)], check=True, stdout=subprocess.DEVNULL)
                runs[name].append(json.loads(file.read_text(encoding="utf-8")))
    rows = []
    for i, shape in enumerate(SHAPES):
        row: dict[str, Any] = {"shape": shape}
        for name, reports in runs.items():
            us = [report["rows"][i]["us"] for report in reports]
            row[f"layer_{name}_us"] = statistics.median(one["layer"] for one in us)
            row[f"overhead_{name}_us"] = statistics.median(one["operator"] - one["kernel"] for one in us)
        rows.append(row)
        print(*(f"{key}={value:.1f}" if isinstance(value, float) else value for key, value in row.items()))
    if path:
        report = {"machine": runs["now"][0]["machine"], "rounds": ROUNDS, "rows": rows}
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(m: int, n: int) -> dict[str, Any]:
    """Least times of one shape, at 1 bit per weight, ±1."""
    k = m * n // (m + n)
    layer = DibaLinear(n, m, k, alphabet="sign").requires_grad_(False)
    dense = torch.nn.Linear(n, m).requires_grad_(False)
    x, y = torch.randn(1, n), torch.empty(1, m)
    parts = (layer.d1, layer.b1, layer.d2, layer.b2, layer.d3)
    (d1, b1, d2, b2, d3), shift = parts, layer.bias
    operator = torch.ops.diba.linear.default
    operator(x, d1, b1, d2, b2, d3, shift, True)  # packs
    compiled = packed._layers[layer.b1.data_ptr()].compiled
    addresses = tuple(part.data_ptr() for part in parts)
    bias, source, target = layer.bias.data_ptr(), x.data_ptr(), y.data_ptr()
    calls: dict[str, Callable[[], object]] = {
        "kernel": lambda: compiled.multiply(addresses, source, 1, bias, target, 1, False),
        "operator": lambda: operator(x, d1, b1, d2, b2, d3, shift, True),
        "layer": lambda: layer(x),
        "nn.Linear": lambda: dense(x),
    }
    best = dict.fromkeys(calls, float("inf"))
    with torch.no_grad():
        for _ in range(WINDOWS):
            for name, call in calls.items():
                best[name] = min(best[name], window(call))
    return {"shape": [m, n], "k": k, "us": {name: 1e6 * seconds for name, seconds in best.items()}}


def window(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - began) / CALLS


def table(report: dict[str, Any]) -> str:
    names = list(report["rows"][0]["us"])
    lines = ["| Shape | " + " | ".join(names) + " | operator - kernel |"]
    lines.append("| :--- |" + " ---: |" * (len(names) + 1))
    for row in report["rows"]:
        us = row["us"]
        values = [f"{us[name]:.1f}" for name in names] + [f"{us['operator'] - us['kernel']:.1f}"]
        lines.append("| {} x {} | ".format(*row["shape"]) + " | ".join(values) + " |")
    worst = max(row["us"]["operator"] - row["us"]["kernel"] for row in report["rows"])
    met = "met" if worst <= report["bar_us"] else "not met"
    return "\n".join(
        [*lines, "", f"Most: {worst:.1f} us; bar {report['bar_us']:.0f} us: {met}. us, one thread."]
    )


if __name__ == "__main__":
    sys.exit(main())
