#!/usr/bin/env python3
"""How fast whole models run, and in how much memory: dense, compiled, bfloat16, int8, diba at 1 and 2 bits.

    python benchmarks/models_speed.py --json benchmarks/results/models_speed.json

Every contestant is a process of its own, which keeps its model; they take turns, so that noise meets all
alike. Factors of diba are random, of the size that solved ones have: time does not depend on the values.
See benchmarks/models_speed_work.py for what is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diba
import models_speed_table as table
from diba._internal.timing import blas_threads
from models_speed_table import CONTESTANTS, JOBS
from results_file import earlier_report, write_whole

THREADS = (1, 2)
QUICK = {"rounds": 2, "threads": [1]}
REST = 0.05  # seconds before a sample: idle threads wait for work by spinning, for a while


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--json", type=Path, help="write results here, after every model; a second run goes on"
    )
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--threads", nargs="+", type=int, metavar="N", help="default: 1 2")
    parser.add_argument("--rounds", type=int, metavar="N", help="samples of every contestant (default: 7)")
    parser.add_argument("--quick", action="store_true", help="one thread, less work in a sample, 2 rounds")
    parser.add_argument("--markdown", action="store_true", help="print the tables of an earlier --json")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    found = parser.parse_args(arguments)
    for name, value in {"rounds": 7, "threads": list(THREADS)}.items():
        if getattr(found, name) is None:
            setattr(found, name, QUICK[name] if found.quick else value)
    smallest = min([*found.threads, found.rounds])
    if smallest < 1:
        parser.error(f"{smallest} is given; threads and rounds must be 1 or more")
    if found.markdown and found.json is None:
        parser.error("--markdown needs the --json of an earlier run")
    return found


# ---------------------------------------------------------------- in the process of a contestant


def serve(task: dict[str, Any]) -> None:
    """Load a model, say so, then take a sample for every line that comes; answers are lines of JSON."""
    with os.fdopen(os.dup(1), "w", buffering=1) as out:
        os.dup2(2, 1)  # whatever else is printed goes with the errors

        def answer(what: dict[str, Any]) -> None:
            out.write(json.dumps(what) + "\n")

        try:
            work = prepare(task, answer)
            for _ in sys.stdin:
                answer({"sample": work(), "memory": memory()})
        except Exception as error:  # of whatever kind its library has: it is a note in the table, not the end
            traceback.print_exc()
            answer({"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]})


def prepare(task: dict[str, Any], answer: Any) -> Any:
    import torch

    import models_speed_work as timed

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
    forget_peak()
    work = job.work(model, task["quick"])
    warm = time.perf_counter()
    for _ in range(2):  # compiles, packs, fills caches
        work()
    seconds = {"load": loaded - start, "warm": time.perf_counter() - warm}
    answer({"ready": seconds, "memory": sizes})
    return work


def memory() -> dict[str, int | None]:
    """Bytes of this process: resident now, and at most so far; None where the system does not say."""
    found: dict[str, int | None] = {"resident": None, "peak": None}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                found["resident" if name == "VmRSS" else "peak"] = 1024 * int(value.split()[0])
    return found


def settle() -> None:
    """Give what was freed back to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def forget_peak() -> None:
    """From now on the peak is that of the work: to make random factors, the dense model had to be loaded."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


# ---------------------------------------------------------------- taking turns


class Runner:
    """A contestant's process, seen from here."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.samples: list[dict[str, float]] = []
        self.facts: dict[str, Any] = {}
        self.error: str | None = None
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by close()
        self._cache = tempfile.TemporaryDirectory()  # what is compiled is compiled anew, and counted
        environment = os.environ | blas_threads(task["threads"])
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(task)],
            env=environment | {"TORCHINDUCTOR_CACHE_DIR": self._cache.name},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        self._take()

    def sample(self) -> None:
        if self.error is None:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write("go\n")
                self._process.stdin.flush()
            self._take()

    def _take(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = json.loads(line) if line else {"error": self._last_words()}
        self.error = found.get("error")
        if "ready" in found:
            self.facts = {"seconds": found["ready"], "memory": found["memory"]}
        elif "sample" in found:
            self.samples.append(found["sample"])
            self.facts["memory"] |= {"working": found["memory"]["resident"], "peak": found["memory"]["peak"]}

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        return f"ended with {code}: {' '.join(self._errors.read().split())[-300:]}"

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        self._cache.cleanup()


def compete(job: str, threads: int, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each contestant in a job."""
    facts = JOBS[job]
    names = [name for name in chosen.contestants if "tied" not in name or facts["tied"]]
    names = [name for name in names if name not in facts["without"]]
    runners: dict[str, Runner] = {}
    try:
        for name in names:
            about = {"job": job, "contestant": name, "threads": threads, "quick": chosen.quick}
            print(f"{job}, {threads} thread{'s' if threads > 1 else ''}: {name}", file=sys.stderr, flush=True)
            runners[name] = Runner(about)
        for _ in range(chosen.rounds):
            for runner in runners.values():
                time.sleep(REST)
                runner.sample()
    finally:
        for runner in runners.values():
            runner.close()
    for name, runner in runners.items():
        row = {"job": job, "threads": threads, "contestant": name, **runner.facts}
        yield row | {"samples": runner.samples} | ({"error": runner.error} if runner.error else {})


def main() -> int:
    chosen = options()
    if chosen.worker:
        serve(chosen.worker)
        return 0
    if chosen.markdown:
        print(table.markdown(json.loads(chosen.json.read_text(encoding="utf-8"))))
        return 0
    machine = {k: v for k, v in diba.info().items() if k not in ("threads", "available_memory_bytes")}
    arguments = {k: v for k, v in vars(chosen).items() if k not in ("json", "worker", "markdown")}
    report: dict[str, Any] = {"machine": machine, "arguments": arguments, "factors": "random", "rows": []}
    if chosen.json and chosen.json.exists():
        report["rows"] = earlier_report(chosen.json, machine)["rows"]
    there = {(row["job"], row["threads"]) for row in report["rows"]}
    start = time.perf_counter()
    for threads in sorted(chosen.threads):
        for job in chosen.jobs:
            if (job, threads) in there:
                continue
            report["rows"] += compete(job, threads, chosen)
            report["bars"] = table.bars(report["rows"])
            report["load_average"], report["seconds"] = os.getloadavg(), round(time.perf_counter() - start)
            if chosen.json:
                write_whole(chosen.json, json.dumps(report, indent=1) + "\n")
    print(table.markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
