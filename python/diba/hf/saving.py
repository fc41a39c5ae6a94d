"""The tensors of a checkpoint to save, with guards against loading it without diba.

transformers loads a checkpoint of an unknown ``quant_method`` with only a warning, and fills layers that it
does not find with random numbers. So an empty tensor is saved as ``<layer>.weight``, the dense name, for
every factored layer. Without diba its shape does not fit, which is an error; with diba it is ignored.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..checkpoints.layers import LayerDescription
from ..torch.conversion.report import describe
from ..torch.model.fused import UnfusedModule
from ..torch.modules.state import as_numpy, compressed_layers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..checkpoints.description import Description

__all__ = ["state_dict"]


def state_dict(model: nn.Module, given: Mapping[str, Tensor] | None) -> tuple[dict[str, Tensor], Description]:
    """The tensors to save, and their description: shared factors once, and a guard for every factored layer.

    Args:
        model: A model with factored layers.
        given: Tensors to save instead of the model's own, from ``save_pretrained(state_dict=...)``.

    Raises:
        ValueError: Tensors of a factored layer are missing.
        FormatError: A tensor could not be loaded again, for example because of NaN in a diagonal.
    """
    tensors: dict[str, Tensor] = dict(model.state_dict() if given is None else given)
    _join(model, tensors)
    description = describe(model)
    layers = dict(description.layers)
    for name, layer in layers.items():
        own = {own: tensors.get(f"{name}.{own}") for own in layer.tensors}
        if layer.shared is not None:
            for each in own:
                tensors.pop(f"{name}.{each}", None)
        else:
            layers[name] = _sealed(name, layer, own)
        # A slice, because transformers and safetensors take tensors with an empty storage for shared ones.
        tensors[f"{name}.weight"] = torch.empty(1)[:0]
    return tensors, dataclasses.replace(description, layers=layers)


def _join(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Fuse the tensors of unfused modules without factored layers, which will be loaded as fused ones.

    In the other unfused modules, dense tensors that share memory, as during a conversion, are copied.
    """
    for name, module in model.named_modules():
        if not isinstance(module, UnfusedModule):
            continue
        fuse = not compressed_layers(module)
        for source, parts in module.sources().items():
            keys = [f"{name}.{layer}.{own}" for layer, own in parts]
            if fuse:
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
