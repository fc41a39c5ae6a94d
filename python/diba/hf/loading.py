"""Compress a dense checkpoint while transformers reads it: each weight as it comes, then forgotten."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.quantizers_utils import should_convert_module

from ..torch.accounts import Accounts
from ..torch.conversion import Conversion
from ..torch.propagate import Wanted
from ..torch.report import Report
from ..torch.select import Target, check, kind, require, select
from ..torch.solving import dense_matrix

if TYPE_CHECKING:
    from ..torch.config import Config
    from .config import DibaConfig

__all__ = ["Compress", "Compression"]

_NEW = "not in the checkpoint"


class Compression:
    """The layers of one model that are still to be compressed.

    Args:
        model: On the meta device.
        config: With settings.

    Attributes:
        pending: Name of a weight -> its layer, for weights that are compressed as they are read.

    Raises:
        ValueError: the settings need calibration, or name no layer of the model.
    """

    def __init__(self, model: Any, config: DibaConfig) -> None:
        settings = _without(config.settings, model, config.modules_to_not_convert)
        selection = select(model, settings)
        require(selection.targets, selection.skipped)
        for target in selection.targets:
            if target.settings.objective in ("importance", "covariance"):
                raise ValueError(
                    f"objective is {target.settings.objective!r} for {target.name}, which needs calibration; "
                    "load the dense model, then use diba.torch.convert(model, config, batches=...)"
                )
        self.pending = {f"{target.name}.weight": target for target in selection.targets if not target.tied}
        self._model = model
        self._last = {target.name: target for target in selection.targets if target.tied}
        self._skipped = selection.skipped
        self._run = Conversion(model, selection.targets, {}, settings, False)
        self._failure: Exception | None = None

    def compress(self, name: str, weight: Tensor) -> None:
        """Replace a layer, given its dense weight. Exceptions are kept for :meth:`finish`."""
        target = self.pending.pop(name)
        if self._failure is not None:
            return
        try:
            self._compress(target, weight)
        except Exception as error:  # transformers would turn it into a line of its report
            self._failure = error

    def _compress(self, target: Target, weight: Tensor) -> None:
        dense: Any = target.module
        bias = dense.bias if getattr(dense, "bias", None) is not None else None
        if bias is not None and bias.is_meta:  # read later, by name
            dense.bias = nn.Parameter(torch.zeros(bias.shape, dtype=bias.dtype))
        dense.weight = nn.Parameter(weight.detach().cpu(), requires_grad=dense.weight.requires_grad)
        self._factor(target)
        layer: Any = self._model.get_submodule(target.name).to(weight.device)
        if bias is not None:
            layer.bias = bias

    def _factor(self, target: Target) -> None:
        check([target])
        self._run.factor([Wanted(target.name, dense_matrix(target.module), None)])

    def finish(self) -> Report:
        """Compress what is left, now that the model has its values, and say what was done.

        Raises:
            Exception: what :meth:`compress` met.
        """
        if self._failure is not None:
            raise self._failure
        for target in (*self.pending.values(), *self._last.values()):
            if getattr(target.module.weight, "_is_hf_initialized", False):
                self._factor(target)
            else:
                left = Accounts().layer(target.name, target.kind, target.module, _NEW)
                self._skipped.append(left)
        report = self._run.report(self._skipped)
        require(report.layers, report.skipped)
        return report


class Compress(ConversionOps):
    """What transformers calls with the tensors of a weight to compress; none is left to be set."""

    def __init__(self, compression: Compression) -> None:
        self._compression = compression

    def convert(
        self,
        input_dict: dict[str, Any],
        *args: Any,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Compress those that are waited for; returns the others."""
        others = {}
        for name, value in input_dict.items():
            if name in self._compression.pending:
                self._compression.compress(name, value[0] if isinstance(value, list) else value)
                if missing_keys is not None:
                    missing_keys.discard(name)
            else:
                others[name] = value
        return others


def _without(settings: Config | None, model: nn.Module, names: list[str] | None) -> Config:
    """The settings, with layers left out that match transformers' kind of names and no exact rule."""
    assert settings is not None, "validate_environment"
    skip = [
        name
        for name, module in model.named_modules()
        if not should_convert_module(name, names) and kind(module) is not None and name not in settings.layers
    ]
    return dataclasses.replace(settings, skip=[*settings.skip, *skip])
