#!/usr/bin/env python3
"""Quality of diba.solve on real matrices, against published and simple methods of the same size.

    python benchmarks/quality.py --json benchmarks/results/quality.json \
        --plot benchmarks/results/quality.svg benchmarks/results/quality.png

Every run that is finished is in the JSON file at once; the same command goes on where it was stopped, and
only draws when nothing is left. Needs diba[plot], torch and the weights that realdata.py names.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import re
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import diba
from quality_cells import BITS, METHODS, Cell, cost, limit_threads, matrices, plan, run
from quality_table import markdown_report
from realdata import SOURCES, MissingWeightsError, RealMatrix
from results_file import write_whole

Report = dict[str, Any]
LEFT_OUT = ("available_memory_bytes", "threads")  # of diba.info(): differ from run to run


# ---- the file


def key(matrix: RealMatrix) -> str:
    return f"{matrix.source}/{matrix.name}"


def load(path: Path, threads: int, sources: Sequence[str]) -> Report:
    """The report so far, or an empty one.

    Raises:
        ValueError: the file is no report, or its times were measured with other settings.
    """
    settings: Report = {"sources": list(sources), "threads": threads, "machine": machine()}
    if not path.exists():
        return {**settings, "matrices": {}, "cells": []}
    report = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(report, dict) or not settings.keys() <= report.keys():
        raise ValueError(f"{path} is no report of this benchmark; use another --json")
    before, now = ({**each, **each["machine"], "machine": ""} for each in (report, settings))
    for name, value in now.items():
        if before.get(name) != value:
            raise ValueError(
                f"{path} was measured with {name} {before.get(name)}, now it is {value}; "
                "use another --json, or --draw to make its tables and figures only"
            )
    return report


def save(report: Report, path: Path) -> None:
    """One line for each matrix and cell, whole or not at all."""
    parts = {name: json.dumps(report[name]) for name in ("sources", "threads", "machine")}
    rows = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in report["matrices"].items())
    parts["matrices"] = "{\n" + ",\n".join(rows) + "\n }"
    parts["cells"] = "[\n" + ",\n".join(f"  {json.dumps(cell)}" for cell in report["cells"]) + "\n ]"
    text = "{\n" + ",\n".join(f" {json.dumps(name)}: {part}" for name, part in parts.items()) + "\n}\n"
    write_whole(path, text)


def machine() -> dict[str, Any]:
    """What results and times depend on; of the threads, the report has a number of its own."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    info = {name: value for name, value in diba.info().items() if name not in LEFT_OUT}
    return {**info, "numpy_blas": f"{blas['name']} {blas['version']}"}


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
    limit_threads(options.threads)
    started = time.monotonic()
    spawn = multiprocessing.get_context("spawn")  # so that the limits are there before NumPy is
    with ProcessPoolExecutor(options.jobs, spawn, prepare_worker) as workers:
        runs = [workers.submit(run, cell, pool[place].array, options.threads) for place, cell in tasks]
        try:
            for done, finished in enumerate(as_completed(runs), 1):
                cell = finished.result()
                report["cells"].append(cell)
                save(report, options.json)
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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quality.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--json", type=Path, default=Path("build", "quality.json"), metavar="PATH", help="results; resumed")
    add("--plot", type=Path, nargs="+", default=[], metavar="PATH", help=".svg or .png")
    add("--limit", type=int, metavar="N", help="the first N matrices only")
    add("--matrices", default="", metavar="REGEX", help="only matrices whose SOURCE/NAME has a match")
    add("--sources", nargs="+", choices=list(SOURCES), default=["minilm", "whisper", "efficientnet"])
    add("--bits", type=float, nargs="+", choices=BITS, default=list(BITS), metavar="B")
    add("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME",
        help=f"of {', '.join(METHODS)}")  # fmt: skip
    add("--threads", type=int, default=1, metavar="N", help="of every run (1)")
    add("--jobs", type=int, default=2, metavar="N", help="runs at a time (2)")
    add("--dry-run", action="store_true", help="print what would be run, and how long it may take")
    add("--draw", action="store_true", help="run nothing: table and figures of what --json holds")
    options = parser.parse_args(arguments)
    for name in ("limit", "threads", "jobs"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    try:
        re.compile(options.matrices)
    except re.error as error:
        parser.error(f"--matrices {options.matrices}: {error}")
    for path in options.plot:
        if path.suffix not in (".svg", ".png"):
            parser.error(f"--plot {path}: the name must end in .svg or .png")
    return options


def fail(message: str) -> NoReturn:
    print(f"quality.py: error: {message}", file=sys.stderr)
    sys.exit(2)


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


def show(report: Report, options: argparse.Namespace) -> None:
    print(markdown_report(report))
    if options.plot:
        from quality_figure import draw

        draw(report, options.plot)
        print("\nwritten:", *options.plot)


def work(options: argparse.Namespace) -> int:
    if options.draw:
        show(json.loads(options.json.read_text(encoding="utf-8")), options)
        return 0
    for library in ("matplotlib", "torch"):
        if importlib.util.find_spec(library) is None:
            fail(f"{library} is not installed; run: python -m pip install {library}")
    pool = matrices(options.sources)
    report = load(options.json, options.threads, options.sources)
    tasks = remaining(pool, report, options)
    seconds = estimate(tasks, pool, report, options.jobs)
    if options.dry_run:
        for _, cell in tasks:
            print(f"{cell.matrix} {cell.bits:g} {cell.method}")
    print(f"{len(tasks)} runs of {len(pool)} matrices, about {clock(seconds)}", file=sys.stderr, flush=True)
    if options.dry_run:
        return 0
    for path in (options.json, *options.plot):
        path.parent.mkdir(parents=True, exist_ok=True)
    for matrix in pool:
        facts = {"source": matrix.source, "kind": matrix.kind, "shape": list(matrix.array.shape)}
        report["matrices"].setdefault(key(matrix), facts)
    if tasks:
        measure(tasks, pool, report, options)
    show(report, options)
    return 0


def main() -> int:
    options = parse(None)
    try:
        return work(options)
    except OSError as error:
        fail(f"{error.strerror}: {error.filename}" if error.filename else str(error))
    except (BrokenProcessPool, ImportError, MissingWeightsError, ValueError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on from {options.json}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
