"""Products with signs and a few exceptions, beside onnxruntime's 2-bit weights and torch's float32.

    python benchmarks apb_matvec --json benchmarks/results/apb_matvec.json

All take turns in one process, with weights that stay in the cache where they fit: the time of a call is the
median of the turns, each the mean of as many calls as take some milliseconds. Weights are Gaussian.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import diba

from ..common import results
from ..common.command import arguments_of, finish, needs, parser
from ..common.tables import markdown, measured
from .rivals import RIVALS

SHAPES = ("1024x1024", "4096x4096")
BATCHES = (1, 16)
EXCEPTIONS = 0.01
TURNS = 15
TURN_SECONDS = 0.004
OTHERS = ("onnxruntime-2", "torch-float32")


def seconds_of(call: Callable[[], Any]) -> float:
    """The mean of a turn."""
    began, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < TURN_SECONDS or not calls:
        call()
        calls += 1
    return spent / calls


def row(shape: str, batch: int, threads: int, exceptions: float, turns: int) -> dict[str, Any]:
    """Medians of seconds in turns; of several ways to call a contestant, the fastest."""
    import torch

    from diba.torch import DibaAPBLinear

    torch.set_num_threads(threads)
    m, n = map(int, shape.split("x"))
    random = np.random.default_rng(0)
    f = diba.apb(random.standard_normal((m, n), dtype=np.float32), exceptions=exceptions)
    bare = diba.APB(f.alpha, f.signs, np.zeros(m + 1, int), [], [])
    X = random.standard_normal((batch, n), dtype=np.float32)
    x = X[0] if batch == 1 else X
    layer = DibaAPBLinear.from_dense(torch.nn.Linear(n, m, bias=False), f)
    tensor = torch.from_numpy(x)

    def through_layer() -> Any:
        with torch.inference_mode():
            return layer(tensor)

    ways: dict[str, list[Callable[[], Any]]] = {
        "APB": [functools.partial(f.linear, x, threads=threads)],
        "layer": [through_layer],
        "signs alone": [functools.partial(bare.linear, x, threads=threads)],
    }
    for name in OTHERS:
        ways[name] = RIVALS[name](m, n, threads).ways(X)
    taken: dict[tuple[str, int], list[float]] = {}
    for turn in range(turns + 1):  # the first prepares
        for name, calls in ways.items():
            for i, call in enumerate(calls):
                spent = seconds_of(call)
                if turn:
                    taken.setdefault((name, i), []).append(spent)
    medians = {key: statistics.median(each) for key, each in taken.items()}
    return {
        "shape": shape,
        "batch": batch,
        "bits_per_weight": f.bits_per_weight,
        "seconds": {
            name: min(spent for (whose, _), spent in medians.items() if whose == name) for name in ways
        },
    }


def table(report: dict[str, Any]) -> str:
    """Each shape and batch."""
    rows = []
    for each in report["rows"]:
        seconds = each["seconds"]
        own = seconds["APB"]
        shown = [each["shape"], f"{each['batch']}", f"{each['bits_per_weight']:.2f}", f"{1e6 * own:.0f}"]
        shown += [f"{1e6 * seconds[name]:.0f}" for name in ("layer", "signs alone")]
        shown += [f"{1e6 * seconds[name]:.0f} ({seconds[name] / own:.1f}x)" for name in OTHERS]
        rows.append(shown)
    head = [
        "Matrix",
        "Batch",
        "Bits",
        "diba.APB, us",
        "DibaAPBLinear",
        "signs alone",
        "onnxruntime 2-bit",
        "torch float32",
    ]
    share = report["arguments"]["exceptions"]
    return f"{markdown(head, rows, left=1)}\n\nExceptions: {share:.2%}. {measured(report)}."


def main(arguments: Sequence[str]) -> None:
    options = parser("apb_matvec", __doc__, threads=1)
    options.add_argument("--shapes", nargs="+", default=SHAPES, metavar="MxN")
    options.add_argument("--batches", type=int, nargs="+", default=BATCHES, metavar="N")
    options.add_argument("--exceptions", type=float, default=EXCEPTIONS, metavar="SHARE")
    chosen = options.parse_args(arguments)
    needs("torch", "onnx", "onnxruntime")
    report = {
        "machine": results.machine() | {"onnxruntime": version()},
        "arguments": arguments_of(chosen),
        "rows": [
            row(shape, batch, chosen.threads, chosen.exceptions, TURNS)
            for shape in chosen.shapes
            for batch in chosen.batches
        ],
    }
    results.write(chosen.json, report)
    finish(table(report), report, chosen)


def version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)
