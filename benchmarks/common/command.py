"""The options that benchmarks share."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import BenchmarkError

if TYPE_CHECKING:
    from .results import Report

__all__ = ["arguments_of", "at_least_one", "figure_path", "finish", "needs", "parser"]


def parser(
    name: str, doc: str | None, *, plot: bool = False, threads: int | None = None
) -> argparse.ArgumentParser:
    """A parser with ``--json``.

    Args:
        name: Of the benchmark on the command line.
        doc: The docstring of its module; the first line is shown.
        plot: Whether it has a figure: adds ``--plot``.
        threads: Adds ``--threads`` with this default.
    """
    made = argparse.ArgumentParser(
        prog=f"benchmarks {name}", description=(doc or "").partition("\n")[0], allow_abbrev=False
    )
    made.add_argument("--json", type=Path, metavar="PATH", help="file for the results")
    if plot:
        made.add_argument(
            "--plot", type=figure_path, nargs="+", default=[], metavar="PATH", help=".svg or .png"
        )
    if threads is not None:
        made.add_argument(
            "--threads", type=at_least_one, default=threads, metavar="N", help=f"of every run ({threads})"
        )
    return made


def at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is given, it must be a whole number from 1")
    return int(text)


def figure_path(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"{text}: the name must end in .svg or .png")
    return path


def needs(*libraries: str) -> None:
    """Before the work rather than after it.

    Raises:
        BenchmarkError: one is not installed.
    """
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            raise BenchmarkError(f"{library} is not installed; run: python -m pip install {library}")


def arguments_of(options: argparse.Namespace) -> dict[str, Any]:
    """What a report keeps of the options: all but the names of files."""
    return {name: value for name, value in vars(options).items() if name not in ("json", "plot", "save")}


def finish(table: str, report: Report, options: argparse.Namespace, figure: str | None = None) -> None:
    """Print the table; draw the figure, by the module that can, if it is asked for."""
    print(table)
    if figure is not None and options.plot:
        importlib.import_module(f"benchmarks.{figure}").draw(report, options.plot)
        print("\nwritten:", *options.plot)
