"""Exported models in onnxruntime: diba's at 1 and 2 bits beside float32 and int8.

    python benchmarks runtimes --json benchmarks/results/runtimes.json
    python benchmarks runtimes --part minilm --threads 1 --rounds 5
    python benchmarks runtimes --random

runtimes_models.py makes the models: factors are random, of the size that solved ones have, as time does not
depend on the values. Every contestant is a process of its own, with onnxruntime and without torch, which
keeps its sessions; they take turns. onnxruntime runs float32 and int8 twice, with all of its fusions and
without the two that are slow on CPUs: the better one counts. With --random the dense models are untrained,
too, and none has to be there.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common import results
from ..common.command import arguments_of, at_least_one, finish, needs, parser
from ..common.process import forget_peak, memory
from ..common.tables import plural
from ..common.turns import Runner, serve, settle, take_turns
from .runtimes_table import PARTS, table

STARTS = 3  # processes whose sessions' creation is timed
TOKENS = 24  # that Whisper writes
LEFT_OUT = ("SkipLayerNormFusion", "BiasGeluFusion")

Sample = Callable[[], dict[str, float]]


def options(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser("runtimes", __doc__)
    add = made.add_argument
    add("--part", nargs="+", default=list(PARTS), choices=list(PARTS), help="default: all")
    add("--threads", nargs="+", type=at_least_one, default=[1, 2], metavar="N", help="default: 1 2")
    add("--rounds", type=at_least_one, default=15, metavar="N", help="samples of every contestant (15)")
    add("--random", action="store_true", help="models of the same shapes with random weights")
    add(
        "--models",
        type=Path,
        metavar="FOLDER",
        help="where models are kept; default: made anew, then deleted",
    )
    return made.parse_args(arguments)


# ---------------------------------------------------------------- in the process of a contestant


def work(task: dict[str, Any]) -> None:
    serve(functools.partial(prepare, task))


def prepare(task: dict[str, Any], answer: Any) -> Sample:
    import onnxruntime  # noqa: F401  # its import is no part of a session's creation

    import diba.onnx  # noqa: F401

    folder = Path(task["folder"])
    with np.load(folder / "inputs.npz") as file:
        inputs = dict(file)
    empty, start = memory()["resident"], time.perf_counter()
    sessions = [opened(folder / name, task) for name in task["files"]]
    loaded = time.perf_counter()
    settle()
    sizes = {"empty": empty, "loaded": memory()["resident"], "peak_loading": memory()["peak"]}
    forget_peak()
    sample = (speech if task["part"] == "whisper" else batches)(sessions, inputs)
    sample()  # fills caches
    answer({"ready": {"load": loaded - start, "warm": time.perf_counter() - loaded}, "memory": sizes})
    return sample


def opened(path: Path, task: dict[str, Any]) -> Any:
    """A session; ``fusions`` is None for models of diba's, which ``diba.onnx.session`` opens."""
    import onnxruntime

    import diba.onnx

    if task["fusions"] is None:
        return diba.onnx.session(path, threads=task["threads"])
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads, made.log_severity_level = task["threads"], 3
    left_out = [] if task["fusions"] else list(LEFT_OUT)
    return onnxruntime.InferenceSession(
        str(path), made, providers=["CPUExecutionProvider"], disabled_optimizers=left_out
    )


def batches(sessions: Sequence[Any], inputs: dict[str, Any]) -> Sample:
    """Inputs are named ``BATCH.NAME``."""
    (session,) = sessions
    feeds: dict[str, dict[str, Any]] = {}
    for name, value in inputs.items():
        batch, _, own = name.partition(".")
        feeds.setdefault(batch, {})[own] = value
    return timed(lambda feed: session.run(None, feed), feeds)


def timed(run: Callable[[dict[str, Any]], Any], feeds: dict[str, dict[str, Any]]) -> Sample:
    """Seconds of every batch by its name; small batches run several times."""

    def sample() -> dict[str, float]:
        found = {}
        for batch, feed in feeds.items():
            times = 10 if len(next(iter(feed.values()))) == 1 else 1
            start = time.perf_counter()
            for _ in range(times):
                run(feed)
            found[batch] = (time.perf_counter() - start) / times
        return found

    return sample


def speech(sessions: Sequence[Any], inputs: dict[str, Any]) -> Sample:
    """Hear 30 s, then write so many tokens, the likeliest each time."""
    encoder, decoder = sessions

    def sample() -> dict[str, float]:
        start = time.perf_counter()
        heard = encoder.run(None, {"features": inputs["features"]})
        encoded = time.perf_counter()
        fixed = {f"heard.{number}": value for number, value in enumerate(heard)}
        past, token = inputs["past"], inputs["token"]
        for place in range(TOKENS):
            given = {"token": token, "position": np.array([[place]]), "past": past}
            scores, past = decoder.run(None, given | fixed)
            token = scores.argmax()[None, None]
        end = time.perf_counter()
        return {"whole": end - start, "encoder": encoded - start, "decoder": (end - encoded) / TOKENS}

    return sample


# ---------------------------------------------------------------- taking turns


def compete(
    part: str, about: Sequence[dict[str, Any]], threads: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """A row for each contestant."""
    runners: list[Runner] = []
    starts: list[list[float]] = [[] for _ in about]
    try:
        for number in range(STARTS):
            for facts, seconds in zip(about, starts, strict=True):
                runner = Runner("runtimes", {**facts, "part": part, "threads": threads})
                seconds += [runner.facts["seconds"]["load"]] if runner.facts else []
                if number + 1 < STARTS:
                    runner.close()
                else:
                    runners.append(runner)
        take_turns(runners, rounds)
    finally:
        for runner in runners:
            runner.close()
    for facts, seconds, runner in zip(about, starts, runners, strict=True):
        size = sum(
            path.stat().st_size for name in facts["files"] for path in Path(facts["folder"]).glob(f"{name}*")
        )
        row = {"part": part, "threads": threads, "contestant": facts["contestant"], "bytes": size}
        row |= {**runner.facts, "starts": seconds, "samples": runner.samples}
        yield row | ({"error": runner.error} if runner.error else {})


def main(arguments: Sequence[str]) -> None:
    chosen = options(arguments)
    needs("onnx", "onnxruntime", "onnxscript", "torch", "transformers")
    from .runtimes_models import contestants  # imported here: contestants do without torch

    kept = {name: value for name, value in arguments_of(chosen).items() if name != "models"}
    version = importlib.metadata.version("onnxruntime")
    fresh = {"machine": results.machine(), "onnxruntime": version, "arguments": kept, "rows": []}
    report = results.go_on(chosen.json, fresh, ["machine", "onnxruntime"])
    with tempfile.TemporaryDirectory() as temporary:
        for part in chosen.part:
            about = contestants(part, (chosen.models or Path(temporary)) / part, chosen.random)
            for threads in sorted(chosen.threads):
                print(f"{part}, {plural(threads, 'thread')}", file=sys.stderr, flush=True)
                same = [row for row in report["rows"] if (row["part"], row["threads"]) != (part, threads)]
                report["rows"] = [*same, *compete(part, about, threads, chosen.rounds)]
                report["load_average"] = os.getloadavg()
                results.write(chosen.json, report)
    finish(table(report), report, chosen)
