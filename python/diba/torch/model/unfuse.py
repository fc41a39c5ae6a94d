"""A model whose fused matrices are layers of their own, for a while or for good."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..._internal import check
from ..modules.layer import FactoredLayer
from .attention import Attention
from .experts import Experts
from .parts import Parts, keep_padding, places, take_hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Unfused", "factored", "fuse", "settle", "unfuse", "unfused"]

_FORMS: tuple[type[Parts], ...] = (Experts, Attention)


def unfuse(model: nn.Module, wanted: Callable[[str], bool] = lambda name: True) -> list[Parts]:
    """Put a module with layers in the place of every one that is recognised, under all of its names.

    The layers are on the memory of the parameters. Hooks are taken over.

    Args:
        model: Changed in place; it cannot itself be replaced.
        wanted: Told the name of a module, whether it is to be replaced.

    Returns:
        What was put in.
    """
    found = []
    for name, module in list(model.named_modules()):
        form = next((form for form in _FORMS if form.recognises(module)), None)
        if name and form is not None and wanted(name):
            with torch.inference_mode(False), torch.no_grad():
                part = form.of(module)
            _put(model, module, part)
            found.append(part)
    if found:
        keep_padding(model)
    return found


def fuse(model: nn.Module) -> None:
    """The reverse: modules without factored layers are put together again."""
    for part in [module for module in model.modules() if isinstance(module, Parts)]:
        if not factored(part):
            _put(model, part, part.together(part.sources()))


@contextmanager
def unfused(model: nn.Module) -> Iterator[Unfused]:
    """The model with a layer for each matrix; at the end, what then has no factored layer is fused again.

    Meanwhile a run calls every layer it comes by, with no vectors if there are none: see ``Parts.watched``.
    """
    check.instance(model, "model", nn.Module, "use the torch model itself")
    state = Unfused(model)
    try:
        yield state
    finally:
        state.close()


class Unfused:
    """A model that has been taken apart, and the parameters that it had before.

    Attributes:
        parts: What has been put in.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._padding = [(m, m.use_nested_tensor) for m in model.modules() if hasattr(m, "use_nested_tensor")]
        self.parts = unfuse(model)
        self._known: dict[int, dict[str, weakref.ref[nn.Parameter]]] = {}
        self._watched: list[Parts] = [m for m in model.modules() if isinstance(m, Parts)]
        self._before = [part.watched for part in self._watched]
        for part in self._watched:
            part.watched = True

    def forget(self, layers: Iterable[nn.Module]) -> None:
        """Hold no parameter that these layers are parts of, so that its memory is free when they are gone."""
        gone = set(map(id, layers))
        for part in self.parts:
            if any(id(module) in gone for module in part.modules()):
                held = part.held()
                self._known[id(part)] = {name: weakref.ref(p) for name, p in held.items() if p is not None}
                part.hold(dict.fromkeys(held))

    def close(self) -> None:
        """Put together what has no factors; dense layers of what has some get memory of their own."""
        for part, before in zip(self._watched, self._before, strict=True):
            part.watched = before
        for part in self.parts:
            if factored(part):
                settle(self._model, part)
            else:
                _put(self._model, part, self._whole(part))
        if not factored(self._model):  # swap has its own say
            for module, nested in self._padding:
                module.use_nested_tensor = nested

    def _whole(self, part: Parts) -> nn.Module:
        """The module as it was, with its very parameters wherever anybody still has them."""
        known = self._known.get(id(part), {})
        part.hold({name: reference() for name, reference in known.items()})
        return part.together([name for name, parameter in part.held().items() if parameter is None])


def settle(model: nn.Module, part: Parts) -> None:
    """Put in a part for good: nothing is held of the module, and what is dense has memory of its own."""
    with torch.inference_mode(False), torch.no_grad():
        for parameter in part.parameters():
            if parameter.untyped_storage().nbytes() > parameter.nbytes or not parameter.is_contiguous():
                parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
    part.hold(dict.fromkeys(part.sources()))
    _put(model, part.whole, part)


def factored(model: nn.Module) -> bool:
    """Whether any module of a model holds factors."""
    return any(isinstance(module, FactoredLayer) for module in model.modules())


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    take_hooks(new, old)
    for owner, name in places(model, old):
        setattr(owner, name, new)
