"""The figure of the quality benchmark: SNR against size, and against time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator

from ..common.style import BLUE, DARK, GREY, LIGHT, ORANGE, RED, drawing, grid, plain_numbers
from ..common.tables import plural
from .baselines import DECIBELS_PER_BIT
from .cells import BITS, MAIN_BITS, METHODS
from .table import Runs, by_cell, chosen_matrices, common, mean

__all__ = ["draw"]

# (color, marker, line) of every curve of the first panel, in the order of its legend
CURVES: dict[str, tuple[str, str, str]] = {
    "sign-normal": (BLUE, "o", "-"),
    "binary-normal": (LIGHT, "s", "-"),
    "dbf": (RED, "D", "-"),
    "greedy": (ORANGE, "^", "-"),
    "rtn-64": (DARK, "v", ":"),
    "rtn-row": (GREY, "v", ":"),
    "onebit": (DARK, "*", ""),
    "svd16": (GREY, "x", "-"),
}
EFFORTS = ("fast", "normal", "best")


def draw(report: dict[str, Any], paths: Sequence[Path]) -> None:
    """Write the figure to every path, as SVG or PNG by its suffix."""
    runs = by_cell(report)
    with drawing(paths, 8.6, 4.4) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(5, 4), wspace=0.03)
        draw_size(left.subplots(), runs, chosen_matrices(report, runs))
        panels = right.subplots(len(MAIN_BITS), 1, sharex=True)
        for axes, bits in zip(panels[::-1], MAIN_BITS, strict=True):
            draw_speed(axes, runs, bits)
        panels[-1].set_xlabel("seconds a matrix, one thread")


def draw_size(axes: Axes, runs: dict[tuple[str, float], Runs], chosen: Sequence[str]) -> None:
    """Mean SNR of a few matrices against the bits that are really stored."""
    limit = np.array([0.0, max(BITS) + 0.35])
    label = "rate-distortion limit, iid Gaussian"
    axes.plot(limit, DECIBELS_PER_BIT * limit, color="black", lw=0.9, ls="--", label=label)
    for layer, (name, (color, marker, line)) in enumerate(CURVES.items()):
        present = (runs.get((name, bits), {}) for bits in BITS)
        found = [mine for mine in present if chosen and set(chosen) <= mine.keys()]
        if not found:
            continue
        stored = [mean(mine, chosen, "bits_per_weight") for mine in found]
        decibels = [mean(mine, chosen, "snr_db") for mine in found]
        label = METHODS[name].label
        axes.plot(
            stored, decibels, color=color, marker=marker, ls=line, ms=4.5, label=label, zorder=9 - layer
        )
    axes.set_xlim(*limit)
    axes.set_ylim(0, DECIBELS_PER_BIT * limit[1])
    axes.xaxis.set_major_locator(MultipleLocator(0.5))
    axes.yaxis.set_major_locator(MultipleLocator(2))
    grid(axes)
    axes.set_xlabel("stored bits per weight, diagonals and scales counted")
    axes.set_ylabel("SNR, dB")
    axes.legend(frameon=False, loc="upper left", fontsize=8, labelspacing=0.3, borderaxespad=0)
    axes.set_title(f"SNR and size, mean of {len(chosen)} real matrices")


def draw_speed(axes: Axes, runs: dict[tuple[str, float], Runs], bits: float) -> None:
    """Mean SNR against mean seconds at one size, for the matrices that all of these methods have."""
    ours = [[f"{alphabet}-{effort}" for effort in EFFORTS] for alphabet in ("sign", "binary")]
    shared = common(runs, bits, [*ours[0], *ours[1], "dbf", "greedy"])
    for names in (*ours, ["dbf"], ["greedy"]):
        present = [(name, runs[name, bits]) for name in names if shared and runs.get((name, bits))]
        if not present:
            continue
        seconds = [mean(mine, shared, "seconds") for _, mine in present]
        decibels = [mean(mine, shared, "snr_db") for _, mine in present]
        color, marker, _ = CURVES[names[len(names) // 2]]
        axes.plot(seconds, decibels, color=color, marker=marker, ms=5)
        if names is ours[0]:
            for (name, _), *at in zip(present, seconds, decibels, strict=True):
                axes.annotate(name.split("-")[1], at, (0, 6), textcoords="offset points", color=color,
                              ha="center", fontsize=8)  # fmt: skip
    axes.set_xscale("log")
    plain_numbers(axes.xaxis)
    axes.margins(x=0.08, y=0.16)
    grid(axes)
    axes.set_ylabel("SNR, dB")
    axes.set_title(f"{plural(bits, 'bit')}: SNR and time, mean of {len(shared)}")
