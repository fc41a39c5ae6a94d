"""The report of a compressed model: its layers, totals, and what stays dense; as text and as data."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._internal import check
from .._internal.disk import PathLike, replace_file
from .blocks import BlockRecipe, blocks_to_json
from .entries import LayerReport, Skipped, first_names, format_bytes, reason_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Report"]

_COMPRESSED = ("layer", "kind", "shape", "k", "bits/weight", "SNR dB", "output SNR dB", "seconds")
_DENSE = ("left dense", "kind", "shape", "weights", "bytes", "reason")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What of a model is compressed, from :func:`diba.torch.report`; ``print`` shows a table.

    Facts that were not recorded are None.

    Attributes:
        layers: Compressed layers, in module order.
        skipped: Dense layers, then all other parameters and persistent buffers of two or more dimensions,
            with sizes and reasons. Fused parameters that were split into layers are listed without a size,
            which is counted with those layers.
        parameters_before: Entries of all parameters if the model were dense; shared ones count once.
        parameters_after: Entries of all parameters of the model as it is. Bits are buffers, not parameters.
        bytes_before: Bytes of all parameters and buffers if the model were dense.
        bytes_after: Bytes of all parameters and buffers of the model as it is.
        seconds: Time of all conversions.
        peak_bytes: Peak memory of the process that converted the model.
        settings: Settings of the last conversion.
        reconstruction: Settings of the last reconstruction of blocks; None: there was none.
        blocks: Name -> how the block was reconstructed.
    """

    layers: Sequence[LayerReport] = ()
    skipped: Sequence[Skipped] = ()
    parameters_before: int = 0
    parameters_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    seconds: float | None = None
    peak_bytes: int | None = field(default=None, compare=False)
    settings: Mapping[str, Any] | None = None
    reconstruction: Mapping[str, Any] | None = None
    blocks: Mapping[str, BlockRecipe] = field(default_factory=dict)

    # ------------------------------------------------------------ totals of the compressed layers

    @property
    def weights(self) -> int:
        """Entries of the dense weights that were replaced."""
        return sum(layer.weights for layer in self.layers)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense weights that were replaced."""
        return sum(layer.dense_bytes for layer in self.layers)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the factors in memory, and in a state_dict."""
        return sum(layer.memory_bytes for layer in self.layers)

    @property
    def file_bytes(self) -> int:
        """Bytes of the factors with 16-bit diagonals."""
        return sum(layer.file_bytes for layer in self.layers)

    @property
    def matrix_weights(self) -> int:
        """Entries of the dense model's parameters of two or more dimensions; shared ones count once."""
        return self.weights + sum(entry.weights for entry in self.skipped)

    @property
    def weight_share(self) -> float:
        """Share of ``matrix_weights`` that is compressed, from 0 to 1; NaN if there are no such weights."""
        return self.weights / self.matrix_weights if self.matrix_weights else math.nan

    @property
    def byte_share(self) -> float:
        """Share of ``bytes_before`` that is compressed, from 0 to 1; NaN if ``bytes_before`` is 0."""
        return self.dense_bytes / self.bytes_before if self.bytes_before else math.nan

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight over all compressed layers; NaN without any."""
        bits = sum(layer.bits_per_weight * layer.weights for layer in self.layers)
        return bits / self.weights if self.layers else math.nan

    @property
    def mean_snr_db(self) -> float:
        """Mean of the known SNRs of the layers, in dB; NaN if none is known."""
        known = [layer.snr_db for layer in self.layers if layer.snr_db is not None]
        return sum(known) / len(known) if known else math.nan

    @property
    def worst(self) -> LayerReport | None:
        """The layer with the lowest SNR; None if no SNR is known."""
        return min((x for x in self.layers if x.snr_db is not None), key=_by_snr, default=None)

    def worst_first(self) -> list[LayerReport]:
        """The layers by rising SNR; those of unknown SNR come last."""
        return sorted(self.layers, key=_by_snr)

    # ------------------------------------------------------------ text

    def __str__(self) -> str:
        return self.table()

    def table(self, *, worst_first: bool = False, limit: int | None = None) -> str:
        """Text: how much is compressed, a table of the layers, totals, and what stays dense.

        Args:
            worst_first: Order the layers by rising SNR instead of module order.
            limit: Show at most this many layers; the others are only counted.
        """
        layers = self.worst_first() if worst_first else list(self.layers)
        rows = [_COMPRESSED, *(_cells(layer) for layer in layers[:limit])]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows if layers else []:
            texts = (cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False))
            numbers = (cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))
            lines.append("  ".join((*texts, *numbers)).rstrip())
        hidden = len(layers) - len(layers[:limit])
        lines += [f"... and {hidden} more"] if hidden else []
        headline, *rest = self._summary()
        return "\n".join([headline, *lines, *rest])

    def _summary(self) -> list[str]:
        """Totals and what stays dense, one line each; the first says how much of the model is compressed."""
        lines = [self._headline()]
        if self.layers:
            lines.append(f"{self.weights:,} weights at {self.bits_per_weight:.3f} bits, {self._snr()}")
            sizes = f"{format_bytes(self.dense_bytes)} -> {format_bytes(self.memory_bytes)}"
            lines.append(f"these layers: {sizes} ({format_bytes(self.file_bytes)} with 16-bit diagonals)")
        lines.append(
            f"model: {self.parameters_before:,} -> {self.parameters_after:,} parameters, "
            f"{format_bytes(self.bytes_before)} -> {format_bytes(self.bytes_after)}"
        )
        if self.seconds is not None:
            peak = "" if self.peak_bytes is None else f", peak memory {format_bytes(self.peak_bytes)}"
            lines.append(f"{self.seconds:.1f} s{peak}")
        by_objective: dict[str, list[str]] = {}
        for layer in self.layers:
            by_objective.setdefault(layer.objective or "unknown", []).append(layer.name)
        if len(by_objective) > 1:  # e.g. where calibration did not reach some of the layers
            lines += [f"objective {x}: {first_names(names)}" for x, names in sorted(by_objective.items())]
        lines += [self._reconstructed()] if self.blocks else []
        corrected = sum(layer.bias_corrected is True for layer in self.layers)
        added = [layer.name for layer in self.layers if layer.bias_added]
        lines += [f"biases corrected in {corrected} layers"] if corrected else []
        lines += [f"biases added to {len(added)} layers: {first_names(added)}"] if added else []
        split = [entry.name for entry in self.skipped if entry.is_split]
        lines += [f"split into layers: {first_names(split)}"] if split else []
        dense = [entry for entry in self.skipped if not entry.is_split]
        return lines + [f"left dense: {line}" for line in reason_lines(dense)]

    def _reconstructed(self) -> str:
        blocks = self.blocks.values()
        worst = max(self.blocks, key=lambda name: self.blocks[name].loss)
        factored = sum(block.loss_factored for block in blocks) / len(blocks)
        after = sum(block.loss for block in blocks) / len(blocks)
        moved, seconds = sum(block.flips > 0 for block in blocks), sum(block.seconds for block in blocks)
        return (
            f"{len(blocks)} blocks reconstructed, {moved} with moved bits: held-out loss {factored:.3g} -> "
            f"{after:.3g} in the mean, {self.blocks[worst].loss:.3g} at worst ({worst}), {seconds:.0f} s"
        )

    def _headline(self) -> str:
        dense = sum(not entry.is_split for entry in self.skipped)
        weights = f"{_percent(self.weight_share)} of {self.matrix_weights:,} weights in matrices"
        sizes = f"{_percent(self.byte_share)} of the model's {format_bytes(self.bytes_before)}"
        head = f"{len(self.layers)} layer{'s' * (len(self.layers) != 1)} compressed"
        return f"{head}: {weights}, {sizes}; {dense} left dense"

    def _snr(self) -> str:
        if self.worst is None:
            return "SNR unknown"
        worst = f"{_number(self.worst.snr_db)} dB at worst ({self.worst.name})"
        return f"SNR {self.mean_snr_db:.2f} dB in the mean, {worst}"

    def to_markdown(self) -> str:
        """The totals, a table of the compressed layers, and a table of what stays dense."""
        lines = [f"- {line}" for line in self._summary()]
        for head, rows in self._tables():
            ruler = ("---", "---", *("---:" for _ in head[2:]))
            lines += ["", *(f"| {' | '.join(row)} |" for row in (head, ruler, *rows))]
        return "\n".join(lines) + "\n"

    def _repr_html_(self) -> str:
        def row(cells: Sequence[str], tag: str) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

        tables = [
            f"<thead>{row(head, 'th')}</thead><tbody>{''.join(row(cells, 'td') for cells in rows)}</tbody>"
            for head, rows in self._tables()
        ]
        caption = f"<caption>{'<br>'.join(map(html.escape, self._summary()))}</caption>"
        return "".join(
            f"<table>{'' if number else caption}{text}</table>" for number, text in enumerate(tables)
        )

    def _tables(self) -> list[tuple[Sequence[str], list[Sequence[str]]]]:
        """Head and rows of the table of compressed layers, and of that of dense ones if there are any."""
        compressed: list[Sequence[str]] = [_cells(layer) for layer in self.layers]
        dense: list[Sequence[str]] = [
            (x.name, x.kind, _by(x.shape), f"{x.weights:,}", f"{x.bytes:,}", x.reason) for x in self.skipped
        ]
        return [(_COMPRESSED, compressed), *([(_DENSE, dense)] if dense else [])]

    # ------------------------------------------------------------ data

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON; NaN and infinite numbers become None."""
        sizes = ("weights", "dense_bytes", "memory_bytes", "file_bytes", "bits_per_weight", "mean_snr_db")
        totals = (*sizes, "matrix_weights", "weight_share", "byte_share")
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[2:]}
        return {
            **{name: _finite(value) for name, value in own.items()},
            **{name: _finite(getattr(self, name)) for name in totals},
            "blocks": blocks_to_json(self.blocks),
            "layers": [_plain(layer) for layer in self.layers],
            "skipped": [_plain(layer) for layer in self.skipped],
        }

    def to_json(self, path: PathLike | None = None) -> str:
        """:meth:`to_dict` as JSON text, also written to ``path`` if given."""
        return _written(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", path)

    def to_csv(self, path: PathLike | None = None) -> str:
        """One CSV line for every compressed layer, then one with its reason for everything that stays dense.

        The text is also written to ``path`` if given.
        """
        out = io.StringIO()
        names = [f.name for f in dataclasses.fields(LayerReport) if f.name not in ("shape", "tied")]
        head = ["m", "n", *names, "weights", "reason"]
        writer = csv.DictWriter(out, head, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for layer in self.layers:
            sides = dict(zip("mn", layer.shape, strict=True))
            writer.writerow(sides | dataclasses.asdict(layer) | {"weights": layer.weights})
        for entry in self.skipped:
            sides = dict(zip("mn", entry.shape, strict=True)) if len(entry.shape) == 2 else {}
            writer.writerow(sides | dataclasses.asdict(entry) | {"dense_bytes": entry.bytes})
        return _written(out.getvalue(), path)


def _by_snr(layer: LayerReport) -> float:
    return math.inf if layer.snr_db is None else layer.snr_db


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


def _plain(layer: LayerReport | Skipped) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else _finite(value)
        for name, value in dataclasses.asdict(layer).items()
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _written(content: str, path: PathLike | None) -> str:
    if path is not None:
        replace_file(check.path(path), content.encode())
    return content
