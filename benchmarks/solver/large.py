"""One large matrix: the time announced beforehand, the time it took, and the memory it needed.

    python benchmarks large --effort fast --json benchmarks/results/large.json

No trained 4096 x 4096 matrix is to be had without a network, so this one is made: a decaying spectrum with
random singular vectors and noise.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import diba
from diba.solvers import EFFORTS

from ..common import results
from ..common.command import arguments_of, at_least_one, finish, parser
from ..common.process import memory
from ..common.tables import measured, plural


def made(size: int, seed: int) -> NDArray[np.float32]:
    """Rank size / 8 with a spectrum like 1 / sqrt(i), and noise of the same energy."""
    random = np.random.default_rng(seed)
    rank = size // 8
    left, right = (random.standard_normal((size, rank), dtype=np.float32) for _ in range(2))
    A = (left / np.sqrt(np.arange(1, rank + 1, dtype=np.float32))) @ right.T
    A /= A.std()
    A += random.standard_normal((size, size), dtype=np.float32)
    return A


class Announcer:
    """Prints the expected time once it is known, and a line every few seconds."""

    def __init__(self) -> None:
        self.announced: float | None = None
        self._next = 0.0

    def __call__(self, progress: diba.Progress) -> None:
        if progress.remaining is None:
            return
        if self.announced is None and progress.done >= 3:
            self.announced = progress.elapsed + progress.remaining
            print(f"expected: {self.announced:.0f} s in all", flush=True)
        if progress.elapsed >= self._next:
            self._next = progress.elapsed + 15
            print(
                f"{progress.elapsed:6.0f} s  {progress.done}/{progress.total}  "
                f"{progress.snr_db:.2f} dB  {progress.remaining:.0f} s left",
                flush=True,
            )


def table(report: dict[str, Any]) -> str:
    """One sentence."""
    used, size = report["arguments"], report["arguments"]["size"]
    how = (
        f"k = {report['k']}, {used['alphabet']}, effort {used['effort']}, {plural(used['threads'], 'thread')}"
    )
    peak, before = (report[name] / 1e9 for name in ("peak_bytes", "bytes_before"))
    return (
        f"{size} x {size} at {report['bits_per_weight']:.2f} bits per weight ({how}): "
        f"{report['snr_db']:.2f} dB in {report['seconds']:.0f} s, {report['announced_seconds'] or 0:.0f} s "
        f"announced after three steps, {peak:.2f} GB of memory at most, {before:.2f} GB of it before the "
        f"solver began. {measured(report)}."
    )


def main(arguments: Sequence[str]) -> None:
    options = parser("large", __doc__, threads=diba.num_threads())
    options.add_argument(
        "--size", type=at_least_one, default=4096, metavar="N", help="rows and columns (4096)"
    )
    options.add_argument("--bits", type=float, default=1.0, metavar="B", help="per weight (1)")
    options.add_argument("--effort", choices=tuple(EFFORTS), default="normal")
    options.add_argument("--alphabet", choices=("binary", "sign"), default="binary")
    chosen = options.parse_args(arguments)
    A = made(chosen.size, 0)
    before, announcer, began = memory()["peak"], Announcer(), time.perf_counter()
    how = {name: getattr(chosen, name) for name in ("effort", "alphabet", "threads")}
    f = diba.solve(A, bits_per_weight=chosen.bits, progress=announcer, **how)
    seconds = time.perf_counter() - began
    report = {
        "machine": results.machine(),
        "arguments": arguments_of(chosen),
        "k": f.k,
        "bits_per_weight": f.bits_per_weight,
        "snr_db": round(f.snr_db(A), 3),
        "announced_seconds": announcer.announced and round(announcer.announced, 1),
        "seconds": round(seconds, 1),
        "matrix_bytes": A.nbytes,
        "bytes_before": before,
        "peak_bytes": memory()["peak"],
    }
    results.write(chosen.json, report)
    finish(table(report), report, chosen)
