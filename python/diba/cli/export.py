"""``diba export``: a compressed model as an ONNX file with its tokenizer."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from . import output

if TYPE_CHECKING:
    import argparse

__all__ = ["add_command"]

_BITS = {"16": 16, "8": 8, "4": 4, "none": None}


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "export",
        help="export a compressed model to ONNX",
        description="Export a folder that from_pretrained reads to OUT/model.onnx, with its tokenizer beside "
        "it, and compare the result with PyTorch.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a model, compressed or not")
    parser.add_argument("output", metavar="OUT", help="folder to write")
    parser.add_argument(
        "--embeddings", choices=_BITS, default="8", help="bits of dense embeddings (default: 8)"
    )
    parser.add_argument(
        "--head", choices=_BITS, default="8", help="bits of a dense output layer (default: 8)"
    )
    parser.add_argument(
        "--standard", action="store_true", help="operators of ONNX only: no library, dense speed and memory"
    )
    parser.add_argument(
        "--precision", choices=("fast", "exact"), default="fast", help="products of factors (default: fast)"
    )
    parser.add_argument("--opset", type=int, default=20, metavar="N", help="version of ONNX (default: 20)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="print no progress and no summary")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from ..onnx.folder import export_folder  # imported here: other commands do without
    from ..onnx.results import ExportError

    try:
        done = export_folder(
            options.model,
            options.output,
            embeddings=_BITS[options.embeddings],
            head=_BITS[options.head],
            standard=options.standard,
            precision=options.precision,
            opset=options.opset,
            progress=sys.stderr.isatty() and not options.quiet,
        )
    except (ImportError, ExportError) as error:
        raise ValueError(str(error)) from error
    if options.json:
        facts = dataclasses.asdict(done)
        output.print_json({**facts, "path": str(done.path), "data": str(done.data)})
    elif not options.quiet:
        print(done)
