"""Put a layer with factors into the places of a dense one, so that the model notices nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from ..modules.kinds import compressed
from .parts import keep_padding, places, take_hooks

if TYPE_CHECKING:
    import diba

    from ..modules.layer import FactoredLayer
    from .selection import Target

__all__ = ["replace"]

_TENSORS = ("d1", "d2", "d3", "b1", "b2")


def replace(model: nn.Module, target: Target, f: diba.Factorization) -> FactoredLayer:
    """Replace a dense layer, under all of its names, and those tied to it, which share parameters and bits.

    Hooks and the bias are taken over. Nothing is changed before all new layers are made.
    """
    with torch.inference_mode(False), torch.no_grad():
        dense = [target.module, *target.tied.values()]
        made = [_like(module, f) for module in dense]
    for twin in made[1:]:
        for name in _TENSORS:
            setattr(twin, name, getattr(made[0], name))
    for old, new in zip(dense, made, strict=True):
        for owner, name in places(model, old):
            setattr(owner, name, new)
    if target.tied:
        _retie(model, {id(module) for module in made})
    keep_padding(model)
    return made[0]


def _like(module: nn.Module, f: diba.Factorization) -> FactoredLayer:
    new = compressed(module, f)
    if new.bias is not None:
        new.bias = cast(
            "nn.Parameter", module.bias
        )  # the very parameter: an optimizer, or another layer, may hold it
    take_hooks(new, module)
    return new


def _retie(model: nn.Module, shared: set[int]) -> None:
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
