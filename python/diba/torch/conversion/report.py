"""What a conversion did: one line for every layer, totals, and the layers left as they were."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..._internal import check, storage
from ..._internal.disk import PathLike, replace_file
from ...solvers.size import DIAGONAL_BITS
from ..model.accounts import APART, CONVERTED, Skipped, listed, some, text_of_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LayerReport", "Report", "Skipped"]

_HEADERS = ("layer", "kind", "shape", "k", "bits/weight", "SNR dB", "output SNR dB", "seconds")
_LEFT = ("left as it was", "kind", "shape", "weights", "bytes", "reason")


@dataclass(frozen=True)
class LayerReport:
    """One compressed layer.

    Attributes:
        name: Of the layer in the model.
        kind: Of the dense layer it was.
        shape: (m, n) of its matrix.
        k: Inner dimension.
        alphabet: ``"binary"`` or ``"sign"``.
        objective: What was minimised: ``"plain"``, ``"importance"`` or ``"covariance"``.
        bits_per_weight: Stored bits for each weight, diagonals counted as the factors have them.
        snr_db: Of the weights against the dense ones, in dB.
        output_snr_db: Of the outputs under the calibration's input moments, against the outputs the solver
            was to meet; None without moments.
        seconds: Time of the solve.
        dense_bytes: Of the dense weight.
        memory_bytes: Of bits (rows of whole bytes) and float32 diagonals: in memory and in a state_dict.
        tied: Names of the layers that share the factors.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    k: int
    alphabet: str
    objective: str
    bits_per_weight: float
    snr_db: float
    output_snr_db: float | None
    seconds: float
    dense_bytes: int
    memory_bytes: int
    tied: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Entries of the dense matrix."""
        return self.shape[0] * self.shape[1]

    @property
    def file_bytes(self) -> int:
        """Of bits and diagonals of 16 bits an entry: what a diba file takes."""
        (m, n), k = self.shape, self.k
        bits = k * (m + n) + storage.padding_bits(m, n, k, unit=8)
        return (bits + DIAGONAL_BITS * (m + k + n)) // 8


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of :func:`diba.torch.convert`; ``print`` shows a table.

    Attributes:
        layers: Compressed layers, in module order.
        skipped: Layers that stay as they were, then all other parameters of two or more dimensions and
            buffers of such shapes in a state_dict, with sizes and reasons; parameters whose matrices became
            layers of their own, too, without a size: those layers have it.
        parameters_before: Entries of all parameters of the model, shared ones counted once.
        parameters_after: The same afterwards: bits are buffers, not parameters.
        bytes_before: Of all parameters and buffers of the model.
        bytes_after: The same afterwards.
        model_bytes: Of all parameters and buffers as they are dense: layers converted earlier, too.
        seconds: Time of the whole conversion.
        peak_bytes: Largest memory of the process so far; None where the system does not say.
    """

    layers: Sequence[LayerReport] = ()
    skipped: Sequence[Skipped] = ()
    parameters_before: int = 0
    parameters_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    model_bytes: int = 0
    seconds: float = 0.0
    peak_bytes: int | None = field(default=None, compare=False)

    # ------------------------------------------------------------ totals of the compressed layers

    @property
    def weights(self) -> int:
        """Dense weights replaced."""
        return sum(layer.weights for layer in self.layers)

    @property
    def dense_bytes(self) -> int:
        """Of the dense weights replaced."""
        return sum(layer.dense_bytes for layer in self.layers)

    @property
    def memory_bytes(self) -> int:
        """Of the factors in memory, and in a state_dict."""
        return sum(layer.memory_bytes for layer in self.layers)

    @property
    def file_bytes(self) -> int:
        """Of the factors with 16-bit diagonals."""
        return sum(layer.file_bytes for layer in self.layers)

    @property
    def matrix_weights(self) -> int:
        """Weights of the dense model in parameters of two or more dimensions, shared ones counted once."""
        return self.weights + sum(left.weights for left in self.skipped)

    @property
    def weight_share(self) -> float:
        """How much of ``matrix_weights`` factors stand for now, from 0 to 1; NaN if there are none."""
        earlier = sum(left.weights for left in self.skipped if left.reason == CONVERTED)
        return (self.weights + earlier) / self.matrix_weights if self.matrix_weights else math.nan

    @property
    def byte_share(self) -> float:
        """How much of ``model_bytes`` they stand for; NaN if that is 0."""
        earlier = sum(left.bytes for left in self.skipped if left.reason == CONVERTED)
        return (self.dense_bytes + earlier) / self.model_bytes if self.model_bytes else math.nan

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight over all compressed layers; NaN without any."""
        bits = sum(layer.bits_per_weight * layer.weights for layer in self.layers)
        return bits / self.weights if self.layers else math.nan

    @property
    def mean_snr_db(self) -> float:
        """Mean of the layers' SNRs in dB; NaN without any."""
        return sum(layer.snr_db for layer in self.layers) / len(self.layers) if self.layers else math.nan

    @property
    def worst(self) -> LayerReport | None:
        """The layer of the lowest SNR."""
        return min(self.layers, key=lambda layer: layer.snr_db, default=None)

    def worst_first(self) -> list[LayerReport]:
        """The layers by rising SNR."""
        return sorted(self.layers, key=lambda layer: layer.snr_db)

    # ------------------------------------------------------------ text

    def __str__(self) -> str:
        return self.table()

    def table(self, *, worst_first: bool = False, limit: int | None = None) -> str:
        """Text: how much was compressed, a table of the layers, totals, and what was left.

        Args:
            worst_first: Lowest SNR first instead of module order.
            limit: Lines at most; the rest is counted.
        """
        layers = self.worst_first() if worst_first else list(self.layers)
        rows = [_HEADERS, *(_cells(layer) for layer in layers[:limit])]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows if layers else []:
            texts = (cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False))
            numbers = (cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))
            lines.append("  ".join((*texts, *numbers)).rstrip())
        hidden = len(layers) - len(layers[:limit])
        lines += [f"... and {hidden} more"] if hidden else []
        headline, *rest = self.summary()
        return "\n".join([headline, *lines, *rest])

    def summary(self) -> list[str]:
        """Totals and what was skipped, a line each; the first says how much of the model was compressed."""
        lines = [self._headline()]
        if self.worst is not None:
            snr = f"SNR {self.mean_snr_db:.2f} dB in the mean, {self.worst.snr_db:.2f} dB at worst"
            bits = f"{self.weights:,} weights at {self.bits_per_weight:.3f} bits"
            lines.append(f"{bits}, {snr} ({self.worst.name})")
            sizes = f"{text_of_bytes(self.dense_bytes)} -> {text_of_bytes(self.memory_bytes)}"
            lines.append(f"these layers: {sizes} ({text_of_bytes(self.file_bytes)} with 16-bit diagonals)")
        lines.append(
            f"model: {self.parameters_before:,} -> {self.parameters_after:,} parameters, "
            f"{text_of_bytes(self.bytes_before)} -> {text_of_bytes(self.bytes_after)}"
        )
        peak = "" if self.peak_bytes is None else f", peak memory {text_of_bytes(self.peak_bytes)}"
        lines.append(f"{self.seconds:.1f} s{peak}")
        found = {layer.objective for layer in self.layers}
        if len(found) > 1:  # a layer that calibration did not reach got another one
            names = {o: [layer.name for layer in self.layers if layer.objective == o] for o in sorted(found)}
            lines += [f"objective {o}: {some(same)}" for o, same in names.items()]
        apart = [left.name for left in self.skipped if left.reason == APART]
        lines += [f"in parts: {some(apart)}"] if apart else []
        return lines + [f"left: {line}" for line in listed(x for x in self.skipped if x.reason != APART)]

    def _headline(self) -> str:
        earlier = sum(left.reason == CONVERTED for left in self.skipped)
        left = sum(left.reason not in (CONVERTED, APART) for left in self.skipped)
        before = f" and {earlier} before" if earlier else ""
        weights = f"{_percent(self.weight_share)} of {self.matrix_weights:,} weights in matrices"
        sizes = f"{_percent(self.byte_share)} of the model's {text_of_bytes(self.model_bytes)}"
        head = f"{len(self.layers)} layer{'s' * (len(self.layers) != 1)} compressed{before}"
        return f"{head}: {weights}, {sizes}; {left} left as {'it was' if left == 1 else 'they were'}"

    def to_markdown(self) -> str:
        """Totals, one table row for every compressed layer, and one for all that was left."""
        lines = [f"- {line}" for line in self.summary()]
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
        caption = f"<caption>{'<br>'.join(map(html.escape, self.summary()))}</caption>"
        return "".join(
            f"<table>{'' if number else caption}{text}</table>" for number, text in enumerate(tables)
        )

    def _tables(self) -> list[tuple[Sequence[str], list[Sequence[str]]]]:
        """Head and rows: of compressed layers, and of what was left if anything was."""
        made: list[Sequence[str]] = [_cells(layer) for layer in self.layers]
        left: list[Sequence[str]] = [
            (x.name, x.kind, _by(x.shape), f"{x.weights:,}", f"{x.bytes:,}", x.reason) for x in self.skipped
        ]
        return [(_HEADERS, made), *([(_LEFT, left)] if left else [])]

    # ------------------------------------------------------------ data

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; numbers that are not finite become None."""
        sizes = ("weights", "dense_bytes", "memory_bytes", "file_bytes", "bits_per_weight", "mean_snr_db")
        totals = (*sizes, "matrix_weights", "weight_share", "byte_share")
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[2:]}
        return {
            **{name: _finite(value) for name, value in own.items()},
            **{name: _finite(getattr(self, name)) for name in totals},
            "layers": [_plain(layer) | {"file_bytes": layer.file_bytes} for layer in self.layers],
            "skipped": [_plain(layer) for layer in self.skipped],
        }

    def to_json(self, path: PathLike | None = None) -> str:
        """:meth:`to_dict` as JSON text, also written to ``path`` if given."""
        return _written(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", path)

    def to_csv(self, path: PathLike | None = None) -> str:
        """A line for every compressed layer, then one with its reason for everything that was left.

        Written to ``path``, too, if given.
        """
        text = io.StringIO()
        names = [f.name for f in dataclasses.fields(LayerReport) if f.name not in ("shape", "tied")]
        head = ["m", "n", *names, "file_bytes", "weights", "reason"]
        writer = csv.DictWriter(text, head, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for layer in self.layers:
            more = {"file_bytes": layer.file_bytes, "weights": layer.weights}
            writer.writerow(dict(zip("mn", layer.shape, strict=True)) | dataclasses.asdict(layer) | more)
        for left in self.skipped:
            sides = dict(zip("mn", left.shape, strict=True)) if len(left.shape) == 2 else {}
            writer.writerow(sides | dataclasses.asdict(left) | {"dense_bytes": left.bytes})
        return _written(text.getvalue(), path)


def _cells(layer: LayerReport) -> tuple[str, ...]:
    output = "-" if layer.output_snr_db is None else f"{layer.output_snr_db:.2f}"
    name = " = ".join((layer.name, *layer.tied))
    shape, bits = _by(layer.shape), f"{layer.bits_per_weight:.3f}"
    return name, layer.kind, shape, str(layer.k), bits, f"{layer.snr_db:.2f}", output, f"{layer.seconds:.1f}"


def _plain(layer: LayerReport | Skipped) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else _finite(value)
        for name, value in dataclasses.asdict(layer).items()
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _percent(share: float) -> str:
    # Rounded down: 100.0 % is all of it.
    return "none" if math.isnan(share) else f"{math.floor(1000 * share) / 10:.1f} %"


def _written(text: str, path: PathLike | None) -> str:
    if path is not None:
        replace_file(check.path(path), text.encode())
    return text
