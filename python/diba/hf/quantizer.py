"""diba's layers in ``from_pretrained`` and ``save_pretrained`` of transformers.

Only hooks that transformers has from 5.0 on are used; methods stand in the order in which they are called.
"""

from __future__ import annotations

import dataclasses
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from ..checkpoints.stored import Stored, check_names, check_stored, factored_in
from ..errors import FormatError
from ..torch.conversion.report import describe, forget, recipe_of, remember
from ..torch.model.layers import named_layers
from ..torch.model.swap import fuse, put, retie
from ..torch.modules.layer import factored_layers
from . import checkpoint
from .config import METHOD, DibaConfig
from .loading import Compress, Compression

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..checkpoints.description import Description
    from ..checkpoints.layers import LayerDescription

__all__ = ["DibaQuantizer", "given_tensors", "models", "set_quantizer"]

given_tensors: ContextVar[dict[str, Tensor] | None] = ContextVar("given_tensors", default=None)
"""``state_dict`` of the call of ``save_pretrained`` under way."""


class DibaQuantizer(HfQuantizer):
    """``model.hf_quantizer`` of models with diba's layers.

    A compressed checkpoint gets its layers built empty, and filled by transformers. A dense one is compressed
    tensor by tensor as they are read, so that never more than one dense weight is in memory, besides layers
    that stay dense and those that share a weight, which are compressed last. :func:`diba.torch.report` of
    the model tells what became of it.
    """

    requires_calibration = False
    quantization_config: DibaConfig

    def __init__(self, quantization_config: DibaConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._loading: Compression | None = None
        self._stored = Stored({})
        self._layers: dict[str, LayerDescription] = {}
        self._unchecked: set[str] = set()
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

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> Any:
        """The model is on the meta device.

        Raises:
            FormatError: the checkpoint is damaged.
        """
        self._stored = Stored.at(checkpoint_files or ())
        if not self.pre_quantized:
            self._require_dense()
            for target, source in model.all_tied_weights_keys.items():  # transformers does so later
                put(model, target, model.get_parameter(source))
            self._loading = Compression(model, self.quantization_config)
            return model
        layers, stored = dict(self.quantization_config.description.layers), self._stored
        # From a state_dict, or another kind of file, there is nothing to check yet.
        own = {name for name, layer in layers.items() if layer.shared is None}
        self._unchecked = check_stored(layers, stored) if stored.tensors else own
        if stored.tensors:
            crc32 = self.quantization_config.description.crc32_names
            check_names(stored.tensors, crc32, self._unchecked, stored.where)
        checkpoint.take_apart(model, layers)
        names = checkpoint.names_in(model, layers)
        self._names, self._layers = checkpoint.tied(model, names, layers, stored)
        for name, here in self._names.items():
            layer = checkpoint.empty(model.get_submodule(here), here, self._layers[name])
            self._forms[here] = checkpoint.forms(layer)
            put(model, here, layer)
        checkpoint.expect(model, self._names, self._layers)
        weights = {f"{here}.weight" for here in self._names.values()}
        tied = model.all_tied_weights_keys.items()
        model.all_tied_weights_keys = {a: b for a, b in tied if a not in weights and b not in weights}
        return model

    def _require_dense(self) -> None:
        factored = factored_in(self._stored.tensors)
        if factored:
            raise FormatError(
                f"{self._stored.where}: {factored[0]} is factored in the files, and config.json has no "
                "quantization_config that says so; it cannot be compressed again: is config.json damaged?"
            )

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Whether a tensor of a dense checkpoint is a weight to compress while it is read."""
        return self._loading is not None and param_name in self._loading.pending

    def get_quantize_ops(self) -> Compress:
        """What compresses such a tensor."""
        assert self._loading is not None
        return Compress(self._loading)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self._loading is not None:
            self._loading.finish()
            self._loading = None
            # As it was asked for, without the names that modules_to_not_convert stands for.
            asked = self.quantization_config.settings
            assert asked is not None, "validate_environment"
            remember(model, dataclasses.replace(recipe_of(model), settings=asked.to_dict()))
        else:
            checkpoint.tell_recipe(model, self.quantization_config)
        unchecked = {self._names[name]: self._layers[name] for name in self._unchecked & self._names.keys()}
        checkpoint.check_loaded(model, self._forms, unchecked, self._stored.where)
        sharing = checkpoint.share(model, self._names, self._layers, self._stored)
        if sharing:
            retie(model, sharing)
        self._stored, self._layers = Stored({}), {}
        set_quantizer(model, self)
        self.describe(model)
        return model

    # ------------------------------------------------------------ saving, dense again

    def get_state_dict_and_metadata(
        self, model: Any, *args: Any
    ) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """Tensors to save; the config, which transformers writes next, is made to describe the layers."""
        if getattr(model, "_hf_peft_config_loaded", False):  # only adapters are saved
            return None, {}
        if not factored_layers(model):
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            return given_tensors.get(), {}
        tensors, description = checkpoint.state_dict(model, given_tensors.get())
        model.config.quantization_config = config = self._described(description)
        return tensors, {"diba_format_version": str(config.format_version)}

    def describe(self, model: Any) -> None:
        """Make the config, which is the model's, describe its layers."""
        model.config.quantization_config = self.quantization_config = self._described(describe(model))

    def _described(self, description: Description) -> DibaConfig:
        return DibaConfig.of(description, self.quantization_config.modules_to_not_convert)

    def _dequantize(self, model: Any, dtype: Any = None, **kwargs: Any) -> Any:
        """Dense layers again, those that shared factors share a weight."""
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        weights: dict[int, nn.Parameter] = {}
        for name, layer in named_layers(model).items():
            dense: Any = layer.to_dense_module().to(dtype=dtype)
            dense.weight = weights.setdefault(id(layer.b1), dense.weight)
            put(model, name, dense)
        fuse(model)
        forget(model)
        for inner in models(model):
            inner.__dict__.pop("_tied_weights_keys", None)  # the class's own, which name weights
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


def models(model: nn.Module) -> Iterator[PreTrainedModel]:
    """Models of transformers in a model, itself included."""
    return (module for module in model.modules() if isinstance(module, PreTrainedModel))


def set_quantizer(model: nn.Module, quantizer: DibaQuantizer) -> None:
    """For all inner models, too: they can be saved by themselves."""
    inner: Any
    for inner in models(model):
        inner.hf_quantizer, inner.is_quantized, inner.quantization_method = quantizer, True, METHOD


def _unset_quantizer(model: Any) -> None:
    for name in ("hf_quantizer", "quantization_method"):
        model.__dict__.pop(name, None)
    model.is_quantized = False
