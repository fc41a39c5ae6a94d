"""What a conversion did: one line for every layer, totals, and the layers left as they were."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import storage
from ..solvers.budget import DIAGONAL_BITS

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

__all__ = ["LayerReport", "Report", "Skipped"]

_HEADERS = ("layer", "kind", "shape", "k", "bits/weight", "SNR dB", "output SNR dB", "seconds")


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


@dataclass(frozen=True)
class Skipped:
    """A layer that stays as it is.

    Attributes:
        name: Of the layer.
        kind: Its kind.
        reason: Why, in words.
    """

    name: str
    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of :func:`diba.torch.convert`; ``print`` shows a table.

    Attributes:
        layers: Compressed layers, in module order.
        skipped: Layers that stay as they were, with reasons.
        parameters_before: Entries of all parameters of the model, shared ones counted once.
        parameters_after: The same afterwards: bits are buffers, not parameters.
        bytes_before: Of all parameters and buffers of the model.
        bytes_after: The same afterwards.
        seconds: Time of the whole conversion.
        peak_bytes: Largest memory of the process so far; None where the system does not say.
    """

    layers: Sequence[LayerReport] = ()
    skipped: Sequence[Skipped] = ()
    parameters_before: int = 0
    parameters_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
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
        """A table in plain text.

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
        return "\n".join([*lines, *self.summary()])

    def summary(self) -> list[str]:
        """Totals and what was skipped, a line each."""
        lines = [f"{len(self.layers)} layers compressed, {len(self.skipped)} left as they were"]
        if self.worst is not None:
            snr = f"SNR {self.mean_snr_db:.2f} dB in the mean, {self.worst.snr_db:.2f} dB at worst"
            bits = f"{self.weights:,} weights at {self.bits_per_weight:.3f} bits"
            lines.append(f"{bits}, {snr} ({self.worst.name})")
            sizes = f"{_size(self.dense_bytes)} -> {_size(self.memory_bytes)}"
            lines.append(f"these layers: {sizes} ({_size(self.file_bytes)} with 16-bit diagonals)")
        lines.append(
            f"model: {self.parameters_before:,} -> {self.parameters_after:,} parameters, "
            f"{_size(self.bytes_before)} -> {_size(self.bytes_after)}"
        )
        peak = "" if self.peak_bytes is None else f", peak memory {_size(self.peak_bytes)}"
        lines.append(f"{self.seconds:.1f} s{peak}")
        return lines + [f"left: {reason}: {names}" for reason, names in self._reasons().items()]

    def _reasons(self) -> dict[str, str]:
        """Reason -> the layers it holds for, the first few by name."""
        names: dict[str, list[str]] = {}
        for layer in self.skipped:
            names.setdefault(layer.reason, []).append(layer.name)
        more = {reason: f" and {len(found) - 3} more" for reason, found in names.items() if len(found) > 3}
        return {reason: ", ".join(found[:3]) + more.get(reason, "") for reason, found in names.items()}

    def to_markdown(self) -> str:
        """Totals and one table row for every layer, for a model card."""
        rows = [_HEADERS, ("---", "---", *("---:" for _ in _HEADERS[2:])), *map(_cells, self.layers)]
        lines = [f"- {line}" for line in self.summary()]
        return "\n".join([*lines, "", *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(text)}</th>" for text in _HEADERS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(layer)) + "</tr>"
            for layer in self.layers
        )
        caption = "<br>".join(map(html.escape, self.summary()))
        return (
            f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    # ------------------------------------------------------------ data

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; numbers that are not finite become None."""
        totals = ("weights", "dense_bytes", "memory_bytes", "file_bytes", "bits_per_weight", "mean_snr_db")
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[2:]}
        return {
            **{name: _finite(value) for name, value in own.items()},
            **{name: _finite(getattr(self, name)) for name in totals},
            "layers": [_plain(layer) | {"file_bytes": layer.file_bytes} for layer in self.layers],
            "skipped": [_plain(layer) for layer in self.skipped],
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """:meth:`to_dict` as JSON text, also written to ``path`` if given."""
        return _written(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", path)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """One line for every compressed layer, also written to ``path`` if given."""
        text = io.StringIO()
        names = [f.name for f in dataclasses.fields(LayerReport) if f.name not in ("shape", "tied")]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["m", "n", *names, "file_bytes"])
        for layer in self.layers:
            writer.writerow([*layer.shape, *(getattr(layer, name) for name in names), layer.file_bytes])
        return _written(text.getvalue(), path)


def _cells(layer: LayerReport) -> tuple[str, ...]:
    output = "-" if layer.output_snr_db is None else f"{layer.output_snr_db:.2f}"
    name = " = ".join((layer.name, *layer.tied))
    shape, bits = "{} x {}".format(*layer.shape), f"{layer.bits_per_weight:.3f}"
    return name, layer.kind, shape, str(layer.k), bits, f"{layer.snr_db:.2f}", output, f"{layer.seconds:.1f}"


def _plain(layer: LayerReport | Skipped) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else _finite(value)
        for name, value in dataclasses.asdict(layer).items()
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def _written(text: str, path: str | os.PathLike[str] | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text
