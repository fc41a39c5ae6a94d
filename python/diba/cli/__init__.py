"""The command line: ``diba solve``, ``diba inspect``, ``diba bench``, ``diba doctor``.

Results go to stdout, everything else to stderr. An error is one line and exit
code 2, Ctrl-C is one line and exit code 130.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_type_hints

from .. import _core, files
from .._internal.disk import check_target
from ..factorization import Factorization, load
from ..runtime import info
from ..solvers import SolveOptions, solve
from . import bench, inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        options = _parser().parse_args(arguments)
        run: Callable[[argparse.Namespace], None] = options.run
        run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of stdout has gone: keep the interpreter's last flush quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        named = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{named}", 2)
    except MemoryError as error:
        return _fail(f"out of memory ({error})" if str(error) else "out of memory", 2)
    except (TypeError, ValueError) as error:
        return _fail(str(error), 2)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"diba: error: {' '.join(message.split())}", file=sys.stderr)
    return code


# ---------------------------------------------------------------- arguments


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line in diba's form."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_fail(f"{message}; see '{self.prog} --help'", 2))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="diba", description="Factor real matrices as A ~ D1 B1 D2 B2 D3 with packed binary factors."
    )
    parser.add_argument("--version", action="version", version=f"diba {_core.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_solve(commands)

    inspect = commands.add_parser("inspect", help="say what a diba file holds")
    inspect.add_argument("file", metavar="FILE", help="a file that 'diba solve' or save() has written")
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    inspect.set_defaults(run=_inspect)

    bench.add_arguments(commands.add_parser("bench", help="time products here, beside dense ones"))

    doctor = commands.add_parser(
        "doctor", help="versions, processor, instruction set, threads: for bug reports"
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_solve(commands: Any) -> None:
    parser = commands.add_parser(
        "solve",
        help="factor one matrix",
        description="Factor one matrix of an npy, npz or safetensors file and save the result.",
    )
    parser.add_argument("input", metavar="FILE[:TENSOR]", help="the matrix; TENSOR if FILE holds several")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--bits", type=float, metavar="B", help="stored bits per weight, such as 1")
    size.add_argument("--k", type=int, metavar="K", help="inner size")
    size.add_argument("--ratio", type=float, metavar="R", help="size relative to float32, such as 0.03")
    size.add_argument(
        "--snr-db", type=float, metavar="DB", help="smallest size that reaches DB; several solves"
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
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary")
    parser.set_defaults(run=_solve)


# ---------------------------------------------------------------- commands


def _solve(options: argparse.Namespace) -> None:
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
        **_facts(result),
        "snr_db": snr if math.isfinite(snr) else None,
        "file_bytes": Path(options.output).stat().st_size,
        "seconds": seconds,
    }
    if options.json:
        _print_json(report)
    elif not options.quiet:
        _print_solved(report, snr)


def _check_output(output: str, argument: str) -> None:
    """Find out before the work whether the result can be written."""
    target = Path(output)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "the output is a folder, name a file in it", output)
    check_target(output)
    folder = target.parent
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the output's folder does not exist", str(folder))
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, "the output's folder is not writable", str(folder))
    source, _ = inputs.locate(argument)
    if target.exists() and source.exists() and source.samefile(target):
        raise ValueError(f"the output {output} is the input file; name another file")


def _inspect(options: argparse.Namespace) -> None:
    metadata = files.read_metadata(options.file)
    result = load(options.file)
    m, n = result.shape
    report = {
        "file": options.file,
        "format_version": int(metadata["format_version"]),
        "written_by": metadata["written_by"],
        **_facts(result),
        "file_bytes": Path(options.file).stat().st_size,
        "tensor_bytes": round(result.bits_per_weight * m * n + result.file_padding_bits) // 8,
        "file_padding_bits": result.file_padding_bits,
        "memory_bytes": result.nbytes,
        "memory_padding_bits": result.padding_bits,
    }
    _print_report(report, options.json)


def _doctor(options: argparse.Namespace) -> None:
    _print_report(info(), options.json)


# ---------------------------------------------------------------- output


def _facts(result: Factorization) -> dict[str, object]:
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


def _print_solved(report: dict[str, Any], snr: float) -> None:
    m, n = report["shape"]
    bits, ratio = report["bits_per_weight"], report["storage_ratio"]
    print(f"{report['input']}: {m} x {n}, {report['input_dtype']}")
    print(f"  k = {report['k']}, {report['alphabet']}, {bits:.4g} bits per weight ({ratio:.4g} of float32)")
    print(f"  SNR {snr:.2f} dB in {report['seconds']:.2f} s")
    print(f"  {report['output']}: {report['file_bytes']:,} bytes (dense float32: {report['dense_bytes']:,})")


def _print_report(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(report)
        return
    width = max(map(len, report))
    for name, value in report.items():
        print(f"{name:<{width}}  {_text(value)}")


def _print_json(report: dict[str, Any]) -> None:
    print(json.dumps(report, allow_nan=False))


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
