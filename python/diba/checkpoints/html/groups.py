"""Layers that do the same in every block of a model, found by their names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..entries import LayerReport

__all__ = ["Group", "Part", "finite", "groups_of"]

_OTHERS = "others"


@dataclass(frozen=True)
class Group:
    """Layers of one role.

    Attributes:
        name: What their names have in common.
        layers: Place in the model -> layer.
    """

    name: str
    layers: dict[int, LayerReport]

    @property
    def weights(self) -> int:
        """Entries of their matrices."""
        return sum(layer.weights for layer in self.layers.values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight over all of them; NaN if they have none."""
        bits = sum(layer.bits_per_weight * layer.weights for layer in self.layers.values())
        return bits / self.weights if self.weights else math.nan

    def snrs(self) -> list[float]:
        """Their SNRs in dB, as far as they are known and finite."""
        return finite(layer.snr_db for layer in self.layers.values())


class Part(NamedTuple):
    """A part of a model's bytes: its name and colour, and bytes before and after."""

    name: str
    colour: int
    before: int
    after: int


def groups_of(layers: Sequence[LayerReport], most: int) -> list[Group]:
    """Groups in the order of their first layers; of more than ``most`` the smaller ones are one."""
    found: dict[str, dict[int, LayerReport]] = {}
    for place, layer in enumerate(layers, 1):
        found.setdefault(_role(layer), {})[place] = layer
    groups = [Group(name, members) for name, members in found.items()]
    if len(groups) <= most:
        return groups
    large = sorted(groups, key=lambda group: -group.weights)[: most - 1]
    rest = {place: layer for group in groups if group not in large for place, layer in group.layers.items()}
    return [*(group for group in groups if group in large), Group(_OTHERS, dict(sorted(rest.items())))]


def finite(values: Iterable[float | None]) -> list[float]:
    """The known and finite ones."""
    return [value for value in values if value is not None and math.isfinite(value)]


def _role(layer: LayerReport) -> str:
    """The name of a layer behind the last number in it, or all of it; its kind where that is nothing."""
    parts = layer.name.split(".")
    while parts and parts[-1].isdecimal():
        parts.pop()
    last = max((i for i, part in enumerate(parts) if part.isdecimal()), default=-1)
    return ".".join(parts[last + 1 :]) or layer.kind
