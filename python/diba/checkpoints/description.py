"""The description of a compressed model: its layers, their sizes and checksums, and how they were made.

A checkpoint has it in ``config.json`` under ``quantization_config``, plain values for JSON: the settings of
the conversion, and ::

    "factors": {name: {"kind": "Linear", "shape": [m, n], "k": k, "alphabet": "binary" or "sign",
                       "bias": true, false or "added" (the dense layer has none),
                       "dtype": of the dense weight, "diagonal_bits": 16 or 32,
                       "recipe": {"objective": ..., "snr_db": ..., "output_snr_db": ..., "seconds": ...,
                                  "bias_corrected": ...},
                       "crc32": {"d1": 8 hex digits over the tensor's bytes, ...},
                       "crc32_entry": over all other keys}}
    "crc32_factors": over the names and CRCs of all entries
    "crc32_names": over the names of all tensors in the files
    "left_dense": {name: why the layer stayed dense}
    "seconds": of the whole conversion
    "reconstruction": its settings, "blocks": {name of a reconstructed block: {"loss": ..., ...}}

The entry of a layer with codes has ``"codes"``, 8 or 4, and ``"group"`` in place of ``"k"``, ``"alphabet"``
and ``"diagonal_bits"``, and the CRCs of its own tensors; that of one with binary weights ``"alphas"`` and
``"entries"``, the number of exceptions, that of one with few bits on both sides ``"weight_bits"`` and
``"activation_bits"``, in place of ``"k"`` and ``"alphabet"``. If a layer shares the
tensors of another one, which are saved once under that name, its entry has ``"shared": name`` instead of
``crc32``. A layer in memory has neither. ``recipe`` may be missing, and its values may be null, if they are
unknown.

This module needs neither torch nor transformers. ``integrity`` compares a description with the files of a
checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._internal.tensor_files import crc32
from ..errors import FormatError
from .blocks import BlockRecipe, blocks_from_json, blocks_to_json
from .layers import LayerDescription, from_json, is_number, readable

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "FORMAT_VERSION",
    "METHOD",
    "Description",
    "Recipe",
    "config_of",
    "crc32_of_entries",
    "crc32_of_names",
]

METHOD = "diba"
"""``quant_method`` of its checkpoints."""

FORMAT_VERSION = 1
"""Version of the checkpoint format: tensors ``<layer>.d1 .d2 .d3 .b1 .b2 .bias``, or ``.d1 .codes .steps
.bias``, or ``.alpha .signs .counts .columns .values .exponent .bias``,
or ``.scale .planes .bias``, and an
empty ``<layer>.weight`` for each described layer."""

_OWN_KEYS = {"quant_method", "format_version", "modules_to_not_convert"}  # beside settings and description


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model was compressed, beyond the recipes of its layers; None where unknown.

    Attributes:
        settings: Settings of the last conversion, the fields of ``diba.torch.Config``.
        left_dense: Name of a dense layer -> why it stays dense.
        seconds: Time of all conversions.
        reconstruction: Settings of the last reconstruction, the fields of ``diba.torch.Reconstruction``.
        blocks: Name -> how the block was reconstructed.
    """

    settings: Mapping[str, Any] | None = None
    left_dense: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    reconstruction: Mapping[str, Any] | None = None
    blocks: Mapping[str, BlockRecipe] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Description:
    """The description of a compressed model: everything but its tensors.

    Attributes:
        layers: Name -> description of a compressed layer.
        recipe: How the model was compressed.
        crc32_names: Checksum of the names of all tensors that were saved; None if unknown.
    """

    layers: Mapping[str, LayerDescription] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=Recipe)
    crc32_names: str | None = None

    @property
    def sharing(self) -> dict[str, list[str]]:
        """Layer under whose name tensors are saved -> all layers that have them, itself among them."""
        found: dict[str, list[str]] = {}
        for name, layer in self.layers.items():
            found.setdefault(layer.shared or name, []).append(name)
        return found

    @property
    def tensors(self) -> set[str]:
        """Names that tensors of compressed layers can have in files, guards among them, but no bias."""
        return {f"{name}.{own}" for name, layer in self.layers.items() for own in (*layer.tensors, "weight")}

    def to_dict(self) -> dict[str, Any]:
        """The description as plain values for JSON; :meth:`from_dict` reads them."""
        result = dict(self.recipe.settings or {})
        if self.layers:
            factors = {name: layer.to_dict(name) for name, layer in self.layers.items()}
            result |= {"factors": factors, "crc32_factors": crc32_of_entries(factors)}
        more: dict[str, Any] = {"crc32_names": self.crc32_names, "seconds": self.recipe.seconds}
        more |= {"reconstruction": self.recipe.reconstruction and dict(self.recipe.reconstruction)}
        more |= {"blocks": blocks_to_json(self.recipe.blocks) or None}
        result |= {key: value for key, value in more.items() if value is not None}
        if self.recipe.left_dense:
            result["left_dense"] = dict(self.recipe.left_dense)
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config.json", *, whole: bool = True) -> Self:
        """A description from the values of :meth:`to_dict`; other keys are settings.

        Args:
            values: ``quantization_config``.
            where: The file, for messages.
            whole: Whether to check by ``crc32_factors`` that no entry of ``factors`` is missing.

        Raises:
            FormatError: The values are damaged; the message names the layer.
        """
        settings = {key: value for key, value in values.items() if key not in _OWN_KEYS}
        crc, names = (settings.pop(key, None) for key in ("crc32_factors", "crc32_names"))
        found = "factors" in settings
        factors = settings.pop("factors", {})  # null means that the value was lost
        layers = _layers(factors, where)
        if found and whole and crc != crc32_of_entries(factors):
            raise FormatError(
                f"{where}: some of the {len(layers)} entries in factors are missing or renamed: their CRC-32 "
                "differs from crc32_factors; copy or download the checkpoint again"
            )
        left, seconds = settings.pop("left_dense", {}), settings.pop("seconds", None)
        if not isinstance(left, Mapping) or not all(type(x) is str for pair in left.items() for x in pair):
            raise FormatError(f"{where}: left_dense is {repr(left)[:100]}: is the checkpoint damaged?")
        if not is_number(seconds):
            raise FormatError(f"{where}: seconds is {repr(seconds)[:100]}: is the checkpoint damaged?")
        how, blocks = settings.pop("reconstruction", None), settings.pop("blocks", {})
        if how is not None and not isinstance(how, Mapping):
            raise FormatError(f"{where}: reconstruction is {repr(how)[:100]}: is the checkpoint damaged?")
        recipe = Recipe(
            settings=settings or None,
            left_dense=dict(left),
            seconds=from_json(seconds),
            reconstruction=how,
            blocks=blocks_from_json(blocks, where),
        )
        return cls(layers=layers, recipe=recipe, crc32_names=names)


def config_of(description: Description, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ``quantization_config`` of a checkpoint: settings, method and version, and the description.

    Args:
        description: Of the model, its recipe with the settings.
        more: Values to add.
    """
    settings = dict(description.recipe.settings or {})
    if "layers" in settings:  # transformers sorts the keys of dicts, but here the first match wins
        settings["layers"] = [[name, rule] for name, rule in dict(settings["layers"]).items()]
    settings |= {"quant_method": METHOD, "format_version": FORMAT_VERSION, **(more or {})}
    recipe = dataclasses.replace(description.recipe, settings=None)
    return settings | dataclasses.replace(description, recipe=recipe).to_dict()


def crc32_of_names(names: Iterable[str]) -> str:
    """Checksum of the names of all tensors, dense ones included, to find missing ones."""
    return crc32(json.dumps(sorted(names)).encode())


def crc32_of_entries(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Checksum of the names and CRCs of checked entries, in any order, as 8 hex digits."""
    pairs = sorted((name, entry["crc32_entry"]) for name, entry in entries.items())
    return crc32(json.dumps(pairs).encode())


def _layers(factors: Any, where: str) -> dict[str, LayerDescription]:
    if not isinstance(factors, Mapping):
        what = "null" if factors is None else f"a {type(factors).__name__}"
        raise FormatError(
            f"{where}: factors is {what}; it must hold the entry of each factored layer, as save_pretrained "
            "writes it: is the checkpoint damaged?"
        )
    layers = {name: LayerDescription.from_dict(name, entry, where) for name, entry in factors.items()}
    for name, layer in layers.items():
        if layer.shared is not None:
            owner = layers.get(layer.shared)
            facts: tuple[str, ...] = ("shape", "k", "alphabet", "codes", "group", "alphas", "entries")
            facts += ("weight_bits", "activation_bits")
            alike = owner is not None and all(getattr(owner, x) == getattr(layer, x) for x in facts)
            if owner is None or owner.shared is not None or not alike:
                raise FormatError(
                    f"{where}: factors[{readable(name)!r}] shares those of {readable(layer.shared)!r}, which "
                    "has none of this size: is the checkpoint damaged?"
                )
    return layers
