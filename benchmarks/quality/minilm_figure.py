"""The figure of the minilm benchmark: SNR of every matrix, and size against float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..common.style import BLUE, GREY, drawing

__all__ = ["draw"]


def draw(report: dict[str, Any], paths: Sequence[Path]) -> None:
    """Write the figure to every path, as SVG or PNG by its suffix."""
    with drawing(paths, 8, 3.9) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(8, 5), wspace=0.02)
        draw_snr(left.subplots(), report)
        draw_size(right.subplots(), report)


def draw_snr(axes: Axes, report: dict[str, Any]) -> None:
    """A number for every matrix, kinds by layers."""
    rows = report["matrices"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    layers = sorted({row["layer"] for row in rows})
    grid = np.full((len(kinds), len(layers)), np.nan)
    for row in rows:
        grid[kinds.index(row["kind"]), layers.index(row["layer"])] = row["snr_db"]
    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    axes.imshow(grid, cmap="Blues", aspect="auto", vmin=low - 0.3 * (high - low), vmax=high + 1e-3)
    for (i, j), snr in np.ndenumerate(grid):
        if np.isfinite(snr):
            color = "white" if snr > low + 0.45 * (high - low) else "black"
            axes.text(j, i, f"{snr:.2f}", ha="center", va="center", color=color)
    shapes = {row["kind"]: "{} x {}".format(*row["shape"]) for row in rows}
    axes.set_yticks(range(len(kinds)), [f"{kind}\n{shapes[kind]}" for kind in kinds])
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_xlabel("layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bits = report["arguments"]["bits"]
    axes.set_title(f"{report['model']} at {bits:g} bit per weight: SNR in dB", x=-0.28)


def draw_size(axes: Axes, report: dict[str, Any]) -> None:
    """Bytes of all matrices."""
    total = report["totals"]
    sizes = [total["float32_bytes"] / 1e6, total["file_bytes"] / 1e6]
    axes.barh(["float32", "diba files"], sizes, color=[GREY, BLUE], height=0.4)
    for i, size in enumerate(sizes):
        axes.annotate(f"{size:.3g} MB", (size, i), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, 1.35 * max(sizes))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_title(f"Size of all {total['matrices']} matrices", x=-0.4)
