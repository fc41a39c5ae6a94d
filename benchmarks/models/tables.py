"""What embeddings and output layers of 8 and 4 bits an entry cost: whole models, all other layers dense.

    python benchmarks tables --json benchmarks/results/tables.json

Where the output layer is the embedding, both read one table. A stopped run goes on with the same --json.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import diba.torch

from ..common import results
from ..common.command import finish, parser
from ..common.tables import markdown, measured
from .shared import batches, made, teacher
from .table import each_task

BATCHES = 32  # that tell of the vectors which an output layer meets
FORMS: dict[str, dict[str, Any]] = {
    "8 bits": {"embeddings": 8},
    "4 bits": {"embeddings": 4},
    "4 bits, steps of 64 entries": {"embeddings": 4, "group": 64},
}
FITTED = "4 bits, fitted to batches"  # only where the table is multiplied by
TASKS = ("minilm", "whisper", "smollm2")


def main(arguments: Sequence[str]) -> None:
    options = options_of(arguments)
    torch.set_num_threads(options.threads)
    fresh = {"machine": results.machine(), "arguments": {"quick": options.quick}, "rows": {}}
    report = results.go_on(options.json, fresh, same=("machine", "arguments"))
    for task in options.tasks:
        for form in ("dense", *FORMS, *([] if task == "minilm" else [FITTED])):
            key = f"{task} | {form}"
            if key not in report["rows"]:
                report["rows"][key] = measure(task, form, options)
                print(key, report["rows"][key], flush=True)
                results.write(options.json, report)
    finish(table(report), report, options)


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    made_parser = parser("tables", __doc__, threads=2)
    made_parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    made_parser.add_argument("--quick", action="store_true", help="small data, to try it out")
    return made_parser.parse_args(arguments)


def measure(name: str, form: str, options: argparse.Namespace) -> dict[str, Any]:
    """Store the tables of a model in so many bits, and measure it."""
    task = made(name, options.quick)
    if form == "dense":
        return {"title": task.title, "bits": 32.0, "metrics": task.metrics(teacher(task)), "seconds": 0.0}
    model = task.load()
    data = batches(task)[:BATCHES] if form == FITTED else None
    began = time.perf_counter()
    diba.torch.convert(
        model,
        bits_per_weight=1,  # of nothing: all other layers are skipped
        skip=[but(tables_of(model))],
        batches=data,
        progress=False,
        threads=options.threads,
        **FORMS.get(form, FORMS["4 bits"]),
    )
    seconds = time.perf_counter() - began
    bits = diba.torch.report(model).bits_per_weight
    return {"title": task.title, "bits": bits, "metrics": task.metrics(model), "seconds": seconds}


def tables_of(model: nn.Module) -> list[str]:
    """Names of embeddings, and of output layers that share their weight."""
    weights = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    named = model.named_modules(remove_duplicate=False)
    return [name for name, module in named if id(getattr(module, "weight", None)) in weights]


def but(names: Sequence[str]) -> str:
    """The pattern of all other names."""
    return rf"re:(?!(?:{'|'.join(map(re.escape, names))})$).*"


def table(report: dict[str, Any]) -> str:
    """One for each model."""
    parts = []
    for _, names, rows in each_task(report):
        cells = [
            [form, f"{row['bits']:.2f}", *(f"{row['metrics'][name]:.4g}" for name in names)]
            for form, row in rows.items()
        ]
        title = next(iter(rows.values()))["title"]
        head = [title, "bits an entry", *(name.replace("_", " ") for name in names)]
        parts.append(markdown(head, cells))
    return "\n\n".join([*parts, f"{measured(report)}."])
