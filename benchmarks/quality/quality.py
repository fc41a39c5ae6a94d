"""Quality of diba.solve on real matrices, against published and simple methods of the same size.

    python benchmarks quality --json benchmarks/results/quality.json

Every run that is finished is in the JSON file at once; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from diba._internal.timing import blas_threads

from ..common import results
from ..common.command import at_least_one, finish, needs, parser
from ..common.results import Report
from ..common.weights import SOURCES, RealMatrix
from .cells import BITS, METHODS, Cell, cost, matrices, plan, run
from .table import table


def key(matrix: RealMatrix) -> str:
    return f"{matrix.source}/{matrix.name}"


# ---- the work


def estimate(
    tasks: Iterable[tuple[int, Cell]], pool: Sequence[RealMatrix], report: Report, jobs: int
) -> float:
    """Seconds for these cells: DBF's operations times each method's share, corrected by what is measured."""
    shapes = {key(matrix): matrix.array.shape for matrix in pool}
    ratios: dict[str, list[float]] = {name: [] for name in METHODS}
    for cell in report["cells"]:
        if cell["matrix"] in shapes and cell["method"] in METHODS:
            expected = cost(shapes[cell["matrix"]], cell["bits"])
            ratios[cell["method"]].append(cell["seconds"] / expected)
    speed = float(np.median(ratios["dbf"])) if ratios["dbf"] else 1.0
    share = {
        name: float(np.median(ratios[name])) if ratios[name] else speed * method.share
        for name, method in METHODS.items()
    }
    return sum(share[cell.method] * cost(shapes[cell.matrix], cell.bits) for _, cell in tasks) / jobs


def prepare_worker() -> None:
    """Ctrl-C is the parent's business; libraries start before the first time is taken."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    small = np.random.default_rng(0).standard_normal((96, 96), dtype=np.float32)
    for name in ("dbf", "binary-fast", "svd16"):
        METHODS[name].run(small, 2.0, 1)


def measure(
    tasks: Sequence[tuple[int, Cell]], pool: Sequence[RealMatrix], report: Report, options: argparse.Namespace
) -> None:
    """Run the cells in processes of their own, keeping each as it is finished."""
    os.environ.update(blas_threads(options.threads))
    started = time.monotonic()
    spawn = multiprocessing.get_context("spawn")  # so that the limits are there before NumPy is
    with ProcessPoolExecutor(options.jobs, spawn, prepare_worker) as workers:
        runs = [workers.submit(run, cell, pool[place].array, options.threads) for place, cell in tasks]
        try:
            for done, finished in enumerate(as_completed(runs), 1):
                cell = finished.result()
                report["cells"].append(cell)
                results.write(options.json, report)
                what = f"{cell['matrix']} {cell['bits']:g} bits {cell['method']}"
                result = f"{cell['snr_db']:.2f} dB, {cell['seconds']:.1f} s"
                left = clock(estimate(tasks[done:], pool, report, options.jobs))
                times = f"{clock(time.monotonic() - started)}, about {left} left"
                print(f"{done}/{len(tasks)} {what}: {result}; {times}", file=sys.stderr, flush=True)
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()  # the run would go on for minutes
            raise


def clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


# ---- the command


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser("quality", __doc__, plot=True, threads=1)
    made.set_defaults(json=Path("build", "quality.json"))
    add = made.add_argument
    add("--limit", type=at_least_one, metavar="N", help="the first N matrices only")
    add("--matrices", default="", metavar="REGEX", help="only matrices whose SOURCE/NAME has a match")
    add("--sources", nargs="+", choices=list(SOURCES), default=list(SOURCES))
    add("--bits", type=float, nargs="+", choices=BITS, default=list(BITS), metavar="B")
    add("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME",
        help=f"of {', '.join(METHODS)}")  # fmt: skip
    add("--jobs", type=at_least_one, default=2, metavar="N", help="runs at a time (2)")
    add("--dry-run", action="store_true", help="print what would be run, and how long it may take")
    options = made.parse_args(arguments)
    try:
        re.compile(options.matrices)
    except re.error as error:
        made.error(f"--matrices {options.matrices}: {error}")
    return options


def empty(options: argparse.Namespace) -> Report:
    """A report without cells."""
    settings = {"sources": options.sources, "threads": options.threads, "machine": results.machine()}
    return {**settings, "matrices": {}, "cells": []}


def remaining(
    pool: Sequence[RealMatrix], report: Report, options: argparse.Namespace
) -> list[tuple[int, Cell]]:
    """The cells that are wanted and not in the report; places count in the whole pool, whatever is chosen."""
    keys = [key(matrix) for matrix in pool]
    chosen = {name for name in keys if re.search(options.matrices, name)}
    if options.limit is not None:
        chosen &= set([name for name in keys if name in chosen][: options.limit])
    done = {(cell["matrix"], cell["method"], cell["bits"]) for cell in report["cells"]}
    return [
        (place, cell)
        for place, cell in plan(len(pool), keys, options.bits, options.methods)
        if cell.matrix in chosen and (cell.matrix, cell.method, cell.bits) not in done
    ]


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    needs("torch", *(["matplotlib"] if options.plot else []))
    pool = matrices(options.sources)
    report = results.go_on(options.json, empty(options), ("machine", "sources", "threads"))
    tasks = remaining(pool, report, options)
    seconds = estimate(tasks, pool, report, options.jobs)
    if options.dry_run:
        for _, cell in tasks:
            print(f"{cell.matrix} {cell.bits:g} {cell.method}")
    print(f"{len(tasks)} runs of {len(pool)} matrices, about {clock(seconds)}", file=sys.stderr, flush=True)
    if options.dry_run:
        return
    for matrix in pool:
        facts = {"source": matrix.source, "kind": matrix.kind, "shape": list(matrix.array.shape)}
        report["matrices"].setdefault(key(matrix), facts)
    if tasks:
        measure(tasks, pool, report, options)
    finish(table(report), report, options, "quality.figure")
