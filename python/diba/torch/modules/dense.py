"""The base of all kinds of dense layers: what diba has to know of a layer that it replaces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import diba

from ..._internal import check
from .layer import check_factorization
from .state import as_numpy

if TYPE_CHECKING:
    from .layer import FactoredLayer, Sizes

__all__ = ["Kind", "forward_owner", "runs_its_class"]

_INITIAL = ("init", "reset")  # beginnings of names: a layer with factors starts from its factors
_HARMLESS = {
    *("__init__", "__repr__", "__doc__", "__module__", "__qualname__", "__dict__", "__weakref__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__constants__"),
    *("__static_attributes__", "__firstlineno__", "__classdictcell__", "__conditional_annotations__"),
    *("__orig_bases__", "__parameters__", "__abstractmethods__", "_abc_impl", "extra_repr"),
}
_TAKEN = {"k", "sign", "fan_in_fan_out"}  # names that the layers with factors give their own attributes


@dataclass(frozen=True)
class Kind:
    """One kind of dense layer, and what takes its place.

    Attributes:
        name: In reports and settings.
        dense: The dense class; None where its library is not imported (transformers).
        factored: The class of the layer with factors. Checkpoints have its name.
        described: The dense class in messages.
        switch: The field of ``Config`` that leaves layers of this kind dense if it is False; "": none.
        axes: Spatial axes of the input, of which every output position reads a patch; 0: the layer
            multiplies its matrix by the vectors along the last axis.
    """

    name: str
    dense: Any
    factored: Any
    described: str
    switch: str = ""
    axes: int = 0

    # ------------------------------------------------------------ recognition

    def covers(self, module: nn.Module) -> bool:
        """Whether a module is a dense layer of this kind or of a subclass, replaceable or not."""
        return isinstance(module, self.dense)

    def computes(self, module: nn.Module) -> bool:
        """Whether the class of a module that is covered computes what this kind does."""
        kind: Any = type(module)
        return bool(kind.forward is self.dense.forward)

    def obstacle(self, module: Any) -> str | None:
        """Why a module that is covered cannot be replaced, as ``"groups is 32, must be 1"``; None: it can."""
        if "weight" not in module._parameters:
            return "its weight is computed from other parameters (parametrized, pruned or normalised)"
        if not self.computes(module) or not runs_its_class(module):
            return f"its {type(module).__name__} has a forward of its own"
        return self._impossible(module) or _unreadable(module.weight) or _lost(self, module)

    def _impossible(self, module: Any) -> str | None:
        """Which setting of a dense layer the one with factors does not have."""
        return None

    # ------------------------------------------------------------ the matrix, and what it is multiplied by

    def matrix(self, module: Any) -> Tensor:
        """The matrix of a dense layer, shape (m, n): a view of its weight."""
        weight: Tensor = module.weight
        return weight

    def input_size(self, module: Any) -> int | None:
        """Length n of the vectors that a dense layer multiplies its matrix by; None: it multiplies none."""
        return int(module.in_features)

    def input_layout(self, module: Any) -> object:
        """Layers of equal layouts make the same vectors of the same input."""
        return None

    def windows(self, module: Any, x: Tensor) -> Tensor:
        """For kinds with axes: a view of shape (batch, *positions, ...); the rest, flattened, is a vector."""
        raise NotImplementedError

    # ------------------------------------------------------------ replacing, and back

    def empty(self, module: Any, sizes: Sizes | diba.Factorization) -> FactoredLayer:
        """The layer that takes a dense one's place, on the meta device: its settings, mode and attributes."""
        layer: FactoredLayer = self._built(module, sizes)
        kept = _assigned(self, module)
        if kept:
            layer.__dict__.update(kept, _kept=tuple(kept))
        return layer.train(module.training)

    def replacement(
        self, module: Any, f: diba.Factorization | None = None, **solve_options: Any
    ) -> FactoredLayer:
        """The layer that takes a dense one's place: see :meth:`FactoredLayer.from_dense`."""
        reason = self.obstacle(module)
        if reason is not None:
            raise ValueError(f"module cannot be replaced: {reason}; leave this {type(module).__name__} dense")
        matrix = self.matrix(module).detach()
        if f is None:
            f = diba.solve(as_numpy(matrix), **solve_options)
        elif solve_options:
            options = ", ".join(solve_options)
            raise TypeError(f"f and {options} are both given; give factors, or options for diba.solve")
        check_factorization(f)
        check.equal(f.shape, "the shape of f", tuple(matrix.shape), "shape of the layer's matrix")
        layer, bias = self.empty(module, f), getattr(module, "bias", None)
        layer._fill(f, bias, matrix.device)
        for d in layer.diagonals():
            d.requires_grad_(module.weight.requires_grad)
        if layer.bias is not None and bias is not None:
            layer.bias.requires_grad_(bias.requires_grad)
        return layer

    def made(self, layer: Any) -> bool:
        """Whether a layer of the class ``factored`` stands for this kind, not for another of that class."""
        return True

    def restored(self, layer: Any) -> nn.Module:
        """The reverse of :meth:`replacement`: a dense layer, on the device and in the dtype of the layer."""
        dense: Any = self._dense(layer).to_empty(device=layer.d1.device)
        with torch.no_grad():
            dense.weight.copy_(layer.dense_weight())
            if layer.bias is not None:
                dense.bias.copy_(layer.bias)
        dense.weight.requires_grad_(any(d.requires_grad for d in layer.diagonals()))
        if layer.bias is not None:
            dense.bias.requires_grad_(layer.bias.requires_grad)
        held = vars(layer)
        dense.__dict__.update({name: held[name] for name in layer._kept if name in held})
        result: nn.Module = dense.train(layer.training)
        return result

    def _plain(self) -> nn.Module:
        """A dense layer of this kind that has no attributes but those of its class."""
        module: nn.Module = self.dense(1, 1, device="meta")
        return module

    def _built(self, module: Any, sizes: Sizes | diba.Factorization) -> Any:
        """A layer with factors on the meta device, with the settings of a dense one."""
        raise NotImplementedError

    def _dense(self, layer: Any) -> Any:
        """A dense layer on the meta device, with the settings and dtype of one with factors."""
        raise NotImplementedError


# ---------------------------------------------------------------- what would be lost


def _unreadable(weight: Any) -> str | None:
    """Why a weight cannot be factored."""
    if is_lazy(weight):
        return "its weight has no shape before the first call"
    if type(weight) not in (nn.Parameter, Tensor):
        return f"its weight is a {type(weight).__name__}, whose values only its own library reads"
    if not weight.is_floating_point() or weight.numel() == 0:
        return f"its weight is {weight.dtype} of shape {tuple(weight.shape)}, must be floating and not empty"
    return None


def forward_owner(module: nn.Module) -> type:
    """The class that defines the ``forward`` of a module."""
    return next(cls for cls in type(module).__mro__ if "forward" in vars(cls))


def runs_its_class(module: nn.Module) -> bool:
    """Whether a call runs the ``forward`` of the class: hooks that were removed may leave that one behind."""
    forward: Any = vars(module).get("forward", module.forward)
    return getattr(forward, "__func__", None) is type(module).forward


def _assigned(kind: Kind, module: nn.Module) -> dict[str, Any]:
    """Attributes that somebody set on a dense layer, to be set on the one in its place."""
    own = _plain_attributes(kind) | ({"forward"} if runs_its_class(module) else set())
    return {name: value for name, value in vars(module).items() if name not in own and name[:2] != "__"}


def _lost(kind: Kind, module: nn.Module) -> str | None:
    """What would be lost if a layer with factors came in the place of a dense one; None: nothing.

    Parameters, buffers and submodules of its own; what its class adds to that which defines ``forward``,
    and attributes of such subclasses, for other code reads them (but not what begins with ``init`` or
    ``reset``); attributes of any layer that cannot be kept: functions, and names that the new one uses.
    """
    for sort, held in (
        ("parameter", {name: p for name, p in module._parameters.items() if name not in ("weight", "bias")}),
        ("buffer", module._buffers),
        ("submodule", module._modules),
    ):
        for name, value in held.items():
            if value is not None:
                return f"its {sort} {name!r} would be lost"
    base = forward_owner(module)
    for name in _own_names(type(module), base):
        return f"what its class {type(module).__name__} adds, {name!r}, would be lost"
    for name, value in _assigned(kind, module).items():
        subclass = type(module) is not base and not _initial(name)
        if subclass or callable(value) or name in _TAKEN or hasattr(kind.factored, name):
            return f"its attribute {name!r} would be lost"
    return None


def _own_names(cls: type, base: type) -> Iterator[str]:
    """Names that a class and its parents define beyond ``base``."""
    for parent in cls.__mro__:
        if parent not in base.__mro__ and parent.__module__ not in ("typing", "abc"):
            yield from (name for name in vars(parent) if name not in _HARMLESS and not _initial(name))


def _initial(name: str) -> bool:
    return name.lstrip("_").startswith(_INITIAL)


@cache
def _plain_attributes(kind: Kind) -> frozenset[str]:
    return frozenset(vars(kind._plain()))
