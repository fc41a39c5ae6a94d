"""Products with matrices that no cache holds, one after another: bytes a second, beside plain reading.

    python benchmarks streaming --json benchmarks/results/streaming.json

A stack is as many layers as a model has, of random bits, multiplied by one vector in turn on one thread, as
at decoding. In the same rounds the same core reads memory and does nothing else with it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from diba import _core

from ..common import results
from ..common.command import at_least_one, finish, parser
from ..common.tables import markdown, measured
from ..common.turns import READ

# name: the (outputs, inputs) of a block, and how many blocks there are
STACKS: dict[str, tuple[tuple[tuple[int, int], ...], int]] = {
    "160 layers of 1536 x 576": (((1536, 576),), 160),
    "SmolLM2-135M": (
        ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)),
        30,
    ),
    "a Llama of a billion weights": (
        ((2048, 2048), (512, 2048), (512, 2048), (2048, 2048), (8192, 2048), (8192, 2048), (2048, 8192)),
        16,
    ),
}


def main(arguments: Sequence[str]) -> None:
    made = parser("streaming", __doc__)
    made.add_argument("--rounds", type=at_least_one, default=15, metavar="N", help="of each stack (15)")
    made.add_argument("--bits", type=float, nargs="+", default=[1.0, 2.0], metavar="B", help="(1 2)")
    made.add_argument("--stacks", nargs="+", choices=STACKS, default=list(STACKS), metavar="NAME")
    options = made.parse_args(arguments)
    rows = [measure(name, bits, options) for name in options.stacks for bits in options.bits]
    report = {"machine": results.machine(), "rounds": options.rounds, "rows": rows}
    results.write(options.json, report)
    finish(table(report), report, options)


def layer(random: np.random.Generator, m: int, n: int, bits: float) -> Any:
    k = round(bits * m * n / (m + n))
    sizes = [(m, k), (k, n)]
    words = [random.integers(0, 1 << 63, (rows, -(-cols // 64)), dtype=np.uint64) for rows, cols in sizes]
    for bits_of, (_, cols) in zip(words, sizes, strict=True):
        if cols % 64:
            bits_of[:, -1] &= np.uint64((1 << cols % 64) - 1)
    ones = [np.full(size, 1e-3, np.float32) for size in (m, k, n)]
    return _core.Packed(ones[0], words[0], ones[1], words[1], ones[2], signs=True)


def measure(name: str, bits: float, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each round over the whole stack, and of reading memory."""
    random = np.random.default_rng(0)
    shapes, blocks = STACKS[name]
    vectors = {n: random.standard_normal((1, n), dtype=np.float32) for _, n in shapes}
    results_of = {m: np.empty((1, m), np.float32) for m, _ in shapes}  # as in a model, which reuses memory
    calls = [(layer(random, m, n, bits), vectors[n], results_of[m]) for m, n in shapes * blocks]
    size = sum(packed.nbytes for packed, _, _ in calls)
    memory = np.ones(READ // 8, np.uint64)
    taken, read = [], []
    for _ in range(options.rounds + 1):  # the first is not counted
        begin = time.perf_counter()
        for packed, x, y in calls:
            packed.multiply(x, None, y, 1)
        taken.append(time.perf_counter() - begin)
        read.append(_core.read_seconds(memory))
    return {"stack": name, "bits": bits, "bytes": size, "seconds": taken[1:], "read_seconds": read[1:]}


def table(report: dict[str, Any]) -> str:
    rows = []
    for row in report["rows"]:
        seconds = statistics.median(row["seconds"])
        rate, reading = row["bytes"] / seconds, READ / statistics.median(row["read_seconds"])
        cells = (
            f"{row['bytes'] / 1e6:.0f}",
            f"{1e3 * seconds:.2f}",
            f"{rate / 1e9:.1f}",
            f"{reading / 1e9:.1f}",
        )
        rows.append([row["stack"], f"{row['bits']:g}", *cells, f"{rate / reading:.2f}"])
    head = ["Stack", "Bits per weight", "MB", "ms a pass", "GB/s", "reading, GB/s", "share"]
    note = f"One vector, one thread, medians of {report['rounds']} rounds. {measured(report)}."
    return f"{markdown(head, rows)}\n\n{note}"
