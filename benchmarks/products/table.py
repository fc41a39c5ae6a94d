"""What the matvec benchmark prints."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ..common.tables import aligned, markdown, measured, number, plural
from .rows import BIG, ONE, TWO, Row, Rows, dense_faster, size_text

__all__ = ["rows_text", "table"]

# ---------------------------------------------------------------- for a terminal

HEAD = ["", "bits", "us", "quartiles", "GB/s", "of read", "SNR, dB", "heavy"]


def rows_text(found: dict[str, list[Row]]) -> str:
    """All rows of one task, a block for each batch."""
    lines: list[str] = []
    for _, block in groupby(found["rows"], key=lambda row: (row["batch"], row["cache"])):
        rows = list(block)
        lines += ["", f"{cell_text(rows[0])}, {rows[0]['isa']}", aligned(HEAD, [*map(row_cells, rows)])]
    lines += [f"{note['name']}: {note['note']}" for note in found["notes"]]
    return "\n".join(lines)


def row_cells(row: Row) -> list[str]:
    snr, heavy = ("exact" if row[name] is None else f"{row[name]:.1f}" for name in ("snr_db", "snr_heavy_db"))
    quartiles = f"{row['us_quartile_1']:.4g} - {row['us_quartile_3']:.4g}"
    times = [f"{row['bits_per_weight']:.3f}", f"{row['us']:.5g}", quartiles]
    return [row["name"], *times, f"{row['gb_per_s']:.3g}", f"{row['read_share']:.0%}", snr, heavy]


def cell_text(cell: Row) -> str:
    threads = plural(cell["threads"], "thread")
    return f"{size_text(cell['shape'])}, batch {cell['batch']}, {threads}, {cell['cache']}"


# ---------------------------------------------------------------- for docs


def table(report: Row) -> str:
    """One vector at every shape, batches at one shape, where dense is faster."""
    isa = report["machine"]["isa"]
    rows = Rows(report["rows"], isa)
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows if not row["name"].endswith("1 thread")))
    lines = ["One vector, one thread, warm, us:", "", vector_table(rows, shapes, names)]
    lines += ["", "Weights in GB/s, and as a share of the read bandwidth of one thread:", ""]
    lines.append(speed_table(rows, shapes))
    if BIG in shapes:
        batches = sorted({row["batch"] for row in rows})
        lines += ["", f"{size_text(BIG)}, one thread, warm, us by batch:", ""]
        cells = [[name, *(number(rows.value(name, BIG, batch)) for batch in batches)] for name in names]
        lines.append(markdown(["", *map(str, batches)], cells))
    refused = {f"{note['name']}: {note['note']}" for note in report["notes"] if "refused" in note["note"]}
    lines += ["", *others(rows, Rows(report["rows"] if isa != "avx2" else [], "avx2"))]
    lines += [*dense_text(dense_faster(report["rows"], isa)), *sorted(refused), "", note_text(report)]
    return "\n".join(lines)


def vector_table(rows: Rows, shapes: Sequence[tuple[int, int]], names: Sequence[str]) -> str:
    """Time by shape; SNR is the lowest over the shapes."""
    lines = []
    for name in names:
        mine = [row for row in rows if row["name"] == name]
        times = [number(rows.value(name, shape)) for shape in shapes]
        lowest = []
        for column in ("snr_db", "snr_heavy_db"):
            known = [row[column] for row in mine if row[column] is not None]
            lowest.append(f"{min(known):.1f}" if known else "exact")
        lines.append([name, f"{mine[-1]['bits_per_weight']:.2f}", *times, *lowest])
    return markdown(["", "Bits", *map(size_text, shapes), "SNR, dB", "heavy tails"], lines)


def speed_table(rows: Rows, shapes: Sequence[tuple[int, int]]) -> str:
    lines = []
    for name in (ONE, TWO):
        for cache in ("warm", "cold"):
            found = [rows.row(name, shape, 1, 1, cache) for shape in shapes]
            if any(found):
                cells = [f"{row['gb_per_s']:.1f} ({row['read_share']:.0%})" if row else "" for row in found]
                lines.append([f"{name}, {cache}", *cells])
    return markdown(["", *map(size_text, shapes)], lines)


def others(rows: Rows, avx2: Rows) -> list[str]:
    """Two threads, and a processor with AVX2 alone."""
    found, what = [], f"{size_text(BIG)}, one vector, 1 bit"
    one, two = (rows.value(name, threads=2) for name in (f"{ONE}, 1 thread", ONE))
    if one and two:
        found.append(f"{what}: two threads take {number(two)} us, {one / two:.2f} times as fast as one.")
    ours, dense = (avx2.value(name) for name in (ONE, "torch float32"))
    if ours and dense:
        speed = f"{number(ours)} us, {dense / ours:.0f} times as fast as torch float32"
        found.append(f"{what}, no more than AVX2 used by diba: {speed}.")
    return [*found, ""] if found else []


def dense_text(found: Sequence[Row]) -> list[str]:
    if not found:
        return ["No dense float32 product was faster than a fast one of diba."]
    lines = ["Dense float32 is faster at:", ""]
    for cell in found:
        factors = ", ".join(
            f"{ratio:.2f} times as fast as {name}" for name, ratio in cell["times_as_fast"].items()
        )
        lines.append(f"- {cell_text(cell)}: {cell['dense']} is {factors}")
    return lines


def note_text(report: Row) -> str:
    return (
        f"{measured(report)}, last-level cache "
        f"{report['cache_bytes'] / 1e6:.0f} MB; medians of interleaved repetitions, float32 in and out, "
        "called from Python. Warm: the same weights again and again; cold: copies in turn, together "
        "over twice that cache. Weights are random; SNR is that of the arithmetic, against "
        "float64 with the weights that each format really holds, lowest over the shapes; heavy tails: a few "
        "activations 50 times larger. Bits count the scales."
    )
