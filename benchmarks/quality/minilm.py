"""Factor the 36 dense matrices of all-MiniLM-L6-v2; report SNR, size and the solver's time.

    python benchmarks minilm --json benchmarks/results/minilm.json

Ctrl-C prints the totals of what is done and stops.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import diba
from diba.solvers import EFFORTS, METHODS

from ..common import results
from ..common.command import at_least_one, finish, needs, parser
from ..common.weights import RealMatrix, minilm
from .minilm_table import table

FOLDER = Path("build", "minilm")
COLUMNS = "{:<30} {:>10} {:>5} {:>8} {:>7} {:>8} {:>9}"
HEADINGS = ("matrix", "shape", "k", "bits/w", "SNR dB", "seconds", "bytes")


@dataclass(frozen=True)
class Row:
    """What became of one matrix; the JSON file holds these."""

    name: str
    layer: int
    kind: str
    shape: tuple[int, int]
    k: int
    bits_per_weight: float
    snr_db: float
    seconds: float
    file_bytes: int

    def line(self) -> str:
        shape = "{}x{}".format(*self.shape)
        bits, snr, seconds = f"{self.bits_per_weight:.4f}", f"{self.snr_db:.2f}", f"{self.seconds:.2f}"
        return COLUMNS.format(short(self.name), shape, self.k, bits, snr, seconds, self.file_bytes)


def short(name: str) -> str:
    return name.removeprefix("encoder.").removesuffix(".weight")


# ---- the work


def factor(matrix: RealMatrix, options: argparse.Namespace) -> Row:
    names = ("method", "effort", "alphabet", "seed", "threads")
    how = {name: getattr(options, name) for name in names}
    began = time.perf_counter()
    f = diba.solve(matrix.array, bits_per_weight=options.bits, progress=sys.stderr.isatty(), **how)
    seconds = time.perf_counter() - began
    path = options.save / f"{short(matrix.name)}.safetensors"
    f.save(path)
    return Row(
        matrix.name,
        int(re.findall(r"layer\.(\d+)", matrix.name)[0]),
        matrix.kind,
        f.shape,
        f.k,
        round(f.bits_per_weight, 5),
        round(f.snr_db(matrix.array), 3),
        round(seconds, 3),
        path.stat().st_size,
    )


def factor_all(matrices: Sequence[RealMatrix], options: argparse.Namespace) -> list[Row]:
    """As far as Ctrl-C lets it."""
    rows: list[Row] = []
    print(COLUMNS.format(*HEADINGS), flush=True)
    try:
        for matrix in matrices:
            rows.append(factor(matrix, options))
            print(rows[-1].line(), flush=True)
    except KeyboardInterrupt:
        print(f"interrupted: {len(rows)} of {len(matrices)} done, see {options.save}", file=sys.stderr)
    return rows


def totals(rows: Sequence[Row]) -> dict[str, Any]:
    parameters = sum(row.shape[0] * row.shape[1] for row in rows)
    worst = min(rows, key=lambda row: row.snr_db)
    file_bytes = sum(row.file_bytes for row in rows)
    return {
        "matrices": len(rows),
        "parameters": parameters,
        "float32_bytes": 4 * parameters,
        "file_bytes": file_bytes,
        "file_bits_per_weight": round(8 * file_bytes / parameters, 5),
        "mean_snr_db": round(float(np.mean([row.snr_db for row in rows])), 3),
        "worst_snr_db": worst.snr_db,
        "worst_matrix": worst.name,
        "seconds": round(sum(row.seconds for row in rows), 3),
    }


# ---- the command


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser("minilm", __doc__, plot=True, threads=diba.num_threads())
    made.set_defaults(json=FOLDER / "minilm.json", plot=[FOLDER / "minilm.svg"])
    add = made.add_argument
    add("--bits", type=float, default=1.0, metavar="B", help="stored bits per weight (1)")
    add("--method", choices=METHODS, default="auto", help="of diba.solve (auto)")
    add("--effort", choices=EFFORTS, default="normal", help="of diba.solve (normal)")
    add("--alphabet", choices=("binary", "sign"), default="binary", help="0/1 or -1/+1")
    add("--seed", type=int, default=0, metavar="N", help="of the random starts (0)")
    add("--limit", type=at_least_one, metavar="N", help="the first N matrices only")
    add("--save", type=Path, default=FOLDER / "factors", metavar="DIR", help="diba files")
    return made.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    matrices = list(itertools.islice(minilm(), options.limit))
    needs(*(["matplotlib"] if options.plot else []))
    options.save.mkdir(parents=True, exist_ok=True)
    rows = factor_all(matrices, options)
    if len(rows) < len(matrices):
        return 130
    chosen = ("bits", "method", "effort", "alphabet", "seed", "threads")
    report = {
        "model": matrices[0].source,
        "machine": results.machine(),
        "arguments": {name: getattr(options, name) for name in chosen},
        "totals": totals(rows),
        "matrices": [asdict(row) for row in rows],
    }
    results.write(options.json, report)
    print()
    finish(table(report), report, options, "quality.minilm_figure")
    print(f"results in {options.json}, factors in {options.save}")
    return 0
