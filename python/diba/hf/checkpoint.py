"""What a checkpoint holds: which layers are factors, by which names, and a guard for loading without diba.

transformers loads a checkpoint of an unknown ``quant_method`` with a mere warning, and fills the layers that
it does not find with random numbers. So every factored layer also writes an empty tensor under its dense
name, ``<layer>.weight``. Without diba its shape does not fit, an error; with diba it is passed over.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..checkpoints.description import Description, Recipe
from ..checkpoints.layers import TENSORS, LayerDescription
from ..errors import FormatError
from ..torch.conversion.report import describe, remember, remember_layer
from ..torch.model.fused import UnfusedModule
from ..torch.model.swap import unfuse
from ..torch.modules.kinds import replaceable
from ..torch.modules.layer import FactoredLayer, Sizes, factored_layers
from ..torch.modules.state import as_numpy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..checkpoints.stored import Stored
    from .config import DibaConfig

__all__ = [
    "check_loaded",
    "empty",
    "expect",
    "forms",
    "names_in",
    "share",
    "state_dict",
    "take_apart",
    "tell_recipe",
    "tied",
]

Layers = dict[str, LayerDescription]


# ---------------------------------------------------------------- writing


def state_dict(model: nn.Module, given: Mapping[str, Tensor] | None) -> tuple[dict[str, Tensor], Description]:
    """The tensors to save, shared factors once, with a guard for every factored layer; and what they are.

    Args:
        model: With factored layers.
        given: Tensors to take instead of the model's own, as ``save_pretrained(state_dict=...)`` has them.

    Raises:
        ValueError: some of the tensors of a layer are not there, or could not be loaded, as NaN in diagonals.
    """
    tensors: dict[str, Tensor] = dict(model.state_dict() if given is None else given)
    _join(model, tensors)
    description = describe(model)
    layers = dict(description.layers)
    for name, layer in layers.items():
        own = {own: tensors.get(f"{name}.{own}") for own in TENSORS}
        if layer.shared is not None:
            for each in own:
                tensors.pop(f"{name}.{each}", None)
        else:
            layers[name] = _sealed(name, layer, own)
        # A part of a storage of its own: transformers and safetensors take empty storages for shared ones.
        tensors[f"{name}.weight"] = torch.empty(1)[:0]
    return tensors, dataclasses.replace(description, layers=layers)


def _join(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Modules that are taken apart while no part of them is factored, as they were and will be loaded.

    Of the others, dense parts get memory of their own, which they may not have during a conversion.
    """
    for name, module in model.named_modules():
        if not isinstance(module, UnfusedModule):
            continue
        whole = not factored_layers(module)
        for source, parts in module.sources().items():
            keys = [f"{name}.{layer}.{own}" for layer, own in parts]
            if whole:
                tensors[f"{name}.{source}"] = module.join(source, [tensors.pop(key) for key in keys])
                continue
            for key in keys:
                if key in tensors and tensors[key].untyped_storage().nbytes() > tensors[key].nbytes:
                    tensors[key] = tensors[key].clone(memory_format=torch.contiguous_format)


def _sealed(name: str, layer: LayerDescription, own: dict[str, Tensor | None]) -> LayerDescription:
    for each, tensor in own.items():
        if tensor is None:
            raise ValueError(
                f"state_dict has no {name}.{each}; give all tensors of a factored layer, or none"
            )
    values = {each: tensor for each, tensor in own.items() if tensor is not None}
    if any(tensor.is_meta for tensor in values.values()):  # offloaded: transformers reads them as it writes
        return layer
    return layer.sealed(name, {each: as_numpy(tensor) for each, tensor in values.items()})


# ---------------------------------------------------------------- reading


def names_in(model: nn.Module, layers: Layers) -> dict[str, str]:
    """Where the layers of a checkpoint are in this model: a base model's in one with a head, and the reverse.

    As transformers does for tensors, the prefix of the base model is added or left out. Layers that the model
    does not have, as those of another head, are not in the result.

    Raises:
        ValueError: the model has none of them.
    """
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    found = {}
    for name in layers:
        here = next((n for n in _names(model, name) if n in modules), None)
        if here is not None:
            found[name] = here
    if layers and not found:
        raise ValueError(
            f"the checkpoint has {len(layers)} factored layers, the first of them {next(iter(layers))!r}, "
            f"and {type(model).__name__} has none of them; load it with the class that it was saved from"
        )
    return found


def take_apart(model: nn.Module, layers: Layers) -> None:
    """Make layers of the fused parameters, as of experts, whose parts are layers of the checkpoint."""
    names = {here for name in layers for here in _names(model, name)}
    unfuse(model, lambda module: any(name.startswith(f"{module}.") for name in names))


def tied(model: Any, names: dict[str, str], layers: Layers, stored: Stored) -> tuple[dict[str, str], Layers]:
    """``names`` and ``layers`` with the layers, too, whose weight this model ties to one of them.

    A base model's checkpoint does not know of the head that a model puts on top of it, tied to its embedding.
    """
    names, layers = dict(names), dict(layers)
    for pair in model.all_tied_weights_keys.items():
        for one, other in (pair, pair[::-1]):
            layer, known = one.removesuffix(".weight"), {here: name for name, here in names.items()}
            owner = known.get(other.removesuffix(".weight"))
            if owner is None or layer in known or not one.endswith(".weight") or _held(model, one, stored):
                continue
            module: Any = model.get_submodule(layer)
            kind = replaceable(module)
            if kind is not None:
                source = layers[owner]
                names[layer] = layer
                layers[layer] = dataclasses.replace(
                    source,
                    kind=kind.name,
                    bias=getattr(module, "bias", None) is not None,
                    shared=source.shared or owner,
                    crc32=None,
                )
    return names, layers


def _names(model: nn.Module, name: str) -> tuple[str, str, str]:
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return name, name.removeprefix(prefix), prefix + name


def _held(model: nn.Module, weight: str, stored: Stored) -> bool:
    """Whether the files have this weight, dense."""
    return any(
        0 not in stored.tensors[name].shape for name in _names(model, weight) if name in stored.tensors
    )


def empty(module: nn.Module, name: str, layer: LayerDescription) -> FactoredLayer:
    """The layer, on the meta device, in a dense one's place, as a checkpoint describes it.

    Raises:
        ValueError: it is of another kind, or size, than the dense layer.
    """
    kind = replaceable(module)
    if kind is None or kind.name != layer.kind:
        raise ValueError(
            f"the checkpoint has a {layer.kind} at {name}, and the model a {type(module).__name__}; load it "
            "with the class that it was saved from, or upgrade diba"
        )
    matrix = kind.matrix(module)
    bias = getattr(module, "bias", None) is not None
    if tuple(matrix.shape) != layer.shape or bias != layer.bias:
        (m, n), (rows, columns) = layer.shape, matrix.shape
        raise ValueError(
            f"the checkpoint has {name} as a matrix of {m} x {n} {_with(layer.bias)} bias, and the model of "
            f"{rows} x {columns} {_with(bias)} bias; load it with its own config, or dequantize() it first"
        )
    new = kind.empty(module, Sizes(layer.shape, layer.k, layer.alphabet))
    remember_layer(new, layer.recipe)
    # A float64 model has float64 diagonals, too, as when it was saved.
    return new.double() if matrix.dtype == torch.float64 else new


def tell_recipe(model: nn.Module, config: DibaConfig) -> None:
    """Let a loaded model remember how it was made, by the names that its layers have here."""
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    recipe, left = config.description.recipe, {}
    for name, reason in recipe.left_dense.items():
        here = next((n for n in _names(model, name) if n in modules), None)
        if here is not None:
            left[here] = reason
    settings = None if config.settings is None else config.settings.to_dict()
    remember(model, Recipe(settings=settings, left_dense=left, seconds=recipe.seconds))


def _with(bias: bool) -> str:
    return "with" if bias else "without"


def expect(model: Any, names: dict[str, str], layers: Layers) -> None:
    """Tell ``from_pretrained`` which tensors it need not report: guards, and factors that are saved once."""
    guards = {rf"(^|\.){re.escape(name)}\.weight$" for name in {*layers, *names.values()}}
    shared = {
        rf"^{re.escape(here)}\.({'|'.join(TENSORS)})$"
        for name, here in names.items()
        if layers[name].shared is not None
    }
    for key, patterns in (("unexpected", guards), ("missing", shared)):
        known = getattr(model, f"_keys_to_ignore_on_load_{key}")  # a set; in older versions a list or None
        both = known | patterns if isinstance(known, set) else [*(known or ()), *patterns]
        setattr(model, f"_keys_to_ignore_on_load_{key}", both)


def forms(layer: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shapes and dtypes of the factors of a layer."""
    return {own: (getattr(layer, own).shape, getattr(layer, own).dtype) for own in TENSORS}


def check_loaded(
    model: nn.Module,
    expected: dict[str, dict[str, tuple[torch.Size, torch.dtype]]],
    unchecked: Layers,
    where: str,
) -> None:
    """Require the :func:`forms` that were built, and the values that were saved.

    transformers 5.0 takes any tensor for a quantized layer.

    Args:
        model: Loaded.
        expected: By the names of layers in the model.
        unchecked: Likewise, layers that ``stored.check_stored`` did not find.
        where: The folder, for messages.

    Raises:
        FormatError: a tensor of the checkpoint has another shape or dtype, or is damaged.
    """
    for name, tensors in expected.items():
        layer = model.get_submodule(name)
        found = forms(layer)
        for own, form in tensors.items():
            if found[own] != form:
                (shape, dtype), (wanted, kind) = found[own], form
                raise FormatError(
                    f"{where}: {name}.{own} is {dtype} of shape {tuple(shape)}; it must be {kind} of shape "
                    f"{tuple(wanted)}, by config.json: is the checkpoint damaged?"
                )
            tensor = getattr(layer, own)
            if name in unchecked and not tensor.is_meta:
                unchecked[name].check_tensor(name, own, as_numpy(tensor), where)


@torch.no_grad()
def share(model: nn.Module, names: dict[str, str], layers: Layers, stored: Stored) -> set[int]:
    """Give layers that share their factors the same tensors; returns the ids of these layers.

    Where the model does not have the layer under whose name they are saved, they are read here.

    Raises:
        FormatError: they are not in the checkpoint.
        ValueError: one of the layers is offloaded.
    """
    sharing: set[int] = set()
    owners = dict(names)
    for name, here in names.items():
        owner = layers[name].shared
        if owner is None:
            continue
        layer = model.get_submodule(here)
        if owner not in owners:
            owners[owner] = here
            for own in TENSORS:
                if f"{owner}.{own}" not in stored.tensors:
                    raise FormatError(f"{here} shares the factors of {owner}, and {owner}.{own} is missing")
                getattr(layer, own).copy_(torch.tensor(stored.array(f"{owner}.{own}")))
        source = model.get_submodule(owners[owner])
        if layer.get_parameter("d1").is_meta or source.get_parameter("d1").is_meta:
            raise ValueError(
                f"{here} shares its factors with {owners[owner]}, and device_map offloads one of them, where "
                "they cannot be shared; give a device_map that leaves both on one device"
            )
        for own in TENSORS:
            setattr(layer, own, getattr(source, own))
        sharing |= {id(layer), id(source)}
    return sharing
