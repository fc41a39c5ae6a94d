"""``diba inspect``: the contents of a diba file or of a compressed model's checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._internal.tensor_files import read_header
from ..binarized import APB
from ..checkpoints import integrity
from ..checkpoints.entries import first_names
from ..checkpoints.layers import readable
from ..loading import load
from . import output

if TYPE_CHECKING:
    import argparse

    from ..checkpoints.report import Report
    from ..factorization import Factorization

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "inspect",
        help="show the contents of a diba file or a checkpoint",
        description="Check a diba file, or all files of a compressed model, and show their contents.",
    )
    parser.add_argument(
        "path",
        metavar="FILE|FOLDER",
        help="a file written by 'diba solve' or save(), or a folder written by save_pretrained()",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_html(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    if not Path(options.path).is_dir():
        if options.html is not None:
            raise ValueError(
                f"--html is given and {options.path} is no folder; only models have such a report"
            )
        output.print_report(_file(options.path), options.json)
        return
    report = integrity.inspect(options.path)
    output.write_html(report, options.html)
    if options.json:
        output.print_json(report.to_dict())
    else:
        print("\n".join([str(report), *_more(report)]))


def _file(path: str) -> dict[str, object]:
    found = load(path)
    with Path(path).open("rb") as file:
        metadata = read_header(file, path).metadata
    return {
        "file": path,
        "format_version": int(metadata["format_version"]),
        "written_by": metadata["written_by"],
        **(_apb(found, path) if isinstance(found, APB) else _factorization(found, path)),
    }


def _apb(found: APB, path: str) -> dict[str, object]:
    m, n = found.shape
    return {
        "shape": [m, n],
        "alphas": found.alpha.size,
        "exceptions": found.columns.size,
        "exceptions_share": found.exceptions,
        "bits_per_weight": found.bits_per_weight,
        "storage_ratio": found.bits_per_weight / 32,
        "dense_bytes": 4 * m * n,
        "file_bytes": Path(path).stat().st_size,
        "memory_bytes": found.nbytes,
    }


def _factorization(found: Factorization, path: str) -> dict[str, object]:
    m, n = found.shape
    return {
        **output.facts(found),
        "file_bytes": Path(path).stat().st_size,
        "tensor_bytes": round(found.bits_per_weight * m * n + found.file_padding_bits) // 8,
        "file_padding_bits": found.file_padding_bits,
        "memory_bytes": found.nbytes,
        "memory_padding_bits": found.padding_bits,
    }


def _more(report: Report) -> list[str]:
    """Lines below the table: alphabets, and the settings of the conversion."""
    alphabets = sorted({layer.alphabet for layer in report.layers})
    names = {x: [layer.name for layer in report.layers if layer.alphabet == x] for x in alphabets}
    lines = [f"alphabet {x}: {first_names(names[x])}" for x in alphabets]
    settings = (report.settings or {}).items()
    return lines + [f"{readable(name)}: {json.dumps(value)}" for name, value in settings if value is not None]
