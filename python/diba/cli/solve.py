"""``diba solve``: factor a matrix from a file."""

from __future__ import annotations

import errno
import math
import os
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from .._internal.disk import check_target
from ..solvers import SolveOptions, solve
from . import inputs, output

if TYPE_CHECKING:
    import argparse

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add the command and its options: a size, and the fields of SolveOptions."""
    parser = commands.add_parser(
        "solve",
        help="factor one matrix",
        description="Factor one matrix of an npy, npz or safetensors file and save the result.",
    )
    parser.add_argument("input", metavar="FILE[:TENSOR]", help="the matrix; TENSOR if FILE holds several")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--bits", type=float, metavar="B", help="stored bits per weight, such as 1")
    size.add_argument("--k", type=int, metavar="K", help="inner dimension")
    size.add_argument("--ratio", type=float, metavar="R", help="size relative to float32, such as 0.03")
    size.add_argument(
        "--snr-db", type=float, metavar="DB", help="smallest k that reaches this SNR; takes several solves"
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the diba file to write")
    hints = get_type_hints(SolveOptions)
    for option in fields(SolveOptions):
        kinds = get_args(hints[option.name]) or (hints[option.name],)
        named = all(isinstance(kind, str) for kind in kinds)  # a Literal
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            choices=kinds if named else None,
            type=str if named else kinds[0],
            metavar=None if named else "N",
            help=option.metadata["help"]
            + ("" if option.default is None else f" (default: {option.default})"),
        )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="print no progress and no summary")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    _check_output(options.output, options.input)
    matrix = inputs.read_matrix(options.input)
    if matrix.note and not options.quiet:
        print(f"diba: note: {matrix.source}: {matrix.note}", file=sys.stderr)
    asked = {
        "k": options.k,
        "bits_per_weight": options.bits,
        "storage_ratio": options.ratio,
        "snr_db": options.snr_db,
        **{option.name: getattr(options, option.name) for option in fields(SolveOptions)},
    }
    given = {name: value for name, value in asked.items() if value is not None}
    start = time.perf_counter()
    try:
        result = solve(matrix.entries, progress=sys.stderr.isatty() and not options.quiet, **given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{matrix.source}: {error}") from error
    seconds = time.perf_counter() - start
    snr = result.snr_db(matrix.entries)
    result.save(options.output)
    report = {
        "input": matrix.source,
        "input_dtype": matrix.dtype,
        "output": options.output,
        **output.facts(result),
        "snr_db": snr if math.isfinite(snr) else None,
        "file_bytes": Path(options.output).stat().st_size,
        "seconds": seconds,
    }
    if options.json:
        output.print_json(report)
    elif not options.quiet:
        _print_solved(report, snr)


def _check_output(path: str, argument: str) -> None:
    """Check that the result can be written, before the work."""
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "the output is a folder; name a file in it", path)
    check_target(path)
    folder = target.parent
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the output's folder does not exist", str(folder))
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, "the output's folder is not writable", str(folder))
    source, _ = inputs.locate(argument)
    if target.exists() and source.exists() and source.samefile(target):
        raise ValueError(f"the output {path} is the input file; name another file")


def _print_solved(report: dict[str, Any], snr: float) -> None:
    m, n = report["shape"]
    bits, ratio = report["bits_per_weight"], report["storage_ratio"]
    print(f"{report['input']}: {m} x {n}, {report['input_dtype']}")
    print(f"  k = {report['k']}, {report['alphabet']}, {bits:.4g} bits per weight ({ratio:.4g} of float32)")
    print(f"  SNR {snr:.2f} dB in {report['seconds']:.2f} s")
    print(f"  {report['output']}: {report['file_bytes']:,} bytes (dense float32: {report['dense_bytes']:,})")
