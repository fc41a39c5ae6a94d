"""PEFT adapters for diba's linear layers; :mod:`diba.hf` imports this module when PEFT is imported."""

from __future__ import annotations

import functools
import sys
import warnings
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, PeftModel, TaskType
from peft.tuners import tuners_utils
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import Linear
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND, SEQ_CLS_HEAD_NAMES
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from ..torch.model.fused import UnfusedModule
from ..torch.modules.coded_layers import DibaCodedEmbedding
from ..torch.modules.embedding import DibaEmbedding
from ..torch.modules.layer import FactoredLayer
from ..torch.modules.linear import DibaLinear
from ..torch.modules.state import CompressedLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["LoraDibaLinear", "teach"]

_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations of LoRA that subtract the initial adapter from the weight."""

_ADAPTERS = (tuners_utils.BaseTunerLayer, AuxiliaryTrainingWrapper)
"""Modules of PEFT that wrap layers."""

_MERGING = (
    "a LoRA adapter cannot be merged into packed factors; keep it beside them (unload() removes it), or make "
    "the model dense first: model.get_base_model().dequantize(), then merge"
)


class LoraDibaLinear(Linear):
    """PEFT's LoRA layer around a :class:`diba.torch.DibaLinear`; PEFT builds it.

    The base layer runs on its packed kernels and stays as it is: the sum of factors and adapter has no
    factors of its own, so merging is refused. DoRA works, and builds the dense weight in every forward.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, **options: Any) -> None:
        super().__init__(base_layer, adapter_name, **options)
        base: Any = self.get_base_layer()
        self.fan_in_fan_out = base.fan_in_fan_out  # whatever the configuration says

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, DibaLinear)
        return module.in_features, module.out_features

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapter to the weight, if the base layer was made dense meanwhile.

        Raises:
            ValueError: the base layer holds factors.
        """
        if isinstance(self.get_base_layer(), FactoredLayer):
            raise ValueError(_MERGING)
        super().merge(safe_merge, adapter_names)


def teach() -> None:
    """Let PEFT put LoRA on ``DibaLinear``, by names and by ``"all-linear"``, and refuse other adapters.

    The function that expands "all-linear" sees every configuration and its model before anything is changed,
    so it is wrapped in all modules of PEFT that have it. The check before merging is wrapped, too.
    """
    original = tuners_utils._maybe_include_all_linear_layers
    if getattr(original, "_knows_diba", False):
        return
    wrapped = _including(original)
    wrapped._knows_diba = True  # type: ignore[attr-defined]
    for name, module in list(sys.modules.items()):
        if name.startswith("peft.") and getattr(module, original.__name__, None) is original:
            setattr(module, original.__name__, wrapped)
    for owner, name, wrapper in (
        (LoraModel, "_check_merge_allowed", _checking),
        (PeftModel, "_setup_prompt_encoder", _prompting),
    ):
        setattr(owner, name, wrapper(getattr(owner, name)))


def _including(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def include(peft_config: Any, model: nn.Module) -> Any:
        wish = getattr(peft_config, "target_modules", None)
        everything = isinstance(wish, str) and wish.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND
        peft_config = original(peft_config, model)
        factored = dict(_outside(model, _ADAPTERS))
        if everything and factored:
            single = _outside(
                model, (*_ADAPTERS, UnfusedModule)
            )  # fused matrices are no linear layers to PEFT
            linear = {name for name, layer in single if isinstance(layer, DibaLinear)}
            peft_config.target_modules = {*peft_config.target_modules, *linear} - _heads(peft_config, model)
        if factored and getattr(peft_config, "target_modules", None):
            _refuse(peft_config, factored)
        _warn_of_experts(peft_config, model)
        if isinstance(peft_config, LoraConfig) and DibaLinear not in (peft_config._custom_modules or {}):
            peft_config._register_custom_module({DibaLinear: LoraDibaLinear})
        return peft_config

    return include


def _outside(
    model: nn.Module, of: tuple[type, ...], prefix: str = ""
) -> Iterator[tuple[str, CompressedLayer]]:
    """Factored layers outside of modules of the given classes, with their names."""
    for name, child in model.named_children():
        if isinstance(child, CompressedLayer):
            yield prefix + name, child
        elif not isinstance(child, of):
            yield from _outside(child, of, f"{prefix}{name}.")


def _warn_of_experts(peft_config: Any, model: nn.Module) -> None:
    """Warn if target_parameters names fused matrices that were split into layers."""
    meant = set(getattr(peft_config, "target_parameters", None) or ())
    for name, part in model.named_modules():
        fused = sorted(meant & part.sources().keys()) if isinstance(part, UnfusedModule) else []
        if fused:
            layer = f"{name}.{part.sources()[fused[0]][0][0]}"
            warnings.warn(
                f"{', '.join(fused)} of {name} get no adapters: diba has factored each of their matrices. "
                f"Name those layers in a list, as target_modules=[{layer!r}, ...]; model.named_modules() has "
                "them",
                stacklevel=3,
            )
            return


def _heads(peft_config: Any, model: Any) -> set[str]:
    """Names of the output layers that "all-linear" leaves out."""
    if not isinstance(model, PreTrainedModel):
        return set()
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if output is not None:
        return {name for name, module in model.named_modules() if module is output}
    classifies = getattr(peft_config, "task_type", None) == TaskType.SEQ_CLS
    return set([name for name in SEQ_CLS_HEAD_NAMES if hasattr(model, name)][:1]) if classifies else set()


def _refuse(peft_config: Any, factored: dict[str, CompressedLayer]) -> None:
    """Refuse adapters other than LoRA, and LoRA on layers other than ``DibaLinear``.

    Raises:
        ValueError: naming the layers and what to do.
    """
    kind = peft_config.peft_type.value
    lora = kind == "LORA"
    start = str(getattr(peft_config, "init_lora_weights", "")).partition("_niter")[0].lower()
    tokens = getattr(peft_config, "trainable_token_indices", None) or ()
    for name, layer in factored.items():
        targeted = tuners_utils.check_target_module_exists(peft_config, name)
        if targeted and not (lora and isinstance(layer, DibaLinear)):
            what = f"{kind} adapters"
        elif targeted and start in _CHANGING:
            what = f"init_lora_weights={peft_config.init_lora_weights!r}, which changes the weight,"
        elif tokens and isinstance(layer, (DibaEmbedding, DibaCodedEmbedding)):
            what = "trainable_token_indices"
        else:
            continue
        raise ValueError(
            f"PEFT's {what} cannot be put on {name}, a {type(layer).__name__} of diba; no layer was changed. "
            "Compressed layers take LoRA alone, on DibaLinear, and keep their values: use peft.LoraConfig, "
            "name other layers, or make the model dense with model.dequantize()"
        )


def _checking(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def check_merge_allowed(self: Any) -> None:
        """Refuse before the first layer is merged, not at the first one that cannot be."""
        for module in self.model.modules():
            if isinstance(module, LoraDibaLinear) and isinstance(module.get_base_layer(), FactoredLayer):
                raise ValueError(_MERGING)
        original(self)

    return check_merge_allowed


def _prompting(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def setup_prompt_encoder(self: Any, adapter_name: str) -> Any:
        try:
            return original(self, adapter_name)
        except AttributeError as error:  # it looks for a parameter with a row for every token
            for name, layer in self.base_model.named_modules():
                if isinstance(layer, (DibaEmbedding, DibaCodedEmbedding)):
                    raise ValueError(
                        f"PEFT's prompts need a dense embedding, and {name} is a {type(layer).__name__} of "
                        f"diba; compress with skip=[{name!r}], or make the model dense with "
                        "model.dequantize()"
                    ) from error
            raise

    return setup_prompt_encoder


teach()
