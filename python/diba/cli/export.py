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
_FACTORED = "factored"


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "export",
        help="export a compressed model to ONNX",
        description="Export a folder that from_pretrained reads to OUT/model.onnx, with its tokenizer beside "
        "it, and compare the result with PyTorch. With --genai, OUT is a language model with a cache, for "
        "'diba chat', 'diba generate' and every program that uses onnxruntime-genai.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a model, compressed or not")
    parser.add_argument("output", metavar="OUT", help="folder to write")
    parser.add_argument("--genai", action="store_true", help="a language model for onnxruntime-genai")
    parser.add_argument(
        "--embeddings", choices=_BITS, default="8", help="bits of dense embeddings (default: 8)"
    )
    parser.add_argument(
        "--head",
        choices=(*_BITS, _FACTORED),
        default="8",
        help=f"bits of a dense output layer (default: 8), or {_FACTORED}, with --genai: factor it at 2 bits",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="with --genai: threads that OUT asks for (default: all)"
    )
    parser.add_argument(
        "--standard", action="store_true", help="operators of ONNX only: no library, dense speed and memory"
    )
    parser.add_argument(
        "--precision", choices=("fast", "exact"), default="fast", help="products of factors (default: fast)"
    )
    parser.add_argument("--opset", type=int, metavar="N", help="version of ONNX (default: 20)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="print no progress and no summary")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from ..onnx import ExportError, export_genai  # imported here: other commands do without
    from ..onnx.folder import export_folder

    try:
        done = (export_genai if options.genai else export_folder)(
            options.model, options.output, **_settings(options)
        )
    except (ImportError, ExportError) as error:
        raise ValueError(str(error)) from error
    if options.json:
        facts = dataclasses.asdict(done)
        output.print_json({**facts, "path": str(done.path), "data": str(done.data)})
    elif not options.quiet:
        print(done)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The keywords of one of the two exports; an option that belongs to the other is refused."""
    other = {"--standard": options.standard, "--opset": options.opset is not None}
    if not options.genai:
        other = {"--head factored": options.head == _FACTORED, "--threads": options.threads is not None}
    for name, given in other.items():
        if given:
            raise ValueError(f"{name} is given {'with' if options.genai else 'without'} --genai")
    shared: dict[str, Any] = {
        "embeddings": _BITS[options.embeddings],
        "head": options.head if options.head == _FACTORED else _BITS[options.head],
        "precision": options.precision,
        "progress": sys.stderr.isatty() and not options.quiet,
    }
    if options.genai:
        return {**shared, "threads": options.threads}
    opset = {} if options.opset is None else {"opset": options.opset}
    return {**shared, **opset, "standard": options.standard}
