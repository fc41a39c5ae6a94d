"""One style for all figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

__all__ = ["BLUE", "DARK", "GREY", "LIGHT", "ORANGE", "RED", "drawing", "grid", "plain_numbers"]

BLUE, LIGHT, RED, ORANGE, GREY, DARK = "#1d6fa5", "#6fb1dd", "#c0392b", "#e08e2b", "#9aa5b1", "#4a5560"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "diba",  # the same figure, the same bytes
}


@contextmanager
def drawing(paths: Sequence[Path], width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches, written to every path when the block ends, as SVG or PNG by its suffix."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
        yield figure
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=200, metadata={"Date": None} if path.suffix == ".svg" else None)


def grid(axes: Axes) -> None:
    axes.grid(color="#e6e9ec", lw=0.6)
    axes.set_axisbelow(True)


def plain_numbers(axis: Any) -> None:
    """1,000 instead of 10^3 on a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
