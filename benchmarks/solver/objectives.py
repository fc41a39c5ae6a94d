"""Held-out error of layer outputs: plain factors, importance of inputs, and covariance at several shrinkages.

    python benchmarks objectives --json benchmarks/results/objectives.json

Dense layers of all-MiniLM-L6-v2 on news texts: moments of their inputs come from gensim's lee_background,
errors are given there and on the texts of lee, which the solver never sees. The output SNR is
10 log10(|A X|^2 / |(A - F) X|^2).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import diba
from diba._internal.snr import output_energy_and_error, snr_db
from diba.solvers.covariance import descend
from diba.solvers.schedule import NEVER, Schedule
from diba.solvers.second_moments import SHRINK, input_scales, shrunk

from ..common import results
from ..common.command import arguments_of, at_least_one, finish, parser
from ..common.data import news
from ..common.tables import markdown, measured, plural
from ..models.text import lee_pearson, load_minilm, minilm_inputs

INPUTS = {  # layer -> its matrix, and the other layers with the same input
    "attention.self.query": "query, key, value",
    "attention.output.dense": "attention output",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
}
Moments = dict[tuple[int, str], NDArray[np.float64]]


@dataclass(frozen=True)
class Row:
    """One factorization of one matrix; the JSON file holds these."""

    layer: int
    matrix: str
    shape: tuple[int, int]
    bits_per_weight: float
    objective: str
    calibration_db: float
    held_out_db: float
    seconds: float  # importance: its solve; covariance: the descent that starts from it


@dataclass(frozen=True, eq=False)
class Case:
    """A matrix (m, n) with the second moments (n, n) of its inputs on both sets of texts."""

    layer: int
    part: str
    A: NDArray[np.float32]
    calibration: NDArray[np.float64]
    held_out: NDArray[np.float64]

    def row(self, f: diba.Factorization, objective: str, began: float) -> Row:
        calibration, held_out = (
            snr_db(*output_energy_and_error(self.A, f, S)) for S in (self.calibration, self.held_out)
        )
        seconds = round(time.perf_counter() - began, 3)
        name = INPUTS[self.part]
        bits = round(f.bits_per_weight, 4)
        return Row(
            self.layer, name, f.shape, bits, objective, round(calibration, 3), round(held_out, 3), seconds
        )


def measure(case: Case, bits: float, options: argparse.Namespace) -> Iterator[Row]:
    chosen = {
        "bits_per_weight": bits,
        "alphabet": options.alphabet,
        "method": "admm",
        "max_iter": options.steps,
        "threads": options.threads,
    }
    began = time.perf_counter()
    yield case.row(diba.solve(case.A, **chosen), "plain", began)
    began = time.perf_counter()
    start = diba.solve(case.A, **chosen, importance=(None, input_scales(case.calibration)))
    yield case.row(start, "importance", began)
    for shrink in options.shrink:
        began = time.perf_counter()
        S = shrunk(case.calibration, shrink)
        given = {"schedule": Schedule(None), "deadline": NEVER, "threads": options.threads}
        f, *_ = descend(case.A, start, S, iterations=options.iterations, **given)
        yield case.row(f, f"covariance, shrink {shrink:g}", began)


@torch.no_grad()
def moments(model: Any, texts: Sequence[str], layers: Sequence[int], tokens: int) -> tuple[Moments, int]:
    """(mean of x x' over the inputs x of each (layer, part), tokens seen), from whole texts."""
    sums: dict[tuple[int, str], torch.Tensor] = {}

    def watch(place: tuple[int, str]) -> Any:
        def add(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].flatten(0, -2)
            sums.setdefault(place, torch.zeros(x.shape[1], x.shape[1])).addmm_(x.T, x)

        return model.encoder.layer[place[0]].get_submodule(place[1]).register_forward_pre_hook(add)

    hooks = [watch((layer, part)) for layer in layers for part in INPUTS]
    seen = 0
    for text in texts:
        if seen >= tokens:
            break
        inputs = minilm_inputs([text], 128)
        model(**inputs)
        seen += inputs["input_ids"].numel()
    for hook in hooks:
        hook.remove()
    return {place: total.double().numpy() / seen for place, total in sums.items()}, seen


def cases(options: argparse.Namespace) -> tuple[list[Case], dict[str, object]]:
    """(the matrices with their inputs, what they were seen on)."""
    model = load_minilm()
    calibration, seen = moments(model, news("lee_background"), options.layers, options.tokens)
    held_out, unseen = moments(model, news("lee"), options.layers, sys.maxsize)
    found = []
    for (layer, part), S in calibration.items():
        matrix = model.encoder.layer[layer].get_submodule(part).weight.detach().numpy()
        found.append(Case(layer, part, matrix, S, held_out[layer, part]))
    facts = {"calibration_tokens": seen, "held_out_tokens": unseen, "agreement": lee_pearson(model)}
    return found, facts


def means(rows: Sequence[Row], bits: Sequence[float]) -> list[dict[str, object]]:
    """Results of all matrices for every size and objective; rows have the same order for every matrix."""
    groups: dict[tuple[float, str], list[Row]] = defaultdict(list)
    for row in rows:
        size = min(bits, key=lambda b: abs(b - row.bits_per_weight))
        groups[size, row.objective].append(row)
    return [
        {
            "bits": size,
            "objective": objective,
            "matrices": len(group),
            "calibration_db": round(float(np.mean([row.calibration_db for row in group])), 3),
            "held_out_db": round(float(np.mean([row.held_out_db for row in group])), 3),
            "seconds": round(sum(row.seconds for row in group), 2),
        }
        for (size, objective), group in sorted(groups.items(), key=lambda item: item[0][0])
    ]


def table(report: dict[str, Any]) -> str:
    """Output SNR by objective, on calibration and held-out texts."""
    found: dict[str, dict[float, dict[str, Any]]] = {}
    for row in report["means"]:
        found.setdefault(row["objective"], {})[row["bits"]] = row
    bits = sorted({row["bits"] for row in report["means"]})
    head = ["Objective", *(f"{plural(b, 'bit')}, {what}" for b in bits for what in ("own", "held out"))]
    rows = []
    for name, mine in found.items():
        pairs = ((mine[b]["calibration_db"], mine[b]["held_out_db"]) for b in bits)
        rows.append([name, *(f"{level:.2f}" for pair in pairs for level in pair)])
    data, used = report["data"], report["arguments"]
    note = (
        f"Means over {report['means'][0]['matrices']} matrices of all-MiniLM-L6-v2, {used['alphabet']} "
        f"factors, ramps of {used['steps']} steps; {data['calibration_tokens']:,} tokens for S, "
        f"{data['held_out_tokens']:,} held out. {measured(report)}."
    )
    return f"{markdown(head, rows)}\n\n{note}"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser("objectives", __doc__, threads=1)
    add = made.add_argument
    add("--bits", type=float, nargs="+", default=[1.0, 2.0], metavar="B")
    add("--shrink", type=float, nargs="+", default=[0.0, SHRINK, 0.3], metavar="S")
    add("--layers", type=int, nargs="+", default=[0, 3, 5], choices=range(6), metavar="L")
    add("--tokens", type=at_least_one, default=4000, metavar="N", help="to take moments from (4000)")
    add("--alphabet", choices=("binary", "sign"), default="binary", help="0/1 or -1/+1")
    add("--steps", type=at_least_one, default=60, metavar="N", help="of ADMM, for the starts (60)")
    add("--iterations", type=at_least_one, default=6, metavar="N", help="of the descent (6)")
    return made.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    found, data = cases(options)
    rows: list[Row] = []
    for case in found:
        for bits in options.bits:
            for row in measure(case, bits, options):
                rows.append(row)
                print(
                    f"layer {row.layer} {row.matrix}, {row.bits_per_weight:.3f} bits, {row.objective}: "
                    f"{row.calibration_db:.2f} dB, held out {row.held_out_db:.2f} dB, {row.seconds:.2f} s",
                    flush=True,
                )
    report: dict[str, Any] = {"machine": results.machine(), "arguments": arguments_of(options), "data": data}
    report |= {"means": means(rows, options.bits), "rows": [asdict(row) for row in rows]}
    results.write(options.json, report)
    print()
    finish(table(report), report, options)
