"""Files of results that a stopped run leaves as they were, and a later run goes on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["earlier_report", "write_whole"]


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def earlier_report(path: Path, machine: dict[str, Any], mend: str = "use another file") -> dict[str, Any]:
    """The report of an earlier run, to go on with.

    Args:
        path: Its JSON.
        machine: What this run writes as the report's "machine".
        mend: What to do instead.

    Raises:
        SystemExit: it was measured on another machine, or with other versions.
    """
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    before = report["machine"]
    other = [
        f"{name} was {before.get(name)}, is {machine.get(name)}"
        for name in before | machine
        if before.get(name) != machine.get(name)
    ]
    if other:
        raise SystemExit(
            f"{path} was measured on another machine or with other versions ({'; '.join(other)}); {mend}"
        )
    return report
