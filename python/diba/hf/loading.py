"""Load a compressed checkpoint with transformers: build its layers empty, then check what was loaded."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..checkpoints.integrity import Stored, check_names, check_stored
from ..checkpoints.layers import LayerDescription
from ..errors import FormatError
from ..torch.conversion.report import remember, remember_layer
from ..torch.model.swap import put, retie, unfuse
from ..torch.modules.apb import APBSizes
from ..torch.modules.bitwise import BitSizes
from ..torch.modules.kinds import replaceable
from ..torch.modules.layer import Sizes
from ..torch.modules.state import CodeSizes, CompressedLayer, as_numpy

if TYPE_CHECKING:
    from .config import DibaConfig

__all__ = ["Loading"]

Forms = dict[str, tuple[torch.Size, torch.dtype]]


class Loading:
    """Puts the layers of a compressed checkpoint into a model, before and after transformers loads tensors.

    Args:
        model: A model on the meta device; its layers are replaced by empty factored ones.
        config: The ``quantization_config`` of the checkpoint.
        stored: The files of the checkpoint; without tensors if it is a state_dict or has another format.

    Raises:
        FormatError: The checkpoint is damaged.
        ValueError: The model does not have the layers of the checkpoint, or has others in their place.
    """

    def __init__(self, model: Any, config: DibaConfig, stored: Stored) -> None:
        self._model, self._config, self._stored = model, config, stored
        self._layers = dict(config.description.layers)
        # What cannot be checked in files is checked when it is loaded.
        self._unchecked = {name for name, layer in self._layers.items() if layer.shared is None}
        if stored.tensors:
            self._unchecked = check_stored(self._layers, stored)
            check_names(stored.tensors, config.description.crc32_names, self._unchecked, stored.where)
        self._unfuse()
        self._names = self._names_here()  # in the checkpoint -> in the model
        self._add_tied()
        self._forms: dict[str, Forms] = {}  # by name in the model
        for name, here in self._names.items():
            layer = _empty(model.get_submodule(here), here, self._layers[name])
            self._forms[here] = _forms(layer)
            put(model, here, layer)
        self._ignore_keys()
        weights = {f"{here}.weight" for here in self._names.values()}
        tied = model.all_tied_weights_keys.items()
        model.all_tied_weights_keys = {a: b for a, b in tied if a not in weights and b not in weights}

    def finish(self) -> None:
        """Check the loaded tensors, share those that layers have in common, and store the recipe.

        Raises:
            FormatError: A tensor has another shape or dtype than announced, is damaged, or is missing.
            ValueError: A layer that shares its factors is offloaded.
        """
        self._remember_recipe()
        self._check_loaded()
        sharing = self._share()
        if sharing:
            retie(self._model, sharing)

    # ------------------------------------------------------------ names

    def _candidates(self, name: str) -> tuple[str, str, str]:
        """Names that a layer or tensor may have in this model.

        As transformers does for tensors, the prefix of the base model is added or removed: the checkpoint of
        a base model can be loaded into a model with a head, and the reverse.
        """
        prefix = f"{getattr(self._model, 'base_model_prefix', '')}."
        return name, name.removeprefix(prefix), prefix + name

    def _unfuse(self) -> None:
        """Unfuse the modules whose parts are layers of the checkpoint, such as experts."""
        names = {here for name in self._layers for here in self._candidates(name)}
        unfuse(self._model, lambda module: any(name.startswith(f"{module}.") for name in names))

    def _find(self, name: str, modules: set[str]) -> str | None:
        return next((here for here in self._candidates(name) if here in modules), None)

    def _names_here(self) -> dict[str, str]:
        """Name of a layer in the checkpoint -> its name in the model.

        Layers that the model does not have, such as those of another head, are left out.
        """
        modules = {name for name, _ in self._model.named_modules(remove_duplicate=False)}
        found = {name: here for name in self._layers if (here := self._find(name, modules)) is not None}
        if self._layers and not found:
            raise ValueError(
                f"the checkpoint has {len(self._layers)} factored layers, the first of them "
                f"{next(iter(self._layers))!r}, and {type(self._model).__name__} has none of them; load it "
                "with the class that it was saved from"
            )
        return found

    def _add_tied(self) -> None:
        """Add the layers whose weight this model ties to a layer of the checkpoint.

        The checkpoint of a base model does not contain the head of a model, which is tied to the embedding.
        """
        for pair in self._model.all_tied_weights_keys.items():
            for one, other in (pair, pair[::-1]):
                layer, known = one.removesuffix(".weight"), {here: name for name, here in self._names.items()}
                owner = known.get(other.removesuffix(".weight"))
                if owner is None or layer in known or not one.endswith(".weight") or self._holds_dense(one):
                    continue
                module: Any = self._model.get_submodule(layer)
                kind = replaceable(module)
                if kind is not None:
                    source = self._layers[owner]
                    self._names[layer] = layer
                    self._layers[layer] = dataclasses.replace(
                        source,
                        kind=kind.name,
                        bias=getattr(module, "bias", None) is not None,
                        bias_added=False,
                        shared=source.shared or owner,
                        crc32=None,
                    )

    def _holds_dense(self, weight: str) -> bool:
        """Whether the files have this weight as a dense tensor; guards are empty."""
        tensors = self._stored.tensors
        return any(0 not in tensors[name].shape for name in self._candidates(weight) if name in tensors)

    def _ignore_keys(self) -> None:
        """Keep ``from_pretrained`` from reporting guards as unexpected and shared factors as missing."""
        guards = {rf"(^|\.){re.escape(name)}\.weight$" for name in {*self._layers, *self._names.values()}}
        shared = {
            rf"^{re.escape(here)}\.({'|'.join(self._layers[name].tensors)})$"
            for name, here in self._names.items()
            if self._layers[name].shared is not None
        }
        for key, patterns in (("unexpected", guards), ("missing", shared)):
            attribute = f"_keys_to_ignore_on_load_{key}"
            known = getattr(self._model, attribute)  # a set; in older versions a list or None
            both = known | patterns if isinstance(known, set) else [*(known or ()), *patterns]
            setattr(self._model, attribute, both)

    # ------------------------------------------------------------ after loading

    def _remember_recipe(self) -> None:
        """Store the recipe on the model, with the names that its layers have here."""
        modules = {name for name, _ in self._model.named_modules(remove_duplicate=False)}
        recipe, settings = self._config.description.recipe, self._config.settings
        found = {self._find(name, modules): reason for name, reason in recipe.left_dense.items()}
        left = {name: reason for name, reason in found.items() if name is not None}
        plain = None if settings is None else settings.to_dict()
        places = {self._find(name, modules): block for name, block in recipe.blocks.items()}
        blocks = {name: block for name, block in places.items() if name is not None}
        remember(self._model, dataclasses.replace(recipe, settings=plain, left_dense=left, blocks=blocks))

    def _check_loaded(self) -> None:
        """Check shapes and dtypes, since transformers 5.0 loads any tensor, and values not checked before."""
        where = self._stored.where
        unchecked = {self._names[name]: self._layers[name] for name in self._unchecked & self._names.keys()}
        for name, forms in self._forms.items():
            layer = self._model.get_submodule(name)
            found = _forms(layer)
            for own, form in forms.items():
                if found[own] != form:
                    (shape, dtype), (expected, kind) = found[own], form
                    raise FormatError(
                        f"{where}: {name}.{own} is {dtype} of shape {tuple(shape)}; it must be {kind} of "
                        f"shape {tuple(expected)}, by config.json: is the checkpoint damaged?"
                    )
                tensor = getattr(layer, own)
                if name in unchecked and not tensor.is_meta:
                    unchecked[name].check_tensor(name, own, as_numpy(tensor), where)

    @torch.no_grad()
    def _share(self) -> set[int]:
        """Give layers that share their factors the same tensors; returns the ids of these layers.

        If the model lacks the layer under whose name the factors are saved, they are read here.
        """
        sharing: set[int] = set()
        owners = dict(self._names)
        for name, here in self._names.items():
            owner = self._layers[name].shared
            if owner is None:
                continue
            layer: Any = self._model.get_submodule(here)
            if owner not in owners:
                owners[owner] = here
                self._read(layer, here, owner)
            source: Any = self._model.get_submodule(owners[owner])
            if any(first.is_meta for each in (layer, source) for first in each.diagonals()):
                raise ValueError(
                    f"{here} shares its factors with {owners[owner]}, and device_map offloads one of them, "
                    "where they cannot be shared; give a device_map that leaves both on one device"
                )
            for own in self._layers[name].tensors:
                setattr(layer, own, getattr(source, own))
            sharing |= {id(layer), id(source)}
        return sharing

    def _read(self, layer: CompressedLayer, here: str, owner: str) -> None:
        """Read the factors that are saved under the name ``owner`` into a layer."""
        for own in layer.tensor_names:
            if f"{owner}.{own}" not in self._stored.tensors:
                raise FormatError(f"{here} shares the factors of {owner}, and {owner}.{own} is missing")
            getattr(layer, own).copy_(torch.tensor(self._stored.array(f"{owner}.{own}")))


def _empty(module: nn.Module, name: str, layer: LayerDescription) -> CompressedLayer:
    """Make the described layer, on the meta device, to replace a dense one.

    Raises:
        ValueError: Kind, size or bias of the dense layer differ from the description.
    """
    kind = replaceable(module)
    if (
        kind is None
        or kind.name != layer.kind
        or (layer.codes and kind.coded is None)
        or (layer.alphas and kind.apb is None)
        or (layer.weight_bits and kind.bitwise is None)
    ):
        raise ValueError(
            f"the checkpoint has a {layer.kind} at {name}, and the model a {type(module).__name__}; load it "
            "with the class that it was saved from, or upgrade diba"
        )
    matrix = kind.matrix(module)
    bias = getattr(module, "bias", None) is not None
    if tuple(matrix.shape) != layer.shape or bias != (layer.bias and not layer.bias_added):
        (m, n), (rows, columns) = layer.shape, matrix.shape
        raise ValueError(
            f"the checkpoint has {name} as a matrix of {m} x {n} {_with(layer.bias)} bias, and the model of "
            f"{rows} x {columns} {_with(bias)} bias; load it with its own config, or dequantize() it first"
        )
    if layer.codes:
        new: CompressedLayer = kind.empty(module, CodeSizes(layer.shape, layer.codes, layer.group))
    elif layer.alphas:
        new = kind.empty(module, APBSizes(layer.shape, layer.alphas, layer.entries))
    elif layer.weight_bits:
        new = kind.empty(module, BitSizes(layer.shape, layer.weight_bits, layer.activation_bits))
    else:
        assert layer.alphabet is not None, "checked"
        new = kind.empty(module, Sizes(layer.shape, layer.k, layer.alphabet))
    if layer.bias_added:
        new.add_bias()
    remember_layer(new, layer.recipe)
    # A float64 model has float64 diagonals, as when it was saved.
    return new.double() if matrix.dtype == torch.float64 else new


def _with(bias: bool) -> str:
    return "with" if bias else "without"


def _forms(layer: Any) -> Forms:
    """Shapes and dtypes of the tensors of a layer."""
    return {own: (getattr(layer, own).shape, getattr(layer, own).dtype) for own in layer.tensor_names}
