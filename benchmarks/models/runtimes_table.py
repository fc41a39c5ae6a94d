"""The table of the runtimes benchmark."""

from __future__ import annotations

import statistics
from typing import Any

from ..common.tables import markdown, measured, plural

__all__ = ["PARTS", "table"]

# Of each model: its title, and its figures in milliseconds: the name in a sample and the head of the column.
PARTS: dict[str, tuple[str, dict[str, str]]] = {
    "minilm": (
        "all-MiniLM-L6-v2",
        {"one": "1 sentence of 18 tokens, ms", "many": "32 sentences of 39 tokens, ms"},
    ),
    "whisper": (
        "Whisper tiny.en",
        {"whole": "30 s and 24 tokens, ms", "encoder": "encoder, ms", "decoder": "a token, ms"},
    ),
    "efficientnet": ("EfficientNet-Lite0", {"one": "1 image, ms", "many": "8 images, ms"}),
}

Row = dict[str, Any]


def table(report: Row) -> str:
    parts = []
    for part, (title, figures) in PARTS.items():
        for threads in sorted({row["threads"] for row in report["rows"] if row["part"] == part}):
            rows = [row for row in report["rows"] if (row["part"], row["threads"]) == (part, threads)]
            parts.append(f"{title}, {plural(threads, 'thread')}:\n\n{rows_of(rows, figures)}")
    parts += [
        f"{x['part']}, {x['contestant']}, {x['threads']}: {x['error']}"
        for x in report["rows"]
        if "error" in x
    ]
    return "\n\n".join([*parts, note(report)])


def rows_of(rows: list[Row], figures: dict[str, str]) -> str:
    head = ["", "files, MB"]
    for title in figures.values():
        head += [title, "of int8's"]
    lines = []
    for row in rows:
        cells = [row["contestant"], f"{row['bytes'] / 1e6:.1f}"]
        for name in figures:
            cells += [shown(row, name), share(median(row, name), rows, name)]
        starts = row.get("starts") or []
        working = row.get("memory", {}).get("working")
        cells += [f"{1000 * statistics.median(starts):.0f}" if starts else ""]
        cells += ["" if working is None else f"{(working - row['memory']['empty']) / 1e6:.0f}"]
        lines.append(cells)
    return markdown([*head, "session, ms", "memory, MB"], lines)


def median(row: Row, name: str) -> float | None:
    """Seconds."""
    return statistics.median(sample[name] for sample in row["samples"]) if row["samples"] else None


def shown(row: Row, name: str) -> str:
    """Milliseconds: the median, and the range in brackets."""
    times = [1000 * sample[name] for sample in row["samples"]]
    return f"{statistics.median(times):.3g} ({min(times):.3g}-{max(times):.3g})" if times else ""


def share(seconds: float | None, rows: list[Row], name: str) -> str:
    """Of the time of the best int8; nothing where one was not measured."""
    others = [median(row, name) for row in rows if row["contestant"].startswith("int8") and row["samples"]]
    return "" if seconds is None or not others else f"{seconds / min(filter(None, others)):.2f}"


def note(report: Row) -> str:
    return (
        f"{measured(report)}, in onnxruntime {report['onnxruntime']}. Medians of interleaved "
        "rounds, each contestant in a process of its own, range in brackets. Shares are those of the fastest "
        "int8, whichever its kind and fusions. Memory is what sessions and runs add to a process that has "
        "imported onnxruntime; session is the median time of their creation in fresh processes."
    )
