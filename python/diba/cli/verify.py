"""``diba verify`` and ``diba eval``: whether a compressed model is whole, and how good it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import output
from .compress import compressing

if TYPE_CHECKING:
    import argparse

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add both commands and their options."""
    parser = commands.add_parser(
        "verify",
        help="check a compressed model, and measure it against the dense one",
        description="Check the folder of a compressed model: sizes, checksums, digests, finite values. With "
        "--against, the SNR of every layer is measured anew, and the worst are shown first.",
    )
    parser.add_argument("model", metavar="FOLDER", help="folder of the compressed model")
    parser.add_argument("--against", metavar="MODEL", help="folder of the dense model")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_html(parser)
    parser.set_defaults(run=_verify)
    parser = commands.add_parser(
        "eval",
        help="measure a model on data, beside the dense one",
        description="Perplexity of a language model; of others the relative error of their answers, and "
        "of classifiers how often the top class is the same. With --against, the dense model is measured "
        "beside it.",
    )
    add = parser.add_argument
    add("model", metavar="FOLDER", help="folder of a model, compressed or not")
    add("--data", metavar="DATA", required=True, help="as for 'diba compress'")
    add("--against", metavar="MODEL", help="folder of the dense model")
    add("--tokens", type=int, default=256, metavar="N", help="tokens of a text (default: 256)")
    add("--rows", type=int, default=4, metavar="N", help="texts in a batch (default: 4)")
    add("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_evaluate)


def _verify(options: argparse.Namespace) -> None:
    report = compressing().verify(options.model, against=options.against)
    output.write_html(report, options.html)
    if options.json:
        output.print_json(report.to_dict())
    else:
        print(report.table(worst_first=True, limit=20))
        print(f"{options.model}: whole")


def _evaluate(options: argparse.Namespace) -> None:
    figures = compressing().evaluate(
        options.model, options.data, against=options.against, tokens=options.tokens, rows=options.rows
    )
    output.print_report(figures, options.json)
