"""Counts of a model's weights: which of them stay dense, and the sizes of dense and compressed models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...checkpoints.entries import SPLIT, Skipped
from ..modules.coded_layers import DibaCodedEmbedding
from ..modules.embedding import DibaEmbedding
from ..modules.state import CompressedLayer, compressed_layers
from .fused import UnfusedModule
from .layers import READ_BY_ATTENTION, Layer

__all__ = ["CONVERTED", "Totals", "skipped_weights", "totals", "uncounted"]

CONVERTED = "already converted"
"""The reason given for layers that are factored when a conversion begins."""


def skipped_weights(
    model: nn.Module,
    layers: Sequence[Layer],
    reasons: Mapping[int, str],
    compressed: Iterable[nn.Module] = (),
) -> list[Skipped]:
    """List the layers that are not compressed, then all other parameters of two or more dimensions.

    Each parameter is counted once, however many names it has. Buffers of such shapes are listed, too.

    Args:
        model: The model.
        layers: Its layers, from ``layers_of``.
        reasons: Id of a module -> why that layer is not compressed.
        compressed: Dense layers that will be replaced; their parameters are not counted here.
    """
    counter = _Counter(compressed)
    dense = [
        counter.layer(layer, reasons[id(layer.module)]) for layer in layers if id(layer.module) in reasons
    ]
    return [*dense, *counter.others(model, [layer.module for layer in layers])]


class _Counter:
    """Counts every parameter of two or more dimensions once."""

    def __init__(self, compressed: Iterable[nn.Module]) -> None:
        self._compressed = list(compressed)
        self._seen = {id(p) for module in self._compressed for p in _matrices(module)}

    def layer(self, layer: Layer, reason: str) -> Skipped:
        """The entry of a layer, dense or compressed."""
        name, kind, module = layer.names[0], layer.kind_name, layer.module
        if isinstance(module, CompressedLayer):
            shape = tuple(module.weight_shape)
            count = 0 if module.identity in self._seen else module.weight_shape.numel()
            self._seen.add(module.identity)
            return Skipped(name, kind, reason, shape, count, count * module.dtype.itemsize)
        matrices = _matrices(module)
        shape = tuple(max(matrices, key=Tensor.numel).shape) if matrices else ()
        return Skipped(name, kind, reason, shape, *self._new(*matrices))

    def others(self, model: nn.Module, layers: Iterable[nn.Module]) -> Iterator[Skipped]:
        """Entries of the parameters and buffers that belong to none of these layers."""
        known = {id(part) for module in layers for part in (module, *_parametrizations(module))}
        named: set[int] = set()
        for module_name, module in model.named_modules():
            if id(module) in known or isinstance(module, CompressedLayer):
                continue
            kind = type(module).__name__
            if isinstance(module, UnfusedModule):
                yield from self._split(module_name, module)
            for own, parameter in module._parameters.items():
                if parameter is not None and parameter.dim() >= 2 and id(parameter) not in named:
                    named.add(id(parameter))
                    name = module_name if own == "weight" and module_name else _joined(module_name, own)
                    yield Skipped(name, kind, _reason(module), tuple(parameter.shape), *self._new(parameter))
            for own, buffer in module._buffers.items():
                if buffer is not None and buffer.dim() >= 2 and own not in module._non_persistent_buffers_set:
                    name, reason = _joined(module_name, own), "a buffer, not a parameter"
                    yield Skipped(name, kind, reason, tuple(buffer.shape), 0, buffer.nbytes)

    def _split(self, name: str, part: UnfusedModule) -> Iterator[Skipped]:
        """Entries, without a size, of the fused parameters that were split into layers."""
        done = any(
            isinstance(m, CompressedLayer) or any(m is x for x in self._compressed) for m in part.modules()
        )
        reason = SPLIT if done else "none of its matrices is compressed"
        layers = {f"{layer}.weight" for layer, _ in part.named_modules()}
        for own in part.sources():
            shape = part.fused_shape(own)
            if len(shape) >= 2 and own not in layers:
                yield Skipped(_joined(name, own), type(part.fused).__name__, reason, tuple(shape))

    def _new(self, *parameters: nn.Parameter) -> tuple[int, int]:
        """Entries and bytes of the parameters that were not counted before."""
        new = {id(p): p for p in parameters if id(p) not in self._seen}
        self._seen |= new.keys()
        return sum(p.numel() for p in new.values()), sum(p.nbytes for p in new.values())


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    """A layer's parameters of two or more dimensions, those of its parametrizations included."""
    parts = (module, *_parametrizations(module))
    every = [p for part in parts for p in part._parameters.values()]
    return [p for p in every if p is not None and p.dim() >= 2]


def _parametrizations(module: nn.Module) -> list[nn.Module]:
    """The modules that compute a layer's weight, if torch.nn.utils.parametrize is in use."""
    inner = module._modules.get("parametrizations")
    return [] if inner is None else list(inner.modules())


def _reason(module: nn.Module) -> str:
    """Why a module's own parameters stay dense."""
    name = type(module).__name__
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return f"nn.{name} reads its weights itself; written with nn.Linear layers they would be compressed"
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit, so its layers cannot be replaced: compress the model before scripting"
    if isinstance(module, nn.MultiheadAttention):
        return READ_BY_ATTENTION
    return f"a parameter of {name}, which is not a layer that diba can compress"


def _joined(module: str, own: str) -> str:
    return f"{module}.{own}" if module else own


# ---------------------------------------------------------------- totals


class Totals(NamedTuple):
    """Sizes of a model; shared tensors count once.

    Attributes:
        parameters: Entries of all parameters.
        bytes: Bytes of all parameters and buffers.
        dense_parameters: ``parameters`` if all compressed layers were dense.
        dense_bytes: ``bytes`` if all compressed layers were dense.
    """

    parameters: int
    bytes: int
    dense_parameters: int
    dense_bytes: int


def totals(model: nn.Module) -> Totals:
    """Count the parameters and bytes of a model as it is, and as it would be with dense layers."""
    parameters = list(model.parameters())
    size = sum(t.nbytes for t in (*parameters, *model.buffers()))
    count = sum(p.numel() for p in parameters)
    more = sum(
        layer.weight_shape.numel() * layer.dtype.itemsize - layer.nbytes for layer in compressed_layers(model)
    )
    more -= sum(bias.nbytes for bias in _added_biases(model))
    return Totals(count, size, count + uncounted(model), size + more)


def uncounted(model: nn.Module, embeddings: bool = True) -> int:
    """How many parameters the model lacks because layers are compressed: dense weights minus what came new.

    Args:
        model: The model.
        embeddings: Whether to count the weights of embeddings, and of layers that share tensors with one.
    """
    more = -sum(bias.numel() for bias in _added_biases(model))
    for layer in compressed_layers(model):
        more -= sum(d.numel() for d in layer.diagonals())
        if embeddings or not isinstance(layer, (DibaEmbedding, DibaCodedEmbedding)):
            more += layer.weight_shape.numel()
    return more


def _added_biases(model: nn.Module) -> Iterator[Tensor]:
    """Biases that the dense layers had not."""
    for module in model.modules():
        if isinstance(module, CompressedLayer) and module.bias_added and module.bias is not None:
            yield module.bias
