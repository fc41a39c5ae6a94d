"""The entries of a report: compressed layers, and everything that stays dense; lines of text about them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .layers import LayerRecipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .description import Description
    from .layers import LayerDescription

__all__ = [
    "SPLIT",
    "LayerReport",
    "Skipped",
    "first_names",
    "format_bytes",
    "in_order",
    "layer_reports",
    "reason_lines",
]

SPLIT = "its matrices are separate layers"
"""The reason given for a fused parameter, whose weights are counted with the layers made of it."""


@dataclass(frozen=True)
class Skipped:
    """A layer that is not compressed, or a parameter of two or more dimensions outside such layers.

    Attributes:
        name: Name of the layer, or full name of the parameter or buffer.
        kind: Kind of the layer, or class of the module that holds the parameter.
        reason: Why it is not compressed.
        shape: Shape of the weight.
        weights: Entries of its parameters of two or more dimensions, as dense tensors; 0 for parameters that
            were counted before under another name, and for buffers.
        bytes: Bytes of these weights as dense tensors; of a buffer, its own bytes.
    """

    name: str
    kind: str
    reason: str
    shape: tuple[int, ...] = ()
    weights: int = 0
    bytes: int = 0

    @property
    def is_split(self) -> bool:
        """Whether it is a fused parameter that was split into layers, which are reported by themselves."""
        return self.reason == SPLIT


@dataclass(frozen=True)
class LayerReport:
    """One compressed layer; facts that were not recorded are None.

    Attributes:
        name: Name in the model.
        kind: Kind of the dense layer it replaced.
        shape: (m, n) of its matrix.
        k: Inner dimension; 0 without factors.
        alphabet: ``"binary"`` or ``"sign"``; for codes ``"int8"`` or ``"int4"``; ``"apb"`` for binary weights
            with exceptions; ``"1x2"`` for weights of 1 and inputs of 2 bits.
        bits_per_weight: Stored bits per weight, diagonals counted at 16 bits an entry where those hold them
            exactly, else at 32.
        dense_bytes: Bytes of the dense weight.
        memory_bytes: Bytes of the bits, with each row padded to whole bytes, and of float32 diagonals: the
            size in memory and in a state_dict.
        file_bytes: Bytes of the bits and of 16-bit diagonals: the size in a diba file.
        objective: What was minimised: ``"plain"``, ``"importance"`` or ``"covariance"``.
        snr_db: SNR of the compressed weights against the dense ones, in dB, measured when the layer was
            compressed. Later changes, such as those of :func:`diba.torch.retune`, are not included.
        output_snr_db: SNR in dB of the layer's outputs against its target, under the second moments of its
            inputs, the bias included; None if it was compressed without moments.
        seconds: Time of the solve.
        bias_corrected: Whether its bias was corrected, or added, for the error of the mean output.
        bias_added: Whether it has a bias that the dense layer had not.
        tied: Names of other layers that share the factors.
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
    bias_corrected: bool | None = None
    bias_added: bool = False
    tied: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Entries of the dense matrix."""
        return self.shape[0] * self.shape[1]


def layer_reports(description: Description) -> tuple[LayerReport, ...]:
    """One report for every layer of a description, and one for each set of layers that share factors."""
    found = {}
    for names in description.sharing.values():
        # Calibration and settings use the name of the layer that multiplies, not that of an embedding.
        lead = next((name for name in names if description.layers[name].kind != "Embedding"), names[0])
        layer = description.layers[lead]
        recipe = layer.recipe or LayerRecipe()
        found[lead] = LayerReport(
            name=lead,
            kind=layer.kind,
            shape=layer.shape,
            k=layer.k,
            alphabet=layer.alphabet or _stored_as(layer),
            bits_per_weight=layer.bits_per_weight,
            dense_bytes=layer.weight_bytes,
            memory_bytes=layer.bytes(32),
            file_bytes=layer.bytes(16),
            **dataclasses.asdict(recipe),
            bias_added=layer.bias_added,
            tied=tuple(name for name in names if name != lead),
        )
    return tuple(found[name] for name in description.layers if name in found)


def _stored_as(layer: LayerDescription) -> str:
    if layer.weight_bits:
        return f"{layer.weight_bits}x{layer.activation_bits}"
    return "apb" if layer.alphas else f"int{layer.codes}"


def reason_lines(skipped: Iterable[Skipped]) -> list[str]:
    """One line for every reason: the first few names it holds for, and their total size."""
    groups: dict[str, list[Skipped]] = {}
    for entry in skipped:
        groups.setdefault(entry.reason, []).append(entry)
    lines = []
    for reason, found in groups.items():
        size = f"{sum(x.weights for x in found):,} weights, {format_bytes(sum(x.bytes for x in found))}"
        lines.append(f"{reason}: {first_names([x.name for x in found])} ({size})")
    return lines


def in_order(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts names as people do, 2 before 10; in checkpoints they have any order."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]


def first_names(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def format_bytes(count: int) -> str:
    """A number of bytes with its unit, such as ``"1.31 MB"``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
