"""Which weights are stored in codes of 8 or 4 bits: of embeddings, of output layers, of layers named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from ..._internal.codes import CODE_BITS, COLUMNS_MAX
from ...layers.config import AUTO, SIZES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...layers.config import Config, Settings
    from .layers import Layer

__all__ = ["coded_weights", "output_layer", "settings_of", "uncoded"]


_LOSSLESS = {True: 8, False: 4}
"""Whether a layer multiplies by a weight -> bits that lose nothing that could be measured."""


def settings_of(names: Sequence[str], config: Config) -> Settings | str:
    """Settings of a layer by its names, exact rules first; or which rule leaves it out."""
    name = _ruled(names, config) or names[0]
    settings = config.settings(name)
    return f"left out by {config.rule(name)!r}" if settings is None else settings


def coded_weights(model: nn.Module, layers: Sequence[Layer], config: Config) -> dict[int, int]:
    """Id of a weight -> bits of its codes. Layers that share a weight share the codes.

    Raises:
        ValueError: Layers that share a weight ask for different bits, or ``head`` is given and the model has
            no output layer.
    """
    head = output_layer(model)
    if config.head is not None and head is None:
        raise ValueError(
            f"head={config.head!r} is given, and {type(model).__name__} has no output layer that its "
            "get_output_embeddings() names; leave head out, and name the layer, as in "
            "layers={'classifier': {'codes': 8}}"
        )
    found: dict[int, tuple[int, str]] = {}
    multiplied = {
        id(layer.module.weight) for layer in layers if layer.kind is not None and _multiplies(layer)
    }
    for layer in layers:
        bits = _bits(layer, layer.module is head, config)
        if bits == AUTO:
            bits = _LOSSLESS[id(layer.module.weight) in multiplied]
        if bits is None:
            continue
        before, other = found.setdefault(id(layer.module.weight), (bits, layer.names[0]))
        if before != bits:
            raise ValueError(
                f"{other} and {layer.names[0]} share one weight, and are to have codes of {before} and of "
                f"{bits} bits; it must be one number: give embeddings and head the same, or one of them alone"
            )
    return {key: bits for key, (bits, _) in found.items()}


def output_layer(model: nn.Module) -> nn.Module | None:
    """The layer that makes a language model's scores of tokens; None: there is none."""
    getter: Any = getattr(model, "get_output_embeddings", None)
    found = None if getter is None else getter()
    return found if isinstance(found, nn.Module) else None


def uncoded(layer: Layer, settings: Settings) -> str | None:
    """Why a layer that is to have codes cannot have them; None: it can, or is not to have any."""
    if settings.codes is None or layer.kind is None:
        return None
    if layer.kind.coded is None:
        return f"codes={settings.codes} is for nn.Linear and nn.Embedding"
    columns = layer.kind.matrix(layer.module).shape[1]
    return None if columns <= COLUMNS_MAX else f"its rows have {columns} entries, codes at most {COLUMNS_MAX}"


def _multiplies(layer: Layer) -> bool:
    return layer.kind is not None and layer.kind.input_size(layer.module) is not None


def _bits(layer: Layer, head: bool, config: Config) -> Any:
    """Bits of the codes of a dense layer by itself, or AUTO; None: it gets no codes, or stays dense."""
    settings = settings_of(layer.names, config)
    if layer.kind is None or isinstance(settings, str):
        return None
    name = _ruled(layer.names, config)
    rule = None if name is None else config.layers.get(config.rule(name) or "")
    if rule is None or not any(rule.get(key) is not None for key in (*SIZES, "codes")):
        if head and config.head is not None:
            return config.head
        if layer.kind.switch == "embeddings" and config.embeddings in (*CODE_BITS, AUTO):
            return config.embeddings
    return settings.codes


def _ruled(names: Sequence[str], config: Config) -> str | None:
    """The name by which a rule applies to a layer."""
    exact = [name for name in names if config.rule(name) == name]
    ruled = [name for name in names if config.rule(name) is not None]
    return next(iter((*exact, *ruled)), None)
