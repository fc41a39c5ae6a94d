"""Load a compressed checkpoint into a dense model that its own code has made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..._internal import check
from ...checkpoints.integrity import checked
from ...layers.stored import stored_layer
from ..model.swap import replace
from ..modules.kinds import factored_matrix, kind_of
from .report import remember, remember_layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..._internal.disk import PathLike
    from ...checkpoints.integrity import Stored
    from ...checkpoints.layers import LayerDescription

__all__ = ["load"]


def load(model: nn.Module, folder: PathLike) -> nn.Module:
    """Load a compressed checkpoint into the dense model that it was made from.

    For models of any code; those of transformers have ``from_pretrained``. Layers of the checkpoint take the
    place of dense ones of their names, and all other tensors are copied into the model's.

    Args:
        model: The dense model, whose values do not matter. It is changed in place.
        folder: What ``diba.compress`` or ``save_pretrained`` wrote.

    Returns:
        The same model.

    Raises:
        TypeError: ``model`` is no module.
        diba.FormatError: The checkpoint is damaged.
        ValueError: The model has other layers or tensors; nothing is changed.
        OSError: A file cannot be read.

    Example:
        >>> model = MyModel()  # doctest: +SKIP
        >>> model = diba.torch.load(model, "OUT")  # doctest: +SKIP
    """
    check.instance(model, "model", nn.Module, "use the torch model itself")
    path = Path(check.path(folder))
    description, stored = checked(path)
    if not description.layers:
        raise ValueError(f"{path} has no compressed layers; it must be what diba.compress wrote")
    _require_layers(model, description.layers, path)
    own = description.tensors
    dense = [name for name in stored.tensors if name not in own]
    _require_names(model, description.layers, dense, stored, path)
    for owner, names in description.sharing.items():
        layer = description.layers[owner]
        bias = stored.array(f"{owner}.bias").astype("float64") if layer.bias_added else None
        modules = _owners(model, names)
        replace(model, modules, stored_layer(stored, owner, layer), bias)
        for name in names:
            remember_layer(model.get_submodule(name), description.layers[name].recipe)
    model.load_state_dict({name: _tensor(stored, name) for name in dense}, strict=False)
    remember(model, description.recipe)
    return model


def _require_layers(model: nn.Module, layers: Mapping[str, LayerDescription], path: Path) -> None:
    """Require that every compressed layer can take the place of one of the model.

    Raises:
        ValueError: One is missing, of another kind, or of another size.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, layer in layers.items():
        module = modules.get(name)
        kind = None if module is None else kind_of(module)
        if module is None or kind is None:
            what = "no such layer" if module is None else f"a {type(module).__name__} there"
            raise _other(path, f"a compressed layer {name}", what)
        matrix = factored_matrix(module)
        if matrix is None or tuple(matrix.shape) != layer.shape:
            shape = "one that cannot be replaced" if matrix is None else f"one of {_size(matrix.shape)}"
            raise _other(path, f"{name} as a matrix of {_size(layer.shape)}", shape)


def _owners(model: nn.Module, names: list[str]) -> list[nn.Module]:
    """The layers of these names, and those of the model that share their weight."""
    first = [model.get_submodule(name) for name in names]
    weights = {id(module.weight) for module in first}
    others = [m for m in model.modules() if kind_of(m) and id(m._parameters.get("weight")) in weights]
    return list({id(module): module for module in (*first, *others)}.values())


def _require_names(
    model: nn.Module,
    layers: Mapping[str, LayerDescription],
    dense: list[str],
    stored: Stored,
    path: Path,
) -> None:
    """Require that the dense tensors are those that the model has beside its compressed layers.

    Raises:
        ValueError: One is missing, of another shape, or not known.
    """
    state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    added = {f"{name}.bias" for name, layer in layers.items() if layer.bias_added}
    for name in dense:
        shape = stored.tensors[name].shape
        if name not in added and (name not in state or tuple(state[name].shape) != shape):
            there = "no such tensor" if name not in state else f"one of shape {tuple(state[name].shape)}"
            raise _other(path, f"{name} of shape {shape}", there)
    given = {id(state[name]) for name in dense if name in state}
    given |= {id(state[key]) for name in layers if (key := f"{name}.weight") in state}
    missing = [name for name, tensor in state.items() if id(tensor) not in given]
    if missing:
        raise _other(path, f"no {missing[0]}", "one")


def _other(path: Path, has: str, model: str) -> ValueError:
    return ValueError(f"{path} has {has}, and the model has {model}; use the model that it was made from")


def _size(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _tensor(stored: Stored, name: str) -> Any:
    return torch.from_numpy(stored.array(name))
