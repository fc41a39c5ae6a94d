"""The quantizer that puts diba's layers into ``from_pretrained`` and ``save_pretrained`` of transformers.

It uses hooks of transformers 5.0 and later; its methods are in the order in which they are called.
"""

from __future__ import annotations

import dataclasses
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from ..checkpoints.integrity import Stored, factored_in
from ..errors import FormatError
from ..torch.conversion.report import describe, forget, recipe_of, remember
from ..torch.model.layers import named_layers
from ..torch.model.swap import fuse, put
from ..torch.modules.state import compressed_layers
from . import saving
from .compression import Compress, Compression
from .config import METHOD, DibaConfig
from .loading import Loading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..checkpoints.description import Description

__all__ = ["DibaQuantizer", "given_tensors", "models", "set_quantizer"]

given_tensors: ContextVar[dict[str, Tensor] | None] = ContextVar("given_tensors", default=None)
"""The argument ``state_dict`` of the running call of ``save_pretrained``."""


class DibaQuantizer(HfQuantizer):
    """``model.hf_quantizer`` of models with diba's layers.

    For a compressed checkpoint, empty factored layers are built, which transformers then fills. A dense
    checkpoint is compressed while its tensors are read, one weight at a time, so that at most one dense
    weight is in memory besides layers that stay dense and layers that share a weight, which are compressed
    last. See :func:`diba.torch.report` for the result.
    """

    requires_calibration = False
    quantization_config: DibaConfig

    def __init__(self, quantization_config: DibaConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._loading: Loading | None = None  # of a compressed checkpoint
        self._compression: Compression | None = None  # of a dense one

    # ------------------------------------------------------------ loading

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Check the arguments before the model is built.

        Raises:
            ValueError: A dense checkpoint is to be compressed without a size, or onto the disk.
        """
        if self.pre_quantized:
            return
        settings = self.quantization_config.settings
        if settings is None:
            raise ValueError("quantization_config has no size; use DibaConfig(bits_per_weight=2)")
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise ValueError(
                "device_map puts layers on the disk, which is not possible while the model is compressed; "
                "load and save it without, then load the compressed checkpoint"
            )

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> Any:
        """Prepare the model, which is on the meta device.

        Raises:
            FormatError: The checkpoint is damaged.
        """
        stored = Stored.at(checkpoint_files or ())
        if self.pre_quantized:
            self._loading = Loading(model, self.quantization_config, stored)
            return model
        factored = factored_in(stored.tensors)
        if factored:
            raise FormatError(
                f"{stored.where}: {factored[0]} is factored in the files, and config.json has no "
                "quantization_config that says so; it cannot be compressed again: is config.json damaged?"
            )
        for target, source in model.all_tied_weights_keys.items():  # transformers ties them only later
            put(model, target, model.get_parameter(source))
        self._compression = Compression(model, self.quantization_config)
        return model

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Whether a tensor of a dense checkpoint is a weight to be compressed while it is read."""
        return self._compression is not None and param_name in self._compression.pending

    def get_quantize_ops(self) -> Compress:
        """The operation that compresses such a tensor."""
        assert self._compression is not None
        return Compress(self._compression)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self._compression is not None:
            self._compression.finish()
            # Store the settings as given, without the names that modules_to_not_convert added to skip.
            given = self.quantization_config.settings
            assert given is not None, "validate_environment checks it"
            remember(model, dataclasses.replace(recipe_of(model), settings=given.to_dict()))
        if self._loading is not None:
            self._loading.finish()
        self._compression = self._loading = None
        set_quantizer(model, self)
        self.describe(model)
        return model

    # ------------------------------------------------------------ saving, dequantizing

    def get_state_dict_and_metadata(
        self, model: Any, *args: Any
    ) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """The tensors to save; also updates the description in the config, which transformers writes next."""
        if getattr(model, "_hf_peft_config_loaded", False):  # only adapters are saved
            return None, {}
        if not compressed_layers(model):
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            return given_tensors.get(), {}
        tensors, description = saving.state_dict(model, given_tensors.get())
        model.config.quantization_config = config = self._described(description)
        return tensors, {"diba_format_version": str(config.format_version)}

    def describe(self, model: Any) -> None:
        """Update the description of the layers in the config."""
        model.config.quantization_config = self.quantization_config = self._described(describe(model))

    def _described(self, description: Description) -> DibaConfig:
        return DibaConfig.of(description, self.quantization_config.modules_to_not_convert)

    def _dequantize(self, model: Any, dtype: Any = None, **kwargs: Any) -> Any:
        """Make all layers dense again; layers that shared factors share a weight."""
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        weights: dict[int, nn.Parameter] = {}
        for name, layer in named_layers(model).items():
            dense: Any = layer.to_dense_module().to(dtype=dtype)
            dense.weight = weights.setdefault(layer.identity, dense.weight)
            put(model, name, dense)
        fuse(model)
        forget(model)
        for inner in models(model):
            inner.__dict__.pop("_tied_weights_keys", None)  # use those of the class again, which name weights
            inner.all_tied_weights_keys = inner.get_expanded_tied_weights_keys(all_submodels=True)
            _unset_quantizer(inner)
        return model

    # ------------------------------------------------------------ facts

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """True: ``save_pretrained`` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: diagonals can be trained, and adapters added."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """True, so that ``Trainer`` also takes the model without adapters."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: ``torch.compile`` works."""
        return True


def models(model: nn.Module) -> Iterator[PreTrainedModel]:
    """All transformers models in a model, including itself."""
    return (module for module in model.modules() if isinstance(module, PreTrainedModel))


def set_quantizer(model: nn.Module, quantizer: DibaQuantizer) -> None:
    """Set the quantizer of a model and of all models in it, which can be saved by themselves."""
    inner: Any
    for inner in models(model):
        inner.hf_quantizer, inner.is_quantized, inner.quantization_method = quantizer, True, METHOD


def _unset_quantizer(model: Any) -> None:
    for name in ("hf_quantizer", "quantization_method"):
        model.__dict__.pop(name, None)
    model.is_quantized = False
