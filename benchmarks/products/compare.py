"""Two installations of diba side by side: products, layers of PyTorch and solves, in alternating processes.

    python benchmarks compare --against "env PYTHONPATH=OLD/python python3" --json compare.json

The command is whatever runs a Python that imports the other diba. One thread each.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from ..common import results
from ..common.command import parser
from ..common.tables import markdown

__all__ = ["main"]

# Runs in either installation, so it calls what both have. Prints {name: seconds}, the least of repetitions.
WORKER = """
import json, sys, time
import numpy as np
import diba
diba.set_num_threads(1)
random, found = np.random.default_rng(0), {}

def least(work, seconds):
    work()
    once = min(time_of(work, 1) for _ in range(3))
    count = max(1, int(2e-3 / once))
    end, best = time.perf_counter() + seconds, once
    while time.perf_counter() < end:
        best = min(best, time_of(work, count))
    return best

def time_of(work, count):
    begin = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - begin) / count

def factors(n, alphabet):
    bits = [random.random(shape) < 0.5 for shape in ((n, n // 2), (n // 2, n))]
    b1, b2 = (b.astype(float) if alphabet == "binary" else 2.0 * b - 1 for b in bits)
    d1, d2, d3 = (random.standard_normal(size) for size in (n, n // 2, n))
    return diba.Factorization.from_factors(d1, b1, d2, b2, d3, alphabet)

for n in (64, 384, 1024, 4096):
    for alphabet in ("binary", "sign"):
        f = factors(n, alphabet)
        for count in (1, 8, 64):
            X = random.standard_normal((count, n)).astype(np.float32)
            x = X[0] if count == 1 else X
            name = f"{n} x {n}, {alphabet}, {count}"
            found["product " + name] = least((lambda: f @ x) if count == 1 else (lambda: f.linear(x)), 0.15)
for m, n, alphabet, method, effort in (
    (384, 384, "binary", "auto", "fast"), (384, 384, "sign", "auto", "normal"),
    (768, 384, "binary", "greedy", "normal"), (768, 384, "sign", "auto", "fast"),
):
    A = np.random.default_rng(1).standard_normal((m, n))
    name = f"solve {m} x {n}, {alphabet}, {method}, {effort}"
    given = {"bits_per_weight": 1, "alphabet": alphabet, "method": method, "effort": effort}
    found[name] = time_of(lambda: diba.solve(A, **given), 1)
try:
    import torch
    import diba.torch as layers
except ImportError:
    pass
else:
    torch.set_num_threads(1)
    kind = getattr(layers, "DibaLinear", None) or layers.DiBALinear
    for n in (64, 512):
        for alphabet in ("binary", "sign"):
            layer = kind.from_factorization(factors(n, alphabet))
            for count in (1, 40):
                x = torch.randn(count, n)
                with torch.no_grad():
                    found[f"layer {n} x {n}, {alphabet}, {count}"] = least(lambda: layer(x), 0.3)
print(json.dumps(found))
"""


def measure(command: Sequence[str]) -> dict[str, float]:
    done = subprocess.run([*command, "-c", WORKER], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(report: dict[str, Any]) -> str:
    """Medians of both, and the median of the ratios of each round."""
    rows = [
        [row["name"], f"{1e6 * row['other']:,.1f}", f"{1e6 * row['this']:,.1f}", f"{row['ratio']:.3f}"]
        for row in report["rows"]
    ]
    return markdown(["", "Other, us", "This, us", "This / other"], rows)


def main(arguments: Sequence[str]) -> int:
    made = parser("compare", __doc__)
    made.add_argument("--against", required=True, metavar="COMMAND", help="runs Python with the other diba")
    made.add_argument("--rounds", type=int, default=5, metavar="N", help="of each, in turn (5)")
    options = made.parse_args(arguments)
    ours, theirs = [sys.executable], shlex.split(options.against)
    rounds = [(measure(theirs), measure(ours)) for _ in range(options.rounds)]
    rows = [
        {
            "name": name,
            "other": statistics.median(other[name] for other, _ in rounds),
            "this": statistics.median(this[name] for _, this in rounds),
            "ratio": statistics.median(this[name] / other[name] for other, this in rounds),
        }
        for name in rounds[0][1]
    ]
    report = {"machine": results.machine(), "rounds": options.rounds, "rows": rows}
    if options.json:
        results.write(options.json, report)
    print(table(report))
    return 0
