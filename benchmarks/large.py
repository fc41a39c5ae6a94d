#!/usr/bin/env python3
"""One large matrix: the time announced beforehand, the time it took, and the memory it needed.

No trained 4096 x 4096 matrix is to be had without a network, so this one is made: a decaying spectrum with
random singular vectors and noise. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import diba
from diba.solvers import EFFORTS


def made(size: int, seed: int) -> NDArray[np.float32]:
    """Rank size / 8 with a spectrum like 1 / sqrt(i), and noise of the same energy."""
    random = np.random.default_rng(seed)
    rank = size // 8
    left, right = (random.standard_normal((size, rank), dtype=np.float32) for _ in range(2))
    A = (left / np.sqrt(np.arange(1, rank + 1, dtype=np.float32))) @ right.T
    A /= A.std()
    A += random.standard_normal((size, size), dtype=np.float32)
    return A


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--bits", type=float, default=1.0)
    parser.add_argument("--effort", choices=tuple(EFFORTS), default="normal")
    parser.add_argument("--alphabet", choices=("binary", "sign"), default="binary")
    parser.add_argument("--threads", type=int, default=diba.num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    A = made(options.size, 0)
    before = peak_bytes()
    announcer = Announcer()
    began = time.perf_counter()
    f = diba.solve(
        A,
        bits_per_weight=options.bits,
        effort=options.effort,
        alphabet=options.alphabet,
        threads=options.threads,
        progress=announcer,
    )
    seconds = time.perf_counter() - began
    report = {
        "machine": diba.info(),
        "arguments": {name: value for name, value in vars(options).items() if name != "json"},
        "k": f.k,
        "bits_per_weight": f.bits_per_weight,
        "snr_db": round(f.snr_db(A), 3),
        "announced_seconds": announcer.announced and round(announcer.announced, 1),
        "seconds": round(seconds, 1),
        "matrix_bytes": A.nbytes,
        "bytes_before": before,
        "peak_bytes": peak_bytes(),
    }
    print(f"{f!r}: {report['snr_db']} dB in {seconds:.0f} s, peak memory {peak_bytes() / 1e9:.2f} GB")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
