"""Modules in the place of others: factored layers for dense ones, layers for fused matrices, and back."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..._internal import check
from ..._internal.storage import BITS, DIAGONALS
from ..modules.kinds import compressed
from ..modules.layer import factored_layers
from .attention import Attention
from .experts import Experts
from .fused import UnfusedModule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import diba

    from ..modules.layer import FactoredLayer

__all__ = [
    "UnfusedModel",
    "exchange",
    "fuse",
    "places",
    "put",
    "replace",
    "retie",
    "settle",
    "unfuse",
    "unfused",
]

_FORMS: tuple[type[UnfusedModule], ...] = (Experts, Attention)
_TENSORS = (*DIAGONALS, *BITS)
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)


# ---------------------------------------------------------------- one module in the place of another


def places(model: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where a module is in a model: (owner, name), as often as it is there."""
    return [
        (owner, name)
        for owner in model.modules()
        for name, child in owner._modules.items()
        if child is module
    ]


def exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, under all of its names, with its hooks.

    They are the very dicts, so a handle's ``remove()`` still works.
    """
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))
    for owner, name in places(model, old):
        setattr(owner, name, new)


def put(model: nn.Module, name: str, value: nn.Module | nn.Parameter) -> Any:
    """Put a module, or parameter, in the place of the one of that name; returns that one."""
    parent, _, own = name.rpartition(".")
    owner = model.get_submodule(parent)
    before = getattr(owner, own)
    setattr(owner, own, value)
    return before


def _keep_padding(model: nn.Module) -> None:
    """No nested tensors in ``nn.TransformerEncoder``: its fast path makes them, for dense layers alone."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


# ---------------------------------------------------------------- factored layers for dense ones


def replace(model: nn.Module, dense: Sequence[nn.Module], f: diba.Factorization) -> FactoredLayer:
    """Replace dense layers that have one weight, under all of their names, by layers that share the factors.

    Hooks and biases are taken over. Nothing is changed before all new layers are made.

    Args:
        model: Changed in place.
        dense: The layers, one or several that are tied.
        f: Factors of their matrix.

    Returns:
        What is in the place of the first.
    """
    with torch.inference_mode(False), torch.no_grad():
        made = [_like(module, f) for module in dense]
    for twin in made[1:]:
        for name in _TENSORS:
            setattr(twin, name, getattr(made[0], name))
    for old, new in zip(dense, made, strict=True):
        exchange(model, old, new)
    if len(made) > 1:
        retie(model, {id(module) for module in made})
    _keep_padding(model)
    return made[0]


def _like(module: Any, f: diba.Factorization) -> FactoredLayer:
    new = compressed(module, f)
    if new.bias is not None:
        new.bias = module.bias  # the very parameter: an optimizer, or another layer, may hold it
    return new


def retie(model: nn.Module, shared: set[int]) -> None:
    """Tell a model of transformers that tied weights are tied factors now.

    Its mappings ``{tied name: source name}`` of weights, which ``tie_weights`` and ``save_pretrained``
    follow, name the five tensors instead.
    """
    for module in model.modules():
        for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
            mapping = getattr(module, attribute, None)
            if isinstance(mapping, dict):
                setattr(module, attribute, _renamed(module, mapping, shared))


def _renamed(module: nn.Module, mapping: dict[str, str], shared: set[int]) -> dict[str, str]:
    known = dict(module.named_modules(remove_duplicate=False))
    result = {}
    for names in mapping.items():
        owners = [name.removesuffix(".weight") for name in names]
        ours = all(name.endswith(".weight") for name in names) and all(
            id(known.get(owner)) in shared for owner in owners
        )
        target, source = owners if ours else names
        result.update({f"{target}.{t}": f"{source}.{t}" for t in _TENSORS} if ours else {target: source})
    return result


# ---------------------------------------------------------------- layers for fused matrices


def unfuse(model: nn.Module, wanted: Callable[[str], bool] = lambda name: True) -> list[UnfusedModule]:
    """Put an unfused module in the place of every fused one that is recognised, under all of its names.

    The layers share the memory of the fused parameters. Hooks are taken over.

    Args:
        model: Changed in place; it cannot itself be replaced.
        wanted: Told the name of a module, whether it is to be replaced.

    Returns:
        The unfused modules.
    """
    found = []
    for name, module in list(model.named_modules()):
        form = next((form for form in _FORMS if form.recognises(module)), None)
        if name and form is not None and wanted(name):
            with torch.inference_mode(False), torch.no_grad():
                part = form.from_fused(module)
            exchange(model, module, part)
            found.append(part)
    if found:
        _keep_padding(model)
    return found


def fuse(model: nn.Module) -> None:
    """The reverse: unfused modules without factored layers become fused modules again."""
    for part in [module for module in model.modules() if isinstance(module, UnfusedModule)]:
        if not factored_layers(part):
            exchange(model, part, part.to_fused(part.sources()))


@contextmanager
def unfused(model: nn.Module) -> Iterator[UnfusedModel]:
    """The model with a layer for each matrix; at the end, what then has no factored layer is fused again.

    Meanwhile every layer is called, also without vectors: see ``UnfusedModule.observed``.
    """
    check.instance(model, "model", nn.Module, "use the torch model itself")
    state = UnfusedModel(model)
    try:
        yield state
    finally:
        state.close()


class UnfusedModel:
    """A model with unfused modules, and the fused parameters that it had before.

    Attributes:
        parts: The unfused modules.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._padding = [(m, m.use_nested_tensor) for m in model.modules() if hasattr(m, "use_nested_tensor")]
        self.parts = unfuse(model)
        self._known: dict[int, dict[str, weakref.ref[nn.Parameter]]] = {}
        self._observed: list[UnfusedModule] = [m for m in model.modules() if isinstance(m, UnfusedModule)]
        self._before = [part.observed for part in self._observed]
        for part in self._observed:
            part.observed = True

    def forget(self, layers: Iterable[nn.Module]) -> None:
        """Drop the fused parameters on whose memory these layers are: it is freed when they are gone."""
        gone = set(map(id, layers))
        for part in self.parts:
            if any(id(module) in gone for module in part.modules()):
                held = part.fused_parameters()
                self._known[id(part)] = {name: weakref.ref(p) for name, p in held.items() if p is not None}
                part.set_fused_parameters(dict.fromkeys(held))

    def close(self) -> None:
        """Fuse what has no factored layer; the dense layers of the others get memory of their own."""
        for part, before in zip(self._observed, self._before, strict=True):
            part.observed = before
        for part in self.parts:
            if factored_layers(part):
                settle(self._model, part)
            else:
                exchange(self._model, part, self._fused(part))
        if not factored_layers(self._model):  # else `replace` has turned nested tensors off for good
            for module, nested in self._padding:
                module.use_nested_tensor = nested

    def _fused(self, part: UnfusedModule) -> nn.Module:
        """The module as it was, with its very parameters where anybody still has them."""
        known = self._known.get(id(part), {})
        part.set_fused_parameters({name: reference() for name, reference in known.items()})
        return part.to_fused(
            [name for name, parameter in part.fused_parameters().items() if parameter is None]
        )


def settle(model: nn.Module, part: UnfusedModule) -> None:
    """Keep an unfused module for good: no fused parameter is held, dense layers have memory of their own."""
    with torch.inference_mode(False), torch.no_grad():
        for parameter in part.parameters():
            if parameter.untyped_storage().nbytes() > parameter.nbytes or not parameter.is_contiguous():
                parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
    part.set_fused_parameters(dict.fromkeys(part.sources()))
    exchange(model, part.fused, part)
