"""Whole models at equal bytes: diba beside llama.cpp's formats, GPTQ and onnxruntime, end metric and file.

    DIBA_DATA=DATA python benchmarks curves --json benchmarks/results/curves.json
    python benchmarks curves --tasks smollm2 --arms diba --forms "2 bits"
    python benchmarks curves --quick --json quick.json

Every arm that learns from data sees the same batches, and is retuned for as many steps where it has anything
to retune (curves_plan.py). Bytes are those of the file that would be shipped. Cells are written when they are
done, and a second call goes on where the first one stopped, diba's conversions after their last whole block:
they, and the models that came out, are in --keep. --quick takes small subsets of everything: minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import diba

from ..common import results
from ..common.command import at_least_one, finish, parser
from ..common.data import data_folder
from .curves_plan import RECIPES, Cell, Recipe, cells, recipe_of
from .curves_table import table

NEEDS = {"llama.cpp": ("llama_cpp", "gguf"), "llama.cpp's types": ("llama_cpp", "gguf")}
QUICK = ("minilm", "smollm2")


def main(arguments: Sequence[str]) -> None:
    chosen = options(arguments)
    torch.set_num_threads(chosen.threads)
    diba.set_num_threads(chosen.threads)
    fresh = {"machine": results.machine(), "quick": chosen.quick, "cells": {}}
    report = results.go_on(chosen.json, fresh, ("quick",))  # neither files nor metrics are the machine's
    recipes = {task: recipe_of(task, chosen.quick, chosen.recipe) for task in RECIPES}
    planned = [cell for recipe in recipes.values() for cell in cells(recipe, chosen.seeds)]
    left = [cell for cell in planned if wanted(cell, chosen) and cell.key not in report["cells"]]
    print(f"{len(left)} cells to measure", file=sys.stderr)
    for cell in left:
        result = measure(cell, recipes[cell.task], chosen)
        found = report["cells"] | {cell.key: result}
        order = {each.key: place for place, each in enumerate(planned)}
        report["cells"] = dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))
        shown = {name: round(value, 4) for name, value in result["metrics"].items()}
        print(f"{cell.key}: {result['bytes'] / 1e6:.2f} MB {shown}", file=sys.stderr, flush=True)
        results.write(chosen.json, report)
    finish(table(report), report, chosen, "models.curves_figure")


def options(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser("curves", __doc__, plot=True, threads=2)
    add = made.add_argument
    add("--tasks", nargs="+", choices=list(RECIPES), help="default: all; --quick: two of them")
    add("--arms", nargs="+", metavar="ARM", help="only these, such as diba or GPTQ")
    add("--forms", nargs="+", metavar="FORM", help='only these sizes and types, such as "2 bits" or Q2_K')
    add("--seeds", type=at_least_one, default=1, metavar="N", help="of diba's models (1)")
    add("--quick", action="store_true", help="small subsets: to try it out, not for the table")
    add(
        "--device",
        default="cpu",
        help="where diba's models are made, such as cuda; all are measured on the CPU",
    )
    add("--recipe", type=json.loads, default={}, metavar="JSON", help="other settings than curves_plan.py's")
    add("--keep", type=Path, metavar="DIR", help="where models are kept (the folder curves of the data)")
    chosen = made.parse_args(arguments)
    chosen.tasks = chosen.tasks or (QUICK if chosen.quick else list(RECIPES))
    keep = chosen.keep or data_folder() / "curves"
    chosen.keep = keep / "quick" if chosen.quick else keep
    return chosen


def wanted(cell: Cell, chosen: argparse.Namespace) -> bool:
    """Whether a cell was asked for, and can be made here."""
    if cell.task not in chosen.tasks or (chosen.arms and cell.arm not in chosen.arms):
        return False
    if chosen.forms and cell.form not in chosen.forms:
        return False
    missing = [name for name in NEEDS.get(cell.arm, ()) if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{' and '.join(missing)} cannot be imported: {cell.key} is left out", file=sys.stderr)
    return not missing


def measure(cell: Cell, recipe: Recipe, chosen: argparse.Namespace) -> dict[str, Any]:
    from .curves_arms import run  # imported here: --help does without torch's models
    from .curves_work import Work
    from .shared import made

    work = Work(made(cell.task, chosen.quick), recipe, chosen.keep, chosen.threads, chosen.device)
    torch.manual_seed(cell.seed)
    return run(cell, work)
