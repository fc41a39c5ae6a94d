"""A tiny language model of random weights with a tokenizer of single bytes, and folders of it."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ("<pad>", "<s>", "</s>")
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def tokenizer() -> Any:
    """One token for each byte, and three special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *letters))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    names = dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    whole: Any = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)
    whole.chat_template = TEMPLATE
    return whole


def language_model(kind: str = "Llama", **settings: Any) -> Any:
    """A dense model of an architecture of transformers."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=259, **{**SIZES, **settings})
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()
