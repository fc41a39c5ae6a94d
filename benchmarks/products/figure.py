"""The figure of the matvec benchmark: one vector at every shape, and batches at one shape."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from ..common.style import DARK, GREY, ORANGE, RED, drawing, grid, plain_numbers
from ..common.tables import plural
from .rows import BIG, FAST, Rows, size_text

__all__ = ["draw"]

# (color, marker, line) in the order of the legend
CONTESTANTS: dict[str, tuple[str, str, str]] = {
    "torch float32": (DARK, "o", "-"),
    "NumPy float32": (GREY, "s", "-"),
    "torch bfloat16": (DARK, "v", ":"),
    "torch int8, dynamic": (RED, "D", "-"),
    "onnxruntime 4-bit": (ORANGE, "^", "-"),
    "openvino 4-bit": ("#8e6bb0", "^", "-"),
    "onnxruntime 2-bit": (ORANGE, "x", "--"),
    "openvino 2-bit": ("#8e6bb0", "x", "--"),
    FAST[2.0]: ("#8cc3e8", "o", "-"),
    FAST[1.5]: ("#4a97cc", "o", "-"),
    FAST[1.0]: ("#0f4c81", "o", "-"),
}


def draw(report: dict[str, Any], paths: Sequence[Path]) -> None:
    """Write the figure to every path, as SVG or PNG by its suffix."""
    rows = Rows(report["rows"], report["machine"]["isa"])
    threads = min(row["threads"] for row in rows)
    shapes = sorted({tuple(row["shape"]) for row in rows}, key=lambda shape: shape[0] * shape[1])
    largest = BIG if BIG in shapes else shapes[-1]
    how = f"{plural(threads, 'thread')}, warm"
    with drawing(paths, 10, 4.4) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(6, 5))
        draw_shapes(left, rows, shapes, threads)
        left.set_title(f"One vector, {how}")
        draw_batches(right, rows, largest, threads)
        right.set_title(f"Batches, {size_text(largest)}, {how}")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside right center", frameon=False, fontsize=8, labelspacing=0.7
        )


def draw_shapes(axes: Axes, rows: Rows, shapes: list[tuple[int, int]], threads: int) -> None:
    """Microseconds by shape, whiskers from the first to the third quartile."""
    for layer, name in enumerate(CONTESTANTS):
        found = [(i, rows.row(name, shape, 1, threads)) for i, shape in enumerate(shapes)]
        present = [(i, row) for i, row in found if row]
        if not present:
            continue
        middles = [row["us"] for _, row in present]
        whiskers = [
            [row["us"] - row["us_quartile_1"] for _, row in present],
            [row["us_quartile_3"] - row["us"] for _, row in present],
        ]
        axes.errorbar(
            [i for i, _ in present], middles, whiskers, label=name, elinewidth=0.8, **look(name, layer)
        )
    axes.set_yscale("log")
    axes.set_xticks(range(len(shapes)), [f"{m}\nx {n}" for m, n in shapes])
    axes.set_ylabel("microseconds")
    decorate(axes)


def draw_batches(axes: Axes, rows: Rows, shape: tuple[int, int], threads: int) -> None:
    """Multiply-adds of the dense product, counted as two operations, by batch."""
    batches = sorted({row["batch"] for row in rows})
    for layer, name in enumerate(CONTESTANTS):
        times = [(batch, rows.value(name, shape, batch, threads)) for batch in batches]
        present = [(batch, time) for batch, time in times if time]
        speed = [2e-3 * shape[0] * shape[1] * batch / time for batch, time in present]
        axes.plot([batch for batch, _ in present], speed, **look(name, layer))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("vectors at once")
    axes.set_ylabel("G operations a second, 2 m n a vector")
    decorate(axes)


def look(name: str, layer: int) -> dict[str, Any]:
    color, marker, style = CONTESTANTS[name]
    return {"color": color, "marker": marker, "ls": style, "ms": 4.5, "lw": 1.3, "zorder": 3 + layer}


def decorate(axes: Axes) -> None:
    plain_numbers(axes.yaxis)
    grid(axes)
