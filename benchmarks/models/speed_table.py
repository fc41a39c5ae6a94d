"""The tables of the speed benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from ..common.tables import markdown, measured, plural

__all__ = ["CONTESTANTS", "JOBS", "summary", "table", "times"]

DENSE, INT8 = "float32", "int8, dynamic"
CONTESTANTS = (
    DENSE,
    "float32, compiled",
    "bfloat16",
    INT8,
    "diba 1 bit",
    "diba 2 bits",
    "diba 1 bit, tied",
    "diba 2 bits, tied",
    "diba 1 bit, compiled",
    "diba 1 bit, tied, compiled",
)

# Of each model: its title; whether the output layer shares the embedding; who is left out, as compiling takes
# five minutes there; the figures of a sample, what they are called and whether they are shown as 1 / seconds.
# Ratios are those of the first figure.
JOBS: dict[str, dict[str, Any]] = {
    "smollm2": {
        "title": "SmolLM2-135M, greedy decoding at batch 1",
        "tied": True,
        "without": ("diba 1 bit, compiled", "diba 1 bit, tied, compiled"),
        "figures": {"token": ("tokens/s", True), "prompt": ("s for the prompt", False)},
    },
    "whisper": {
        "title": "Whisper tiny.en, end to end",
        "tied": True,
        "without": (),
        "figures": {
            "audio": ("s per s of audio", False),
            "features": ("features", False),
            "encoder": ("encoder", False),
            "decoder": ("decoder", False),
        },
    },
    "minilm": {
        "title": "all-MiniLM-L6-v2, sentences of movie reviews",
        "tied": False,
        "without": (),
        "figures": {"batch 1": ("sentences/s, batch 1", True), "batch 32": ("sentences/s, batch 32", True)},
    },
}

Row = dict[str, Any]


def summary(row: Row, figure: str) -> tuple[float, float, float] | None:
    """(Median, lowest, highest) seconds over the samples; None if there are none."""
    seconds = [sample[figure] for sample in row["samples"]]
    return (statistics.median(seconds), min(seconds), max(seconds)) if seconds else None


def times(rows: Iterable[Row], job: str, threads: int, slow: str, quick: str, figure: str) -> float | None:
    """How many times as fast as ``slow`` ``quick`` is; None if one was not measured."""
    known = {row["contestant"]: row for row in rows if (row["job"], row["threads"]) == (job, threads)}
    found = [summary(known[name], figure) if name in known else None for name in (slow, quick)]
    return found[0][0] / found[1][0] if found[0] and found[1] else None


# ---------------------------------------------------------------- Markdown


def table(report: Row) -> str:
    rows, parts = report["rows"], []
    for job, threads in dict.fromkeys((row["job"], row["threads"]) for row in rows):
        mine = [row for row in rows if (row["job"], row["threads"]) == (job, threads)]
        parts.append(f"{JOBS[job]['title']}, {plural(threads, 'thread')}:\n\n{job_table(mine, job)}")
    parts += [
        f"{row['job']}, {row['threads']}, {row['contestant']}: {row['error']}"
        for row in rows
        if "error" in row
    ]
    return "\n\n".join([*parts, note(report)])


def job_table(rows: Sequence[Row], job: str) -> str:
    figures = JOBS[job]["figures"]
    first = next(iter(figures))
    columns = [title for title, _ in figures.values()]
    columns.insert(1, f"times {DENSE}")
    lines = []
    for row in rows:
        cells = [cell(row, figure, inverse) for figure, (_, inverse) in figures.items()]
        ratio = times(rows, job, row["threads"], DENSE, row["contestant"], first)
        cells.insert(1, f"{ratio:.2f}" if ratio else "")
        sizes = [megabytes(row.get("memory", {}).get(name)) for name in ("loaded", "working", "peak")]
        warm = f"{row['seconds']['warm']:.0f}" if "seconds" in row else ""
        lines.append([row["contestant"], *cells, *sizes, warm])
    return markdown(["", *columns, "loaded, MB", "at work, MB", "peak, MB", "warm-up, s"], lines)


def cell(row: Row, figure: str, inverse: bool) -> str:
    """Median, and the range in brackets."""
    found = summary(row, figure)
    if found is None:
        return ""
    middle, low, high = (1 / s for s in (found[0], found[2], found[1])) if inverse else found
    return f"{middle:.3g} ({low:.3g}-{high:.3g})"


def megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f}"


def note(report: Row) -> str:
    return (
        f"{measured(report)}. Medians of interleaved rounds, each "
        "contestant in a process of its own, range in brackets. Factors are random, of the size of solved "
        "ones: time does not depend on their values. Tied: the output layer and the embedding, one matrix, "
        "are factored too; otherwise both stay dense float32. int8 quantizes all linear layers and the "
        "output layer. SmolLM2: 64 tokens after a prompt of 32, by calls of the model with its cache, not "
        "by generate(). Whisper: features, the encoder's 30 s window, as many tokens as are said. Memory is "
        "that of the process, with Python, torch and transformers in it; the peak is that of the work. The "
        "warm-up is not timed; compiling is in it."
    )
