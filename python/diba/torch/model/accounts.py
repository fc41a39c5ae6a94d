"""Every weight of a model: what its matrices hold, and which of them stay dense."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...checkpoints.report import APART, Skipped
from ..modules.embedding import DibaEmbedding
from ..modules.layer import FactoredLayer, factored_layers
from .fused import UnfusedModule

__all__ = ["CONVERTED", "Accounts", "Totals", "totals", "uncounted"]

CONVERTED = "already converted"
"""The reason of layers that hold factors when a conversion begins."""


class Accounts:
    """Counts every parameter of two or more dimensions once, whatever number of names it has.

    Args:
        compressed: Dense layers that will be replaced, which the report counts by themselves.
    """

    def __init__(self, compressed: Iterable[nn.Module] = ()) -> None:
        self._compressed = list(compressed)
        self._seen = {id(p) for module in self._compressed for p in _held(module)}

    def layer(self, name: str, kind: str, module: nn.Module, reason: str) -> Skipped:
        """An entry for a layer, whatever weights it holds and however it holds them."""
        if isinstance(module, FactoredLayer):
            shape = tuple(module.weight_shape)
            count = 0 if id(module.b1) in self._seen else module.weight_shape.numel()
            self._seen.add(id(module.b1))
            return Skipped(name, kind, reason, shape, count, count * module.dtype.itemsize)
        held = _held(module)
        shape = tuple(max(held, key=Tensor.numel).shape) if held else ()
        return Skipped(name, kind, reason, shape, *self._new(*held))

    def others(self, model: nn.Module, layers: Iterable[nn.Module]) -> Iterator[Skipped]:
        """An entry for every such parameter that none of these layers holds, and for buffers like it."""
        known = {id(part) for module in layers for part in (module, *_parametrizations(module))}
        named: set[int] = set()
        for module_name, module in model.named_modules():
            if id(module) in known or isinstance(module, FactoredLayer):
                continue
            kind = type(module).__name__
            if isinstance(module, UnfusedModule):
                yield from self._apart(module_name, module)
            for own, parameter in module._parameters.items():
                if parameter is not None and parameter.dim() >= 2 and id(parameter) not in named:
                    named.add(id(parameter))
                    name = module_name if own == "weight" and module_name else _joined(module_name, own)
                    yield Skipped(name, kind, _holder(module), tuple(parameter.shape), *self._new(parameter))
            for own, buffer in module._buffers.items():
                if buffer is not None and buffer.dim() >= 2 and own not in module._non_persistent_buffers_set:
                    reason = "a buffer, no parameter"
                    yield Skipped(
                        _joined(module_name, own), kind, reason, tuple(buffer.shape), 0, buffer.nbytes
                    )

    def _apart(self, name: str, part: UnfusedModule) -> Iterator[Skipped]:
        """Entries for the fused parameters that an unfused module stands for."""
        done = any(
            isinstance(m, FactoredLayer) or any(m is x for x in self._compressed) for m in part.modules()
        )
        reason = APART if done else "none of its matrices is compressed"
        layers = {f"{layer}.weight" for layer, _ in part.named_modules()}
        for own in part.sources():
            shape = part.fused_shape(own)
            if len(shape) >= 2 and own not in layers:
                yield Skipped(_joined(name, own), type(part.fused).__name__, reason, tuple(shape))

    def _new(self, *parameters: nn.Parameter) -> tuple[int, int]:
        """Entries and bytes of those that have not been counted."""
        new = {id(p): p for p in parameters if id(p) not in self._seen}
        self._seen |= new.keys()
        return sum(p.numel() for p in new.values()), sum(p.nbytes for p in new.values())


def _held(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of two or more dimensions of a layer, those of its parametrizations among them."""
    parts = (module, *_parametrizations(module))
    every = [p for part in parts for p in part._parameters.values()]
    return [p for p in every if p is not None and p.dim() >= 2]


def _parametrizations(module: nn.Module) -> list[nn.Module]:
    """The modules that compute a layer's weight, if torch.nn.utils.parametrize is in use."""
    inner = module._modules.get("parametrizations")
    return [] if inner is None else list(inner.modules())


def _holder(module: nn.Module) -> str:
    """Why a module's own parameters stay dense."""
    name = type(module).__name__
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return f"nn.{name} reads its weights itself; written with nn.Linear layers they would be compressed"
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit, which closes it: compress the model that it was made of"
    if isinstance(module, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads its weight itself"
    return f"a parameter of {name}, which is no kind of layer that can be factored"


def _joined(module: str, own: str) -> str:
    return f"{module}.{own}" if module else own


# ---------------------------------------------------------------- totals


class Totals(NamedTuple):
    """Sums over a model; what is shared counts once.

    Attributes:
        parameters: Entries of all parameters.
        bytes: Bytes of all parameters and buffers.
        dense_parameters: Entries of all parameters if the factored layers were dense.
        dense_bytes: Bytes likewise.
    """

    parameters: int
    bytes: int
    dense_parameters: int
    dense_bytes: int


def totals(model: nn.Module) -> Totals:
    """Count a model."""
    parameters = list(model.parameters())
    size = sum(t.nbytes for t in (*parameters, *model.buffers()))
    count = sum(p.numel() for p in parameters)
    dense_count, dense_size = count, size
    for layer in factored_layers(model):
        weights = layer.weight_shape.numel()
        dense_count += weights - sum(d.numel() for d in layer.diagonals())
        dense_size += weights * layer.dtype.itemsize - layer.nbytes
    return Totals(count, size, dense_count, dense_size)


def uncounted(model: nn.Module, embeddings: bool = True) -> int:
    """How many weights the factored layers stand for, less the diagonals, which ``parameters()`` shows.

    ``embeddings=False``: without those of embeddings, and of layers that share their factors with one.
    """
    more = 0
    for layer in factored_layers(model):
        more -= sum(d.numel() for d in layer.diagonals())
        if embeddings or not isinstance(layer, DibaEmbedding):
            more += layer.weight_shape.numel()
    return more
