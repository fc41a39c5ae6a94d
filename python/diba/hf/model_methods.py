"""Wrappers that make methods of ``transformers.PreTrainedModel`` work with factored layers.

``save_pretrained`` saves factored layers however they were put into the model. What ``from_pretrained`` goes
through is in ``quantizer``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from diba_autoload import LOCK, LOCKED

from .._internal import check
from .._internal.disk import replace_file
from ..checkpoints.description import crc32_of_names
from ..checkpoints.integrity import Stored
from ..layers.config import Config
from ..torch.conversion.convert import when_converted
from ..torch.conversion.report import describe, recipe_of, remember
from ..torch.conversion.solving import warn_user
from ..torch.model.sizes import uncounted
from ..torch.modules.coded_layers import DibaCodedEmbedding
from ..torch.modules.embedding import DibaEmbedding
from ..torch.modules.state import CompressedLayer, compressed_layers
from .config import METHOD, DibaConfig
from .quantizer import DibaQuantizer, given_tensors, set_quantizer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["attach", "teach"]


def attach(model: nn.Module, settings: Config | None = None) -> nn.Module:
    """Make ``model.hf_quantizer`` of a model with factored layers, and its ``config`` describe them.

    :func:`diba.torch.convert` and ``save_pretrained`` do so by themselves; it is for what else looks there,
    as ``model.dequantize()``, where layers were put in by other means. Models of transformers inside of
    another module, as in sentence-transformers, are prepared, too.

    Args:
        model: With layers of ``diba.torch``, in one or more ``transformers.PreTrainedModel``.
        settings: What the layers were made with, for the record in ``config.json``.

    Returns:
        The same model.

    Raises:
        TypeError: ``model`` is no module, or ``settings`` no ``diba.torch.Config``.
        ValueError: it has no model of transformers with such layers, or one that is quantized by other means.
    """
    check.instance(model, "model", nn.Module, "use the model itself")
    if settings is not None:
        check.instance(settings, "settings", Config, "use diba.torch.Config(...)")
    if not _attach(model, settings):
        raise ValueError(
            f"model, a {type(model).__name__}, has no transformers.PreTrainedModel with layers of "
            "diba.torch; use diba.torch.convert(model, bits_per_weight=2) first"
        )
    return model


def teach() -> None:
    """Wrap the methods in ``_WRAPPERS`` once, and attach a quantizer to models that ``convert`` changes."""
    for name, wrapper in _WRAPPERS.items():
        found = inspect.getattr_static(PreTrainedModel, name)
        original: Any = found.fget if isinstance(found, property) else found
        if not getattr(original, "_knows_diba", False):
            wrapped: Any = functools.wraps(original)(wrapper(original))
            wrapped._knows_diba = True
            setattr(PreTrainedModel, name, property(wrapped) if isinstance(found, property) else wrapped)
    if _after_conversion not in when_converted:
        when_converted.append(_after_conversion)


# ---------------------------------------------------------------- attaching


def _attach(model: nn.Module, settings: Config | None) -> int:
    attached = 0
    for name, outer in _outermost(model):
        if not compressed_layers(outer):
            continue
        quantizer = getattr(outer, "hf_quantizer", None)
        if quantizer is not None and not isinstance(quantizer, DibaQuantizer):
            method = quantizer.quantization_config.quant_method
            raise ValueError(
                f"model is quantized with {getattr(method, 'value', method)}; its other layers must be "
                "dense: use its dequantize() before diba.torch.convert"
            )
        if settings is not None:
            remember(outer, dataclasses.replace(recipe_of(outer), settings=settings.to_dict()))
        elif name:  # a part of what was converted, which can be saved by itself
            remember(outer, recipe_of(model, name))
        if quantizer is None:
            quantizer = DibaQuantizer(DibaConfig.of(describe(outer)), pre_quantized=True)
        quantizer.describe(outer)
        set_quantizer(outer, quantizer)
        attached += 1
    return attached


def _outermost(model: nn.Module, name: str = "") -> Iterator[tuple[str, PreTrainedModel]]:
    """The transformers models in a model that are not part of another one, with their names."""
    if isinstance(model, PreTrainedModel):
        yield name, model
    else:
        for own, child in model.named_children():
            yield from _outermost(child, f"{name}.{own}" if name else own)


def _after_conversion(model: nn.Module) -> None:
    """Attach a quantizer; a model that is quantized by another library gets a warning, not an error."""
    try:
        _attach(model, None)
    except ValueError as error:
        warn_user(f"save_pretrained of this model will refuse: {error}")


# ---------------------------------------------------------------- saving


def _save_pretrained(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    def save_pretrained(self: Any, save_directory: Any, *args: Any, **options: Any) -> Any:
        call = signature.bind(self, save_directory, *args, **options)
        call.apply_defaults()
        with _saving(self, call.arguments["state_dict"]):
            result = original(self, save_directory, *args, **options)
        if call.arguments["is_main_process"] and getattr(self, "hf_quantizer", None) is not None:
            _lock(Path(save_directory), call.arguments.get("variant"))
        return result

    return save_pretrained


@contextmanager
def _saving(model: Any, given: Any) -> Iterator[None]:
    """A context in which a model is saved: it has a quantizer, and its config describes this model.

    A part of a model may share the config of the whole model, whose description is restored at the end.
    """
    if getattr(model, "_hf_peft_config_loaded", False):  # only adapters are saved
        yield
        return
    if compressed_layers(model) and not isinstance(getattr(model, "hf_quantizer", None), DibaQuantizer):
        _attach(model, None)
    before = getattr(model.config, "quantization_config", None)
    token = given_tensors.set(given)
    try:
        yield
    finally:
        given_tensors.reset(token)
        names = dict(model.named_modules())
        if before is None:
            model.config.__dict__.pop("quantization_config", None)
        elif isinstance(before, DibaConfig) and not all(name in names for name in before.description.layers):
            model.config.quantization_config = before


def _lock(folder: Path, variant: str | None) -> None:
    """Complete ``config.json`` after the tensors were saved.

    Adds the key that makes transformers refuse the checkpoint without diba (``diba_autoload.LOCKED``), and
    the checksum of the names of all tensors.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings = config.get("quantization_config", {})
    if settings.get("quant_method") == METHOD and LOCK not in config:
        settings["crc32_names"] = crc32_of_names(_names(folder, variant))
        text = json.dumps({**config, LOCK: LOCKED}, indent=2, sort_keys=True) + "\n"  # as transformers has it
        replace_file(path, text.encode())


def _names(folder: Path, variant: str | None) -> list[str]:
    """Names of the tensors that ``from_pretrained`` finds in a folder."""
    infix = f".{variant}" if variant else ""
    whole, index = folder / f"model{infix}.safetensors", folder / f"model.safetensors.index{infix}.json"
    if whole.is_file():
        return list(Stored.at([str(whole)]).tensors)
    return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])


# ---------------------------------------------------------------- sizes, dtypes, vocabularies


def _num_parameters(original: Callable[..., int]) -> Callable[..., int]:
    """Count factored layers by their dense weights; if only trainable, by their trainable parameters."""

    def num_parameters(self: Any, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        count = original(self, only_trainable, exclude_embeddings)
        return count if only_trainable else count + uncounted(self, not exclude_embeddings)

    return num_parameters


def _memory_footprint(original: Callable[..., int]) -> Callable[..., int]:
    """Count the bits as weights, even where buffers are not counted."""

    def get_memory_footprint(self: Any, return_buffers: bool = True) -> int:
        layers = [] if return_buffers else compressed_layers(self)
        bits: int = sum(getattr(layer, name).nbytes for layer in layers for name in layer.bit_names)
        return original(self, return_buffers) + bits

    return get_memory_footprint


def _dtype(original: Callable[..., torch.dtype]) -> Callable[..., torch.dtype]:
    """The dtype of the first parameter; for a factored layer, whose diagonals are float32, its dtype."""

    def dtype(self: Any) -> torch.dtype:
        holders = (
            m
            for m in self.modules()
            if isinstance(m, CompressedLayer) or next(m.parameters(False), None) is not None
        )
        first = next(holders, None)
        return first.dtype if isinstance(first, CompressedLayer) else original(self)

    return dtype


def _cast(original: Callable[..., Any]) -> Callable[..., Any]:
    """Allow ``half()`` and ``float()``, which transformers refuses for quantized models."""
    plain = getattr(nn.Module, original.__name__)

    def cast(self: Any, *args: Any) -> Any:
        return (plain if getattr(self, "quantization_method", None) == METHOD else original)(self, *args)

    return cast


def _resized(original: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse to resize a vocabulary that has factored layers, before anything is changed."""
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
    """Raise if a layer with a row for every token is factored."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings(), old]
    inside = {id(part) for end in ends if end is not None for part in end.modules()}
    for name, layer in model.named_modules():
        table = isinstance(layer, (DibaEmbedding, DibaCodedEmbedding)) and layer.num_embeddings == rows
        if isinstance(layer, CompressedLayer) and (table or id(layer) in inside):
            raise ValueError(
                f"the vocabulary of {type(model).__name__} cannot be resized from {rows} to {size} rows: "
                f"{name}, a {type(layer).__name__} of diba, holds packed {layer.stored} of a fixed size; "
                "nothing was changed. Use model.dequantize(), resize the model, and compress it again"
            )


_WRAPPERS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "save_pretrained": _save_pretrained,
    "dtype": _dtype,
    "num_parameters": _num_parameters,
    "get_memory_footprint": _memory_footprint,
    "half": _cast,
    "float": _cast,
    "_get_resized_embeddings": _resized,
    "_get_resized_lm_head": _resized,
}
