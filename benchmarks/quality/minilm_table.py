"""The tables of the minilm benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..common.tables import ALPHABETS, markdown, measured, plural

__all__ = ["methods_table", "table"]

HEAD = ["Matrix", "Shape", "k", "Bits per weight", "SNR, dB", "float32, kB", "File, kB", "Solve, s"]


def table(report: dict[str, Any]) -> str:
    """One matrix of each shape, and the totals."""
    first: dict[tuple[int, int], dict[str, Any]] = {}
    for row in report["matrices"]:
        first.setdefault(tuple(row["shape"]), row)
    rows = [cells(row) for row in first.values()]
    total = report["totals"]
    sizes = [kilobytes(total[name]) for name in ("float32_bytes", "file_bytes")]
    facts = [f"{total['file_bits_per_weight']:.3f} (files)", f"{total['mean_snr_db']:.2f} (mean)", *sizes]
    rows.append([f"all {total['matrices']}", "", "", *facts, f"{total['seconds']:.1f}"])
    return f"{markdown(HEAD, rows)}\n\n{note(report)}"


def cells(row: dict[str, Any]) -> list[str]:
    m, n = row["shape"]
    facts = [str(row["k"]), f"{row['bits_per_weight']:.3f}", f"{row['snr_db']:.2f}"]
    sizes = [kilobytes(4 * m * n), kilobytes(row["file_bytes"])]
    name = f"layer {row['layer']} {row['kind']}"
    return [name, f"{m} x {n}", *facts, *sizes, f"{row['seconds']:.1f}"]


def note(report: dict[str, Any]) -> str:
    total = report["totals"]
    threads = plural(report["arguments"]["threads"], "thread")
    return (
        f"Worst matrix: {total['worst_snr_db']:.2f} dB (`{total['worst_matrix']}`). {measured(report)}; "
        f"solving with {threads}."
    )


def methods_table(reports: Iterable[dict[str, Any]]) -> str:
    """The same matrices by method and alphabet."""
    rows = []
    for report in reports:
        chosen, sums = report["arguments"], report["totals"]
        effort = f", {chosen['effort']}" if chosen["method"] == "auto" else ""
        facts = [f"{sums['mean_snr_db']:.2f}", f"{sums['worst_snr_db']:.2f}", f"{sums['seconds']:.0f}"]
        rows.append([f"{chosen['method']}{effort}", ALPHABETS[chosen["alphabet"]], *facts])
    return markdown(["Method", "Factors", "Mean SNR, dB", "Worst, dB", "All solved in, s"], rows, left=2)


def kilobytes(size: int) -> str:
    return f"{size / 1e3:,.1f}"
