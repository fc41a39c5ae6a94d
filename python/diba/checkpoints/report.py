"""The report of a compressed model: its layers, totals, and what stays dense; as text and as data."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._internal import check
from .._internal.disk import PathLike, replace_file
from . import text
from .blocks import blocks_to_json
from .contents import Contents
from .entries import LayerReport, Skipped
from .html.page import notebook, page

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Report"]


@dataclass(frozen=True, kw_only=True)
class Report(Contents):
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
        facts: What is known beside the layers: files, figures measured on data, the course of retuning.
    """

    def without_times(self) -> Report:
        """The same without times and memory, which differ from run to run."""
        layers = tuple(dataclasses.replace(layer, seconds=None) for layer in self.layers)
        blocks = {name: dataclasses.replace(block, seconds=0.0) for name, block in self.blocks.items()}
        return dataclasses.replace(self, layers=layers, blocks=blocks, seconds=None, peak_bytes=None)

    # ------------------------------------------------------------ text

    def __str__(self) -> str:
        return self.table()

    def table(self, *, worst_first: bool = False, limit: int | None = None) -> str:
        """Text: how much is compressed, a table of the layers, totals, and what stays dense.

        Args:
            worst_first: Order the layers by rising SNR instead of module order.
            limit: Show at most this many layers; the others are only counted.
        """
        return text.table(self, self.worst_first() if worst_first else self.layers, limit)

    def to_markdown(self) -> str:
        """The totals, a table of the compressed layers, and a table of what stays dense."""
        return text.markdown(self)

    def _repr_html_(self) -> str:
        return notebook(self)

    def to_html(self, path: PathLike | None = None, *, title: str | None = None) -> str:
        """One HTML file that needs nothing else: figures, charts, all layers, what stays dense, settings.

        It is readable on a phone, on dark screens, and without scripts, which only sort the table of layers.
        The same report gives the same text.

        Args:
            path: The text is also written to it.
            title: Of the page; None: the name of the model, if it is known.
        """
        return _written(page(self, title), path)

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
            "facts": self.facts.to_dict(),
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
        names = [f.name for f in dataclasses.fields(LayerReport)]
        head = ["m", "n", *names, "weights", "reason"]
        writer = csv.DictWriter(out, head, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for layer in self.layers:
            sides = dict(zip("mn", layer.shape, strict=True)) | {"weights": layer.weights}
            texts = {"shape": _by(layer.shape), "tied": " ".join(layer.tied)}
            writer.writerow(dataclasses.asdict(layer) | sides | texts)
        for entry in self.skipped:
            sides = dict(zip("mn", entry.shape, strict=True)) if len(entry.shape) == 2 else {}
            more = {"shape": _by(entry.shape), "dense_bytes": entry.bytes}
            writer.writerow(dataclasses.asdict(entry) | sides | more)
        return _written(out.getvalue(), path)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


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
