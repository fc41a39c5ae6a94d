"""Whatever put the factored layers into a model of transformers, ``save_pretrained`` writes all of it."""

from __future__ import annotations

import functools
import inspect
import json
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from diba_autoload import LOCK, LOCKED

from .._internal import check
from .._internal.disk import replace_file
from ..checkpoints.entries import crc32_of_names
from ..checkpoints.stored import Stored
from ..torch.conversion import run
from ..torch.model.config import Config
from . import checkpoint
from .config import METHOD, DibaConfig
from .quantizer import DibaQuantizer, given_tensors, set_quantizer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["attach", "install"]


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


def install() -> None:
    """Let ``save_pretrained`` attach first, and :func:`diba.torch.convert` as soon as there is a layer."""
    original: Any = PreTrainedModel.save_pretrained
    if _prepare in run.prepare:  # this module has been here before
        return
    run.prepare.append(_prepare)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **options: Any) -> Any:
        call = signature.bind(self, save_directory, *args, **options)
        call.apply_defaults()
        with _saving(self, call.arguments["state_dict"]):
            result = original(self, save_directory, *args, **options)
        if call.arguments["is_main_process"] and getattr(self, "hf_quantizer", None) is not None:
            _lock(Path(save_directory), call.arguments.get("variant"))
        return result

    PreTrainedModel.save_pretrained = save_pretrained  # type: ignore[method-assign]


def _lock(folder: Path, variant: str | None) -> None:
    """Finish ``config.json``, now that the tensors are there.

    It gets what makes transformers without diba refuse the checkpoint (``diba_autoload.LOCKED``), and what
    tells whether all tensors are there.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings = config.get("quantization_config", {})
    if settings.get("quant_method") == METHOD and LOCK not in config:
        settings["crc32_names"] = crc32_of_names(_names(folder, variant))
        text = json.dumps({**config, LOCK: LOCKED}, indent=2, sort_keys=True) + "\n"  # as transformers has it
        replace_file(path, text.encode())


def _names(folder: Path, variant: str | None) -> list[str]:
    """Of the tensors that ``from_pretrained`` will find in a folder."""
    infix = f".{variant}" if variant else ""
    whole, index = folder / f"model{infix}.safetensors", folder / f"model.safetensors.index{infix}.json"
    if whole.is_file():
        return list(Stored.at([str(whole)]).tensors)
    return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])


def _attach(model: nn.Module, settings: Config | None) -> int:
    attached = 0
    for outer in _outermost(model):
        entries = checkpoint.describe_layers(outer)
        if not entries:
            continue
        quantizer = getattr(outer, "hf_quantizer", None)
        if quantizer is None:
            quantizer = DibaQuantizer(DibaConfig.of(settings, entries), pre_quantized=True)
        elif not isinstance(quantizer, DibaQuantizer):
            method = quantizer.quantization_config.quant_method
            raise ValueError(
                f"model is quantized with {getattr(method, 'value', method)}; its other layers must be "
                "dense: use its dequantize() before diba.torch.convert"
            )
        elif settings is not None:
            quantizer.quantization_config.settings = settings
        quantizer.describe(outer, entries)
        set_quantizer(outer, quantizer)
        attached += 1
    return attached


def _prepare(model: nn.Module, settings: Config) -> None:
    """What conversion calls: another library's layers in the model are no reason to end it."""
    try:
        _attach(model, settings)
    except ValueError as error:
        warnings.warn(f"save_pretrained of this model will refuse: {error}", stacklevel=4)


@contextmanager
def _saving(model: Any, given: Any) -> Iterator[None]:
    """The time in which a model is saved: it has a quantizer, and its config is of this very model.

    A part of a model may have the whole one's config, which then gets back what it says of the whole.
    """
    if getattr(model, "_hf_peft_config_loaded", False):  # only adapters are saved
        yield
        return
    if checkpoint.factored(model) and not isinstance(getattr(model, "hf_quantizer", None), DibaQuantizer):
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
        elif isinstance(before, DibaConfig) and not all(name in names for name in before.factors):
            model.config.quantization_config = before


def _outermost(model: nn.Module) -> Iterator[PreTrainedModel]:
    """Models of transformers that are not part of another one."""
    if isinstance(model, PreTrainedModel):
        yield model
    else:
        for child in model.children():
            yield from _outermost(child)
