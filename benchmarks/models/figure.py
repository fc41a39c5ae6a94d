"""The figure of the models benchmark: end metric against model size on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from ..common.style import BLUE, DARK, GREY, LIGHT, ORANGE, RED, drawing, grid
from .table import METRICS, grouped

__all__ = ["draw"]

# (label, color, marker, line) of an arm
ARMS = {
    "replaced": ("replaced, no data", GREY, "o", ":"),
    "calibrated": ("calibrated", LIGHT, "s", "-"),
    "dibard": ("calibrated, diagonals retuned (DiBARD)", BLUE, "o", "-"),
    "flips": ("... and a few bits", DARK, "*", ""),
    "random": ("random binaries, retuned alike", RED, "x", ""),
    "rounded, retuned": ("rounded in groups of 64, scales retuned", ORANGE, "^", "-"),
}
LOGARITHMIC = ("news_perplexity", "word_error_rate", "accuracy")  # an accuracy is drawn as its errors


def draw(report: dict[str, Any], paths: Sequence[Path]) -> None:
    """Write the figure to every path, as SVG or PNG by its suffix."""
    groups = grouped(report)
    tasks = list(dict.fromkeys(key[0] for key in groups))
    with drawing(paths, max(8.0, 2.6 * len(tasks)), 3.8) as figure:
        for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
            draw_task(axes, {key[1:]: cells for key, cells in groups.items() if key[0] == task})
        handles = [
            Line2D([], [], color=color, marker=marker, ls=line, label=label)
            for label, color, marker, line in ARMS.values()
        ]
        handles.append(Line2D([], [], color="black", ls="--", lw=0.9, label="dense"))
        columns = 3 if len(tasks) > 3 else 2
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def draw_task(axes: Axes, groups: dict[tuple[float, str, str], list[dict[str, Any]]]) -> None:
    """Lines join the sizes of one arm; signs where both alphabets were measured."""
    first = next(iter(groups.values()))[0]
    metric = first["primary"]
    heading = METRICS[metric][0] if metric != "accuracy" else "errors, %"
    for arm, (_, color, marker, line) in ARMS.items():
        found = {
            bits: cells
            for alphabet in ("binary", "sign", "")
            for (bits, letters, name), cells in groups.items()
            if name == arm and letters == alphabet
        }
        points = sorted(
            (cells[0]["bytes"] / 1e6, mean(height(cell, metric) for cell in cells))
            for cells in found.values()
        )
        axes.plot(*zip(*points, strict=True) if points else ([], []), color=color, marker=marker, ls=line)
    dense = [cells for (_, _, arm), cells in groups.items() if arm == "dense"]
    if dense:
        axes.axhline(height(dense[0][0], metric), color="black", ls="--", lw=0.9)
    if metric in LOGARITHMIC:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5) if high < 30 * low else (1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set(title=first["title"], xlabel="MB on disk", ylabel=heading)
    grid(axes)


def height(cell: dict[str, Any], metric: str) -> float:
    """What is drawn; an accuracy by its errors, whose logarithms show small and large ones alike."""
    value: float = METRICS[metric][2] * cell["metrics"][metric]
    return 100 - value if metric == "accuracy" else value
