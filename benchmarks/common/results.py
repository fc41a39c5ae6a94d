"""Files of results: JSON with the machine, the versions and the commit. A stopped run can be gone on with."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import diba

from . import BenchmarkError

__all__ = ["RESULTS", "Report", "go_on", "load", "machine", "read", "write"]

RESULTS = Path(__file__).resolve().parents[1] / "results"
# Entries of diba.info() that differ from run to run.
LEFT_OUT = ("available_memory_bytes", "large_pages_given", "threads")

Report = dict[str, Any]


def machine() -> dict[str, Any]:
    """What results and times depend on; the number of threads is an option of each benchmark."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    info = {name: value for name, value in diba.info().items() if name not in LEFT_OUT}
    return {**info, "numpy_blas": f"{blas['name']} {blas['version']}"}


def commit() -> str | None:
    """The commit of the sources, with a "+" if they were changed; None outside a checkout."""
    try:
        command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
        done = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def load(name: str) -> Report:
    """The committed results of a name."""
    return read(RESULTS / f"{name}.json")


def read(path: Path) -> Report:
    """A report.

    Raises:
        BenchmarkError: the file holds something else.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BenchmarkError(f"{path} is no JSON: {error}") from None
    if not isinstance(report, dict) or "machine" not in report:
        raise BenchmarkError(f"{path} holds no results of a benchmark")
    return report


def write(path: Path | None, report: Report) -> None:
    """Write a report whole or not at all, a row a line; its folder is made. Nothing without a path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text({**report, "commit": commit()}), encoding="utf-8")
    part.replace(path)


def text(report: Report) -> str:
    parts = (f" {json.dumps(name)}: {_rows(value)}" for name, value in report.items())
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _rows(value: Any) -> str:
    """One line; a line for each item of a list or dict of dicts."""

    def plain(item: Any) -> str:
        return json.dumps(item, ensure_ascii=False, allow_nan=False)

    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not items or not all(isinstance(item, dict) for item in items):
        return plain(value)
    if isinstance(value, list):
        return "[\n" + ",\n".join(f"  {plain(item)}" for item in items) + "\n ]"
    lines = (f"  {plain(name)}: {plain(item)}" for name, item in value.items())
    return "{\n" + ",\n".join(lines) + "\n }"


def go_on(path: Path | None, fresh: Report, same: Sequence[str] = ("machine",)) -> Report:
    """The report of an earlier run, to go on with; ``fresh`` if there is none.

    Args:
        path: Its JSON.
        fresh: An empty report of this run.
        same: Parts of it that must be as they were.

    Raises:
        BenchmarkError: one is not.
    """
    if path is None or not path.exists():
        return fresh
    report = read(path)
    other = []
    for part in same:
        was, now = (json.loads(json.dumps(each.get(part))) for each in (report, fresh))
        if not isinstance(was, dict) or not isinstance(now, dict):
            was, now = {part: was}, {part: now}
        other += [
            f"{key} was {was.get(key)}, is {now.get(key)}"
            for key in was | now
            if was.get(key) != now.get(key)
        ]
    if other:
        raise BenchmarkError(f"{path} was measured otherwise ({'; '.join(other)}); use another --json")
    return report
