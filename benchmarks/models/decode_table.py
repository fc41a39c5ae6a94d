"""The table of the decode benchmark."""

from __future__ import annotations

import statistics
from typing import Any

from ..common.tables import markdown, measured, plural

__all__ = ["table"]

PROMPT = 128  # tokens that a sample reads

Row = dict[str, Any]


def table(report: Row) -> str:
    parts = []
    for threads in dict.fromkeys(row["threads"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["threads"] == threads]
        parts.append(f"{plural(threads, 'thread')}:\n\n{rows_of(rows)}")
    parts += [f"{x['contestant']}, {x['threads']}: {x['error']}" for x in report["rows"] if "error" in x]
    return "\n\n".join([*parts, note(report)])


def rows_of(rows: list[Row]) -> str:
    others = [row for row in rows if row["contestant"].startswith("llama.cpp") and row["samples"]]
    head = ["", "files, MB", "tokens/s, writing", f"tokens/s, reading {PROMPT}", "at work, MB", "start, s"]
    if others:
        head[3:3] = ["times the fastest of llama.cpp"]
        head[5:5] = ["times"]
    shares = any("read" in row for row in rows)
    if shares:
        head[3:3] = ["weights, GB/s", "of reading"]
    lines = []
    for row in rows:
        size = f"{row['bytes'] / 1e6:.1f}"
        if not row["samples"]:
            lines.append([row["contestant"], size, *[""] * (len(head) - 2)])
            continue
        cells = [row["contestant"], size]
        for name, tokens in (("token", 1), ("prompt", PROMPT)):
            cells.append(speed(row, name, tokens))
            if others:
                best = min(seconds(other, name) for other in others)
                cells.append(f"{best / seconds(row, name):.2f}")
            if shares and name == "token":
                cells[3:3] = share(row)
        resident = row["memory"].get("working")
        cells += ["" if resident is None else f"{resident / 1e6:.0f}", f"{row['seconds']['load']:.2f}"]
        lines.append(cells)
    return markdown(head, lines)


def share(row: Row) -> list[str]:
    """GB/s of the factors that a step reads, and that beside what one core reads."""
    if "read" not in row:
        return ["", ""]
    rate = row["read"] / seconds(row, "token")
    return [f"{rate / 1e9:.1f}", f"{rate / statistics.median(row['core_reads']):.2f}"]


def seconds(row: Row, name: str) -> float:
    """The median over the samples."""
    return statistics.median(sample[name] for sample in row["samples"])


def speed(row: Row, name: str, tokens: int) -> str:
    """Tokens a second: the median, and the range in brackets."""
    times = [sample[name] for sample in row["samples"]]
    middle, low, high = (tokens / x for x in (statistics.median(times), max(times), min(times)))
    return f"{middle:,.0f} ({low:,.0f}-{high:,.0f})"


def note(report: Row) -> str:
    known = ", ".join(f"{name.replace('_', '-')} {version}" for name, version in report["versions"].items())
    random = (
        " Weights are random; a step reads the factors of all layers and of the output layer, and what that "
        "is beside the reading of memory by one core is the share."
        if any("read" in row for row in report["rows"])
        else ""
    )
    return (
        f"{measured(report)}, {known}. Medians of interleaved rounds, each contestant in a process of its "
        f"own, range in brackets. A sample reads {PROMPT} tokens and then writes 64, the likeliest each "
        "time. Memory is that of the process, with Python and NumPy in it. Files are all of a folder, the "
        f"tokenizer and the library of operators with them.{random}"
    )
