"""Every weight of a model: what its matrices hold, and which of them stay dense."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..modules.embedding import DibaEmbedding
from ..modules.layer import FactoredLayer, factored_layers
from .fused import UnfusedModule

__all__ = [
    "APART",
    "CONVERTED",
    "Accounts",
    "Skipped",
    "Totals",
    "listed",
    "some",
    "text_of_bytes",
    "totals",
    "uncounted",
]

CONVERTED = "already converted"
"""The reason given for layers that were factored before."""

APART = "its matrices are layers of their own"
"""The reason given for fused parameters, whose weights are counted at their layers."""


@dataclass(frozen=True)
class Skipped:
    """A layer that stays as it is, or a parameter of two or more dimensions that no such layer holds.

    Attributes:
        name: The layer's, or the full name of the parameter (or of a buffer of such a shape).
        kind: The layer's, or the class of the module that holds the parameter.
        reason: Why, in words.
        shape: Shape of the weight.
        weights: Entries of its parameters of two or more dimensions, or of the dense weight that its factors
            stand for; 0 where they are counted already, under another name.
        bytes: Bytes of these weights, dense.
    """

    name: str
    kind: str
    reason: str
    shape: tuple[int, ...] = ()
    weights: int = 0
    bytes: int = 0


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
        for own, parameter in part.fused_parameters().items():
            if parameter is not None and parameter.dim() >= 2 and own not in layers:
                kind, shape = type(part.fused).__name__, tuple(parameter.shape)
                yield Skipped(_joined(name, own), kind, reason, shape)

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
        dense: These bytes if the factored layers were dense.
    """

    parameters: int
    bytes: int
    dense: int


def totals(model: nn.Module) -> Totals:
    """Count a model."""
    parameters = list(model.parameters())
    size = sum(t.nbytes for t in (*parameters, *model.buffers()))
    layers = factored_layers(model)
    change = sum(m.weight_shape.numel() * m.dtype.itemsize - m.nbytes for m in layers)
    return Totals(sum(p.numel() for p in parameters), size, size + change)


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


# ---------------------------------------------------------------- text


def listed(skipped: Iterable[Skipped]) -> list[str]:
    """A line for every reason: what it holds for, the first few by name, and how large that is."""
    groups: dict[str, list[Skipped]] = {}
    for left in skipped:
        groups.setdefault(left.reason, []).append(left)
    lines = []
    for reason, found in groups.items():
        size = f"{sum(x.weights for x in found):,} weights, {text_of_bytes(sum(x.bytes for x in found))}"
        lines.append(f"{reason}: {some([x.name for x in found])} ({size})")
    return lines


def some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def text_of_bytes(count: int) -> str:
    """As ``"1.31 MB"``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
