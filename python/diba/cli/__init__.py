"""The command line: ``diba plan``, ``compress``, ``solve``, ``inspect``, ``export``, ``generate`` and others.

Results go to stdout, everything else to stderr. An error is one line and exit
code 2, Ctrl-C is one line and exit code 130.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from .. import _core
from . import bench, chat, compress, doctor, draw, export, generate, inspect, merge, plan, solve, verify

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
    except BrokenPipeError:  # stdout was closed; keep the interpreter's last flush from failing, too
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


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports errors in one line, those of a command with the command's help."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            names = [name for action in self._actions for name in action.option_strings]
            close = difflib.get_close_matches(unknown[0].partition("=")[0], names, n=1)
            meant = f" (is {close[0]} meant?)" if close else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        return options, unknown

    def error(self, message: str) -> NoReturn:
        sys.exit(_fail(f"{message}; see '{self.prog} --help'", 2))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="diba", description="Factor real matrices as A ~ D1 B1 D2 B2 D3 with packed binary factors."
    )
    parser.add_argument("--version", action="version", version=f"diba {_core.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (
        plan,
        draw,
        compress,
        merge,
        verify,
        solve,
        inspect,
        export,
        generate,
        chat,
        bench,
        doctor,
    ):
        command.add_command(commands)
    return parser
