"""Write the tables and figures of docs/benchmarks, and the table of the README, from benchmarks/results.

    python benchmarks pages
    python benchmarks pages --check         # compare the tables only

A table stands between "<!-- begin NAME -->" and "<!-- end NAME -->"; the text around it is written by hand.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from .common import BenchmarkError
from .common.command import figure_path
from .common.results import RESULTS, Report, load, read
from .common.tables import markdown
from .headline import headline

__all__ = ["filled", "main", "pages", "show"]

ROOT = Path(__file__).resolve().parents[1]
README, PAGES = ROOT / "README.md", ROOT / "docs" / "benchmarks"
SCALING = ROOT / "docs" / "scaling.md"
# The module that makes the table of a name from results of that name, and the one that draws its figure.
TABLES = {
    "matvec": "products.table",
    "op_overhead": "products.op_overhead",
    "solve": "solver.solve",
    "choices": "solver.choices",
    "objectives": "solver.objectives",
    "outputs": "solver.outputs",
    "large": "solver.large",
    "faster": "solver.faster",
    "minilm": "quality.minilm_table",
    "quality": "quality.table",
    "exceptions": "quality.exceptions",
    "models": "models.table",
    "tables": "models.tables",
    "reconstruction": "models.reconstruction",
    "reconstruction-efficientnet": "models.reconstruction",
    "apb": "apb.table",
    "apb_latency": "apb.latency",
    "curves": "models.curves_table",
    "scaling": "models.scaling_table",
    "speed": "models.speed_table",
    "decode": "models.decode_table",
    "decode-1b": "models.decode_table",
    "runtimes": "models.runtimes_table",
    "executorch": "models.executorch",
    "streaming": "products.streaming",
    "heads": "products.heads",
    "bitgemm": "products.bitgemm",
    "apb_matvec": "products.apb",
}
FIGURES = {
    "matvec": "products.figure",
    "minilm": "quality.minilm_figure",
    "quality": "quality.figure",
    "models": "models.figure",
    "apb": "apb.figure",
    "curves": "models.curves_figure",
    "decode": "models.decode_figure",
}
METHODS = ("minilm", "minilm-sign", "minilm-greedy", "minilm-greedy-sign")  # the same at other settings


def table(name: str, report: Report) -> str:
    text: str = importlib.import_module(f"benchmarks.{TABLES[name]}").table(report)
    return text


def draw(name: str, report: Report, paths: Sequence[Path]) -> None:
    importlib.import_module(f"benchmarks.{FIGURES[name]}").draw(report, paths)


def block(name: str) -> str:
    """What stands between the markers of a name."""
    if name == "methods":
        from .quality.minilm_table import methods_table

        return methods_table(load(each) for each in METHODS if (RESULTS / f"{each}.json").exists())
    if name == "headline":
        return markdown(*headline(load))
    if name not in TABLES:
        raise BenchmarkError(f"no table is named {name}; there are {', '.join(TABLES)}, methods, headline")
    return table(name, load(name))


def filled(text: str) -> str:
    """A page with every table made anew.

    Raises:
        BenchmarkError: a table is not known, or has no end.
    """
    for name in re.findall(r"<!-- begin (\S+) -->", text):
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise BenchmarkError(f"the table {name} must begin and end once")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{block(name)}\n\n{end}{rest.split(end)[1]}"
    return text


def pages() -> Iterator[tuple[Path, str, str]]:
    """(path, text, text with tables made anew) of every page."""
    for path in (README, SCALING, *sorted(PAGES.glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        yield path, text, filled(text)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks pages", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say which pages are not what results say")
    check = parser.parse_args(arguments).check
    stale = [(path, new) for path, old, new in pages() if old != new]
    if check:
        for path, _ in stale:
            print(f"{path.name} is not what benchmarks/results say; run: python benchmarks pages")
        return 1 if stale else 0
    for path, new in stale:
        path.write_text(new, encoding="utf-8")
    for name in FIGURES:
        draw(name, load(name), [PAGES / f"{name}.svg"])
    return 0


def show(arguments: Sequence[str]) -> None:
    """Table and figure of a file of results, finished or not."""
    parser = argparse.ArgumentParser(prog="benchmarks show", description=(show.__doc__ or ""))
    parser.add_argument("name", choices=[*TABLES, "methods", "headline"])
    parser.add_argument("--json", type=Path, metavar="PATH", help="results (those of the repository)")
    parser.add_argument(
        "--plot", type=figure_path, nargs="+", default=[], metavar="PATH", help=".svg or .png"
    )
    options = parser.parse_args(arguments)
    name = options.name
    if options.plot and name not in FIGURES:
        raise BenchmarkError(f"{name} has no figure; there are {', '.join(FIGURES)}")
    if name not in TABLES:
        print(block(name))
        return
    report = read(options.json) if options.json else load(name)
    print(table(name, report))
    if options.plot:
        draw(name, report, options.plot)
