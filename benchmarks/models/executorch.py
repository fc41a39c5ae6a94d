"""all-MiniLM-L6-v2 in ExecuTorch: diba's backend at 1 and 2 bits beside XNNPACK in float32 and int8.

    python benchmarks executorch --library libdiba_executorch.so --json benchmarks/results/executorch.json

Factors are random, of the size that solved ones have, as time does not depend on the values; int8 is
ExecuTorch's own recipe: weights in 8 bits by output, activations by vector when the program runs. Every
contestant is a process of its own; they take turns.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common import results
from ..common.command import arguments_of, at_least_one, finish, needs, parser
from ..common.process import memory
from ..common.tables import measured, plural
from ..common.turns import Runner, serve, settle, take_turns
from .runtimes import Sample, timed
from .runtimes_table import PARTS, rows_of

BITS = (1, 2)
FEEDS = {"one": (1, 18), "many": (32, 39)}  # sentences, tokens of each
LARGEST = {"batch": 32, "length": 64}


def options(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser("executorch", __doc__)
    add = made.add_argument
    add("--library", type=Path, required=True, metavar="FILE", help="libdiba_executorch.so")
    add("--threads", nargs="+", type=at_least_one, default=[1, 2], metavar="N", help="default: 1 2")
    add("--rounds", type=at_least_one, default=15, metavar="N", help="samples of every contestant (15)")
    return made.parse_args(arguments)


# ---------------------------------------------------------------- in the process of a contestant


def work(task: dict[str, Any]) -> None:
    serve(functools.partial(prepare, task))


def prepare(task: dict[str, Any], answer: Any) -> Sample:
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    from .runtimes_models import ids, tensors

    runtime = Runtime.get()
    ctypes.CDLL(task["library"])
    _unsafe_reset_threadpool(task["threads"])
    feeds = {name: tensors(ids(*sizes)) for name, sizes in FEEDS.items()}
    settle()
    empty, start = memory()["resident"], time.perf_counter()
    method = runtime.load_program(task["program"]).load_method("forward")
    loaded = time.perf_counter()

    sample = timed(lambda feed: method.execute(list(feed.values())), feeds)
    sample()
    settle()
    sizes = {"empty": empty, "loaded": memory()["resident"]}
    answer({"ready": {"load": loaded - start, "warm": time.perf_counter() - loaded}, "memory": sizes})
    return sample


# ---------------------------------------------------------------- the programs


def programs(folder: Path, library: Path) -> dict[str, Path]:
    """Programs of the model by name."""
    import diba.executorch
    import diba.torch

    from .runtimes_models import ids, tensors
    from .speed_work import randomize
    from .text import load_minilm

    example = tensors(ids(2, 20))
    settings: dict[str, Any] = {"largest": LARGEST, "library": library, "progress": False}
    made = {"float32": folder / "float32.pte", "int8": folder / "int8.pte"}
    diba.executorch.export(load_minilm(), example, made["float32"], embeddings=None, **settings)
    made["int8"].write_bytes(in_int8(load_minilm(), example))
    for bits in BITS:
        model = load_minilm()
        randomize(model, diba.torch.Config(bits_per_weight=bits))
        name = f"diba {plural(bits, 'bit')}"
        made[name] = folder / f"diba{bits}.pte"
        diba.executorch.export(model, example, made[name], **settings)
    return made


def in_int8(model: Any, example: dict[str, Any]) -> bytes:
    """The program that ExecuTorch's own quantizer makes."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    dims = {name: torch.export.Dim(name, min=1, max=most) for name, most in LARGEST.items()}
    shapes = {name: {0: dims["batch"], 1: dims["length"]} for name in example}

    class Quantizer(XNNPACKQuantizer):
        """Leaves numbers in the graph: the usual one makes floats of them, by which the mask is indexed."""

        def transform_for_annotation(self, model: Any) -> Any:
            return model

    quantizer = Quantizer()
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    quantizer.set_module_type(torch.nn.Linear, config)
    model.config._attn_implementation = "eager"  # as diba.executorch exports it
    with torch.no_grad():
        traced = torch.export.export(model, (), kwargs=example, dynamic_shapes=shapes, strict=False)
        prepared = prepare_pt2e(traced.module(), quantizer)
        prepared(**example)
        quantized = convert_pt2e(prepared)
        again = torch.export.export(quantized, (), kwargs=example, dynamic_shapes=shapes, strict=False)
    made: bytes = (
        to_edge_transform_and_lower(again, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
    )
    return made


# ---------------------------------------------------------------- taking turns


def compete(made: dict[str, Path], library: Path, threads: int, rounds: int) -> list[dict[str, Any]]:
    runners = []
    try:
        for program in made.values():
            task = {"program": str(program), "library": str(library.resolve()), "threads": threads}
            runners.append(Runner("executorch", task))
        take_turns(runners, rounds)
    finally:
        for runner in runners:
            runner.close()
    rows = []
    for (name, program), runner in zip(made.items(), runners, strict=True):
        row = {"contestant": name, "threads": threads, "bytes": program.stat().st_size, **runner.facts}
        row["starts"] = [runner.facts["seconds"]["load"]] if runner.facts else []
        rows.append(row | {"samples": runner.samples} | ({"error": runner.error} if runner.error else {}))
    return rows


def main(arguments: Sequence[str]) -> None:
    chosen = options(arguments)
    needs("executorch", "torch", "transformers")
    kept = {name: value for name, value in arguments_of(chosen).items() if name != "library"}
    version = importlib.metadata.version("executorch")
    report: dict[str, Any] = {
        "machine": results.machine(),
        "executorch": version,
        "arguments": kept,
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        made = programs(Path(folder), chosen.library)
        for threads in sorted(chosen.threads):
            report["rows"] += compete(made, chosen.library, threads, chosen.rounds)
            report["load_average"] = os.getloadavg()
            results.write(chosen.json, report)
    finish(table(report), report, chosen)


# ---------------------------------------------------------------- the table


def table(report: dict[str, Any]) -> str:
    title, figures = PARTS["minilm"]
    parts = []
    for threads in sorted({row["threads"] for row in report["rows"]}):
        rows = [row for row in report["rows"] if row["threads"] == threads]
        parts.append(f"{title}, {plural(threads, 'thread')}:\n\n{rows_of(rows, figures)}")
    note = (
        f"{measured(report)}, in ExecuTorch {report['executorch']}. Medians of interleaved rounds, each "
        "contestant in a process of its own, range in brackets. float32 and int8 keep the embedding in "
        "float32, as XNNPACK does not quantize it. Session is the time of loading a program, memory what "
        "loading and all runs add."
    )
    return "\n\n".join([*parts, note])
