"""What benchmarks/matvec.py prints, and what of it stands in README.md."""

from __future__ import annotations

from collections.abc import Sequence

from matvec_bars import BIG, ONE, TWO, Row, Rows, size_text

__all__ = ["markdown", "rows_text", "verdict_text"]

# ---------------------------------------------------------------- text


def rows_text(found: dict[str, list[Row]]) -> str:
    """All rows of one task, a block for each batch."""
    lines: list[str] = []
    last = None
    for row in found["rows"]:
        if (row["batch"], row["cache"]) != last:
            last = row["batch"], row["cache"]
            lines += ["", f"{cell_text(row)}, {row['isa']}", HEAD]
        lines.append(row_text(row))
    lines += [f"   {note['name']}: {note['note']}" for note in found["notes"]]
    return "\n".join(lines)


HEAD = f"   {'':<27}{'bits':>7}{'us':>11}{'quartiles':>25}{'GB/s':>8}{'of read':>9}{'SNR, dB':>9}{'heavy':>8}"


def row_text(row: Row) -> str:
    quartiles = f"{row['us_quartile_1']:.4g} - {row['us_quartile_3']:.4g}"
    snr, heavy = ("exact" if row[name] is None else f"{row[name]:.1f}" for name in ("snr_db", "snr_heavy_db"))
    return (
        f"   {row['name']:<27}{row['bits_per_weight']:>7.3f}{row['us']:>11.5g}{quartiles:>25}"
        f"{row['gb_per_s']:>8.3g}{row['read_share']:>9.0%}{snr:>9}{heavy:>8}"
    )


def verdict_text(report: Row) -> str:
    lines = ["", *dense_faster_text(report["dense_faster"]), "", f"{'required':>10}{'measured':>10}  met"]
    for entry in report["bars"]:
        required, measured, met = bar_cells(entry)
        note = f" ({entry['note']})" if entry["note"] else ""
        lines.append(f"{required:>10}{measured:>10}  {met:<4} {entry['name']}{note}")
    return "\n".join(lines)


def bar_cells(entry: Row) -> tuple[str, str, str]:
    sign = "<=" if entry["at_most"] else ">="
    measured = "-" if entry["measured"] is None else f"{entry['measured']:.3g}"
    return f"{sign} {entry['required']:.3g}", measured, {None: "-", True: "yes", False: "no"}[entry["met"]]


def dense_faster_text(found: Sequence[Row]) -> list[str]:
    if not found:
        return [
            "No dense float32 product was faster than a fast one of diba: at no shape, batch or thread count."
        ]
    lines = ["Dense float32 is faster at:"]
    for cell in found:
        factors = ", ".join(
            f"{ratio:.2f} times as fast as {name}" for name, ratio in cell["times_as_fast"].items()
        )
        lines.append(f"- {cell_text(cell)}: {cell['dense']} is {factors}")
    return lines


def cell_text(cell: Row) -> str:
    threads = f"{cell['threads']} thread{'s' if cell['threads'] > 1 else ''}"
    return f"{size_text(cell['shape'])}, batch {cell['batch']}, {threads}, {cell['cache']}"


# ---------------------------------------------------------------- for README.md


def markdown(report: Row) -> str:
    """One vector at every shape, batches at one shape, the bars, where dense is faster."""
    rows = Rows(report["rows"], report["machine"]["isa"])
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows if not row["name"].endswith("1 thread")))
    lines = ["One vector, one thread, warm, us:", "", *vector_table(rows, shapes, names)]
    lines += ["", "Weights in GB/s, and as a share of the read bandwidth of one thread:", ""]
    lines += speed_table(rows, shapes)
    if BIG in shapes:
        batches = sorted({row["batch"] for row in rows})
        lines += ["", f"{size_text(BIG)}, one thread, warm, us by batch:", ""]
        lines += table(["", *map(str, batches)])
        lines += [line([name, *(number(rows.value(name, BIG, b)) for b in batches)]) for name in names]
    lines += ["", *table(["Bar", "Required", "Measured", "Met"])]
    for entry in report["bars"]:
        note = f" ({entry['note']})" if entry["note"] else ""
        lines.append(line([entry["name"] + note, *bar_cells(entry)]))
    refused = {f"{note['name']}: {note['note']}" for note in report["notes"] if "refused" in note["note"]}
    lines += ["", *dense_faster_text(report["dense_faster"]), *sorted(refused), "", note_text(report)]
    return "\n".join(lines)


def vector_table(rows: Rows, shapes: Sequence[tuple[int, int]], names: Sequence[str]) -> list[str]:
    """Time by shape; SNR is the lowest over the shapes."""
    lines = table(["", "Bits", *map(size_text, shapes), "SNR, dB", "heavy tails"])
    for name in names:
        mine = [row for row in rows if row["name"] == name]
        times = [number(rows.value(name, shape)) for shape in shapes]
        lowest = []
        for column in ("snr_db", "snr_heavy_db"):
            known = [row[column] for row in mine if row[column] is not None]
            lowest.append(f"{min(known):.1f}" if known else "exact")
        lines.append(line([name, f"{mine[-1]['bits_per_weight']:.2f}", *times, *lowest]))
    return lines


def speed_table(rows: Rows, shapes: Sequence[tuple[int, int]]) -> list[str]:
    lines = table(["", *map(size_text, shapes)])
    for name in (ONE, TWO):
        for cache in ("warm", "cold"):
            found = [rows.row(name, shape, 1, 1, cache) for shape in shapes]
            if any(found):
                cells = [f"{row['gb_per_s']:.1f} ({row['read_share']:.0%})" if row else "" for row in found]
                lines.append(line([f"{name}, {cache}", *cells]))
    return lines


def note_text(report: Row) -> str:
    machine = report["machine"]
    return (
        f"{' '.join(str(machine['cpu']).split())} ({machine['isa']}), last-level cache "
        f"{report['cache_bytes'] / 1e6:.0f} MB; medians of interleaved repetitions, float32 in and out, "
        "called from Python. Warm: the same weights again and again; cold: copies in turn, together "
        "over twice that cache. Weights are random; SNR is that of the arithmetic, against "
        "float64 with the weights that each format really holds, lowest over the shapes; heavy tails: a few "
        "activations 50 times larger. Bits count the scales."
    )


def table(head: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table with text on the left."""
    return [line(head), line([":---", *["---:"] * (len(head) - 1)])]


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
