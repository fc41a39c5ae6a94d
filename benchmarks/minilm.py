#!/usr/bin/env python3
"""Factor the 36 dense matrices of all-MiniLM-L6-v2; report SNR, size and speed.

"python3 dev.py demo [options]" sets everything up and runs this. Needs diba[cli,plot] and the weights, which
realdata.py names. Ctrl-C prints the totals of what is done and stops.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm import tqdm

import diba
from diba.solvers import EFFORTS, METHODS
from product_time import Pair, compare
from realdata import MissingWeightsError, RealMatrix, minilm

RESULTS = Path("build", "minilm")
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
    iterations: int
    seconds: float
    file_bytes: int

    def line(self) -> str:
        shape = "{}x{}".format(*self.shape)
        bits, snr, seconds = f"{self.bits_per_weight:.4f}", f"{self.snr_db:.2f}", f"{self.seconds:.2f}"
        return COLUMNS.format(short(self.name), shape, self.k, bits, snr, seconds, self.file_bytes)


def short(name: str) -> str:
    return name.removeprefix("encoder.").removesuffix(".weight")


def cost(matrix: RealMatrix) -> float:
    """Expected work, m n k up to a factor: k at a given size goes as m n / (m + n)."""
    m, n = matrix.array.shape
    return (m * n) ** 2 / (m + n)


class WorkBar:
    """One bar over the work of all matrices; moves with every iteration of the solver."""

    def __init__(self, matrices: Sequence[RealMatrix]) -> None:
        self._count = itertools.count(1)
        self._matrices = len(matrices)
        self._done = self._cost = 0.0
        self._bar = tqdm(
            total=sum(map(cost, matrices)),
            bar_format="{percentage:3.0f}%|{bar:12}| {elapsed}, {remaining} left{desc}",
            smoothing=0,  # one rate from start to end
            disable=None,  # only on a terminal
            file=sys.stderr,
            leave=False,
        )

    def start(self, matrix: RealMatrix) -> None:
        self._cost = cost(matrix)
        self._title = f", {next(self._count)}/{self._matrices} {short(matrix.name)}"

    def __call__(self, progress: diba.Progress) -> None:
        """By the pace of the solver, which knows how much is left."""
        left = progress.remaining
        part = 0.0 if left is None else progress.elapsed / max(progress.elapsed + left, 1e-9)
        self._bar.set_description_str(f"{self._title}: {progress.snr_db:.2f} dB", refresh=False)
        self._bar.update(max(0.0, self._done + part * self._cost - self._bar.n))

    def finish(self, row: Row) -> None:
        self._done += self._cost
        self._bar.update(max(0.0, self._done - self._bar.n))
        self._bar.write(row.line(), file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        self._bar.close()


# ---- the work


def factor(matrix: RealMatrix, options: argparse.Namespace, bar: WorkBar) -> tuple[Row, diba.Factorization]:
    iterations = 0

    def progress(state: diba.Progress) -> None:
        nonlocal iterations
        iterations = state.done
        bar(state)

    bar.start(matrix)
    begin = time.perf_counter()
    f = diba.solve(
        matrix.array,
        bits_per_weight=options.bits,
        method=options.method,
        effort=options.effort,
        alphabet=options.alphabet,
        seed=options.seed,
        threads=options.threads,
        progress=progress,
    )
    seconds = time.perf_counter() - begin
    path = options.save / f"{short(matrix.name)}.safetensors"
    f.save(path)
    row = Row(
        matrix.name,
        int(re.findall(r"layer\.(\d+)", matrix.name)[0]),
        matrix.kind,
        f.shape,
        f.k,
        round(f.bits_per_weight, 5),
        round(f.snr_db(matrix.array), 3),
        iterations,
        round(seconds, 3),
        path.stat().st_size,
    )
    bar.finish(row)
    return row, f


def factor_all(
    matrices: Sequence[RealMatrix], options: argparse.Namespace
) -> tuple[list[Row], list[Pair], bool]:
    """(rows, pairs of dense and packed, whether all were done)."""
    rows: list[Row] = []
    pairs: list[Pair] = []
    print(COLUMNS.format(*HEADINGS), flush=True)
    bar = WorkBar(matrices)
    try:
        for matrix in matrices:
            row, f = factor(matrix, options, bar)
            rows.append(row)
            pairs.append((matrix.array, f))
    except KeyboardInterrupt:
        return rows, pairs, False
    finally:
        bar.close()
    return rows, pairs, True


# ---- the report


def totals(rows: Sequence[Row]) -> dict[str, object]:
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


def print_totals(total: dict[str, object]) -> None:
    print("\n{matrices} matrices, {parameters:,} weights, solved in {seconds:.1f} s".format(**total))
    print(
        f"float32 {total['float32_bytes'] / 1e6:.2f} MB -> files {total['file_bytes'] / 1e6:.2f} MB, "
        f"{total['float32_bytes'] / total['file_bytes']:.1f} times smaller"
    )
    worst = short(total["worst_matrix"])
    print("SNR {mean_snr_db:.2f} dB in the mean, worst {worst_snr_db:.2f} dB ".format(**total) + f"({worst})")


def print_products(products: Sequence[dict[str, object]]) -> None:
    print("\nmatrix times vector, one thread, median microseconds (quartiles) of interleaved repetitions")
    print("{:<20} {:>24} {:>24}   {}".format("", "NumPy float32 A @ x", "diba f @ x", "NumPy / diba"))
    for product in products:
        shape = product["shape"]
        what = "{}x{}".format(*shape) if shape else f"all {product['matrices']} in turn"
        times = [
            "{median:.1f} ({quartile_1:.1f}-{quartile_3:.1f})".format(**product[who])
            for who in ("numpy_us", "diba_us")
        ]
        print("{:<20} {:>24} {:>24}   {:.2f}".format(what, *times, product["numpy_over_diba"]))


def machine() -> dict[str, object]:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {**diba.info(), "numpy_blas": f"{blas['name']} {blas['version']}"}


# ---- the command


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="minilm.py", description=__doc__.split("\n")[0])
    parser.add_argument("--bits", type=float, default=1.0, metavar="B", help="stored bits per weight (1)")
    parser.add_argument("--method", choices=METHODS, default="auto", help="of diba.solve (auto)")
    parser.add_argument("--effort", choices=EFFORTS, default="normal", help="of diba.solve (normal)")
    parser.add_argument("--alphabet", choices=("binary", "sign"), default="binary", help="0/1 or -1/+1")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random starts (0)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the solver (all granted)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N matrices only")
    parser.add_argument("--save", type=Path, default=RESULTS / "factors", metavar="DIR", help="diba files")
    parser.add_argument("--json", type=Path, default=RESULTS / "minilm.json", metavar="PATH")
    plots = [RESULTS / "minilm.svg", RESULTS / "minilm.png"]
    parser.add_argument("--plot", type=Path, nargs="*", default=plots, metavar="PATH", help=".svg or .png")
    options = parser.parse_args(arguments)
    if options.limit is not None and options.limit < 1:
        parser.error("--limit must be 1 or more")
    for path in options.plot:
        if path.suffix not in (".svg", ".png"):
            parser.error(f"--plot {path}: the name must end in .svg or .png")
    return options


def prepare(options: argparse.Namespace) -> None:
    """Find out before the work whether the results can be kept."""
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        fail("matplotlib is not installed; python -m pip install matplotlib, or use --plot without paths")
    options.save.mkdir(parents=True, exist_ok=True)
    for path in (options.json, *options.plot):
        path.parent.mkdir(parents=True, exist_ok=True)


def fail(message: str) -> NoReturn:
    print(f"minilm.py: error: {message}", file=sys.stderr)
    sys.exit(2)


def keep(report: dict[str, object], options: argparse.Namespace) -> None:
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        from minilm_figure import draw

        draw(report, options.plot)
    print("\nwritten:", *options.plot, options.json, f"{options.save}/*.safetensors")


def run(options: argparse.Namespace) -> int:
    matrices = list(itertools.islice(minilm(), options.limit))
    prepare(options)
    rows, pairs, complete = factor_all(matrices, options)
    if rows:
        print_totals(totals(rows))
    if not complete:
        print(f"interrupted: {len(rows)} of {len(matrices)} done, see {options.save}", file=sys.stderr)
        return 130
    products = compare(pairs)
    print_products(products)
    chosen = {name: getattr(options, name) for name in ("bits", "method", "effort", "alphabet", "seed")}
    report = {
        "model": matrices[0].source,
        "machine": machine(),
        "arguments": {**chosen, "threads": options.threads or diba.num_threads()},
        "totals": totals(rows),
        "products": products,
        "matrices": [asdict(row) for row in rows],
    }
    keep(report, options)
    return 0


def main() -> int:
    options = parse(None)
    try:
        return run(options)
    except OSError as error:
        fail(f"{error.strerror}: {error.filename}" if error.filename else str(error))
    except (MissingWeightsError, ValueError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
