"""What each stage of the reconstruction of blocks is worth: the first blocks of a model, end metrics.

    python benchmarks reconstruction --json benchmarks/results/reconstruction.json

Only the first blocks of each model are compressed, the rest stays dense. Every row is another conversion, by
the same batches and seed; a stopped run goes on with --json of the same file.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from typing import Any

import torch

import diba.torch

from ..common import results
from ..common.command import at_least_one, finish, parser
from ..common.tables import markdown, measured, plural
from .shared import batches, made, teacher
from .table import each_task

STAGES: dict[str, dict[str, Any] | None] = {
    "layer by layer": None,
    "the correction only where it helps": {"steps": 0, "tune_steps": 0},
    "and what is dense is trained": {"steps": 0},
    "bits and diagonals are trained": {"tune_steps": 0},
    "all": {},
}
TITLES = {"smollm2": "SmolLM2-135M", "minilm": "all-MiniLM-L6-v2", "efficientnet": "EfficientNet-Lite0"}
BLOCKS = {"smollm2": "model.layers", "minilm": "encoder.layer", "efficientnet": "_blocks"}


def main(arguments: Sequence[str]) -> None:
    options = options_of(arguments)
    torch.set_num_threads(options.threads)
    facts = {name: getattr(options, name) for name in ("bits", "blocks", "batches", "threads", "quick")}
    fresh = {"machine": results.machine(), "arguments": facts, "rows": {}}
    report = results.go_on(options.json, fresh, same=("machine", "arguments"))
    for task in options.tasks:
        for stage in ["dense", *stages(options.bits)]:
            key = f"{task} | {stage}"
            if key not in report["rows"]:
                report["rows"][key] = measure(task, stage, options)
                print(key, report["rows"][key]["metrics"], flush=True)
                results.write(options.json, report)
    finish(table(report), report, options)


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    made_parser = parser("reconstruction", __doc__, threads=2)
    made_parser.add_argument("--tasks", nargs="+", choices=list(BLOCKS), default=["smollm2", "minilm"])
    made_parser.add_argument("--blocks", type=at_least_one, default=4, metavar="N", help="the first N (4)")
    made_parser.add_argument("--bits", type=float, default=1.0, metavar="BITS", help="per weight (1)")
    made_parser.add_argument("--batches", type=at_least_one, default=64, metavar="N", help="of data (64)")
    made_parser.add_argument("--quick", action="store_true", help="small data, to try it out")
    return made_parser.parse_args(arguments)


def stages(bits: float) -> dict[str, dict[str, Any] | None]:
    """Names of the rows and what ``convert`` is given as ``reconstruct``."""
    if bits <= 1:
        return STAGES
    as_at_one = diba.torch.Reconstruction().flips * bits**2
    return {**STAGES, "all, as many bits flipping in a step as at 1 bit": {"flips": as_at_one}}


def outside(task: str, blocks: int) -> str:
    """The pattern of the names of all layers that are not in the first blocks."""
    return rf"re:(?!{re.escape(BLOCKS[task])}\.({'|'.join(map(str, range(blocks)))})\.).*"


def measure(name: str, stage: str, options: argparse.Namespace) -> dict[str, Any]:
    """Convert the first blocks of a model, and measure it."""
    task = made(name, options.quick)
    if stage == "dense":
        return {"metrics": task.metrics(teacher(task)), "seconds": 0.0, "layers": 0}
    model = task.load()
    began = time.perf_counter()
    diba.torch.convert(
        model,
        bits_per_weight=options.bits,
        effort="fast",
        skip=[outside(name, options.blocks)],
        batches=batches(task)[: options.batches],
        loss=diba.torch.fisher(features=task.loss == "hidden"),
        reconstruct=stages(options.bits)[stage],
        progress=False,
        threads=options.threads,
    )
    seconds = time.perf_counter() - began
    found = diba.torch.report(model)
    blocks = {key: vars(block) for key, block in found.blocks.items()}
    return {
        "metrics": task.metrics(model),
        "seconds": seconds,
        "layers": len(found.layers),
        "blocks": blocks,
    }


def table(report: dict[str, Any]) -> str:
    parts, facts = [], report["arguments"]
    for task, names, rows in each_task(report):
        timed = all("seconds" in row for row in rows.values())  # not of a run that was paused
        cells = [
            [
                stage,
                *(f"{row['metrics'][name]:.4g}" for name in names),
                last_loss(row),
                *([f"{row['seconds']:.0f}"] if timed else []),
            ]
            for stage, row in rows.items()
        ]
        first = f"{TITLES[task]}, first {facts['blocks']} blocks"
        head = [first, *(name.replace("_", " ") for name in names), "last block's loss", *["s"] * timed]
        parts.append(markdown(head, cells))
    note = (
        f"{plural(facts['bits'], 'bit')} a weight, {facts['batches']} batches, one seed, "
        f"{plural(facts['threads'], 'thread')}. "
        f"{measured(report)}."
    )
    return "\n\n".join([*parts, note])


def last_loss(row: dict[str, Any]) -> str:
    """Of the outputs of the last block, on batches that are held out; empty where nobody watched blocks."""
    blocks = list(row.get("blocks", {}).values())
    return f"{blocks[-1]['loss']:.3f}" if blocks else ""
