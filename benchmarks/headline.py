"""The few figures that matter, from all results: candidates for a first page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

from .common.results import Report
from .common.tables import number
from .models.curves_table import grouped, size, value
from .models.decode_table import PROMPT
from .models.table import METRICS, shown
from .products.rows import ONE, Rows
from .quality.cells import METHODS
from .quality.table import by_cell, sizes

__all__ = ["headline"]

Load = Callable[[str], Report]
Cell = dict[str, Any]
HEAD = ["", "Dense", "diba", "Others"]
PERPLEXITY = ("news_perplexity", "emma_perplexity"), "perplexity of news, of a novel"
SENTENCES = ("lee_pearson", "wordsim_spearman"), "agreement with people, Lee and WordSim-353"
WORDS = ("word_error_rate",), METRICS["word_error_rate"][0]
# Task, form, another arm and its form, metrics and what they are.
FILES = (
    ("smollm2", "2 bits, table of 4", "llama.cpp", "IQ2_XXS", *PERPLEXITY),
    ("smollm2", "4 bits, table of 4", "llama.cpp", "Q4_0", *PERPLEXITY),
    ("minilm", "2 bits, table of 4", "onnxruntime", "int4", *SENTENCES),
    ("whisper", "1.5 bits, table of 4", "GPTQ", "2 bits, table of 4", *WORDS),
)


def headline(load: Load) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of a table of at most nine rows: quality at equal bits, products, whole models."""
    rows = [*quality(load("quality")), *products(load("matvec"))]
    return HEAD, [*rows, *runtime(load("decode")), *models(load("curves"))]


def quality(report: Report) -> Iterator[list[str]]:
    """SNR at equal bits, means over the matrices that all methods have."""
    runs = by_cell(report)
    for bits, others in ((1.0, ("dbf", "greedy")), (2.0, ("dbf", "rtn-64"))):
        found = {row.method: row for row in sizes(runs, bits)}
        ours = found["sign-normal"]
        beside = "; ".join(
            f"{METHODS[name].label} {found[name].snr:.2f}"
            + (f" ({found[name].stored:.2f} bits)" if found[name].stored > 1.005 * bits else "")
            for name in others
        )
        what = f"SNR of {ours.matrices} trained matrices at {bits:g} bit{'s' * (bits != 1)} per weight, dB"
        yield [what, "", f"**{ours.snr:.2f}**", beside]


def products(report: Report) -> Iterator[list[str]]:
    """One vector at the large square shape; the quickest of the others."""
    rows = Rows(report["rows"], report["machine"]["isa"])
    times = {row["name"]: rows.value(row["name"]) for row in rows if not row["name"].startswith("diba")}
    known = {name: time for name, time in times.items() if time and "float32" not in name}
    best = min(known, key=known.__getitem__)
    dense, ours = number(rows.value("torch float32")), number(rows.value(ONE))
    what = "4096 x 4096 matrix at 1 bit times a vector, one thread, µs"
    yield [what, dense, f"**{ours}**", f"{best} {number(known[best])}"]


def runtime(report: Report) -> Iterator[list[str]]:
    """SmolLM2 exported, beside the fastest type of llama.cpp: reading and writing, and the size of files."""
    rows = [row for row in report["rows"] if row["threads"] == 1 and row["samples"]]
    for name, tokens, what in (("prompt", PROMPT, f"reading {PROMPT} tokens"), ("token", 1, "writing")):
        rates = {
            row["contestant"]: (tokens / median(sample[name] for sample in row["samples"]), row["bytes"])
            for row in rows
        }
        best = max((x for x in rates if x.startswith("llama.cpp")), key=lambda x: rates[x][0])
        ours, other = (f"{rates[x][0]:,.0f} ({rates[x][1] / 1e6:.0f})" for x in ("diba 2 bits", best))
        ours = ours.replace(" ", "** ", 1)
        title = f"SmolLM2-135M at 2 bits in onnxruntime-genai, {what}, one thread, tokens/s (MB of files)"
        yield [title, "", f"**{ours}", f"{best} {other}"]


def models(report: Report) -> Iterator[list[str]]:
    """Whole models reconstructed and retuned, beside the files of others that come nearest."""
    every = grouped(report)
    for task, form, arm, other, names, what in FILES:
        rows = every[task]
        dense, ours, theirs = (
            quality_and_size(rows[key], names) for key in (("dense", "float32"), ("diba", form), (arm, other))
        )
        title = rows["diba", form][0]["title"]
        ours = f"**{ours.replace(' (', '** (')}"
        yield [f"{title} at {form}: {what} (MB on disk)", dense, ours, f"{arm} {other} {theirs}"]


def quality_and_size(cells: list[Cell], names: Sequence[str]) -> str:
    """Metrics, of several seeds their means, and megabytes; dense models in 16 bits, as in the other rows."""
    megabytes = size(cells) / (2 if cells[0]["form"] == "float32" else 1)
    return f"{', '.join(shown(name, [value(cells, name)]) for name in names)} ({megabytes:.0f})"
