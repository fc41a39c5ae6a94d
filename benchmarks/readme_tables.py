#!/usr/bin/env python3
"""Write the measured tables of README.md and docs from benchmarks/results; --check only compares.

A table stands between "<!-- begin NAME.json -->" and "<!-- end NAME.json -->" and is made by the
function of that name in TABLES.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matvec_table
import models_speed_table
import models_table
import op_overhead
import quality_table
import solve
import solver_trials

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("minilm.json", "minilm-sign.json", "minilm-greedy.json", "minilm-greedy-sign.json")
DOCUMENTS = tuple(ROOT / name for name in ("README.md", "docs/solver.md", "docs/torch.md", "docs/models.md"))
NAMES = {"binary": "0/1", "sign": "±1"}
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
        *table(["Method", "Factors", "Mean SNR, dB", "Worst, dB", "All solved in, s"], left=2),
    ]
    for name in METHODS:
        if not (RESULTS / name).exists():
            continue
        other = load(name)
        chosen, sums = other["arguments"], other["totals"]
        lines.append(
            f"| {chosen['method']}{effort(chosen)} | {NAMES[chosen['alphabet']]} | {sums['mean_snr_db']:.2f} "
            f"| {sums['worst_snr_db']:.2f} | {sums['seconds']:.0f} |"
        )
    return "\n".join(lines)


def effort(chosen: dict[str, Any]) -> str:
    return f", {chosen['effort']}" if chosen["method"] == "auto" else ""


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


def activation_error(report: dict[str, Any]) -> str:
    """Output SNR by objective, on calibration and held-out texts."""
    found: dict[str, dict[float, dict[str, Any]]] = {}
    for row in report["means"]:
        found.setdefault(row["objective"], {})[row["bits"]] = row
    bits = sorted({row["bits"] for row in report["means"]})
    head = ["Objective"] + [f"{b:g} bit{'s' * (b > 1)}, {what}" for b in bits for what in ("own", "held out")]
    lines = [
        f"| {name} | "
        + " | ".join(f"{rows[b]['calibration_db']:.2f} | {rows[b]['held_out_db']:.2f}" for b in bits)
        + " |"
        for name, rows in found.items()
    ]
    data, used = report["data"], report["arguments"]
    matrices = report["means"][0]["matrices"]
    note = (
        f"Means over {matrices} matrices of all-MiniLM-L6-v2, {used['alphabet']} factors, ramps of "
        f"{used['steps']} steps; {data['calibration_tokens']:,} tokens for S, "
        f"{data['held_out_tokens']:,} held out."
    )
    return "\n".join([*table(head, left=1), *lines, "", note])


def large(report: dict[str, Any]) -> str:
    """One sentence."""
    used = report["arguments"]
    size, bits = used["size"], report["bits_per_weight"]
    how = f"k = {report['k']}, {used['alphabet']}, effort {used['effort']}, {used['threads']} threads"
    peak, before = (report[name] / 1e9 for name in ("peak_bytes", "bytes_before"))
    return (
        f"{size} x {size} at {bits:.2f} bits per weight ({how}): {report['snr_db']:.2f} dB in "
        f"{report['seconds']:.0f} s, {report['announced_seconds']:.0f} s announced after three steps, "
        f"{peak:.2f} GB of memory at most, {before:.2f} GB of it before the solver began."
    )


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "activation_error.json": activation_error,
    "large.json": large,
    "matvec.json": matvec_table.markdown,
    "minilm.json": minilm,
    "models.json": models_table.table,
    "models_speed.json": models_speed_table.markdown,
    "op_overhead.json": op_overhead.table,
    "quality.json": quality_table.markdown_report,
    "solve.json": solve_times,
    "solver_trials.json": solver_trials.markdown,
}


def filled(text: str) -> str:
    """A document with every table made anew."""
    for name in re.findall(r"<!-- begin (\S+) -->", text):
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        before, rest = text.split(begin)
        after = rest.split(end)[1]
        text = f"{before}{begin}{TABLES[name](load(name))}\n{end}{after}"
    return text


def main(arguments: Sequence[str]) -> int:
    stale = 0
    for path in DOCUMENTS:
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if arguments != ["--check"]:
            path.write_text(new, encoding="utf-8")
        elif new != old:
            stale = 1
            print(f"{path.name} is not what benchmarks/results say; run benchmarks/readme_tables.py")
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
