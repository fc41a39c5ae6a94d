"""The tables of the models benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import mean
from typing import Any

from ..common.tables import ALPHABETS, markdown, measured

__all__ = ["METRICS", "grouped", "table"]

METRICS = {  # heading, decimals, factor
    "lee_pearson": ("Lee, Pearson", 3, 1),
    "wordsim_spearman": ("WordSim-353, Spearman", 3, 1),
    "movie_accuracy": ("movie sentiment, %", 1, 100),
    "amazon_accuracy": ("Amazon sentiment, %", 1, 100),
    "news_perplexity": ("news perplexity", 1, 1),
    "emma_perplexity": ("*Emma* perplexity", 1, 1),
    "word_error_rate": ("word error rate, %", 1, 100),
    "accuracy": ("accuracy, %", 1, 100),
    "refitted_accuracy": ("probe refitted, %", 1, 100),
}
ARMS = {
    "dense": "dense",
    "replaced": "replaced",
    "unweighted": "calibrated, inputs weighed alike",
    "calibrated": "calibrated",
    "dibard": "+ DiBARD",
    "flips": "+ flips",
    "allocated": "calibrated, bits shared out by noise",
    "allocated, retuned": "+ DiBARD",
    "by loss": "calibrated, bits shared out by measured loss",
    "by loss, retuned": "+ DiBARD",
    "scored": "calibrated, bits shared out by scores",
    "scored, retuned": "+ DiBARD",
    "random": "random binaries, retuned alike",
    "rounded": "rounded, groups of 64",
    "rounded, retuned": "rounded, scales retuned",
}


Key = tuple[str, float, str, str]  # task, bits, alphabet, arm


def grouped(report: dict[str, Any]) -> dict[Key, list[dict[str, Any]]]:
    """Cells by everything but their seed, in the order of the file."""
    groups: dict[Key, list[dict[str, Any]]] = {}
    for cell in report["cells"].values():
        groups.setdefault((cell["task"], cell["bits"], cell["alphabet"], cell["arm"]), []).append(cell)
    return groups


def table(report: dict[str, Any]) -> str:
    """A Markdown table for each task; several seeds give a mean and half the spread."""
    groups = grouped(report)
    parts = []
    for task in dict.fromkeys(key[0] for key in groups):
        mine = {key[1:]: cells for key, cells in groups.items() if key[0] == task}
        parts.append(task_table(mine))
    return "\n\n".join([*parts, note(report)])


def note(report: dict[str, Any]) -> str:
    cells = report["cells"].values()
    spent = sum(cell["total_seconds"] for cell in cells)
    # A conversion taken from an earlier run counts once, not again with what goes on from it.
    spent += sum(cell.get("earlier_seconds", 0) for cell in cells if cell["arm"] == "calibrated")
    return (
        f"{len(report['cells'])} cells, {spent / 60:.0f} minutes of one core in all. "
        f"{measured(report)}. Bits are "
        "those stored for each weight of the replaced layers; MB those of the whole model on disk, what is "
        "not replaced at 16 bits a number. Several seeds: mean ± half the range."
    )


def task_table(groups: dict[tuple[float, str, str], list[dict[str, Any]]]) -> str:
    first = next(iter(groups.values()))[0]
    names = [name for name in METRICS if name in first["metrics"]]
    head = ["", "Factors", "Bits", "MB", *(METRICS[name][0] for name in names)]
    lines = []
    order = list(ARMS)

    def place(row: tuple[float, str, str]) -> tuple[bool, float, str, int]:
        bits, alphabet, arm = row
        return arm.startswith("rounded"), bits if arm != "dense" else 0, alphabet, order.index(arm)

    rows = sorted(groups, key=place)
    for bits, alphabet, arm in rows:
        cells = groups[bits, alphabet, arm]
        size = "" if arm == "dense" else f"{mean(cell['layer_bits'] for cell in cells):.2f}"
        facts = [ARMS[arm], ALPHABETS.get(alphabet, ""), size, f"{cells[0]['bytes'] / 1e6:.2f}"]
        values = [shown(name, [cell["metrics"][name] for cell in cells]) for name in names]
        lines.append(facts + values)
    return f"{first['title']}:\n\n{markdown(head, lines, left=2)}"


def each_task(report: dict[str, Any]) -> Iterator[tuple[str, list[str], dict[str, dict[str, Any]]]]:
    """(task, names of its metrics, rows by what was done) where rows are named "task | what was done"."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for key, row in report["rows"].items():
        task, _, what = key.partition(" | ")
        found.setdefault(task, {})[what] = row
    for task, rows in found.items():
        metrics = next(iter(rows.values()))["metrics"]
        yield task, [name for name in metrics if not name.endswith("_nats")], rows


def shown(name: str, values: Iterable[float]) -> str:
    """The mean, and half the range where there are several."""
    _, decimals, factor = METRICS[name]
    scaled = [factor * value for value in values]
    text = f"{mean(scaled):,.{decimals}f}"
    return text if len(scaled) == 1 else f"{text} ± {(max(scaled) - min(scaled)) / 2:.{decimals}f}"
