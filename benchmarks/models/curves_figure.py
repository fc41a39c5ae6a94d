"""The figure of the curves benchmark: end metric against bytes on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from ..common.style import BLUE, DARK, GREY, ORANGE, RED, drawing, grid
from .curves_table import Rows, best, grouped, size, value
from .figure import LOGARITHMIC
from .table import METRICS

__all__ = ["draw"]

# (label, color, marker, line) of an arm
ARMS = {
    "diba": ("diba", BLUE, "o", "-"),
    "GPTQ": ("GPTQ in groups of 64, scales retuned", ORANGE, "^", "-"),
    "llama.cpp": ("llama.cpp's files", RED, "s", ""),
    "llama.cpp's types": ("llama.cpp's types, one on every matrix", GREY, "v", ":"),
    "onnxruntime": ("onnxruntime, int8 and int4", DARK, "D", ""),
    "dense": ("dense, in 16 and 32 bits", "black", "*", ""),
}
LIMIT = 12.0  # times the dense metric, where its axis is logarithmic: what is worse is of no use


def draw(report: dict[str, Any], paths: Sequence[Path]) -> None:
    """Write the figure to every path, as SVG or PNG by its suffix."""
    every = grouped(report)
    compared = {task: rows for task, rows in every.items() if any(arm != "dense" for arm, _ in rows)}
    tasks = compared or every
    with drawing(paths, max(6.0, 3.4 * len(tasks)), 3.8) as figure:
        for axes, rows in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks.values(), strict=True):
            draw_task(axes, rows)
        handles = [
            Line2D([], [], color=color, marker=marker, ls=line, label=label)
            for label, color, marker, line in ARMS.values()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)


def draw_task(axes: Axes, rows: Rows) -> None:
    first = next(iter(rows.values()))[0]
    metric = first["primary"]
    dense = next((height(cells, metric) for (arm, _), cells in rows.items() if arm == "dense"), None)
    logarithmic = metric in LOGARITHMIC
    for arm, (_, color, marker, line) in ARMS.items():
        mine = {key: cells for key, cells in rows.items() if key[0] == arm}
        front = {key: mine[key] for key in mine if key in best(mine)}  # a line through these alone
        for shown, style in ((mine, {"marker": marker, "ls": ""}), (front, {"ls": line})):
            points = [(size(cells), height(cells, metric)) for cells in shown.values()]
            if logarithmic and dense is not None:
                points = [point for point in points if point[1] <= LIMIT * dense]
            axes.plot(*zip(*points, strict=True) if points else ([], []), color=color, ms=4, **style)
    if dense is not None:
        axes.axhline(dense, color="black", ls="--", lw=0.9)
    axes.set_xscale("log")
    scales = [axes.xaxis]
    if logarithmic:
        axes.set_yscale("log")
        scales.append(axes.yaxis)
    for scale in scales:
        scale.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        scale.set_minor_locator(NullLocator())
        scale.set_major_formatter(StrMethodFormatter("{x:,g}"))
    heading = METRICS[metric][0] if metric != "accuracy" else "errors, %"
    axes.set(title=first["title"], xlabel="MB on disk", ylabel=heading)
    grid(axes)


def height(cells: list[dict[str, Any]], metric: str) -> float:
    """What is drawn; an accuracy by its errors, whose logarithms show small and large ones alike."""
    found = METRICS[metric][2] * value(cells, metric)
    return 100 - found if metric == "accuracy" else found
