"""What a checkpoint holds: which layers are factors, by which names, and a guard for loading without diba.

transformers loads a checkpoint of an unknown ``quant_method`` with a mere warning, and fills the layers that
it does not find with random numbers. So every factored layer also writes an empty tensor under its dense
name, ``<layer>.weight``. Without diba its shape does not fit, an error; with diba it is passed over.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import diba

from ..torch._state import BITS, DIAGONALS
from ..torch.factors import Factors
from ..torch.layers import factored_matrix, layer_class
from ..torch.unfuse import unfuse

__all__ = [
    "check_loaded",
    "describe_layers",
    "empty",
    "expect",
    "factored",
    "forms",
    "names_in",
    "put",
    "share",
    "state_dict",
    "take_apart",
]

_OWN = (*DIAGONALS, *BITS)


# ---------------------------------------------------------------- writing


def factored(model: nn.Module) -> dict[str, Factors]:
    """The factored layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Factors)}


def describe_layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    """``DibaConfig.factors`` of a model: how to build its layers before their tensors are read."""
    result: dict[str, dict[str, Any]] = {}
    owners: dict[int, str] = {}
    for name, module in factored(model).items():
        entry = {"kind": type(module).__name__, "k": module.k, "alphabet": module.alphabet}
        owner = owners.setdefault(id(module.b1), name)
        result[name] = entry if owner == name else {**entry, "shared": owner}
    return result


def state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The tensors to save: shared factors once, and a guard for every factored layer."""
    tensors: dict[str, Tensor] = model.state_dict()
    for name, entry in describe_layers(model).items():
        if "shared" in entry:
            for own in _OWN:
                del tensors[f"{name}.{own}"]
        # A part of a storage of its own: transformers and safetensors take empty storages for shared ones.
        tensors[f"{name}.weight"] = torch.empty(1)[:0]
    return tensors


# ---------------------------------------------------------------- reading


def names_in(model: nn.Module, entries: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Where the layers of a checkpoint are in this model: a base model's in one with a head, and the reverse.

    As transformers does for tensors, the prefix of the base model is added or left out. Layers that the model
    does not have, as those of another head, are not in the result.

    Raises:
        ValueError: the model has none of them.
    """
    modules = {name for name, _ in model.named_modules()}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found = {}
    for name in entries:
        here = next((n for n in (name, name.removeprefix(prefix), prefix + name) if n in modules), None)
        if here is not None:
            found[name] = here
    if entries and not found:
        raise ValueError(
            f"the checkpoint has {len(entries)} factored layers, the first of them {next(iter(entries))!r}, "
            f"and {type(model).__name__} has none of them; load it with the class that it was saved from"
        )
    return found


def take_apart(model: nn.Module, entries: dict[str, dict[str, Any]]) -> None:
    """Make layers of the fused parameters, as of experts, whose parts are layers of the checkpoint."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    names = {n for name in entries for n in (name, name.removeprefix(prefix), prefix + name)}
    unfuse(model, lambda module: any(name.startswith(f"{module}.") for name in names))


def empty(module: nn.Module, name: str, entry: dict[str, Any]) -> Factors:
    """The layer, on the meta device, in a dense one's place, as an entry of ``DibaConfig.factors`` has it.

    Raises:
        ValueError: the entry is of another kind than the dense layer.
    """
    kind, matrix = layer_class(module), factored_matrix(module)
    if kind is None or matrix is None or kind.__name__ != entry["kind"]:
        raise ValueError(
            f"the checkpoint has a {entry['kind']} at {name}, and the model a {type(module).__name__}; load "
            "it with the class that it was saved from, or upgrade diba"
        )
    (m, n), k, alphabet = matrix.shape, entry["k"], entry["alphabet"]
    b1, b2 = (
        diba.BitMatrix.from_packed_rows(np.zeros((rows, -(-cols // 8)), np.uint8), cols, alphabet)
        for rows, cols in ((m, k), (k, n))
    )
    zeros = diba.Factorization(np.zeros(m), b1, np.zeros(k), b2, np.zeros(n))
    layer = kind._settings_of(module, zeros)
    layer._keep(module)
    return layer.train(module.training)


def expect(model: Any, names: dict[str, str], entries: dict[str, dict[str, Any]]) -> None:
    """Tell ``from_pretrained`` which tensors it need not report: guards, and factors that are saved once."""
    guards = {rf"(^|\.){re.escape(name)}\.weight$" for name in {*entries, *names.values()}}
    shared = {
        rf"^{re.escape(here)}\.({'|'.join(_OWN)})$"
        for name, here in names.items()
        if "shared" in entries[name]
    }
    for key, patterns in (("unexpected", guards), ("missing", shared)):
        known = getattr(model, f"_keys_to_ignore_on_load_{key}")  # a set; in older versions a list or None
        both = known | patterns if isinstance(known, set) else [*(known or ()), *patterns]
        setattr(model, f"_keys_to_ignore_on_load_{key}", both)


def forms(layer: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shapes and dtypes of the factors of a layer."""
    return {own: (getattr(layer, own).shape, getattr(layer, own).dtype) for own in _OWN}


def check_loaded(model: nn.Module, expected: dict[str, dict[str, tuple[torch.Size, torch.dtype]]]) -> None:
    """Require the :func:`forms` that were built; transformers 5.0 takes any tensor for a quantized layer.

    Raises:
        ValueError: a tensor of the checkpoint has another shape or dtype.
    """
    for name, tensors in expected.items():
        found = forms(model.get_submodule(name))
        for own, form in tensors.items():
            if found[own] != form:
                (shape, dtype), (wanted, kind) = found[own], form
                raise ValueError(
                    f"{name}.{own} is {dtype} of shape {tuple(shape)} in the checkpoint; it must be {kind} "
                    f"of shape {tuple(wanted)}, by config.json: is the checkpoint damaged?"
                )


def share(model: nn.Module, names: dict[str, str], entries: dict[str, dict[str, Any]]) -> set[int]:
    """Give layers that share their factors the same tensors; returns the ids of these layers."""
    sharing: set[int] = set()
    for name, here in names.items():
        owner = entries[name].get("shared")
        if owner in names:
            layer, source = model.get_submodule(here), model.get_submodule(names[owner])
            for own in _OWN:
                setattr(layer, own, getattr(source, own))
            sharing |= {id(layer), id(source)}
    return sharing


def put(model: nn.Module, name: str, value: nn.Module | nn.Parameter) -> None:
    """Another module, or parameter, in the place of the one of that name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, value)
