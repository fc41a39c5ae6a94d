"""diba's layers in ``from_pretrained`` and ``save_pretrained`` of transformers.

Only hooks that transformers has from 5.0 on are used; methods stand in the order in which they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from .. import _check
from ..torch import swap
from ..torch.config import Config
from ..torch.unfuse import fuse
from . import checkpoint
from .config import METHOD, DibaConfig
from .loading import Compress, Compression

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..torch.report import Report

__all__ = ["DibaQuantizer", "attach"]


class DibaQuantizer(HfQuantizer):
    """``model.hf_quantizer`` of models with diba's layers.

    A compressed checkpoint gets its layers built empty, and filled by transformers. A dense one is compressed
    tensor by tensor as they are read, so that never more than one dense weight is in memory, besides layers
    that stay dense and those that share a weight, which are compressed last.

    Attributes:
        report: What was compressed while loading, a :class:`diba.torch.Report`; None if nothing was.
    """

    requires_calibration = False
    quantization_config: DibaConfig

    def __init__(self, quantization_config: DibaConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.report: Report | None = None
        self._loading: Compression | None = None
        self._names: dict[str, str] = {}  # in the checkpoint -> in the model
        self._forms: dict[str, dict[str, tuple[torch.Size, torch.dtype]]] = {}  # in the model

    # ------------------------------------------------------------ loading

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse what cannot work, before the model is built.

        Raises:
            ValueError: a dense checkpoint is to be compressed without a size, or onto the disk.
        """
        if self.pre_quantized:
            return
        settings = self.quantization_config.settings
        if settings is None:
            raise ValueError("quantization_config has no size; use DibaConfig(bits_per_weight=2)")
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise ValueError(
                "device_map puts layers on the disk, which is not possible while they are compressed; load "
                "and save the model first, then load the compressed checkpoint"
            )

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """The model is on the meta device."""
        if not self.pre_quantized:
            for target, source in model.all_tied_weights_keys.items():  # transformers does so later
                checkpoint.put(model, target, model.get_parameter(source))
            self._loading = Compression(model, self.quantization_config)
            return model
        entries = self.quantization_config.factors
        checkpoint.take_apart(model, entries)
        self._names = checkpoint.names_in(model, entries)
        for name, here in self._names.items():
            layer = checkpoint.empty(model.get_submodule(here), here, entries[name])
            self._forms[here] = checkpoint.forms(layer)
            checkpoint.put(model, here, layer)
        checkpoint.expect(model, self._names, entries)
        weights = {f"{here}.weight" for here in self._names.values()}
        tied = model.all_tied_weights_keys.items()
        model.all_tied_weights_keys = {a: b for a, b in tied if a not in weights and b not in weights}
        return model

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Whether a tensor of a dense checkpoint is a weight to compress while it is read."""
        return self._loading is not None and param_name in self._loading.pending

    def get_quantize_ops(self) -> Compress:
        """What compresses such a tensor."""
        assert self._loading is not None
        return Compress(self._loading)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self._loading is not None:
            self.report = self._loading.finish()
            self._loading = None
        checkpoint.check_loaded(model, self._forms)
        sharing = checkpoint.share(model, self._names, self.quantization_config.factors)
        if sharing:
            swap._retie(model, sharing)
        _set_quantizer(model, self)
        return model

    # ------------------------------------------------------------ saving, dense again

    def get_state_dict_and_metadata(
        self, model: Any, *args: Any
    ) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """Tensors to save; the config, which transformers writes next, is made to describe the layers."""
        if getattr(model, "_hf_peft_config_loaded", False):  # only adapters are saved
            return None, {}
        factors = checkpoint.describe_layers(model)
        if not factors:
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            return None, {}
        config = DibaConfig.of(self.quantization_config.settings, factors)
        config.modules_to_not_convert = self.quantization_config.modules_to_not_convert
        model.config.quantization_config = config
        return checkpoint.state_dict(model), {"diba_format_version": str(config.format_version)}

    def _dequantize(self, model: Any, dtype: Any = None, **kwargs: Any) -> Any:
        """Dense layers again, those that shared factors share a weight."""
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        weights: dict[int, nn.Parameter] = {}
        for name, layer in checkpoint.factored(model).items():
            dense: Any = layer.to_dense_module().to(dtype=dtype)
            dense.weight = weights.setdefault(id(layer.b1), dense.weight)
            checkpoint.put(model, name, dense)
        fuse(model)
        for inner in _models(model):
            inner.__dict__.pop("_tied_weights_keys", None)  # of weights again, as the class has them
            inner.all_tied_weights_keys = inner.get_expanded_tied_weights_keys(all_submodels=True)
            _unset_quantizer(inner)
        return model

    # ------------------------------------------------------------ facts

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """``save_pretrained`` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Diagonals train as they are, and adapters on top."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """So ``Trainer`` takes the model without adapters, too."""
        return True

    @property
    def is_compileable(self) -> bool:
        """``torch.compile`` works."""
        return True


def attach(model: nn.Module, settings: Config | None = None) -> nn.Module:
    """Prepare a converted model for ``save_pretrained``; the same model is returned.

    :func:`diba.torch.convert` does so by itself; it is for layers that were put in by other means. Models of
    transformers inside of another module, as in sentence-transformers, are prepared, too.

    Args:
        model: With layers of ``diba.torch``, in one or more ``transformers.PreTrainedModel``.
        settings: What the layers were made with, for the record in ``config.json``.

    Raises:
        TypeError: ``model`` is no module, or ``settings`` no ``diba.torch.Config``.
        ValueError: it has no model of transformers with such layers, or one that is quantized by other means.
    """
    _check.instance(model, "model", nn.Module, "use the model itself")
    if settings is not None:
        _check.instance(settings, "settings", Config, "use diba.torch.Config(...)")
    attached = 0
    for outer in _outermost(model):
        factors = checkpoint.describe_layers(outer)
        if factors:
            quantizer = getattr(outer, "hf_quantizer", None)
            if quantizer is None:
                quantizer = DibaQuantizer(DibaConfig.of(settings, factors), pre_quantized=True)
            elif not isinstance(quantizer, DibaQuantizer):
                method = quantizer.quantization_config.quant_method
                raise ValueError(
                    f"model is quantized with {getattr(method, 'value', method)}; its other layers must be "
                    "dense: use its dequantize() before diba.torch.convert"
                )
            elif settings is not None:
                quantizer.quantization_config.settings = settings
            outer.config.quantization_config = quantizer.quantization_config
            _set_quantizer(outer, quantizer)
            attached += 1
    if not attached:
        raise ValueError(
            f"model, a {type(model).__name__}, has no transformers.PreTrainedModel with layers of "
            "diba.torch; use diba.torch.convert(model, bits_per_weight=2) first"
        )
    return model


def _outermost(model: nn.Module) -> Iterator[PreTrainedModel]:
    """Models of transformers that are not part of another one."""
    if isinstance(model, PreTrainedModel):
        yield model
    else:
        for child in model.children():
            yield from _outermost(child)


def _models(model: nn.Module) -> Iterator[PreTrainedModel]:
    """Models of transformers in a model, itself included."""
    return (module for module in model.modules() if isinstance(module, PreTrainedModel))


def _set_quantizer(model: nn.Module, quantizer: DibaQuantizer) -> None:
    """For all inner models, too: they can be saved by themselves."""
    inner: Any
    for inner in _models(model):
        inner.hf_quantizer, inner.is_quantized, inner.quantization_method = quantizer, True, METHOD


def _unset_quantizer(model: Any) -> None:
    for name in ("hf_quantizer", "quantization_method"):
        model.__dict__.pop(name, None)
    model.is_quantized = False
