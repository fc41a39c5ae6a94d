"""Printing of results, as lines or as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    from ..factorization import Factorization

    class HtmlReport(Protocol):
        """A report, or a plan."""

        def to_html(self, path: str, /, *, title: str | None) -> str: ...


__all__ = ["add_html", "facts", "print_json", "print_report", "write_html"]


def facts(result: Factorization) -> dict[str, object]:
    """The facts about a factorization that solve and inspect print."""
    m, n = result.shape
    return {
        "shape": [m, n],
        "k": result.k,
        "alphabet": result.alphabet,
        "diagonal_bits": result.diagonal_bits,
        "bits_per_weight": result.bits_per_weight,
        "storage_ratio": result.storage_ratio,
        "dense_bytes": 4 * m * n,
    }


def print_report(report: Mapping[str, Any], as_json: bool) -> None:
    """Print a line for each name and value, or one JSON object."""
    if as_json:
        print_json(report)
        return
    width = max(map(len, report))
    for name, value in report.items():
        print(f"{name:<{width}}  {_text(value)}")


def add_html(parser: Any) -> None:
    """Add the option that writes a report as a page."""
    parser.add_argument("--html", metavar="FILE", help="write the report as one HTML file with charts")


def write_html(report: HtmlReport, file: str | None, title: str | None = None) -> None:
    """Write the page to a file, if one was named; without a title it is that of the report."""
    if file is not None:
        report.to_html(file, title=title)


def print_json(report: Mapping[str, Any]) -> None:
    """Print a JSON object on one line."""
    print(json.dumps(report, allow_nan=False))


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
