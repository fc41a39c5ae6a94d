"""Tables, for Markdown and for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["ALPHABETS", "aligned", "markdown", "measured", "number", "plural"]

ALPHABETS = {"binary": "0/1", "sign": "±1"}


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose first ``left`` columns hold text."""
    rules = [":---" if i < left else "---:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rules, *rows))


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """The same for a terminal, in columns of equal width."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def number(value: float | None) -> str:
    """A time or size with about three digits; nothing for what was not measured."""
    return "" if value is None else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def plural(count: float, what: str) -> str:
    return f"{count:g} {what}{'s' if count > 1 else ''}"


def measured(report: dict[str, Any]) -> str:
    """With which versions and commit, and on which processor, by which instruction set."""
    machine, commit = report["machine"], report.get("commit")
    versions = [f"{name} {machine[name]}" for name in ("diba", "torch") if machine.get(name)]
    if commit:
        versions[0] += f" ({commit})"
    processor = f"{' '.join(str(machine['cpu']).split())} ({machine['isa']})"
    return f"Measured with {' and '.join(versions)} on {processor}"
