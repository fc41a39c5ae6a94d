"""Small networks in few bytes: binary weights with exceptions beside other ways, accuracy on Fashion-MNIST.

    DIBA_DATA=DATA python benchmarks apb --json benchmarks/results/apb.json
    python benchmarks apb --networks mlp --arms APB LSQ --seeds 1

All arms of a seed begin with the same network in float32 and train for as many epochs, each at the rate that
is best on held-out training images with the first seed. Cells are written when they are done; a second call
goes on where the first one stopped. --keep has the networks in float32 and the files that came out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common import results
from ..common.command import at_least_one, finish, needs, parser
from ..common.data import data_folder
from .plan import ARMS, NETWORKS, cells, following
from .table import table


def main(arguments: Sequence[str]) -> None:
    chosen = options(arguments)
    needs("torch", *(["matplotlib"] if chosen.plot else []))
    fresh = {"machine": results.machine(), "distilled": chosen.distilled, "cells": {}}
    report = results.go_on(chosen.json, fresh, ("distilled",))  # accuracies are not the machine's
    wanted = list(cells(chosen.networks, chosen.arms, chosen.seeds))
    while cell := following(report["cells"], wanted):
        result = measure(cell, chosen)
        report["cells"][cell.key] = result
        print(f"{cell.key}: {result}", file=sys.stderr, flush=True)
        results.write(chosen.json, report)
    finish(table(report), report, chosen, "apb.figure")


def options(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser("apb", __doc__, plot=True, threads=1)
    add = made.add_argument
    add("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), metavar="NAME")
    add("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    add("--seeds", type=at_least_one, default=3, metavar="N", help="networks in float32 (3)")
    add("--distilled", action="store_true", help="the loss has the answers of the network in float32, too")
    add("--keep", type=Path, metavar="DIR", help="where networks are kept (the folder apb of the data)")
    chosen = made.parse_args(arguments)
    chosen.keep = chosen.keep or data_folder() / "apb"
    return chosen


def measure(cell: Any, chosen: argparse.Namespace) -> dict[str, Any]:
    import torch

    import diba

    from .arms import run  # imported here: --help does without torch

    torch.set_num_threads(chosen.threads)
    diba.set_num_threads(chosen.threads)
    return run(cell, chosen.keep, chosen.distilled)
