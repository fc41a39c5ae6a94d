#!/usr/bin/env python3
"""Held-out error of layer outputs: plain factors, importance of inputs, and covariance at several shrinkages.

Dense layers of all-MiniLM-L6-v2 on news texts: moments of their inputs come from gensim's lee_background,
errors are given there and on the texts of lee, which the solver never sees. The output SNR is
10 log10(|A X|^2 / |(A - F) X|^2). Needs torch and the packages whose absence it reports.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import diba
from diba.solvers.covariance import SHRINK, descend, input_scales, output_error, shrunk
from diba.solvers.importance import Importance
from minilm_inputs import INPUTS, Encoder, agreement, news
from realdata import MissingWeightsError


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
    seconds: float  # of importance: with its solve; of covariance: of the descent from there


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
            10 * np.log10(np.vdot(self.A @ S, self.A) / output_error(self.A, f, S))
            for S in (self.calibration, self.held_out)
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
    importance = Importance(None, input_scales(case.calibration))
    start = importance.unscaled(diba.solve(importance.scaled(case.A), **chosen))
    yield case.row(start, "importance", began)
    for shrink in options.shrink:
        began = time.perf_counter()
        S = shrunk(case.calibration, shrink)
        f = descend(case.A, start, S, iterations=options.iterations, threads=options.threads)
        yield case.row(f, f"covariance, shrink {shrink:g}", began)


def cases(encoder: Encoder, options: argparse.Namespace) -> tuple[list[Case], dict[str, object]]:
    """(the matrices with their inputs, what they were seen on)."""
    calibration, seen = encoder.moments(news("lee_background"), options.layers, options.tokens)
    held_out, unseen = encoder.moments(news("lee"), options.layers, sys.maxsize)
    found = [
        Case(layer, part, encoder.matrix(layer, part), S, held_out[layer, part])
        for (layer, part), S in calibration.items()
    ]
    return found, {"calibration_tokens": seen, "held_out_tokens": unseen, "agreement": agreement(encoder)}


def means(rows: Sequence[Row], bits: Sequence[float]) -> list[dict[str, object]]:
    """Of all matrices, for every size and objective; rows come in the same order for every matrix."""
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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="activation_error.py", description=__doc__.split("\n")[0])
    parser.add_argument("--bits", type=float, nargs="+", default=[1.0, 2.0], metavar="B")
    parser.add_argument("--shrink", type=float, nargs="+", default=[0.0, SHRINK, 0.3], metavar="S")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 3, 5], choices=range(6), metavar="L")
    parser.add_argument("--tokens", type=int, default=4000, metavar="N", help="to take moments from (4000)")
    parser.add_argument("--alphabet", choices=("binary", "sign"), default="binary", help="0/1 or -1/+1")
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="of ADMM, for the starts (60)")
    parser.add_argument("--iterations", type=int, default=6, metavar="N", help="of the descent (6)")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--json", type=Path, metavar="PATH")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse(None)
    torch.set_num_threads(options.threads)
    try:
        found, data = cases(Encoder(), options)
    except MissingWeightsError as error:
        print(f"activation_error.py: error: {error}", file=sys.stderr)
        return 2
    print(
        "{calibration_tokens} tokens to learn from, {held_out_tokens} held out; "
        "agreement with human similarity {agreement:.3f}".format(**data),
        flush=True,
    )
    rows: list[Row] = []
    print(
        f"{'layer':>5} {'matrix':<17} {'bits':>6} {'objective':<24} {'learnt dB':>9} {'held out':>9} {'s':>6}"
    )
    for case in found:
        for bits in options.bits:
            for row in measure(case, bits, options):
                rows.append(row)
                print(
                    f"{row.layer:5} {row.matrix:<17} {row.bits_per_weight:6.3f} {row.objective:<24} "
                    f"{row.calibration_db:9.2f} {row.held_out_db:9.2f} {row.seconds:6.2f}",
                    flush=True,
                )
    summary = means(rows, options.bits)
    print("\nmeans of the output SNR in dB")
    for mean in summary:
        line = "{bits:5g} bits  {objective:<24} {calibration_db:8.2f} {held_out_db:8.2f}  {seconds:7.1f} s"
        print(line.format(**mean))
    if options.json:
        arguments = {name: value for name, value in vars(options).items() if name != "json"}
        report = {"machine": diba.info(), "arguments": arguments, "data": data, "means": summary}
        report["rows"] = [asdict(row) for row in rows]
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
