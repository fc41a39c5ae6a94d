"""Tables of whole models: what the plan says and what comes, workers, large layers and models, with data."""

from __future__ import annotations

import statistics
from typing import Any

from ..common.tables import markdown, measured

__all__ = ["table"]

# Layers of a block, as (rows, columns, how many), and blocks; embeddings and heads cost next to nothing.
LARGE_MODELS = {
    "7B (Llama 2)": ([(4096, 4096, 4), (11008, 4096, 3)], 32),
    "8B (Llama 3)": ([(4096, 4096, 2), (1024, 4096, 2), (14336, 4096, 3)], 32),
    "70B (Llama 2 and 3)": ([(8192, 8192, 2), (1024, 8192, 2), (28672, 8192, 3)], 80),
}


def table(report: dict[str, Any]) -> str:
    """All parts that there are."""
    parts = [_forecast_table, _workers_text, _layers_table, _billion_text, _fitted_text]
    made_ones = [text for part in parts if (text := part(report))]
    return "\n\n".join([*made_ones, f"{measured(report)}."])


def _forecast_table(report: dict[str, Any]) -> str:
    rows = []
    for row in report["forecast"]:
        said, came = row["plan"], row["run"]
        pairs = [(f"{said['bytes'] / 1e6:.2f}", f"{came['bytes'] / 1e6:.2f}")]
        pairs += [(f"{said['seconds']:.0f}", f"{came['seconds']:.0f}")]
        pairs += [(f"{said['memory'] / 1e6:.0f}", f"{came['memory'] / 1e6:.0f}")]
        rows.append([row["model"], f"{row['bits']:g}", *(f"{a} / {b}" for a, b in pairs)])
    head = ["Model", "Bits", "MB, plan / run", "Seconds, plan / run", "Memory, MB, plan / run"]
    return markdown(head, rows) if rows else ""


def _workers_text(report: dict[str, Any]) -> str:
    rows = report["workers"]
    if not rows:
        return ""
    one, two, dask = (statistics.median(row[name] for row in rows) for name in ("one", "two", "dask"))
    equal = "equal bytes" if all(row["equal"] for row in rows) else "other bytes"
    return (
        f"One worker with one thread {one:.0f} s; two {two:.0f} s, {one / two:.2f} times as fast; two dask "
        f"workers {dask:.0f} s, {two / dask:.2f} of that speed; {equal}."
    )


def _layers_table(report: dict[str, Any]) -> str:
    rows = report["layers"]
    if not rows:
        return ""
    shown = []
    for row in rows:
        size = " x ".join(map(str, row["shape"]))
        taken = [f"{row['seconds']:.0f}", f"{row['memory'] / 1e6:.0f}", f"{row['snr_db']:.2f}"]
        shown.append([size, f"{row['bits']:g}", str(row["threads"]), *taken])
    text = markdown(["Matrix", "Bits", "Threads", "Seconds", "Memory, MB", "SNR, dB"], shown)
    return f"{text}\n\n{_large_models(rows)}"


def _large_models(rows: list[dict[str, Any]]) -> str:
    """Hours of large models, from the seconds of the largest matrix for m n k, which they grow with."""
    last = rows[-1]
    bits = last["bits"]
    rate = last["seconds"] / (last["shape"][0] * last["shape"][1] * last["k"])
    shown = []
    for name, (shapes, blocks) in LARGE_MODELS.items():
        seconds = blocks * sum(count * m * n * _k(m, n, bits) * rate for m, n, count in shapes)
        longest = max(m * n * _k(m, n, bits) * rate for m, n, _ in shapes)
        hours = [max(seconds / machines, longest) / 3600 for machines in (1, 16, 256)]
        shown.append([name, *(f"{each:,.1f}" for each in hours)])
    return markdown(["Hours, by machines like this one", "1", "16", "256"], shown)


def _k(m: int, n: int, bits: float) -> float:
    return bits * m * n / (m + n)


def _billion_text(report: dict[str, Any]) -> str:
    found = report.get("billion")
    if not found:
        return ""
    run, plan = found["run"], found["plan"]
    return (
        f"A model of 1B shapes ({found['file_bytes'] / 1e9:.1f} GB in bfloat16, random weights): the first "
        f"{found['layers']} of its layers, the largest first, took {run['seconds']:.0f} s and "
        f"{run['memory'] / 1e6:.0f} MB at the peak (plan: {plan['memory'] / 1e6:.0f} MB); by the plan all "
        f"of them take {plan['seconds'] / 3600:.1f} hours."
    )


def _fitted_text(report: dict[str, Any]) -> str:
    return " ".join(
        f"With data, {row['model']} at {row['bits']:g} bits took {row['memory'] / 1e9:.2f} GB at the peak "
        f"and {row['seconds'] / 60:.0f} minutes, with only {row['reconstruct']} steps for each block and "
        f"{row['retune']} at the end, which take time and no memory ({row['machine']}, "
        f"{row['threads']} thread{'s' * (row['threads'] > 1)})."
        for row in report.get("data", [])
    )
