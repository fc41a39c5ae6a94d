"""What a call of torch.ops.diba.linear costs beside its kernel: microseconds, one vector, one thread.

    python benchmarks op_overhead --json benchmarks/results/op_overhead.json
    python benchmarks op_overhead --against "other/.venv/bin/python other/benchmarks op_overhead"

The kernel is the compiled layer called with addresses; "operator" and "layer" are what a model calls, without
gradients. They take turns; the least time of each is what it takes undisturbed. ``--against`` names this
benchmark of another version, in an environment that has it: both run in turn, five times each, and the
medians of these least times stand beside each other.
"""

from __future__ import annotations

import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from diba._internal.timing import interleaved
from diba.torch import DibaLinear
from diba.torch.ops.operators import packed

from ..common import results
from ..common.command import finish, parser
from ..common.process import BENCHMARKS
from ..common.tables import markdown, measured

SHAPES = ((64, 64), (384, 384), (576, 576), (1536, 576), (576, 1536))  # (outputs, inputs)
SAMPLES, SECONDS = 400, 0.25  # for each kind of call
ROUNDS = 5


def main(arguments: Sequence[str]) -> None:
    made = parser("op_overhead", __doc__)
    made.add_argument("--against", metavar="COMMAND", help="another version of this benchmark")
    made.add_argument("--quick", action="store_true", help="few samples")
    options = made.parse_args(arguments)
    if options.against:
        compare(options.against, options.json)
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    samples = SAMPLES // 10 if options.quick else SAMPLES
    rows = [measure(m, n, samples) for m, n in SHAPES]
    report = {"machine": results.machine(), "samples": samples, "rows": rows}
    results.write(options.json, report)
    finish(table(report), report, options)


def compare(other: str, path: Path | None) -> None:
    """This version and another one in turn; medians of layer calls, and of operator less kernel."""
    commands = {"before": shlex.split(other), "now": [sys.executable, str(BENCHMARKS), "op_overhead"]}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for name, command in commands.items():
                file = Path(folder, "run.json")
                subprocess.run([*command, "--json", str(file)], check=True, stdout=subprocess.DEVNULL)
                runs[name].append(results.read(file))
    rows = []
    for i, shape in enumerate(SHAPES):
        row: dict[str, Any] = {"shape": shape}
        for name, reports in runs.items():
            us = [report["rows"][i]["us"] for report in reports]
            row[f"layer_{name}_us"] = statistics.median(one["layer"] for one in us)
            row[f"overhead_{name}_us"] = statistics.median(one["operator"] - one["kernel"] for one in us)
        rows.append(row)
        print(*(f"{key}={value:.1f}" if isinstance(value, float) else value for key, value in row.items()))
    results.write(path, {"machine": runs["now"][0]["machine"], "rounds": ROUNDS, "rows": rows})


def measure(m: int, n: int, samples: int) -> dict[str, Any]:
    """Least times of one shape, at 1 bit per weight, ±1."""
    k = m * n // (m + n)
    layer = DibaLinear(n, m, k, alphabet="sign").requires_grad_(False)
    dense = torch.nn.Linear(n, m).requires_grad_(False)
    x, y = torch.randn(1, n), torch.empty(1, m)
    parts = (layer.d1, layer.b1, layer.d2, layer.b2, layer.d3)
    (d1, b1, d2, b2, d3), shift = parts, layer.bias
    operator = torch.ops.diba.linear.default
    operator(x, d1, b1, d2, b2, d3, shift, True)  # packs
    compiled = packed._kept[layer.b1.data_ptr()].compiled
    addresses = tuple(part.data_ptr() for part in parts)
    bias, source, target = layer.bias.data_ptr(), x.data_ptr(), y.data_ptr()
    calls: dict[str, Callable[[], object]] = {
        "kernel": lambda: compiled.multiply(addresses, source, 1, bias, target, 1, False),
        "operator": lambda: operator(x, d1, b1, d2, b2, d3, shift, True),
        "layer": lambda: layer(x),
        "nn.Linear": lambda: dense(x),
    }
    with torch.no_grad():
        taken = interleaved(calls, samples, samples * SECONDS / SAMPLES)
    return {"shape": [m, n], "k": k, "us": {name: 1e6 * min(seconds) for name, seconds in taken.items()}}


def table(report: dict[str, Any]) -> str:
    names = list(report["rows"][0]["us"])
    rows = []
    for row in report["rows"]:
        us = row["us"]
        values = [*(us[name] for name in names), us["operator"] - us["kernel"]]
        rows.append(["{} x {}".format(*row["shape"]), *(f"{value:.1f}" for value in values)])
    note = f"us a call, one vector, one thread, 1 bit per weight. {measured(report)}."
    return f"{markdown(['Shape', *names, 'operator - kernel'], rows)}\n\n{note}"
