"""The tables of a report: kinds of layers, where the bytes are, blocks, all layers, and what stayed dense."""

from __future__ import annotations

import json
import math
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from ..entries import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..blocks import BlockRecipe
    from ..entries import LayerReport, Skipped
    from .groups import Group, Part

__all__ = [
    "Cell",
    "blocks_table",
    "bytes_table",
    "dense_lists",
    "groups_table",
    "layers_table",
    "settings_list",
]

UNKNOWN = "unknown"
_LONG = 30  # longer tables scroll by themselves


class Cell(NamedTuple):
    """A cell: its text, and the number that it is sorted by; None: an unknown one, or a text."""

    text: str
    value: float | None = None


def table(
    head: Sequence[tuple[str, bool]], rows: Iterable[Sequence[Cell]], label: str, *, kind: str = ""
) -> str:
    """A table in a region that scrolls where it is wider than the page.

    Args:
        head: (name, whether it holds numbers) of each column; the first one names the row.
        rows: A cell for each column.
        label: What it shows.
        kind: Its class.
    """
    heads = "".join(f'<th scope="col"{_class(numeric)}>{escape(name)}</th>' for name, numeric in head)
    lines = []
    for first, *others in rows:
        cells = [f'<th scope="row">{_breakable(first.text)}</th>']
        for cell, (_, numeric) in zip(others, head[1:], strict=True):
            value = "" if cell.value is None else f' data-value="{cell.value!r}"'
            cells.append(f"<td{_class(numeric)}{value}>{escape(cell.text)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    name, area = escape(label), "scroll long" if len(lines) > _LONG else "scroll"
    return (
        f'<div class="{area}" role="region" aria-label="{name}" tabindex="0">'
        f'<table class="{kind}"><caption>{name}</caption>{body}</table></div>'
    )


def groups_table(groups: Sequence[Group]) -> str:
    """A line for every kind of layer."""
    head = ["kind of layer", "layers", "weights", "bits a weight", "lowest SNR, dB", "mean SNR, dB"]
    head += ["bytes before", "bytes after"]
    rows = []
    for group in groups:
        snrs, members = group.snrs(), group.layers.values()
        rows.append(
            [
                Cell(group.name),
                Cell(f"{len(members):,}", len(members)),
                Cell(f"{group.weights:,}", group.weights),
                _decimal(group.bits_per_weight, 3),
                _decimal(min(snrs, default=None)),
                _decimal(sum(snrs) / len(snrs) if snrs else None),
                _bytes(sum(layer.dense_bytes for layer in members)),
                _bytes(sum(layer.memory_bytes for layer in members)),
            ]
        )
    return table([(name, i > 0) for i, name in enumerate(head)], rows, "Compressed layers by what they are")


def bytes_table(parts: Sequence[Part]) -> str:
    """Bytes of every part, and its share of what is left."""
    before, after = sum(part.before for part in parts), sum(part.after for part in parts)
    rows = [
        [Cell(x.name), _bytes(x.before), _bytes(x.after), _percent(x.after, after)]
        for x in parts
        if x.before or x.after
    ]
    rows.append([Cell("all of it"), _bytes(before), _bytes(after), _percent(after, after)])
    head = [("part", False), ("before", True), ("after", True), ("share after", True)]
    return table(head, rows, "Bytes of parameters and buffers in memory")


def blocks_table(blocks: Mapping[str, BlockRecipe]) -> str:
    """A line for every block that was reconstructed."""
    head = ["block", "loss before", "factored", "reconstructed", "bits moved", "joint training kept"]
    head += ["groups corrected", "groups tuned"]
    rows = [
        [
            Cell(name),
            *(Cell(f"{x:.3g}", x) for x in (block.loss_before, block.loss_factored, block.loss)),
            Cell(f"{100 * block.flips:.2f} %", block.flips),
            Cell("yes" if block.kept else "no", float(block.kept)),
            *(Cell(f"{x} of {block.groups}", x) for x in (block.corrected, block.tuned)),
        ]
        for name, block in blocks.items()
    ]
    return table([(name, i > 0) for i, name in enumerate(head)], rows, "Blocks that were reconstructed")


def layers_table(layers: Sequence[LayerReport], places: Mapping[str, int]) -> str:
    """A line for every compressed layer, in the order given; ``places`` are those in the model.

    Columns of which nothing is known are left out, and named below.
    """
    head = [
        ("layer", False), ("SNR, dB", True), ("relative error", True), ("SNR of outputs, dB", True),
        ("bits a weight", True), ("shape", True), ("k", True), ("entries", False), ("kind", False),
        ("place", True), ("objective", False), ("bytes before", True), ("bytes after", True),
        ("bytes in a diba file", True), ("seconds", True),
    ]  # fmt: skip
    rows = [_layer(layer, places[layer.name]) for layer in layers]
    missing = [i for i in range(1, len(head)) if all(row[i].text == UNKNOWN for row in rows)]
    shown = [i for i in range(len(head)) if i not in missing]
    kept = [[row[i] for i in shown] for row in rows]
    text = table([head[i] for i in shown], kept, "Compressed layers", kind="sortable")
    names = ", ".join(head[i][0] for i in missing)
    return text + (f'<p class="note">Unknown for all layers: {escape(names)}.</p>' if missing else "")


def dense_lists(skipped: Iterable[Skipped]) -> str:
    """For every reason the layers and tensors that it holds for."""
    groups: dict[str, list[Skipped]] = {}
    for entry in skipped:
        groups.setdefault(entry.reason, []).append(entry)
    head = [("name", False), ("kind", False), ("shape", True), ("weights", True), ("bytes", True)]
    found = []
    for reason, entries in groups.items():
        weights, size = sum(x.weights for x in entries), sum(x.bytes for x in entries)
        rows = [
            [Cell(x.name), Cell(x.kind), Cell(_by(x.shape)), Cell(f"{x.weights:,}"), _bytes(x.bytes)]
            for x in entries
        ]
        counts = f"{len(entries):,} of {weights:,} weights, {format_bytes(size)}"
        inner = table(head, rows, reason)
        found.append(f"<details><summary>{escape(reason)}: {counts}</summary>{inner}</details>")
    return "".join(found)


def settings_list(title: str, settings: Mapping[str, object]) -> str:
    """Names and values, as JSON, by name: those of a checkpoint come in any order."""
    items = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(_json(value))}</dd></div>"
        for name, value in sorted(settings.items())
    )
    return f"<details><summary>{escape(title)}</summary><dl>{items}</dl></details>"


# ---------------------------------------------------------------- details


def _layer(layer: LayerReport, place: int) -> list[Cell]:
    snr = layer.snr_db
    error = None if snr is None or not math.isfinite(snr) else 100 * 10 ** (-snr / 20)
    return [
        Cell(" = ".join((layer.name, *layer.tied))),
        _decimal(snr),
        Cell(f"{error:.3g} %", error) if error is not None else Cell("0 %" if snr == math.inf else UNKNOWN),
        _decimal(layer.output_snr_db),
        _decimal(layer.bits_per_weight, 3),
        Cell(_by(layer.shape), layer.weights),
        Cell(str(layer.k), layer.k) if layer.k else Cell("-"),
        Cell(layer.alphabet),
        Cell(layer.kind),
        Cell(str(place), place),
        Cell(UNKNOWN if layer.objective is None else layer.objective),
        *(_bytes(x) for x in (layer.dense_bytes, layer.memory_bytes, layer.file_bytes)),
        _decimal(layer.seconds, 1),
    ]


def _breakable(name: str) -> str:
    """The name, which may be broken behind dots and underscores."""
    return escape(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _decimal(value: float | None, digits: int = 2) -> Cell:
    if value is None or math.isnan(value):
        return Cell(UNKNOWN)
    if math.isinf(value):
        return Cell("exact" if value > 0 else "no signal", 1e9 if value > 0 else -1e9)
    return Cell(f"{value:.{digits}f}", value)


def _bytes(count: int) -> Cell:
    return Cell(format_bytes(count), count)


def _percent(part: int, whole: int) -> Cell:
    return Cell(f"{100 * part / whole:.1f} %", part) if whole else Cell("-")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _class(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _json(value: object) -> str:
    return json.dumps(value, default=str, ensure_ascii=False, sort_keys=True)
