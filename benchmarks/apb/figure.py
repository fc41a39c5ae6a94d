"""The figure of the apb benchmark: test accuracy against bytes on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from ..common.style import BLUE, DARK, GREY, LIGHT, ORANGE, RED, drawing, grid
from .networks import NETWORKS
from .plan import ARMS
from .table import Rows, grouped, kilobytes, percent

__all__ = ["draw"]

STYLES = {  # color, marker, line
    "float32": ("black", "*", ""),
    "binary": (GREY, "D", ""),
    "wider": (GREY, "d", "-."),
    "LSQ": (ORANGE, "^", ":"),
    "APB": (BLUE, "o", "-"),
    "falling": (BLUE, "x", ":"),
    "DiBA": (LIGHT, "s", "--"),
    "DBF": (RED, "v", "--"),
}


def draw(report: dict[str, Any], paths: Sequence[Path]) -> None:
    """Write the figure to every path, as SVG or PNG by its suffix."""
    networks = grouped(report)
    with drawing(paths, max(6.0, 3.9 * len(networks)), 3.8) as figure:
        panels = figure.subplots(1, max(1, len(networks)), squeeze=False)[0]
        for axes, (network, rows) in zip(panels, networks.items(), strict=False):
            draw_network(axes, rows)
            axes.set_title(NETWORKS[network].title)
        present = {arm for rows in networks.values() for arm, _ in rows}
        handles = [
            Line2D([], [], color=color, marker=marker, ls=line, label=ARMS[arm].label)
            for arm, (color, marker, line) in STYLES.items()
            if arm in present
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)


def draw_network(axes: Axes, rows: Rows) -> None:
    """Means, with bars from the least seed to the most; a line along all of it for float32."""
    for arm, (color, marker, line) in STYLES.items():
        points = [(kilobytes(cells), percent(cells)) for (name, _), cells in rows.items() if name == arm]
        for size, found in points:
            axes.plot([size, size], [min(found), max(found)], color=color, lw=0.9)
        style = {"color": color, "marker": marker, "ls": line, "ms": 5}
        axes.plot([size for size, _ in points], [mean(found) for _, found in points], **style)
        if arm == "float32" and points:
            axes.axhline(mean(points[0][1]), color=DARK, ls="--", lw=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.set(xlabel="kB on disk", ylabel="test accuracy, %")
    grid(axes)
