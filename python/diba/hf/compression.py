"""Compress a dense checkpoint while transformers reads it, one weight at a time."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.quantizers_utils import should_convert_module

from ..torch.calibration.targets import LayerTask
from ..torch.conversion.run import Conversion
from ..torch.model.fused import UnfusedModule
from ..torch.model.selection import Target, check_weights
from ..torch.model.swap import places, settle, unfused
from ..torch.modules.kinds import dense_matrix, kind_of
from ..torch.modules.state import compressed_layers

if TYPE_CHECKING:
    from ..layers.config import Config
    from .config import DibaConfig

__all__ = ["NEW", "Compress", "Compression"]

NEW = "not in the checkpoint"
_PART = "diba_part"


class Compression:
    """The compression of one model while it is loaded.

    Args:
        model: A model on the meta device.
        config: A config with settings.

    Attributes:
        pending: Name of a weight -> targets to compress when it is read. A fused weight, such as that of
            experts, has many targets.

    Raises:
        ValueError: The settings need calibration, or match no layer of the model.
    """

    def __init__(self, model: Any, config: DibaConfig) -> None:
        with unfused(model) as apart:
            settings = _without(config.settings, model, config.modules_to_not_convert)
            self._run = Conversion(model, settings)
        targets = list(self._run.pending.values())
        for target in targets:
            if target.settings.objective in ("importance", "covariance"):
                raise ValueError(
                    f"objective is {target.settings.objective!r} for {target.name}, which needs calibration; "
                    "load the dense model, then use diba.torch.convert(model, config, batches=...)"
                )
        self._model = model
        self._fused = _fused(model, apart.parts, targets)
        inside = {id(target.module) for _, _, found in self._fused.values() for target in found}
        self.pending = {name: found for name, (_, _, found) in self._fused.items()}
        for target in targets:
            if not target.tied and id(target.module) not in inside:
                self.pending[f"{target.name}.weight"] = [target]
        self._last = {target.name: target for target in targets if target.tied}
        self._failure: Exception | None = None

    def compress(self, name: str, weight: Tensor) -> None:
        """Replace the layers of a weight. Exceptions are stored, and raised by :meth:`finish`."""
        targets = self.pending.pop(name)
        if self._failure is not None:
            return
        try:
            if name in self._fused:
                self._compress_parts(name, weight)
            else:
                self._compress(targets[0], weight)
        except Exception as error:  # transformers would only mention it in its report
            self._failure = error

    def _compress(self, target: Target, weight: Tensor) -> None:
        dense: Any = target.module
        bias = dense.bias if getattr(dense, "bias", None) is not None else None
        if bias is not None and bias.is_meta:  # it is read later, by its name
            dense.bias = nn.Parameter(torch.zeros(bias.shape, dtype=bias.dtype))
        dense.weight = nn.Parameter(weight.detach().cpu(), requires_grad=dense.weight.requires_grad)
        layer: Any = self._factor(target).to(weight.device)
        if bias is not None:
            layer.bias = bias

    def _compress_parts(self, name: str, weight: Tensor) -> None:
        """Replace the layers of a fused weight, which stay in a submodule until everything is read."""
        part, source, targets = self._fused[name]
        part.fused.add_module(_PART, part)
        of_layer = {id(target.module): target for target in targets}
        for (layer, _), matrix in zip(part.sources()[source], part.split(source, weight), strict=True):
            module: Any = part.get_submodule(layer)
            if id(module) in of_layer:
                self._compress(of_layer[id(module)], matrix)
            else:
                module.weight = _own(matrix, module.weight.requires_grad)

    def _factor(self, target: Target) -> nn.Module:
        """Replace a layer that has its weight; returns the factored layer."""
        check_weights([target])
        (owner, name), *_ = places(self._model, target.module)
        self._run.factor([LayerTask(target.name, dense_matrix(target.module), None)])
        return owner.get_submodule(name)

    def finish(self) -> None:
        """Compress the remaining layers, now that the model has its values.

        Raises:
            ValueError: The checkpoint has none of the selected weights, so nothing was compressed.
            Exception: The one that :meth:`compress` stored.
        """
        if self._failure is not None:
            raise self._failure
        left = [target for name, targets in self.pending.items() for target in targets]
        with self._run as run:
            for target in (*left, *self._last.values()):
                if getattr(target.module.weight, "_is_hf_initialized", False):
                    self._factor(target)
                else:
                    run.leave(target.name, NEW)
            for part in {id(part): part for part, _, _ in self._fused.values()}.values():
                self._put_in(part)
        if not run.done:
            raise ValueError(
                "nothing of the model would be compressed: none of its weights that are selected is in the "
                "checkpoint; load it with the class that it was saved from"
            )

    def _put_in(self, part: UnfusedModule) -> None:
        """Replace a fused module that has a compressed weight by its unfused one, with all other values."""
        part.fused._modules.pop(_PART, None)
        if not compressed_layers(part):
            return
        for source, parameter in part.fused_parameters().items():
            if parameter is not None and not parameter.is_meta:  # biases, and weights not in the checkpoint
                for (layer, own), values in zip(
                    part.sources()[source], part.split(source, parameter), strict=True
                ):
                    setattr(part.get_submodule(layer), own, _own(values, parameter.requires_grad))
        settle(self._model, part)


class Compress(ConversionOps):
    """The operation that transformers calls with the tensors to compress; it returns none of them to set."""

    def __init__(self, compression: Compression) -> None:
        self._compression = compression

    def convert(
        self,
        input_dict: dict[str, Any],
        *args: Any,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Compress the weights that are pending; returns the other tensors."""
        others = {}
        for name, value in input_dict.items():
            if name in self._compression.pending:
                self._compression.compress(name, value[0] if isinstance(value, list) else value)
                if missing_keys is not None:
                    missing_keys.discard(name)
            else:
                others[name] = value
        return others


def _fused(
    model: nn.Module, parts: list[UnfusedModule], targets: list[Target]
) -> dict[str, tuple[UnfusedModule, str, list[Target]]]:
    """Name of a fused weight -> the unfused module, the parameter's name in it, and its targets."""
    names = {id(module): name for name, module in model.named_modules()}
    of_layer = {id(target.module): target for target in targets}
    found = {}
    for part in parts:
        for source, layers in part.sources().items():
            modules = [part.get_submodule(layer) for layer, own in layers if own == "weight"]
            wanted = [of_layer[id(module)] for module in modules if id(module) in of_layer]
            if wanted:
                found[f"{names[id(part.fused)]}.{source}"] = part, source, wanted
    return found


def _own(values: Tensor, asked: bool) -> nn.Parameter:
    parameter = nn.Parameter(values.detach().clone(), requires_grad=asked)
    parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    return parameter


def _without(settings: Config | None, model: nn.Module, names: list[str] | None) -> Config:
    """The settings, with layers in ``skip`` that match ``modules_to_not_convert`` and no exact rule."""
    assert settings is not None, "validate_environment checks it"
    skip = [
        name
        for name, module in model.named_modules()
        if kind_of(module) and not should_convert_module(name, names) and name not in settings.layers
    ]
    return dataclasses.replace(settings, skip=[*settings.skip, *skip])
