"""The tables of the curves benchmark: every arm of a model by the size of its file."""

from __future__ import annotations

from statistics import mean
from typing import Any

from ..common.tables import markdown, measured
from .table import METRICS, shown

__all__ = ["best", "grouped", "size", "table", "value"]

ARMS = {
    "dense": "dense",
    "diba": "diba",
    "GPTQ": "GPTQ",
    "llama.cpp": "llama.cpp's file",
    "llama.cpp's types": "llama.cpp's type alone",
    "onnxruntime": "onnxruntime",
}

Rows = dict[tuple[str, str], list[dict[str, Any]]]  # (arm, form) -> cells of all seeds


def grouped(report: dict[str, Any]) -> dict[str, Rows]:
    """Cells by task, and by everything but their seed, the smallest file first."""
    found: dict[str, Rows] = {}
    for cell in report["cells"].values():
        rows = found.setdefault(cell["task"], {})
        rows.setdefault((cell["arm"], cell["form"]), []).append(cell)
    return {task: dict(sorted(rows.items(), key=lambda row: size(row[1]))) for task, rows in found.items()}


def size(cells: list[dict[str, Any]]) -> float:
    return mean(cell["bytes"] for cell in cells) / 1e6


def value(cells: list[dict[str, Any]], name: str) -> float:
    return mean(cell["metrics"][name] for cell in cells)


def best(rows: Rows) -> set[tuple[str, str]]:
    """Those that no file of at most their size beats, by the metric that decides."""
    found, record = set(), None
    for key, cells in rows.items():
        sign = 1 if cells[0]["higher_is_better"] else -1
        now = sign * value(cells, cells[0]["primary"])
        if record is None or now > record:
            found.add(key)
            record = now
    return found


def table(report: dict[str, Any]) -> str:
    """A Markdown table for each task."""
    parts = [task_table(rows) for rows in grouped(report).values()]
    return "\n\n".join([*parts, note(report)])


def task_table(rows: Rows) -> str:
    first = next(iter(rows.values()))[0]
    names, front = [name for name in METRICS if name in first["metrics"]], best(rows)
    decides = first["primary"]
    head = [
        "",
        "Form",
        "Bits",
        "MB",
        *(METRICS[name][0] for name in names),
        "before retuning",
        "core minutes",
    ]
    lines = []
    for key, cells in rows.items():
        arm, form = key
        bits = cells[0].get("bits")
        before = [cell["before_retuning"] for cell in cells if cell.get("before_retuning")]
        spent = [cell["cpu_seconds"] for cell in cells if cell.get("cpu_seconds")]
        megabytes = f"{size(cells):.1f}"
        lines.append([
            ARMS[arm],
            form,
            "" if bits is None else f"{bits:.2f}",
            f"**{megabytes}**" if key in front else megabytes,
            *(shown(name, [cell["metrics"][name] for cell in cells]) for name in names),
            shown(decides, [each[decides] for each in before]) if before else "",
            f"{mean(spent) / 60:.1f}" if spent else "",
        ])  # fmt: skip
    return f"{first['title']}:\n\n{markdown(head, lines, left=2)}"


def note(report: dict[str, Any]) -> str:
    return (
        "Bold: no file of at most that size is better by the metric that the figure shows. Bits are those "
        "stored for each weight of the compressed layers, where one number says it. Before retuning: that "
        "metric. Core minutes: of making the model, all cores together, with other work on the machine. "
        "Several seeds: mean ± half the range. "
        f"{measured(report)}."
    )
