"""The example that a model is traced and checked with: names, dynamic dimensions, and other sizes of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    pass

__all__ = ["Example", "flat", "make_example"]

_AXES = ("batch", "length")


@dataclass(frozen=True)
class Example:
    """The arguments of one call of a model.

    Attributes:
        arguments: Keyword arguments, in the order of the model's parameters.
        dynamic: What ``torch.export`` calls dynamic shapes, for each argument; None: all are fixed.
    """

    arguments: dict[str, Any]
    dynamic: dict[str, Any] | None

    def names(self) -> list[str]:
        """Names of the tensors, in order."""
        return [name for name, _ in flat(self.arguments)]

    def values(self) -> list[Any]:
        """The tensors as NumPy arrays, in order."""
        return [value.detach().cpu().numpy() for _, value in flat(self.arguments)]

    def shapes(self) -> str:
        """The shapes of the tensors, for messages."""
        return ", ".join(f"{name} {tuple(value.shape)}" for name, value in flat(self.arguments))

    def sizes(self) -> dict[str, int]:
        """Size of each dynamic dimension by its name."""
        return {
            axis: int(value.shape[dim])
            for value, axes in self._tensors()
            for dim, axis in axes.items()
            if dim < value.dim()
        }

    def traceable(self) -> Example:
        """The same with at least two entries along dynamic dimensions: torch takes one as fixed."""
        return self.resized({axis: max(size, 2) for axis, size in self.sizes().items()})

    def others(self, largest: Mapping[str, int] | None = None) -> list[Example]:
        """An example of other sizes, none of them above the largest ones; none if all are fixed."""
        sizes = {axis: n + 1 if axis != "length" or n < 3 else n * 2 // 3 for axis, n in self.sizes().items()}
        if largest is not None:
            sizes = {axis: min(n, largest[axis]) for axis, n in sizes.items()}
        return [self.resized(sizes)] if sizes else []

    def resized(self, sizes: dict[str, int]) -> Example:
        """The same with other sizes of the dynamic dimensions, by repeating or dropping entries."""
        made = dict(self.arguments)
        for name, axes in self._named().items():
            value = made[name]
            for dim, axis in axes.items():
                rows = torch.arange(sizes[axis], device=value.device) % value.shape[dim]
                value = value.index_select(dim, rows)
            made[name] = _unmasked(value)
        return Example(made, self.dynamic)

    def _named(self) -> dict[str, dict[int, str]]:
        """For each tensor argument with dynamic dimensions, their names."""
        return {
            name: {dim: _axis_name(axis) for dim, axis in axes.items() if _axis_name(axis)}
            for name, axes in (self.dynamic or {}).items()
            if isinstance(axes, dict) and isinstance(self.arguments[name], Tensor)
        }

    def _tensors(self) -> list[tuple[Tensor, dict[int, str]]]:
        return [(self.arguments[name], axes) for name, axes in self._named().items()]


def make_example(model: nn.Module, example: Any, dynamic: bool, dynamic_shapes: Any) -> Example:
    """The example of a caller.

    Args:
        model: The model, whose parameters name positional arguments.
        example: A tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        dynamic: Whether dimensions are dynamic where ``dynamic_shapes`` does not say it.
        dynamic_shapes: Dynamic dimensions by argument, ``{"input_ids": {0: "batch", 1: "length"}}``.

    Raises:
        TypeError: The example is none of these.
        ValueError: It has too many arguments, or ``dynamic_shapes`` names others.
    """
    arguments = _arguments(model, example)
    if not any(True for _ in flat(arguments)):
        raise TypeError(
            "example holds no tensors; it must be a tensor, a tuple of tensors, or a dict of them"
        )
    if dynamic_shapes is not None:
        unknown = [name for name in dynamic_shapes if name not in arguments]
        if unknown:
            raise ValueError(f"dynamic_shapes names {unknown[0]!r}; the example has {', '.join(arguments)}")
        axes = {name: dynamic_shapes.get(name) for name in arguments}
        return Example(arguments, axes)
    return Example(arguments, {name: _usual(x) for name, x in arguments.items()} if dynamic else None)


def flat(value: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """The tensors in nested mappings, lists and tuples, with names such as ``"a"`` and ``"b.0"``."""
    if isinstance(value, Tensor):
        return [(name, value)]
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    return [found for key, inner in items for found in flat(inner, f"{name}.{key}" if name else str(key))]


def _arguments(model: nn.Module, example: Any) -> dict[str, Any]:
    """Keyword arguments in the order of the model's parameters; None is left out."""
    parameters = inspect.signature(model.forward).parameters
    if isinstance(example, Mapping):
        given = {str(name): value for name, value in example.items()}
    else:
        values = tuple(example) if isinstance(example, (tuple, list)) else (example,)
        usual = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
        if len(values) > len(usual):
            raise ValueError(f"example has {len(values)} arguments; the model takes {len(usual)}")
        given = dict(zip(usual, values, strict=False))
    order = {name: number for number, name in enumerate(parameters)}
    known = sorted(given, key=lambda name: order.get(name, len(order)))
    return {name: given[name] for name in known if given[name] is not None}


def _usual(value: Any) -> Any:
    """Dynamic dimensions of an argument: batch and length of ids and masks, the batch of other tensors."""
    if not isinstance(value, Tensor):
        return None
    if value.is_floating_point():
        return {0: _AXES[0]} if value.dim() > 1 else None
    return dict(enumerate(_AXES[: value.dim()])) or None


def _axis_name(axis: Any) -> str:
    """The name of a dimension: a string, or a ``torch.export.Dim``."""
    return axis if isinstance(axis, str) else getattr(axis, "__name__", "")


def _unmasked(value: Tensor) -> Tensor:
    """A mask of zeros and ones, without rows of zeros alone: nothing would be left to attend to."""
    if value.is_floating_point() or value.dim() != 2 or bool((value > 1).any()) or bool((value < 0).any()):
        return value
    if bool(value.any()):
        return torch.where(value.any(1, keepdim=True), value, torch.ones_like(value))
    return value  # such as the ids of the only segment
