"""What a compressed model holds: a line for every layer, totals, and what was left dense."""

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
from .layers import LayerRecipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .description import Description

__all__ = ["APART", "LayerReport", "Report", "Skipped", "layer_reports", "listed", "some", "text_of_bytes"]

APART = "its matrices are layers of their own"
"""The reason of parameters that are listed and counted by these layers."""

_HEADERS = ("layer", "kind", "shape", "k", "bits/weight", "SNR dB", "output SNR dB", "seconds")
_LEFT = ("left as it was", "kind", "shape", "weights", "bytes", "reason")


@dataclass(frozen=True)
class Skipped:
    """A layer that stays as it is, or a parameter of two or more dimensions that no such layer holds.

    Attributes:
        name: The layer's, or the full name of the parameter (or of a buffer of such a shape).
        kind: The layer's, or the class of the module that holds the parameter.
        reason: Why, in words.
        shape: Shape of the weight.
        weights: Entries of its parameters of two or more dimensions, of the dense weight where it holds
            factors; 0 where they are counted already, under another name.
        bytes: Bytes of these weights, dense.
    """

    name: str
    kind: str
    reason: str
    shape: tuple[int, ...] = ()
    weights: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class LayerReport:
    """One compressed layer. What nobody knows any more is None.

    Attributes:
        name: Name in the model.
        kind: Kind of the dense layer it was.
        shape: (m, n) of its matrix.
        k: Inner dimension.
        alphabet: ``"binary"`` or ``"sign"``.
        bits_per_weight: Stored bits for each weight, diagonals counted as the factors have them.
        dense_bytes: Bytes of the dense weight.
        memory_bytes: Bytes of the bits (rows of whole bytes) and float32 diagonals: in memory and in a
            state_dict.
        file_bytes: Bytes of the bits and of diagonals of 16 bits an entry: what a diba file takes.
        objective: What was minimised: ``"plain"``, ``"importance"`` or ``"covariance"``.
        snr_db: SNR of the weights against the dense ones, in dB, when the layer was compressed; what changed
            the factors afterwards, as :func:`diba.torch.retune` does, is not in it.
        output_snr_db: SNR of the outputs under the calibration's input moments, against the outputs the
            solver was to meet; None without moments, too.
        seconds: Time of the solve.
        tied: Names of the layers that share the factors.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    k: int
    alphabet: str
    bits_per_weight: float
    dense_bytes: int
    memory_bytes: int
    file_bytes: int
    objective: str | None = None
    snr_db: float | None = None
    output_snr_db: float | None = None
    seconds: float | None = None
    tied: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Entries of the dense matrix."""
        return self.shape[0] * self.shape[1]


def layer_reports(description: Description) -> tuple[LayerReport, ...]:
    """A report for every layer of a description, one for those that share their factors."""
    groups: dict[str, list[str]] = {}
    for name, layer in description.layers.items():
        groups.setdefault(layer.shared or name, []).append(name)
    found = {}
    for names in groups.values():
        # The name of a layer that multiplies: it is what a calibration and the settings go by.
        lead = next((name for name in names if description.layers[name].kind != "Embedding"), names[0])
        layer = description.layers[lead]
        recipe = layer.recipe or LayerRecipe()
        found[lead] = LayerReport(
            name=lead,
            kind=layer.kind,
            shape=layer.shape,
            k=layer.k,
            alphabet=layer.alphabet,
            bits_per_weight=layer.bits_per_weight,
            dense_bytes=layer.weight_bytes,
            memory_bytes=layer.bytes(32),
            file_bytes=layer.bytes(16),
            **dataclasses.asdict(recipe),
            tied=tuple(name for name in names if name != lead),
        )
    return tuple(found[name] for name in description.layers if name in found)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a model holds, from :func:`diba.torch.report`; ``print`` shows a table.

    Attributes:
        layers: Compressed layers, in module order.
        skipped: Dense layers, then all other parameters of two or more dimensions and buffers of such shapes
            in a state_dict, with sizes and reasons; parameters whose matrices became layers of their own,
            too, without a size: those layers have it.
        parameters_before: Entries of all parameters as they are dense, shared ones counted once.
        parameters_after: The same of the model as it is: bits are buffers, not parameters.
        bytes_before: Bytes of all parameters and buffers as they are dense.
        bytes_after: The same of the model as it is.
        seconds: Time of all conversions; None where nobody knows.
        peak_bytes: Largest memory of the process that converted the model; None where nobody knows.
        settings: The last conversion's; None where nobody knows.
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

    # ------------------------------------------------------------ totals of the compressed layers

    @property
    def weights(self) -> int:
        """Dense weights replaced."""
        return sum(layer.weights for layer in self.layers)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense weights replaced."""
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
        """Weights of the dense model in parameters of two or more dimensions, shared ones counted once."""
        return self.weights + sum(left.weights for left in self.skipped)

    @property
    def weight_share(self) -> float:
        """How much of ``matrix_weights`` factors stand for, from 0 to 1; NaN if there are none."""
        return self.weights / self.matrix_weights if self.matrix_weights else math.nan

    @property
    def byte_share(self) -> float:
        """How much of ``bytes_before`` they stand for; NaN if that is 0."""
        return self.dense_bytes / self.bytes_before if self.bytes_before else math.nan

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight over all compressed layers; NaN without any."""
        bits = sum(layer.bits_per_weight * layer.weights for layer in self.layers)
        return bits / self.weights if self.layers else math.nan

    @property
    def mean_snr_db(self) -> float:
        """Mean of the layers' SNRs in dB, as far as they are known; NaN without any."""
        known = [layer.snr_db for layer in self.layers if layer.snr_db is not None]
        return sum(known) / len(known) if known else math.nan

    @property
    def worst(self) -> LayerReport | None:
        """The layer of the lowest SNR; None where no SNR is known."""
        return min((x for x in self.layers if x.snr_db is not None), key=_by_snr, default=None)

    def worst_first(self) -> list[LayerReport]:
        """The layers by rising SNR, those whose SNR is unknown last."""
        return sorted(self.layers, key=_by_snr)

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
        if self.layers:
            bits = f"{self.weights:,} weights at {self.bits_per_weight:.3f} bits"
            lines.append(f"{bits}, {self._snr()}")
            sizes = f"{text_of_bytes(self.dense_bytes)} -> {text_of_bytes(self.memory_bytes)}"
            lines.append(f"these layers: {sizes} ({text_of_bytes(self.file_bytes)} with 16-bit diagonals)")
        lines.append(
            f"model: {self.parameters_before:,} -> {self.parameters_after:,} parameters, "
            f"{text_of_bytes(self.bytes_before)} -> {text_of_bytes(self.bytes_after)}"
        )
        if self.seconds is not None:
            peak = "" if self.peak_bytes is None else f", peak memory {text_of_bytes(self.peak_bytes)}"
            lines.append(f"{self.seconds:.1f} s{peak}")
        found = {layer.objective or "unknown" for layer in self.layers}
        if len(found) > 1:  # a layer that calibration did not reach got another one
            names = {
                objective: [x.name for x in self.layers if (x.objective or "unknown") == objective]
                for objective in sorted(found)
            }
            lines += [f"objective {objective}: {some(same)}" for objective, same in names.items()]
        apart = [left.name for left in self.skipped if left.reason == APART]
        lines += [f"in parts: {some(apart)}"] if apart else []
        return lines + [f"left: {line}" for line in listed(x for x in self.skipped if x.reason != APART)]

    def _snr(self) -> str:
        if self.worst is None:
            return "SNR unknown"
        worst = f"{_number(self.worst.snr_db)} dB at worst ({self.worst.name})"
        return f"SNR {self.mean_snr_db:.2f} dB in the mean, {worst}"

    def _headline(self) -> str:
        left = sum(left.reason != APART for left in self.skipped)
        weights = f"{_percent(self.weight_share)} of {self.matrix_weights:,} weights in matrices"
        sizes = f"{_percent(self.byte_share)} of the model's {text_of_bytes(self.bytes_before)}"
        head = f"{len(self.layers)} layer{'s' * (len(self.layers) != 1)} compressed"
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
        """Head and rows for compressed layers, and for what was left if anything was."""
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
            "layers": [_plain(layer) for layer in self.layers],
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
        head = ["m", "n", *names, "weights", "reason"]
        writer = csv.DictWriter(text, head, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for layer in self.layers:
            sides = dict(zip("mn", layer.shape, strict=True))
            writer.writerow(sides | dataclasses.asdict(layer) | {"weights": layer.weights})
        for left in self.skipped:
            sides = dict(zip("mn", left.shape, strict=True)) if len(left.shape) == 2 else {}
            writer.writerow(sides | dataclasses.asdict(left) | {"dense_bytes": left.bytes})
        return _written(text.getvalue(), path)


def listed(skipped: Iterable[Skipped]) -> list[str]:
    """A line for every reason: what it holds for, the first few by name, and how large that is."""
    groups: dict[str, list[Skipped]] = {}
    for left in skipped:
        groups.setdefault(left.reason, []).append(left)
    lines = []
    for reason, found in groups.items():
        size = f"{sum(x.weights for x in found):,} weights, {text_of_bytes(sum(x.bytes for x in found))}"
        lines.append(f"{reason}: {some([x.name for x in found])} ({size})")
    return lines


def some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def text_of_bytes(count: int) -> str:
    """As ``"1.31 MB"``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def _by_snr(layer: LayerReport) -> float:
    return math.inf if layer.snr_db is None else layer.snr_db


def _cells(layer: LayerReport) -> tuple[str, ...]:
    name = " = ".join((layer.name, *layer.tied))
    facts = name, layer.kind, _by(layer.shape), str(layer.k), f"{layer.bits_per_weight:.3f}"
    return *facts, _number(layer.snr_db), _number(layer.output_snr_db), _number(layer.seconds, 1)


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


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
