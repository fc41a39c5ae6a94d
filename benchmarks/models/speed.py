"""How fast whole models run, and in how much memory: dense, compiled, bfloat16, int8, diba at 1 and 2 bits.

    python benchmarks speed --json benchmarks/results/speed.json

Every contestant is a process of its own, which keeps its model; they take turns, so that noise meets all
alike. Factors of diba are random, of the size that solved ones have: time does not depend on the values.
See speed_work.py for what is timed.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ..common import results
from ..common.command import arguments_of, at_least_one, finish, parser
from ..common.process import forget_peak, memory
from ..common.tables import plural
from ..common.turns import Runner, serve, settle, take_turns
from .speed_table import CONTESTANTS, JOBS, table


def options(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser("speed", __doc__)
    add = made.add_argument
    add("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    add("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    add("--threads", nargs="+", type=at_least_one, metavar="N", help="default: 1 2")
    add("--rounds", type=at_least_one, metavar="N", help="samples of every contestant (7)")
    add("--quick", action="store_true", help="one thread, less work in a sample, 2 rounds")
    found = made.parse_args(arguments)
    found.threads = found.threads or ([1] if found.quick else [1, 2])
    found.rounds = found.rounds or (2 if found.quick else 7)
    return found


# ---------------------------------------------------------------- in the process of a contestant


def work(task: dict[str, Any]) -> None:
    serve(functools.partial(prepare, task))


def prepare(task: dict[str, Any], answer: Any) -> Any:
    import torch

    from . import speed_work as timed

    torch.set_num_threads(task["threads"])
    job = timed.JOBS[task["job"]]
    empty = memory()["resident"]
    start = time.perf_counter()
    model = job.load()
    timed.CONTESTANTS[task["contestant"]](model, job)
    # All are views of one mapped file, which any of them keeps in memory.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    loaded = time.perf_counter()
    settle()
    sizes = {"empty": empty, "loaded": memory()["resident"], "peak_loading": memory()["peak"]}
    forget_peak()  # to make random factors, the dense model had to be loaded
    sample = job.work(model, task["quick"])
    warm = time.perf_counter()
    for _ in range(2):  # compiles, packs, fills caches
        sample()
    seconds = {"load": loaded - start, "warm": time.perf_counter() - warm}
    answer({"ready": seconds, "memory": sizes})
    return sample


# ---------------------------------------------------------------- taking turns


def compete(job: str, threads: int, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each contestant in a job."""
    facts = JOBS[job]
    names = [name for name in chosen.contestants if "tied" not in name or facts["tied"]]
    names = [name for name in names if name not in facts["without"]]
    runners: dict[str, Runner] = {}
    try:
        for name in names:
            about = {"job": job, "contestant": name, "threads": threads, "quick": chosen.quick}
            print(f"{job}, {plural(threads, 'thread')}: {name}", file=sys.stderr, flush=True)
            runners[name] = Runner("speed", about)
        take_turns(runners.values(), chosen.rounds)
    finally:
        for runner in runners.values():
            runner.close()
    for name, runner in runners.items():
        row = {"job": job, "threads": threads, "contestant": name, **runner.facts}
        yield row | {"samples": runner.samples} | ({"error": runner.error} if runner.error else {})


def main(arguments: Sequence[str]) -> None:
    chosen = options(arguments)
    fresh = {"machine": results.machine(), "arguments": arguments_of(chosen), "rows": []}
    report = results.go_on(chosen.json, fresh)
    there = {(row["job"], row["threads"]) for row in report["rows"]}
    start = time.perf_counter()
    for threads in sorted(chosen.threads):
        for job in chosen.jobs:
            if (job, threads) in there:
                continue
            report["rows"] += compete(job, threads, chosen)
            report["load_average"], report["seconds"] = os.getloadavg(), round(time.perf_counter() - start)
            results.write(chosen.json, report)
    finish(table(report), report, chosen)
