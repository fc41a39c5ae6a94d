"""Large solves by this diba and by another installation of it, each in a process of its own, in turns.

python benchmarks faster --against SITE_PACKAGES --sizes 2048 4096 --json benchmarks/results/faster.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import diba

from ..common import BenchmarkError, results
from ..common.command import arguments_of, finish, parser
from ..common.tables import markdown, measured
from .large import made

PROGRAM = """
import json, resource, sys, time
import numpy as np
import diba
A, bits, threads = np.load(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
began = time.perf_counter()
f = diba.solve(A, bits_per_weight=bits, alphabet="sign", effort="fast", threads=threads)
seconds = time.perf_counter() - began
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "snr_db": f.snr_db(A), "peak_bytes": peak}))
"""


def solved(folder: Path, matrix: Path, bits: float, threads: int) -> dict[str, Any]:
    """What a solve of the matrix in a file takes with the diba of a folder."""
    command = [sys.executable, "-c", PROGRAM, str(matrix), str(bits), str(threads)]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"the diba of {folder} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def table(report: dict[str, Any]) -> str:
    """Before and after, for each size."""
    rows = []
    for row in report["rows"]:
        before, after = row["before"], row["after"]
        rows.append(
            [
                f"{row['size']} x {row['size']}", f"{row['bits']:g}",
                f"{before['seconds']:.0f}", f"{after['seconds']:.0f}",
                f"{before['seconds'] / after['seconds']:.2f}",
                f"{before['snr_db']:.3f}", f"{after['snr_db']:.3f}", f"{after['peak_bytes'] / 1e9:.2f}",
            ]
        )  # fmt: skip
    head = ["Matrix", "Bits", "Before, s", "After, s", "Times as fast", "Before, dB", "After, dB", "Peak, GB"]
    return f"{markdown(head, rows)}\n\nEffort fast, signs. {measured(report)}."


def main(arguments: Sequence[str]) -> None:
    options = parser("faster", __doc__, threads=diba.num_threads())
    options.add_argument("--against", type=Path, required=True, metavar="FOLDER", help="has another diba")
    options.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096], metavar="N")
    options.add_argument("--bits", type=float, default=2.0, metavar="B", help="per weight (2)")
    chosen = options.parse_args(arguments)
    here = Path(diba.__file__).resolve().parents[1]
    report = {"machine": results.machine(), "arguments": arguments_of(chosen) | {"against": ""}, "rows": []}
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory() as folder:
            matrix = Path(folder, "matrix.npy")
            np.save(matrix, made(size, 0))
            after, before = (solved(x, matrix, chosen.bits, chosen.threads) for x in (here, chosen.against))
        report["rows"].append({"size": size, "bits": chosen.bits, "before": before, "after": after})
        results.write(chosen.json, report)
    finish(table(report), report, chosen)
