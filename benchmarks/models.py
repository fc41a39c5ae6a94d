#!/usr/bin/env python3
"""Whole models: what replacing their dense layers costs, and what calibration and retuning give back.

Every model is measured dense; with factors that know nothing of data ("replaced"); with factors calibrated on
its training batches, layer by layer, inputs and outputs weighed by gradients ("calibrated") or all alike
("unweighted"); after training the diagonals (DiBARD); after training with a few bits moving ("flips"). Beside
them stand two controls: random binaries of the same shape, their diagonals fitted and retuned alike
("random"), and round-to-nearest in groups of 64, with its scales retuned ("rounded", "rounded, retuned").

    python benchmarks/models.py --json benchmarks/results/models.json --plot models.svg models.png

Where the plan (models_plan.py) says so, bits are also shared out between layers: by noise ("allocated"), by
scores ("scored"). Each cell is written when it is done, and a second call goes on where the first one
stopped. Sizes, steps and data are cut down, and all of it still takes hours on two cores; --quick
takes small subsets of everything, to try it out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's threads would only get in the way of torch's

import torch

import diba
from models_arms import run
from models_bars import bars
from models_plan import PLAN, Cell, cells, units
from models_shared import keep_converted
from models_table import table
from results_file import earlier_report, write_whole

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=list(PLAN), default=list(PLAN))
    parser.add_argument("--arms", nargs="+", help="only these kinds of cells, such as replaced or dibard")
    parser.add_argument(
        "--quick", action="store_true", help="small subsets: to try it out, not for the table"
    )
    parser.add_argument("--json", type=Path, help="file for results; cells it has are not run again")
    parser.add_argument("--plot", type=Path, nargs="+", default=[], help="files for the figure")
    parser.add_argument(
        "--keep", type=Path, help="folder for converted models, which other runs of the same code take up"
    )
    parser.add_argument("--threads", type=int, default=1, help="of each process (default: 1)")
    parser.add_argument("--jobs", type=int, default=min(2, diba.num_threads()), help="processes at a time")
    args = parser.parse_args(argv)
    report = load(args.json, args.quick, args.threads)
    planned = [cell for task in PLAN for cell in cells(PLAN[task], args.quick)]
    wanted = [cell for task in args.tasks for cell in cells(PLAN[task], args.quick)]
    wanted = [cell for cell in wanted if not args.arms or cell.arm in args.arms]
    left = [cell for cell in wanted if cell.key not in report["cells"]]
    print(f"{len(wanted)} cells, {len(wanted) - len(left)} of them are there", file=sys.stderr)

    def keep(cell: Cell, result: dict[str, Any]) -> None:
        found = report["cells"] | {cell.key: result}
        report["cells"] = {cell.key: found[cell.key] for cell in planned if cell.key in found}
        report["bars"] = bars(report)
        shown = {name: round(value, 4) for name, value in result["metrics"].items()}
        print(f"{cell.key}: {shown} {result['total_seconds']:.0f} s", file=sys.stderr, flush=True)
        if args.json:
            write_whole(args.json, json.dumps(report, indent=1, ensure_ascii=False) + "\n")

    try:
        work(left, keep, args)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(table(report))
    if args.plot:
        from models_figure import draw

        draw(report, args.plot)
    return 0


# ---- in processes


def work(left: list[Cell], keep: Callable[[Cell, dict[str, Any]], None], args: argparse.Namespace) -> None:
    """Run cells, those of one conversion in one process; ``keep`` gets each as soon as it is done."""
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


_quick, _results = False, None  # of a process


def run_unit(unit: list[Cell]) -> None:
    for cell in unit:
        began = time.perf_counter()
        result = run(cell, _quick)
        result["total_seconds"] = time.perf_counter() - began
        _results.put((cell, result))


def load(path: Path | None, quick: bool, threads: int) -> dict[str, Any]:
    """Results so far, or an empty report.

    Raises:
        SystemExit: the file is of another kind of run.
    """
    machine = {
        "diba": diba.__version__,
        "torch": torch.__version__,
        "processor": diba.info()["cpu"],
        "isa": diba.isa(),
        "threads": threads,
    }
    fresh = {"quick": quick, "machine": machine, "cells": {}}
    if path is None or not path.exists():
        return fresh
    report = earlier_report(path, machine)
    if report["quick"] != quick:
        raise SystemExit(
            f"{path} holds results {'with' if report['quick'] else 'without'} --quick; use another file"
        )
    return report


if __name__ == "__main__":
    sys.exit(main())
