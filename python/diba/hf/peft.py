"""LoRA adapters of PEFT on diba's linear layers; imported only when it is used."""

from __future__ import annotations

from typing import Any

try:
    import peft
    from peft.tuners.lora.layer import Linear
except ImportError as error:
    raise ImportError(
        f"LoRA on diba's layers needs PEFT, which cannot be imported ({error}); install it with "
        "'python -m pip install peft'"
    ) from error

from torch import nn

from .._check_arrays import describe
from ..torch.factors import Factors
from ..torch.linear import DiBALinear

__all__ = ["LoraDiBALinear", "register_lora"]


def register_lora(config: peft.LoraConfig) -> peft.LoraConfig:
    """Teach one LoRA configuration diba's linear layers; the same object is returned.

    ::

        config = diba.hf.register_lora(peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
        model = peft.get_peft_model(model, config)
        ...
        model.save_pretrained(folder)
        # later, on the same base model
        config = diba.hf.register_lora(peft.LoraConfig.from_pretrained(folder))
        model = peft.PeftModel.from_pretrained(base, folder, config=config)

    PEFT does not save this part of a configuration, so it is registered again before adapters are loaded.

    Raises:
        TypeError: ``config`` is not a ``peft.LoraConfig``.
    """
    if not isinstance(config, peft.LoraConfig):
        raise TypeError(f"config is {describe(config)}; it must be a peft.LoraConfig")
    config._register_custom_module({DiBALinear: LoraDiBALinear})
    return config


class LoraDiBALinear(Linear):
    """PEFT's LoRA layer around a :class:`diba.torch.DiBALinear`; PEFT builds it.

    The base layer runs on its packed kernels and stays as it is: the sum of factors and adapter has no
    factors of its own, so merging is refused. DoRA works, and builds the dense weight in every forward.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, **options: Any) -> None:
        super().__init__(base_layer, adapter_name, **options)
        base: Any = self.get_base_layer()
        self.fan_in_fan_out = base.fan_in_fan_out  # whatever the configuration says

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, DiBALinear)
        return module.in_features, module.out_features

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapter to the weight, if the base layer was made dense meanwhile.

        Raises:
            ValueError: the base layer holds factors.
        """
        if isinstance(self.get_base_layer(), Factors):
            raise ValueError(
                "a LoRA adapter cannot be merged into packed factors; keep it beside them (unload() removes "
                "it), or make the model dense first: model.get_base_model().dequantize(), then merge"
            )
        super().merge(safe_merge, adapter_names)
