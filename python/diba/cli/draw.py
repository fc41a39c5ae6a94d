"""``diba draw``: texts that a language model writes itself, to compress it by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .compress import compressing, resumable

if TYPE_CHECKING:
    import argparse

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "draw",
        help="let a language model write texts, as data for 'diba compress'",
        description="Let a dense language model write texts, to compress it by where there is little data or "
        "none. Each token is sampled from the model's own answers. A stopped command goes on when it is "
        "repeated.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of the dense model")
    add("-o", "--output", metavar="FILE.jsonl", required=True, help="the file to write")
    add("--like", metavar="FILE", help="texts to go on from, .txt or .jsonl (default: from single tokens)")
    add("--texts", type=int, default=1024, metavar="N", help="how many (1024)")
    add("--tokens", type=int, default=256, metavar="N", help="tokens of each (256)")
    add("--start", type=int, default=16, metavar="N", help="tokens of FILE that each begins with (16)")
    add("--seed", type=int, default=0, metavar="N", help="seed (0)")
    add("--quiet", action="store_true", help="print no progress")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    names = ("like", "texts", "tokens", "start", "seed")
    with resumable():
        compressing().draw(
            options.model,
            options.output,
            progress=not options.quiet,
            **{name: getattr(options, name) for name in names},
        )
