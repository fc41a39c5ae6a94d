"""Whether a few exactly stored entries under a factorization pay, at equal bits, on real matrices.

    DIBA_DATA=DATA python benchmarks exceptions --json benchmarks/results/exceptions.json

An exception takes 16 bits for its value and the bits that tell the entries of the matrix apart for its place;
the factors get what is left. Exceptions and factors are found in turn: the entries with the largest errors
become exceptions, and the matrix is factored again with the approximation in their places, so that they cost
the factors nothing. Each matrix is in the JSON file when it is done; a second call goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import diba

from ..common import results
from ..common.command import at_least_one, finish, parser
from ..common.tables import markdown, measured, plural
from ..common.weights import SOURCES, RealMatrix
from .baselines import decibels

__all__ = ["balanced", "exception_bits", "main", "paying", "spread", "table", "with_exceptions"]

BITS = (1.0, 2.0, 3.0)
SHARES = (0.0003, 0.001, 0.01)
PAYING = "as many as pay"
FORMS = (PAYING, *(f"{100 * share:g} %" for share in SHARES))
EACH = 5  # matrices of a source
TURNS = 2  # choices of exceptions, each followed by factors
VALUE_BITS = 16
DECIBELS = 5.0  # what a bit per weight more brings a factorization
SMALLEST_SIDE = 64
LARGEST = 600_000  # entries

Array = NDArray[np.float32]


# ---- matrices


def smollm2() -> Iterator[RealMatrix]:
    """The 210 dense matrices of the blocks of SmolLM2-135M (float32)."""
    from safetensors import safe_open

    from ..models.text import smollm2_folder

    with safe_open(smollm2_folder() / "model.safetensors", framework="numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118  # it is no dict
            if name.endswith("proj.weight"):
                kind = name.split(".")[-2]
                yield RealMatrix("SmolLM2-135M", name, kind, tensors.get_tensor(name))


def balanced(A: Array) -> Array:
    """Absolute entries after rows and columns were brought to an RMS of 1, as diagonals can."""
    found = np.square(A.astype(np.float64))
    for axis in (1, 0) * 3:
        mean = found.mean(axis=axis, keepdims=True)
        found /= np.where(mean > 0, mean, 1)
    return np.sqrt(found).astype(np.float32)


def spread(matrices: Sequence[RealMatrix], count: int) -> list[tuple[float, RealMatrix]]:
    """(largest balanced entry, matrix): so many, from the flattest to the one with the largest outlier."""
    ranked = sorted(
        ((float(balanced(each.array).max()), each) for each in matrices), key=lambda pair: pair[0]
    )
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [ranked[place] for place in places]


# ---- exceptions


def exception_bits(shape: tuple[int, int]) -> int:
    """Bits of one: its value and its place."""
    return VALUE_BITS + (shape[0] * shape[1] - 1).bit_length()


def paying(errors: Array, bits: int) -> int:
    """How many entries lower the error by more than their bits would in the factors.

    An entry of squared error e is worth 10 / ln 10 * e / (sum of all) dB, to first order; its bits would be
    worth DECIBELS / entries each.
    """
    worth = 10 / np.log(10) * errors / errors.mean(dtype=np.float64)
    return int((worth > DECIBELS * bits).sum())


def with_exceptions(
    A: Array, bits_per_weight: float, count: int, errors: Array, threads: int
) -> tuple[Array, float]:
    """(approximation, bits per weight) with so many exceptions.

    Args:
        A: Shape (m, n).
        bits_per_weight: Of everything.
        count: Of exceptions.
        errors: Of every entry, for the first choice.
        threads: Of the solver.
    """
    cost = count * exception_bits(A.shape) / A.size
    exact = A.astype(np.float16).astype(np.float32)
    approximation = np.zeros_like(A)
    for _ in range(TURNS):
        places = largest(errors, count)
        f = factored(np.where(places, approximation, A), bits_per_weight - cost, threads)
        approximation = f.to_dense()
        errors = np.abs(A - approximation)
    return np.where(places, exact, approximation), f.bits_per_weight + cost


def largest(errors: Array, count: int) -> NDArray[np.bool_]:
    """Where the so many largest are."""
    chosen = np.zeros(errors.size, bool)
    chosen[np.argpartition(errors.ravel(), -count)[-count:]] = True
    return chosen.reshape(errors.shape)


def factored(A: Array, bits_per_weight: float, threads: int) -> diba.Factorization:
    return diba.solve(A, bits_per_weight=bits_per_weight, alphabet="sign", effort="fast", threads=threads)


def measure(A: Array, threads: int) -> Iterator[dict[str, Any]]:
    """For each size: the factors alone, then each share of exceptions.

    Shares that are given begin with the entries that are largest when rows and columns are balanced; as many
    as pay, with the largest errors of the factors alone.
    """
    for bits in BITS:
        f = factored(A, bits, threads)
        first = np.abs(A - f.to_dense())
        alone = decibels(A, f.to_dense())
        yield {"bits": bits, "form": "none", "count": 0, "stored": f.bits_per_weight, "snr_db": alone}
        for form, share in zip(FORMS, (None, *SHARES), strict=True):
            if share is None:
                count, errors = paying(np.square(first), exception_bits(A.shape)), first
            else:
                count, errors = int(share * A.size), balanced(A)
            snr, stored = alone, f.bits_per_weight
            if count:
                found, stored = with_exceptions(A, bits, count, errors, threads)
                snr = decibels(A, found)
            yield {"bits": bits, "form": form, "count": count, "stored": stored, "snr_db": snr}


# ---- the command


def main(arguments: Sequence[str]) -> None:
    made = parser("exceptions", __doc__, threads=1)
    sources = {**SOURCES, "smollm2": smollm2}
    made.add_argument("--sources", nargs="+", choices=list(sources), default=list(sources))
    made.add_argument(
        "--each", type=at_least_one, default=EACH, metavar="N", help=f"matrices of each ({EACH})"
    )
    options = made.parse_args(arguments)
    report = results.go_on(options.json, {"machine": results.machine(), "matrices": {}}, ())
    for source in options.sources:
        pool = [
            matrix
            for matrix in sources[source]()
            if min(matrix.array.shape) >= SMALLEST_SIDE and matrix.array.size <= LARGEST
        ]
        for peak, matrix in spread(pool, options.each):
            key = f"{matrix.source}/{matrix.name}"
            if key in report["matrices"]:
                continue
            A = np.ascontiguousarray(matrix.array, dtype=np.float32)
            cells = [
                {name: round(value, 5) if isinstance(value, float) else value for name, value in cell.items()}
                for cell in measure(A, options.threads)
            ]
            facts = {"source": matrix.source, "shape": list(A.shape), "peak": round(peak, 2)}
            report["matrices"][key] = {**facts, "cells": cells}
            print(key, file=sys.stderr, flush=True)
            results.write(options.json, report)
    finish(table(report), report, options)


# ---- tables


def gains(report: dict[str, Any], bits: float, form: str) -> dict[str, tuple[float, dict[str, Any]]]:
    """(dB more than without exceptions, the cell) of each matrix."""
    found = {}
    for name, matrix in report["matrices"].items():
        cells = {(cell["bits"], cell["form"]): cell for cell in matrix["cells"]}
        cell = cells[bits, form]
        found[name] = cell["snr_db"] - cells[bits, "none"]["snr_db"], cell
    return found


def table(report: dict[str, Any]) -> str:
    """Every size and share, then every matrix."""
    rows = []
    for bits in BITS:
        for form in FORMS:
            found = list(gains(report, bits, form).values())
            decibels = [gain for gain, _ in found]
            sizes = [np.prod(matrix["shape"]) for matrix in report["matrices"].values()]
            share = 100 * np.mean(
                [cell["count"] / size for (_, cell), size in zip(found, sizes, strict=True)]
            )
            better = sum(gain > 0.005 for gain in decibels)
            rows.append([
                f"{bits:g}", form, f"{share:.4f}", f"{np.mean(decibels):+.2f}", f"{max(decibels):+.2f}",
                f"{min(decibels):+.2f}", f"{better} of {len(found)}",
            ])  # fmt: skip
    head = ["Bits", "Exceptions", "%", "dB, mean", "best", "worst", "better by 0.005 dB"]
    return f"{markdown(head, rows, left=2)}\n\n{by_matrix(report)}\n\n{measured(report)}."


def by_matrix(report: dict[str, Any]) -> str:
    """The best share of each matrix and size, from the flattest matrix on."""
    ranked = sorted(report["matrices"].items(), key=lambda item: item[1]["peak"])
    rows = []
    for name, matrix in ranked:
        m, n = matrix["shape"]
        best = [max(gains(report, bits, form)[name][0] for form in FORMS) for bits in BITS]
        rows.append([f"`{name}`", f"{m} x {n}", f"{matrix['peak']:.1f}", *(f"{gain:+.2f}" for gain in best)])
    head = ["Matrix", "Shape", "Peak", *(plural(bits, "bit") for bits in BITS)]
    title = "The best of these shares, in dB more than factors alone, from the flattest matrix on:"
    return f"{title}\n\n{markdown(head, rows)}"
