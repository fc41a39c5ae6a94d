"""Models of transformers whose blocks are reconstructed, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import diba
import diba.torch


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def whisper() -> Any:
    config = transformers.WhisperConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=8,
        max_source_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return transformers.WhisperForConditionalGeneration(config).eval()


def tokens() -> torch.Tensor:
    return torch.randint(3, 60, (2, 10))


MODELS = {
    "decoder": (llama, lambda: {"input_ids": tokens()}, ["model.layers.0", "model.layers.1"]),
    "encoder and decoder": (
        whisper,
        lambda: {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": tokens()},
        [f"model.{side}.layers.{number}" for side in ("encoder", "decoder") for number in (0, 1)],
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_blocks_of_a_checkpoint_are_told_again(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, batch, names = MODELS[kind]
    model, batches = make(), [batch() for _ in range(4)]
    how = {"steps": 4, "tune_steps": 2}
    settings = {"bits_per_weight": 2.5, "effort": "fast", "progress": False}
    diba.torch.convert(model, batches=batches, reconstruct=how, loss=diba.torch.fisher(), **settings)
    found = diba.torch.report(model)
    assert list(found.blocks) == names
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    again = diba.torch.report(loaded)
    assert again.blocks == found.blocks
    assert again.reconstruction == diba.torch.Reconstruction(**how).to_dict()
    base = type(model.model).from_pretrained(tmp_path)  # with other names of the same modules
    assert set(diba.torch.report(base).blocks) == {name.removeprefix("model.") for name in names}
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["blocks"][names[0]]["loss"] = "low"
    path.write_text(json.dumps(config))
    with pytest.raises(diba.FormatError, match=r"blocks\["):
        type(model).from_pretrained(tmp_path)
