"""How one block of a model was reconstructed, and its JSON form; it needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError
from .layers import is_number, readable

__all__ = ["BlockRecipe", "blocks_from_json", "blocks_to_json"]


@dataclass(frozen=True, kw_only=True)
class BlockRecipe:
    """How a block was reconstructed. Losses are those of the held-out batches, relative to the dense outputs.

    Attributes:
        loss_before: Before the block was changed: what the blocks before it make of its inputs.
        loss_factored: With all of its layers factored.
        loss: At the end.
        corrected: Groups of layers whose target was corrected, of ``groups``.
        tuned: Groups before which the training of what was dense was kept.
        groups: Groups of layers.
        flips: Share of the bits that the joint training changed; 0 if it was undone.
        kept: Whether the joint training was kept.
        seconds: Time of everything but the factorizations.
    """

    loss_before: float
    loss_factored: float
    loss: float
    corrected: int = 0
    tuned: int = 0
    groups: int = 0
    flips: float = 0.0
    kept: bool = False
    seconds: float = 0.0


_KEYS = {field.name for field in dataclasses.fields(BlockRecipe)}


def blocks_to_json(blocks: Mapping[str, BlockRecipe]) -> dict[str, dict[str, Any]]:
    """Plain values; :func:`blocks_from_json` reads them."""
    return {name: dataclasses.asdict(block) for name, block in blocks.items()}


def blocks_from_json(values: Any, where: str) -> dict[str, BlockRecipe]:
    """Read what :func:`blocks_to_json` made.

    Raises:
        FormatError: An entry is damaged; the message names the block.
    """
    found: dict[str, BlockRecipe] = {}
    entries: dict[Any, Any] = dict(values) if isinstance(values, Mapping) else {str(values): None}
    for name, entry in entries.items():
        good = isinstance(entry, Mapping) and set(entry) == _KEYS
        if not good or not all(type(x) in (int, float, bool) and is_number(float(x)) for x in entry.values()):
            raise FormatError(
                f"{where}: blocks[{readable(str(name))!r}] is {repr(entry)[:100]}: is the checkpoint damaged?"
            )
        found[str(name)] = BlockRecipe(**entry)
    return found
