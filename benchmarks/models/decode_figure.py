"""The figure of the decode benchmark: tokens a second, with the size of all files."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from ..common.style import BLUE, GREY, drawing, grid
from ..common.tables import plural
from .decode_table import PROMPT

__all__ = ["draw"]

PARTS = {"token": ("Writing", 1), "prompt": (f"Reading {PROMPT} tokens", PROMPT)}


def draw(report: dict[str, Any], paths: Sequence[Path]) -> None:
    """Write the figure to every path, as SVG or PNG by its suffix."""
    threads = min(row["threads"] for row in report["rows"])
    rows = [row for row in report["rows"] if row["threads"] == threads and row["samples"]]
    with drawing(paths, 9, 0.9 + 0.38 * len(rows)) as figure:
        for i, (axes, (name, (title, tokens))) in enumerate(
            zip(figure.subplots(1, 2), PARTS.items(), strict=True)
        ):
            bars(axes, rows, name, tokens)
            axes.set_title(f"{title}, {plural(threads, 'thread')}, tokens/s")
            if i > 0:
                axes.tick_params(labelleft=False)


def bars(axes: Axes, rows: list[dict[str, Any]], name: str, tokens: int) -> None:
    rates = [tokens / statistics.median(sample[name] for sample in row["samples"]) for row in rows]
    own = [not row["contestant"].startswith("llama.cpp") for row in rows]
    drawn = axes.barh(range(len(rows)), rates, color=[BLUE if mine else GREY for mine in own], height=0.68)
    axes.bar_label(drawn, fmt="{:,.0f}", padding=4, fontsize=8)
    labels = [f"{row['contestant']}, {row['bytes'] / 1e6:.0f} MB" for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    grid(axes)
