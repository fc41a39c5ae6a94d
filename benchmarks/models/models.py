"""Whole models: what replacing their dense layers costs, and what calibration and retuning give back.

Every model is measured dense; with factors that know nothing of data ("replaced"); with factors calibrated on
its training batches, layer by layer, inputs and outputs weighed by gradients ("calibrated") or all alike
("unweighted"); after training the diagonals (DiBARD); after training with a few bits moving ("flips"). Beside
them stand two controls: random binaries of the same shape, their diagonals fitted and retuned alike
("random"), and round-to-nearest in groups of 64, with its scales retuned ("rounded", "rounded, retuned").

    python benchmarks models --json benchmarks/results/models.json

Where the plan (plan.py) says so, bits are also shared out between layers: by noise ("allocated"), by
measured loss ("by loss"), by scores ("scored"). Each cell is written when it is done, and a second call goes
on where the first one stopped. Sizes, steps and data are cut down, and all of it still takes hours on two
cores; --quick takes small subsets of everything, to try it out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

import diba

from ..common import results
from ..common.command import at_least_one, finish, parser
from .arms import run
from .plan import PLAN, Cell, cells, units
from .shared import keep_converted
from .table import table


def main(arguments: Sequence[str]) -> None:
    args = parse(arguments)
    fresh = {"machine": results.machine(), "threads": args.threads, "quick": args.quick, "cells": {}}
    report = results.go_on(args.json, fresh, ("machine", "threads", "quick"))
    planned = [cell for task in PLAN for cell in cells(PLAN[task], args.quick)]
    wanted = [
        cell for cell in planned if cell.task in args.tasks and (not args.arms or cell.arm in args.arms)
    ]
    left = [cell for cell in wanted if cell.key not in report["cells"]]
    print(f"{len(wanted)} cells, {len(wanted) - len(left)} of them are there", file=sys.stderr)

    def keep(cell: Cell, result: dict[str, Any]) -> None:
        found = report["cells"] | {cell.key: result}
        report["cells"] = {cell.key: found[cell.key] for cell in planned if cell.key in found}
        shown = {name: round(value, 4) for name, value in result["metrics"].items()}
        print(f"{cell.key}: {shown} {result['total_seconds']:.0f} s", file=sys.stderr, flush=True)
        results.write(args.json, report)

    work(left, keep, args)
    finish(table(report), report, args, "models.figure")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser("models", __doc__, plot=True, threads=1)
    add = made.add_argument
    add("--tasks", nargs="+", choices=list(PLAN), default=list(PLAN))
    add("--arms", nargs="+", metavar="ARM", help="only these kinds of cells, such as replaced or dibard")
    add("--quick", action="store_true", help="small subsets: to try it out, not for the table")
    add(
        "--keep", type=Path, metavar="DIR", help="converted models, which other runs of the same code take up"
    )
    add(
        "--jobs",
        type=at_least_one,
        default=min(2, diba.num_threads()),
        metavar="N",
        help="processes at a time",
    )
    return made.parse_args(arguments)


# ---- in processes


def work(left: list[Cell], keep: Callable[[Cell, dict[str, Any]], None], args: argparse.Namespace) -> None:
    """Run cells, those of one conversion in one process; ``keep`` gets each as soon as it is done."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's threads would only get in torch's way
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    setup = args.threads, args.quick, args.keep, results
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes end as well
    with ProcessPoolExecutor(args.jobs, context, start, setup) as pool:
        running = {pool.submit(run_unit, unit) for unit in units(left)}
        try:
            while running:
                done, running = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                while not results.empty():
                    keep(*results.get())
                for future in done:
                    future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def start(threads: int, quick: bool, keep: Path | None, results: Any) -> None:
    """The beginning of a process."""
    global _quick, _results
    _quick, _results = quick, results
    torch.set_num_threads(threads)
    diba.set_num_threads(threads)
    keep_converted(keep)


_quick, _results = False, None  # set in each process


def run_unit(unit: list[Cell]) -> None:
    for cell in unit:
        began = time.perf_counter()
        result = run(cell, _quick)
        result["total_seconds"] = time.perf_counter() - began
        _results.put((cell, result))
