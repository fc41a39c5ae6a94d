"""The layers of a model that diba compresses or has compressed, with all of their names."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from ..modules.kinds import kind_of
from ..modules.state import CompressedLayer

if TYPE_CHECKING:
    from ..modules.dense import Kind

__all__ = ["READ_BY_ATTENTION", "Layer", "layers_of", "named_layers"]

READ_BY_ATTENTION = "nn.MultiheadAttention reads its weight itself"


class Layer(NamedTuple):
    """One layer: dense of a known kind, or compressed already.

    Attributes:
        names: All of its names in the model, the first one first.
        module: The layer itself.
        kind: Kind of the dense layer; None: the layer is compressed.
        in_attention: Whether it is a direct child of an ``nn.MultiheadAttention``, which reads the layer's
            weight without calling the layer.
    """

    names: tuple[str, ...]
    module: nn.Module
    kind: Kind | None
    in_attention: bool

    @property
    def kind_name(self) -> str:
        """The kind as reports show it."""
        return type(self.module).__name__ if self.kind is None else self.kind.name

    def obstacle(self) -> str | None:
        """Why a dense layer cannot be replaced by a factored one; None: it can."""
        if self.in_attention:
            return READ_BY_ATTENTION
        return None if self.kind is None else self.kind.obstacle(self.module)


def layers_of(model: nn.Module) -> list[Layer]:
    """All dense layers of known kinds and all compressed layers, in module order."""
    names: dict[int, list[str]] = defaultdict(list)
    modules: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, CompressedLayer) or kind_of(module) is not None:
            names[id(module)].append(name)
            modules[id(module)] = module
    attention = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    inside = {id(child) for module in attention for child in module.children()}
    return [
        Layer(tuple(names[key]), module, kind_of(module), key in inside) for key, module in modules.items()
    ]


def named_layers(model: nn.Module) -> dict[str, CompressedLayer]:
    """The compressed layers of a model, each under all of its names."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in modules if isinstance(module, CompressedLayer)}
