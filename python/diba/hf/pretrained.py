"""What methods of ``transformers.PreTrainedModel`` must know of factored layers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..torch.model.accounts import uncounted
from ..torch.modules.embedding import DibaEmbedding
from ..torch.modules.layer import FactoredLayer, factored_layers
from .config import METHOD

__all__ = ["teach"]


def teach() -> None:
    """Wrap the methods below, once."""
    for name, wrapper in _WRAPPERS.items():
        found = inspect.getattr_static(PreTrainedModel, name)
        original: Any = found.fget if isinstance(found, property) else found
        if not getattr(original, "_knows_diba", False):
            wrapped: Any = functools.wraps(original)(wrapper(original))
            wrapped._knows_diba = True
            setattr(PreTrainedModel, name, property(wrapped) if isinstance(found, property) else wrapped)


def _num_parameters(original: Callable[..., int]) -> Callable[..., int]:
    """Factored layers count as the weights they stand for; among what trains, as what trains of them."""

    def num_parameters(self: Any, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        count = original(self, only_trainable, exclude_embeddings)
        return count if only_trainable else count + uncounted(self, not exclude_embeddings)

    return num_parameters


def _memory_footprint(original: Callable[..., int]) -> Callable[..., int]:
    """Bits are weights, whether or not buffers count."""

    def get_memory_footprint(self: Any, return_buffers: bool = True) -> int:
        bits = 0 if return_buffers else sum(x.b1.nbytes + x.b2.nbytes for x in factored_layers(self))
        return original(self, return_buffers) + bits

    return get_memory_footprint


def _dtype(original: Callable[..., torch.dtype]) -> Callable[..., torch.dtype]:
    """That of the first parameter; of a factored layer, whose diagonals are float32, its own."""

    def dtype(self: Any) -> torch.dtype:
        holders = (
            m
            for m in self.modules()
            if isinstance(m, FactoredLayer) or next(m.parameters(False), None) is not None
        )
        first = next(holders, None)
        return first.dtype if isinstance(first, FactoredLayer) else original(self)

    return dtype


def _cast(original: Callable[..., Any]) -> Callable[..., Any]:
    """``half()`` and ``float()``, which transformers refuses for quantized models of all kinds."""
    plain = getattr(nn.Module, original.__name__)

    def cast(self: Any, *args: Any) -> Any:
        return (plain if getattr(self, "quantization_method", None) == METHOD else original)(self, *args)

    return cast


def _resized(original: Callable[..., Any]) -> Callable[..., Any]:
    """The first step of every change of a vocabulary's size, before anything is changed."""
    signature = inspect.signature(original)

    def resized(self: Any, old: Any, *args: Any, **kwargs: Any) -> Any:
        asked = signature.bind(self, old, *args, **kwargs).arguments
        size, pad = asked.get("new_num_tokens"), asked.get("pad_to_multiple_of")
        if size is not None or pad is not None:
            rows = old.weight.shape[1 if asked.get("transposed") else 0]
            size = rows if size is None else size
            size = -(-size // pad) * pad if isinstance(pad, int) else size
            if size != rows:
                _refuse_resizing(self, old, rows, size)
        return original(self, old, *args, **kwargs)

    return resized


def _refuse_resizing(model: Any, old: nn.Module, rows: int, size: int) -> None:
    """Raise if a layer that has a row for every token is factored."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings(), old]
    inside = {id(part) for end in ends if end is not None for part in end.modules()}
    for name, layer in model.named_modules():
        table = isinstance(layer, DibaEmbedding) and layer.num_embeddings == rows
        if isinstance(layer, FactoredLayer) and (table or id(layer) in inside):
            raise ValueError(
                f"the vocabulary of {type(model).__name__} cannot be resized from {rows} to {size} rows: "
                f"{name}, a {type(layer).__name__} of diba, holds packed factors of a fixed size; nothing "
                "was changed. Make the model dense with model.dequantize(), resize it, and compress it again"
            )


_WRAPPERS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "dtype": _dtype,
    "num_parameters": _num_parameters,
    "get_memory_footprint": _memory_footprint,
    "half": _cast,
    "float": _cast,
    "_get_resized_embeddings": _resized,
    "_get_resized_lm_head": _resized,
}
