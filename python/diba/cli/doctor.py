"""``diba doctor``: facts about the machine for a bug report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..runtime import info
from . import output

if TYPE_CHECKING:
    import argparse

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "doctor", help="versions, processor, instruction set, threads: for bug reports"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    output.print_report(info(), options.json)
