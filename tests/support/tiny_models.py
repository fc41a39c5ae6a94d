"""Tiny random models of every architecture that is tested, in evaluation mode, each with a padded batch."""

from __future__ import annotations

import torch
import transformers
from torch import nn

NAMES = ("bert", "llama", "gpt2", "whisper", "t5", "mlp")
TOKENS = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def build(name):
    """The model and two batches of it."""
    torch.manual_seed(0)
    model = _BUILDERS[name]().eval()
    generator = torch.Generator().manual_seed(1)
    batches = []
    for length in (9, 7):
        ids = torch.randint(3, 50, (2, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, length - 3 :] = 0
        sound = torch.randn(2, 8, 40, generator=generator)
        image = torch.randn(length, 12, generator=generator)
        batches.append(
            {"input_features": sound, "decoder_input_ids": ids}
            if name == "whisper"
            else {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :5]}
            if name == "t5"
            else {"input": image}
            if name == "mlp"
            else {"input_ids": ids, "attention_mask": mask}
        )
    return model, batches


def dense_layers(model):
    """Names of all layers with a matrix and inputs."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) or type(module).__name__ == "Conv1D"
    ]


def inputs(model, names, batch):
    """Name -> inputs of its calls, recorded by hooks of the test's own."""
    seen = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen[name].append(args[0].detach().clone())
        )
        for name in names
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


def rows(module, x, mask=None):
    """A layer's input vectors in float64, convolutions by torch's own unfolding."""
    x = x.double()
    if isinstance(module, nn.Conv1d):
        pad, step = module.padding[0], module.stride[0]
        unfolded = nn.functional.unfold(x[:, :, None], (1, module.kernel_size[0]), 1, (0, pad), (1, step))
        return unfolded.movedim(1, 2).flatten(0, 1)
    if mask is not None and x.ndim == 3 and x.shape[:2] == mask.shape:
        x = x[mask.bool()]
    return x.flatten(0, -2)


def _bert():
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return transformers.BertModel(transformers.BertConfig(**TOKENS, **shape, max_position_embeddings=32))


def _llama():
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TOKENS, **shape, num_key_value_heads=1))


def _gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**TOKENS, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    )


def _whisper():
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "num_mel_bins": 8}
    widths = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_source_positions": 20}
    tokens = {"max_target_positions": 16, "decoder_start_token_id": 1}
    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(**TOKENS, **heads, **sizes, **widths, **tokens)
    )


def _t5():
    """Its first blocks compute position biases, which all blocks read."""
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(
        **TOKENS,
        **shape,
        relative_attention_num_buckets=8,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    return transformers.T5ForConditionalGeneration(config)


def _mlp():
    return nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 4))


_BUILDERS = {"bert": _bert, "llama": _llama, "gpt2": _gpt2, "whisper": _whisper, "t5": _t5, "mlp": _mlp}
