"""Tiny random mixtures of experts of transformers, in evaluation mode, with experts of every form."""

from __future__ import annotations

from typing import Any

import torch
import transformers

NAMES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")
_ALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "num_experts_per_tok": 2,
}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
_OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"intermediate_size": 48, "num_local_experts": 3, "num_key_value_heads": 2}),
    "qwen3_moe": (
        "Qwen3Moe",
        {"moe_intermediate_size": 24, "intermediate_size": 48, "num_experts": 4, "num_key_value_heads": 2}
        | {"head_dim": 8},
    ),
    "gpt_oss": (
        "GptOss",
        {"intermediate_size": 32, "num_local_experts": 3, "num_key_value_heads": 2, "head_dim": 8},
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {"intermediate_size": 48, "moe_intermediate_size": 24, "n_routed_experts": 4, "n_group": 2}
        | {"topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4}
        | _LATENT,
    ),
}


def build(name: str) -> Any:
    """The causal language model of that name; weights so large that routing and experts matter."""
    kind, settings = _OWN[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**_ALL, **settings)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.set_experts_implementation("eager")
    return model
