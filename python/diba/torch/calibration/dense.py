"""The dense model beside the one that is being compressed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from ..model.swap import put
from ..modules.layer import FactoredLayer

__all__ = ["DenseModel", "separate", "sharing"]

Model = TypeVar("Model", bound=nn.Module)


def sharing(model: Model) -> Model:
    """A copy of a model whose parameters lie in the memory of the model's, until :func:`separate`."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def separate(module: nn.Module, other: nn.Module) -> None:
    """Give a module memory of its own for what it shares with another."""
    shared = {p.untyped_storage().data_ptr() for p in other.parameters()}
    for p in module.parameters():
        if p.untyped_storage().data_ptr() in shared:
            p.data = p.detach().clone()


class DenseModel:
    """The teacher, or the compressed model itself with its dense layers put back for a while.

    Args:
        model: The model that is compressed; dense at first, unless there is a teacher.
        teacher: The dense model, with the same names; None: dense layers are kept when they are replaced.

    Attributes:
        needed: Whether later steps need the dense layers.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module | None) -> None:
        self.needed = True
        self._model, self._teacher = model, teacher
        self._replaced: dict[str, nn.Module] = {}

    def differs(self) -> bool:
        """Whether the model is not dense any more."""
        return bool(self._replaced) or self._teacher is not None

    def replacing(self, replace: Callable[[], object], names: Container[str]) -> None:
        """Let layers of these names be replaced, and keep the dense ones while they are needed."""
        before = dict(self._model.named_modules(remove_duplicate=False))
        replace()
        after = dict(self._model.named_modules(remove_duplicate=False))
        for other, module in before.items():  # also other names of the layer, and layers tied to it
            needed = self.needed or other not in names
            if after.get(other) is not module and needed and self._teacher is None:
                self._replaced.setdefault(other, module)

    def remember(self, block: str) -> None:
        """Keep copies of what is dense in a block, which is going to be trained."""
        if self._teacher is not None:
            separate(self._model.get_submodule(block), self._teacher)
            return
        if not self.needed:
            return
        for name, module in self._model.get_submodule(block).named_modules():
            whole = f"{block}.{name}"
            trained = next(module.parameters(recurse=False), None) is not None
            if name and trained and not isinstance(module, FactoredLayer) and whole not in self._replaced:
                self._replaced[whole] = copy.deepcopy(module)

    def forget(self) -> None:
        """Free the dense layers if no later step needs them."""
        if not self.needed:
            self._replaced.clear()

    @contextmanager
    def there(self) -> Iterator[nn.Module]:
        """A context that yields the dense model."""
        if self._teacher is not None:
            yield self._teacher
            return
        current = {name: put(self._model, name, layer) for name, layer in self._replaced.items()}
        try:
            yield self._model
        finally:
            # if a place has two names, the first one holds the old layer
            for name, layer in reversed(current.items()):
                put(self._model, name, layer)
