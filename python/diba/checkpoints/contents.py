"""What a report of a compressed model holds: its layers, what stays dense, totals, and facts beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .facts import Facts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .blocks import BlockRecipe
    from .entries import LayerReport, Skipped

__all__ = ["Contents"]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The values of a :class:`diba.torch.Report`, which describes them, and its totals."""

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
    facts: Facts = field(default_factory=Facts)

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


def _by_snr(layer: LayerReport) -> float:
    return math.inf if layer.snr_db is None else layer.snr_db
