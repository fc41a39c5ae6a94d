"""The tables of the quality benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.tables import markdown, measured
from .cells import BITS, MAIN_BITS, METHODS, MODULUS, SELECTED

__all__ = ["Sizes", "by_cell", "chosen_matrices", "common", "mean", "sizes", "table"]

Runs = dict[str, dict[str, Any]]  # cells of one method and size by their matrix
LARGER = 1.005  # times the size asked for: what is larger is not compared
HEAD = ["Bits", "Method", "Stored bits", "Matrices", "SNR, dB", "to DBF, dB", "better than DBF",
        "better than greedy", "worst to DBF, dB", "Seconds", "Time / DBF"]  # fmt: skip


def by_cell(report: dict[str, Any]) -> dict[tuple[str, float], Runs]:
    """Runs of each (method, bits)."""
    found: dict[tuple[str, float], Runs] = {}
    for cell in report["cells"]:
        found.setdefault((cell["method"], cell["bits"]), {})[cell["matrix"]] = cell
    return found


def common(runs: dict[tuple[str, float], Runs], bits: float, methods: Sequence[str]) -> list[str]:
    """Matrices that all of these methods have at this size, methods without any left out."""
    present = [runs[name, bits] for name in methods if runs.get((name, bits))]
    return [matrix for matrix in present[0] if all(matrix in other for other in present)] if present else []


@dataclass(frozen=True)
class Sizes:
    """One row: a method at a size. Differences and ratios are over the matrices that both sides have."""

    method: str
    bits: float
    stored: float
    matrices: int
    snr: float
    to_dbf: float
    worst_to_dbf: float
    worst_matrix: str
    over_dbf: tuple[int, int]  # matrices where it has more SNR, matrices compared
    over_greedy: tuple[int, int]
    seconds: float
    time_ratio: float


def sizes(runs: dict[tuple[str, float], Runs], bits: float) -> list[Sizes]:
    """A row for every method that has this size.

    Means are over the matrices that all methods have; effort best, run on fewer, has means of its own.
    """
    shared = common(runs, bits, [name for name, method in METHODS.items() if not rare(name)])
    rows = []
    for name in METHODS:
        mine = runs.get((name, bits), {})
        shown = [matrix for matrix in mine if rare(name) or matrix in set(shared)]
        if shown:
            rows.append(row(name, bits, runs, shown))
    return rows


def rare(name: str) -> bool:
    """Whether a method runs on a subset smaller than that of the reference."""
    return METHODS[name].places == SELECTED


def row(name: str, bits: float, runs: dict[tuple[str, float], Runs], shown: Sequence[str]) -> Sizes:
    mine = runs[name, bits]
    dbf, greedy = (runs.get((other, bits), {}) for other in ("dbf", "greedy"))
    gains = {m: mine[m]["snr_db"] - dbf[m]["snr_db"] for m in mine if m in dbf}
    over_greedy = [mine[m]["snr_db"] > greedy[m]["snr_db"] for m in mine if m in greedy]
    worst = min(gains, key=gains.__getitem__) if gains else ""
    theirs = sum(dbf[m]["seconds"] for m in gains)
    return Sizes(
        name,
        bits,
        mean(mine, shown, "bits_per_weight"),
        len(shown),
        mean(mine, shown, "snr_db"),
        float(np.mean(list(gains.values()))) if gains else np.nan,
        gains.get(worst, np.nan),
        worst,
        (sum(gain > 0 for gain in gains.values()), len(gains)),
        (sum(over_greedy), len(over_greedy)),
        mean(mine, shown, "seconds"),
        sum(mine[m]["seconds"] for m in gains) / theirs if theirs else np.nan,
    )


def mean(runs: Runs, chosen: Sequence[str], name: str) -> float:
    return float(np.mean([runs[matrix][name] for matrix in chosen]))


# ---- Markdown


def table(report: dict[str, Any]) -> str:
    """Both tables and what they say in words."""
    runs = by_cell(report)
    rows = [found for bits in BITS for found in sizes(runs, bits)]
    everywhere = [found for found in rows if found.bits in MAIN_BITS]
    parts = [markdown(HEAD, [cells(found) for found in everywhere], left=2)]
    chosen = chosen_matrices(report, runs)
    if chosen:
        title = f"SNR in dB by bits per weight, means over {len(chosen)} matrices, every 22nd of all:"
        head = ["Method", *(f"{bits:g}" for bits in BITS)]
        parts += ["", title, "", markdown(head, rows_by_size(chosen, runs))]
    parts += ["", note(report, everywhere)]
    return "\n".join(parts)


def cells(found: Sizes) -> list[str]:
    comparable = found.stored <= LARGER * found.bits
    to_dbf = comparable and found.method != "dbf"
    return [
        f"{found.bits:g}",
        METHODS[found.method].label,
        f"{found.stored:.3f}",
        str(found.matrices),
        f"{found.snr:.2f}",
        number(found.to_dbf, "+.2f") if to_dbf else "",
        share(found.over_dbf) if to_dbf else "",
        share(found.over_greedy) if comparable and found.method != "greedy" else "",
        number(found.worst_to_dbf, "+.2f") if to_dbf else "",
        f"{found.seconds:.2f}",
        number(found.time_ratio, ".2f") if found.method != "dbf" else "",
    ]


def number(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else ""


def share(won: tuple[int, int]) -> str:
    return f"{won[0]} of {won[1]}" if won[1] else ""


def chosen_matrices(report: dict[str, Any], runs: dict[tuple[str, float], Runs]) -> list[str]:
    """Every MODULUS-th matrix, as far as the reference is done with it at every size."""
    places = enumerate(report["matrices"])
    chosen = [matrix for place, matrix in places if place % MODULUS in SELECTED]
    return [matrix for matrix in chosen if all(matrix in runs.get(("dbf", bits), {}) for bits in BITS)]


def rows_by_size(chosen: Sequence[str], runs: dict[tuple[str, float], Runs]) -> list[list[str]]:
    """Mean SNR at every size; stored bits stand beside it where they are not the size."""
    rows = []
    for name, method in METHODS.items():
        values = []
        for bits in BITS:
            mine = runs.get((name, bits), {})
            if all(matrix in mine for matrix in chosen):
                stored = mean(mine, chosen, "bits_per_weight")
                beside = f" ({stored:.2f} bits)" if stored > LARGER * bits else ""
                values.append(f"{mean(mine, chosen, 'snr_db'):.2f}{beside}")
            else:
                values.append("")
        if any(values):
            rows.append([method.label, *values])
    return rows


def note(report: dict[str, Any], rows: Sequence[Sizes]) -> str:
    done = {cell["matrix"] for cell in report["cells"]}
    counts = Counter(facts["source"] for name, facts in report["matrices"].items() if name in done)
    worst = [
        f"{METHODS[found.method].label} at {found.bits:g}: `{found.worst_matrix}`"
        for found in rows
        if found.method.endswith("-normal") and found.worst_matrix
    ]
    pool = ", ".join(f"{count} of {source}" for source, count in counts.items())
    return (
        f"Matrices: {pool}. SNR, stored bits and seconds are means over the matrices that all methods of a "
        "size have (effort best: over those it was run on); differences, wins and time ratios pair the "
        "matrices that both methods have, and are left out where a method stores more. "
        f"{report['threads']} thread a run, two runs at a time. {measured(report)}. "
        f"Worst matrix against DBF: {'; '.join(worst)}."
    )
