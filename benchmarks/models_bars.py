"""What is required of benchmarks/models.py's results, and what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean
from typing import Any

from matvec_bars import bar
from models_table import METRICS, NAMES, grouped

__all__ = ["bars"]

Row = dict[str, Any]
TITLES = {
    "smollm2": "SmolLM2",
    "whisper": "Whisper",
    "minilm": "MiniLM",
    "efficientnet": "EfficientNet",
    "mlp": "MLP",
}
LOGARITHMS = {"news_perplexity": "news_nats"}  # shares of a loss are shares of nats


class Results:
    """Primary metrics of all cells, larger the worse: what a bar compares."""

    def __init__(self, report: Row) -> None:
        self._groups = grouped(report)
        self.places = list(dict.fromkeys(key[:3] for key in self._groups if key[2]))

    def all(
        self, task: str, arm: str, bits: float = 2.0, alphabet: str = "sign", metric: str = ""
    ) -> list[float]:
        """One for each seed; none where it was not measured."""
        cells = self._groups.get((task, bits, alphabet, arm), [])
        return [
            cell["metrics"][metric or cell["primary"]] * (-1 if cell["higher_is_better"] else 1)
            for cell in cells
        ]

    def one(self, *where: Any, **more: Any) -> float | None:
        """The mean over the seeds."""
        found = self.all(*where, **more)
        return mean(found) if found else None

    def dense(self, task: str, metric: str = "") -> float | None:
        return self.one(task, "dense", 32.0, "", metric=metric)

    def primary(self, task: str) -> str:
        return next(cells[0]["primary"] for key, cells in self._groups.items() if key[0] == task)


def bars(report: Row) -> list[Row]:
    """Each bar: name, what is required and measured, whether it is met (None: not measured)."""
    results = Results(report)
    found = [
        worse(results, "minilm", "Lee, Pearson below dense", 0.02),
        worse(results, "whisper", "points of word error rate above dense", 3, 100),
        worse(results, "efficientnet", "points of accuracy below dense", 1, 100),
        worse(results, "mlp", "points of accuracy below dense", 1, 100),
        times_dense(results, 2.0, 3),
        times_dense(results, 3.0, 1.5),
        ratio(
            "SmolLM2, 2 bits: news perplexity of rounding to 2 bits, scales retuned, over diba's",
            results.one("smollm2", "rounded, retuned", 2.0, ""),
            results.one("smollm2", "dibard"),
        ),
    ]
    for task, bits, alphabet in results.places:
        if bits == 2:
            found += [recovered(results, task, alphabet), margin(results, task, alphabet)]
        found += shares(results, task, bits, alphabet)
    return found


def label(task: str, bits: float, alphabet: str) -> str:
    return f"{TITLES[task]}, {bits:g} bit{'s' if bits > 1 else ''}, {NAMES[alphabet]}"


def worse(results: Results, task: str, what: str, required: float, factor: float = 1) -> Row:
    own, dense = results.one(task, "dibard"), results.dense(task)
    measured = None if own is None or dense is None else factor * (own - dense)
    return bar(f"{label(task, 2, 'sign')}: {what}", required, measured, at_most=True)


def ratio(name: str, above: float | None, below: float | None, required: float = 1.0, **how: Any) -> Row:
    return bar(name, required, above / below if above and below else None, **how)


def times_dense(results: Results, bits: float, required: float) -> Row:
    name = f"{label('smollm2', bits, 'sign')}: news perplexity, times dense"
    return ratio(
        name, results.one("smollm2", "dibard", bits), results.dense("smollm2"), required, at_most=True
    )


def recovered(results: Results, task: str, alphabet: str) -> Row:
    """What calibration and DiBARD give back of what replacement without data took."""
    metric = LOGARITHMS.get(results.primary(task), results.primary(task))
    dense = results.dense(task, metric)
    plain, own = (results.one(task, arm, 2.0, alphabet, metric) for arm in ("replaced", "dibard"))
    name = f"{label(task, 2, alphabet)}: share of the loss that calibration and DiBARD recover"
    if dense is None or plain is None or own is None:
        return bar(name, 0.5, None)
    if plain <= dense:
        return bar(f"{name} (nothing was lost)", 0.5, None)
    return bar(name, 0.5, (plain - own) / (plain - dense))


def margin(results: Results, task: str, alphabet: str) -> Row:
    """By how much DiBARD beats the control, and how far the seeds of both lie apart."""
    factor = METRICS[results.primary(task)][2]
    own, control = (results.all(task, arm, 2.0, alphabet) for arm in ("dibard", "random"))
    spread = max(((max(found) - min(found)) / 2 for found in (own, control) if found), default=0.0)
    seeds = f"{len(own)} seed{'s' if len(own) > 1 else ''}"
    name = f"{label(task, 2, alphabet)}: better than random binaries by, against the spread of {seeds}"
    measured = factor * (mean(control) - mean(own)) if own and control else None
    return bar(name, factor * spread, measured)


def shares(results: Results, task: str, bits: float, alphabet: str) -> Iterator[Row]:
    """What sharing bits out gains over the same bits everywhere, calibrated and retuned alike."""
    factor = METRICS[results.primary(task)][2]
    for arm, words in (("allocated", "noise"), ("scored", "scores")):
        for uniform, other, after in (
            ("calibrated", arm, "calibrated"),
            ("dibard", f"{arm}, retuned", "retuned"),
        ):
            even, shared = (results.one(task, a, bits, alphabet) for a in (uniform, other))
            if shared is not None and even is not None:
                name = f"{label(task, bits, alphabet)}: gain of bits shared out by {words}, {after}"
                yield bar(name, 0, factor * (even - shared))
