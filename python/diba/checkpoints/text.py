"""The text of a report: lines of totals and reasons, tables for terminals and Markdown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .entries import first_names, format_bytes, reason_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .blocks import BlockRecipe
    from .contents import Contents
    from .entries import LayerReport

__all__ = ["markdown", "summary", "table"]

_COMPRESSED = ("layer", "kind", "shape", "k", "bits/weight", "SNR dB", "output SNR dB", "seconds")
_DENSE = ("left dense", "kind", "shape", "weights", "bytes", "reason")


def table(report: Contents, layers: Sequence[LayerReport], limit: int | None) -> str:
    """Lines: how much is compressed, a table of the layers in this order, totals, and what stays dense."""
    rows = [_COMPRESSED, *(_cells(layer) for layer in layers[:limit])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows if layers else []:
        texts = (cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False))
        numbers = (cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))
        lines.append("  ".join((*texts, *numbers)).rstrip())
    hidden = len(layers) - len(layers[:limit])
    lines += [f"... and {hidden} more"] if hidden else []
    headline, *rest = summary(report)
    return "\n".join([headline, *lines, *rest])


def summary(report: Contents) -> list[str]:
    """Totals and what stays dense, one line each; the first says how much of the model is compressed."""
    lines = [_headline(report)]
    if report.layers:
        lines.append(f"{report.weights:,} weights at {report.bits_per_weight:.3f} bits, {_snr(report)}")
        sizes = f"{format_bytes(report.dense_bytes)} -> {format_bytes(report.memory_bytes)}"
        lines.append(f"these layers: {sizes} ({format_bytes(report.file_bytes)} with 16-bit diagonals)")
    lines.append(
        f"model: {report.parameters_before:,} -> {report.parameters_after:,} parameters, "
        f"{format_bytes(report.bytes_before)} -> {format_bytes(report.bytes_after)}"
    )
    if report.seconds is not None:
        peak = "" if report.peak_bytes is None else f", peak memory {format_bytes(report.peak_bytes)}"
        lines.append(f"{report.seconds:.1f} s{peak}")
    by_objective: dict[str, list[str]] = {}
    for layer in report.layers:
        by_objective.setdefault(layer.objective or "unknown", []).append(layer.name)
    if len(by_objective) > 1:  # e.g. where calibration did not reach some of the layers
        lines += [f"objective {x}: {first_names(names)}" for x, names in sorted(by_objective.items())]
    lines += [_reconstructed(report.blocks)] if report.blocks else []
    corrected = sum(layer.bias_corrected is True for layer in report.layers)
    added = [layer.name for layer in report.layers if layer.bias_added]
    lines += [f"biases corrected in {corrected} layers"] if corrected else []
    lines += [f"biases added to {len(added)} layers: {first_names(added)}"] if added else []
    split = [entry.name for entry in report.skipped if entry.is_split]
    lines += [f"split into layers: {first_names(split)}"] if split else []
    dense = [entry for entry in report.skipped if not entry.is_split]
    return lines + [f"left dense: {line}" for line in reason_lines(dense)]


def _reconstructed(found: Mapping[str, BlockRecipe]) -> str:
    blocks = found.values()
    worst = max(found, key=lambda name: found[name].loss)
    factored = sum(block.loss_factored for block in blocks) / len(blocks)
    after = sum(block.loss for block in blocks) / len(blocks)
    moved, seconds = sum(block.flips > 0 for block in blocks), sum(block.seconds for block in blocks)
    time = f", {seconds:.0f} s" if seconds else ""  # checkpoints without times have 0
    return (
        f"{len(blocks)} blocks reconstructed, {moved} with moved bits: held-out loss {factored:.3g} -> "
        f"{after:.3g} in the mean, {found[worst].loss:.3g} at worst ({worst}){time}"
    )


def _headline(report: Contents) -> str:
    dense = sum(not entry.is_split for entry in report.skipped)
    weights = f"{_percent(report.weight_share)} of {report.matrix_weights:,} weights in matrices"
    sizes = f"{_percent(report.byte_share)} of the model's {format_bytes(report.bytes_before)}"
    head = f"{len(report.layers)} layer{'s' * (len(report.layers) != 1)} compressed"
    return f"{head}: {weights}, {sizes}; {dense} left dense"


def _snr(report: Contents) -> str:
    if report.worst is None:
        return "SNR unknown"
    worst = f"{_number(report.worst.snr_db)} dB at worst ({report.worst.name})"
    return f"SNR {report.mean_snr_db:.2f} dB in the mean, {worst}"


def markdown(report: Contents) -> str:
    """The totals, a table of the compressed layers, and a table of what stays dense."""
    lines, backslash = [f"- {line}" for line in summary(report)], r"\|"
    for head, rows in _tables(report):
        ruler = ("---", "---", *("---:" for _ in head[2:]))
        lines += [
            "",
            *(
                f"| {' | '.join(cell.replace('|', backslash) for cell in row)} |"
                for row in (head, ruler, *rows)
            ),
        ]
    return "\n".join(lines) + "\n"


def _tables(report: Contents) -> list[tuple[Sequence[str], list[Sequence[str]]]]:
    """Head and rows of the table of compressed layers, and of that of dense ones if there are any."""
    compressed: list[Sequence[str]] = [_cells(layer) for layer in report.layers]
    dense: list[Sequence[str]] = [
        (x.name, x.kind, _by(x.shape), f"{x.weights:,}", f"{x.bytes:,}", x.reason) for x in report.skipped
    ]
    return [(_COMPRESSED, compressed), *([(_DENSE, dense)] if dense else [])]


def _cells(layer: LayerReport) -> tuple[str, ...]:
    name = " = ".join((layer.name, *layer.tied))
    sizes = name, layer.kind, _by(layer.shape), str(layer.k or "-"), f"{layer.bits_per_weight:.3f}"
    return *sizes, _number(layer.snr_db), _number(layer.output_snr_db), _number(layer.seconds, 1)


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _percent(share: float) -> str:
    # Rounded down, so that 100.0 % means everything.
    return "none" if math.isnan(share) else f"{math.floor(1000 * share) / 10:.1f} %"
