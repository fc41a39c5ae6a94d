"""``diba export``: a compressed model as a file of another runtime, with its tokenizer."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from . import output

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from ..onnx import Exported

__all__ = ["add_command"]

_BITS = {"16": 16, "8": 8, "4": 4, "none": None}
_FACTORED = "factored"


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "export",
        help="export a compressed model to ONNX, or to ExecuTorch",
        description="Export a folder that from_pretrained reads to OUT/model.onnx, with its tokenizer beside "
        "it, and compare the result with PyTorch. With --genai, OUT is a language model with a cache, for "
        "'diba chat', 'diba generate' and every program that uses onnxruntime-genai. With --executorch it is "
        "OUT/model.pte, for phones and other small machines.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a model, compressed or not")
    parser.add_argument("output", metavar="OUT", help="folder to write")
    runtimes = parser.add_mutually_exclusive_group()
    runtimes.add_argument("--genai", action="store_true", help="a language model for onnxruntime-genai")
    runtimes.add_argument("--executorch", action="store_true", help="a program of ExecuTorch")
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
    parser.add_argument(
        "--library",
        metavar="FILE",
        help="with --executorch: libdiba_executorch, without which the result is not compared",
    )
    parser.add_argument(
        "--length", type=int, metavar="N", help="with --executorch: most tokens of a text (default: 128)"
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help="with --executorch: most rows of a call (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="print no progress and no summary")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from ..onnx import ExportError  # imported here: other commands do without

    try:
        done = _exporter(options)(options.model, options.output, **_settings(options))
    except (ImportError, ExportError) as error:
        raise ValueError(str(error)) from error
    if options.json:
        facts = dataclasses.asdict(done)
        paths = {name: facts[name] and str(facts[name]) for name in ("path", "data")}
        output.print_json({**facts, **paths})
    elif not options.quiet:
        print(done)


def _exporter(options: argparse.Namespace) -> Callable[..., Exported]:
    if options.genai:
        from ..onnx import export_genai

        return export_genai
    if options.executorch:
        from ..executorch import folder

        return folder.export_folder
    from ..onnx import folder as onnx_folder

    return onnx_folder.export_folder


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The keywords of one of the exports; an option that belongs to another is refused."""
    chosen = "--genai" if options.genai else "--executorch" if options.executorch else ""
    own: dict[str, dict[str, Any]] = {
        "": {"standard": options.standard or None, "opset": options.opset},
        "--genai": {"threads": options.threads},
        "--executorch": {"library": options.library, "length": options.length, "batch": options.batch},
    }
    for runtime, settings in own.items():
        for name, value in settings.items():
            if value is not None:
                _belongs(name, runtime, chosen)
    if options.head == _FACTORED:
        _belongs(f"head {_FACTORED}", "--genai", chosen)
    return {
        "embeddings": _BITS[options.embeddings],
        "head": options.head if options.head == _FACTORED else _BITS[options.head],
        "precision": options.precision,
        "progress": sys.stderr.isatty() and not options.quiet,
        **{name: value for name, value in own[chosen].items() if value is not None},
    }


def _belongs(option: str, runtime: str, chosen: str) -> None:
    """Refuse an option of one runtime where another is chosen; "" is ONNX."""
    if runtime != chosen:
        raise ValueError(f"--{option} is given {f'with {chosen}' if chosen else f'without {runtime}'}")
