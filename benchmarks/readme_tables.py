#!/usr/bin/env python3
"""Write the measured tables of README.md from benchmarks/results; --check only compares.

A table stands between "<!-- begin NAME.json -->" and "<!-- end NAME.json -->" and is made by the
function of that name in TABLES.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import quality_table
import solve

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("minilm.json", "minilm-sign.json", "minilm-admm.json", "minilm-admm-sign.json")
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"


def minilm(report: dict[str, Any]) -> str:
    """One matrix of each shape, and the totals."""
    first: dict[tuple[int, int], dict[str, Any]] = {}
    for row in report["matrices"]:
        first.setdefault(tuple(row["shape"]), row)
    times = {tuple(p["shape"]): p for p in report["products"] if p["shape"]}
    lines = [minilm_row(row, times[shape]) for shape, row in first.items()]
    total, whole = report["totals"], report["products"][-1]
    lines.append(
        f"| all {total['matrices']} | | | {total['file_bits_per_weight']:.3f} (files) "
        f"| {total['mean_snr_db']:.2f} (mean) | {kilobytes(total['float32_bytes'])} "
        f"| {kilobytes(total['file_bytes'])} | {total['seconds']:.1f} | {milliseconds(whole)} |"
    )
    head = ["Matrix", "Shape", "k", "Bits per weight", "SNR, dB", "float32, kB", "File, kB", "Solve, s"]
    head.append("`A @ x` / `f @ x`, ms")
    return "\n".join([*table(head, left=1), *lines, "", minilm_note(report)])


def minilm_row(row: dict[str, Any], product: dict[str, Any]) -> str:
    m, n = row["shape"]
    return (
        f"| layer {row['layer']} {row['kind']} | {m} x {n} | {row['k']} | {row['bits_per_weight']:.3f} "
        f"| {row['snr_db']:.2f} | {kilobytes(4 * m * n)} | {kilobytes(row['file_bytes'])} "
        f"| {row['seconds']:.1f} | {milliseconds(product)} |"
    )


def minilm_note(report: dict[str, Any]) -> str:
    machine, total = report["machine"], report["totals"]
    worst = (
        f"Worst matrix: {total['worst_snr_db']:.2f} dB (`{total['worst_matrix']}`). Measured with diba "
        f"{machine['diba']} ({machine['isa']}) and NumPy {machine['numpy']} ({machine['numpy_blas']}) on "
        f"{' '.join(str(machine['cpu']).split())}; solving with {report['arguments']['threads']} threads, "
        "products on one thread: medians of interleaved repetitions, the first three rows with the matrix in "
        "cache, the last one through all matrices in turn."
    )
    lines = [
        worst,
        "",
        "The same 36 matrices at the same size, by method and alphabet:",
        "",
        *table(["Method", "Alphabet", "Mean SNR, dB", "Worst, dB", "All solved in, s"], left=2),
    ]
    for name in METHODS:
        if not (RESULTS / name).exists():
            continue
        other = load(name)
        chosen, sums = other["arguments"], other["totals"]
        lines.append(
            f"| {chosen['method']} | {chosen['alphabet']} | {sums['mean_snr_db']:.2f} "
            f"| {sums['worst_snr_db']:.2f} | {sums['seconds']:.0f} |"
        )
    return "\n".join(lines)


def solve_times(report: dict[str, Any]) -> str:
    """The C++ greedy against vectorised PyTorch."""
    lines = [solve.markdown(solve.cells(row)) for row in report["rows"]]
    machine = report["machine"]
    note = (
        f"One thread each, {' '.join(str(machine['cpu']).split())} ({machine['isa']}), medians of "
        f"{report['rounds']} interleaved rounds. SNR and memory: diba / PyTorch; memory is what the "
        "process grew by while it solved."
    )
    return "\n".join([*table(solve.COLUMNS, left=1), *lines, "", note])


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def kilobytes(size: int) -> str:
    return f"{size / 1e3:,.1f}"


def milliseconds(product: dict[str, Any]) -> str:
    return f"{product['numpy_us']['median'] / 1e3:.3f} / {product['diba_us']['median'] / 1e3:.3f}"


def table(head: Sequence[str], left: int) -> list[str]:
    """The first two lines of a Markdown table whose first `left` columns hold text."""
    rules = [":---" if i < left else "---:" for i in range(len(head))]
    return [f"| {' | '.join(head)} |", f"| {' | '.join(rules)} |"]


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "minilm.json": minilm,
    "quality.json": quality_table.markdown_report,
    "solve.json": solve_times,
}


def filled(text: str) -> str:
    """The README with every table made anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        before, rest = text.split(begin)
        after = rest.split(end)[1]
        text = f"{before}{begin}{make(load(name))}\n{end}{after}"
    return text


def main(arguments: Sequence[str]) -> int:
    old = README.read_text(encoding="utf-8")
    new = filled(old)
    if arguments == ["--check"]:
        if new != old:
            print("README.md is not what benchmarks/results say; run benchmarks/readme_tables.py")
        return int(new != old)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
