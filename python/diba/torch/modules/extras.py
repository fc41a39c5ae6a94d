"""What a dense layer has besides weight, bias and settings: what one with factors would lose, or can keep."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import nn

__all__ = ["forward_owner", "kept", "lost", "runs_its_class"]

_PLAIN: dict[type[nn.Module], tuple[int, ...]] = {
    nn.Linear: (1, 1),
    nn.Embedding: (1, 1),
    nn.Conv1d: (1, 1, 1),
    nn.Conv2d: (1, 1, 1),
}
_CONV1D = {"nf", "nx"}  # of transformers, whose other attributes are a module's
_INITIAL = ("init", "reset")  # beginnings of names: a layer with factors starts from its factors
_HARMLESS = {
    *("__init__", "__repr__", "__doc__", "__module__", "__qualname__", "__dict__", "__weakref__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__constants__"),
    *("__static_attributes__", "__firstlineno__", "__classdictcell__", "__conditional_annotations__"),
    *("__orig_bases__", "__parameters__", "__abstractmethods__", "_abc_impl", "extra_repr"),
}
_TAKEN = {"k", "sign", "fan_in_fan_out"}  # names that the layers with factors give their own attributes


def forward_owner(module: nn.Module) -> type:
    """The class that defines the ``forward`` of a module."""
    return next(cls for cls in type(module).__mro__ if "forward" in vars(cls))


def runs_its_class(module: nn.Module) -> bool:
    """Whether a call runs the ``forward`` of the class: hooks that were removed may leave that one behind."""
    forward: Any = vars(module).get("forward", module.forward)
    return getattr(forward, "__func__", None) is type(module).forward


def kept(module: nn.Module) -> dict[str, Any]:
    """Attributes that somebody set on a dense layer, to be set on the one in its place."""
    own = _own(forward_owner(module)) | ({"forward"} if runs_its_class(module) else set())
    return {name: value for name, value in vars(module).items() if name not in own and name[:2] != "__"}


def lost(module: nn.Module, new: type[nn.Module]) -> str | None:
    """What would be lost if a layer of class ``new`` came in the place of a dense one; None: nothing.

    Parameters, buffers and submodules of its own; what its class adds to that which defines ``forward``,
    and attributes of such subclasses, for other code reads them (but not what begins with ``init`` or
    ``reset``); attributes of any layer that cannot be kept: functions, and names that ``new`` uses itself.
    """
    for kind, held in (
        ("parameter", {name: p for name, p in module._parameters.items() if name not in ("weight", "bias")}),
        ("buffer", module._buffers),
        ("submodule", module._modules),
    ):
        for name, value in held.items():
            if value is not None:
                return f"its {kind} {name!r} would be lost"
    base = forward_owner(module)
    for name in _added(type(module), base):
        return f"what its class {type(module).__name__} adds, {name!r}, would be lost"
    for name, value in kept(module).items():
        subclass = type(module) is not base and not _initial(name)
        if subclass or callable(value) or name in _TAKEN or hasattr(new, name):
            return f"its attribute {name!r} would be lost"
    return None


def _added(cls: type, base: type) -> Iterator[str]:
    """Names that a class and its parents define beyond ``base``."""
    for parent in cls.__mro__:
        if parent not in base.__mro__ and parent.__module__ not in ("typing", "abc"):
            yield from (name for name in vars(parent) if name not in _HARMLESS and not _initial(name))


def _initial(name: str) -> bool:
    return name.lstrip("_").startswith(_INITIAL)


@cache
def _own(base: type) -> frozenset[str]:
    """Attributes of a plain layer."""
    for cls, sizes in _PLAIN.items():
        if issubclass(base, cls):
            return frozenset(vars(cls(*sizes, device="meta")))
    return frozenset(vars(nn.Module())) | _CONV1D
