"""``diba merge``: a model from the shares of several machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import output
from .compress import compressing, resumable, show_result

if TYPE_CHECKING:
    import argparse

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "merge",
        help="make a model from what 'diba compress --shard' did",
        description="Make the model from the shares of 'diba compress --shard', done in OUT or in "
        "folders of their own. Layers that are missing are solved here.",
    )
    add = parser.add_argument
    add("output", metavar="OUT", help="folder of the model; it may be that of the shares")
    add("parts", metavar="PART", nargs="*", help="folders of other shares")
    add("--model", metavar="MODEL", help="the dense model, if it is not where the shares found it")
    output.add_html(parser)
    add("--json", action="store_true", help="print one JSON object")
    add("--quiet", action="store_true", help="print no progress and no summary")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    with resumable():
        done = compressing().merge(
            options.output, options.parts, model=options.model, progress=not options.quiet
        )
    show_result(options, done)
