"""``diba plan``: what ``diba compress`` would do, without reading a weight."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import output
from .compress import add_settings, compressing, settings_of

if TYPE_CHECKING:
    import argparse

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "plan",
        help="what 'diba compress' would do: layers, size, time, memory",
        description="Show every layer with its k and size, what would stay dense and why, the size of the "
        "file, and time and memory without data. Of MODEL no weight is read. Random matrices of the layers' "
        "shapes are factored to know the time.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of the dense model; or its safetensors or npz file")
    add_settings(parser)
    add("--threads", type=int, metavar="N", help="threads (default: all there are)")
    add("--no-trials", dest="trials", action="store_false", help="factor nothing, and say nothing of time")
    add("--json", action="store_true", help="print one JSON object")
    output.add_html(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    found = compressing().plan(
        options.model,
        recipe=options.recipe,
        threads=options.threads,
        trials=options.trials,
        **settings_of(options),
    )
    output.write_html(found, options.html, f"{Path(options.model).resolve().name}, as planned")
    if options.json:
        output.print_json(found.to_dict())
    else:
        print(found)
