"""What ``diba export`` makes of a folder: the example for each kind of model, the files it copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import diba.executorch.folder
import diba.onnx.folder
import tiny_models


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments that an export got."""
    given: dict[str, Any] = {}

    def export(model: Any, example: Any, path: Path, **options: Any) -> None:
        given.update(model=model, example=example, path=path, options=options)

    for module in (diba.onnx.folder, diba.executorch.folder):
        monkeypatch.setattr(module, "export", export)
    return given


def shapes(given: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in given["example"].items()}


def test_tokens_of_a_tokenizer(exported: dict[str, Any], tmp_path: Path) -> None:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<end>": 0, "<unknown>": 1, "the": 2, "rain": 3}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unknown>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="<unknown>")
    model = tiny_models.build("llama")[0].bfloat16()
    model.save_pretrained(tmp_path / "model")
    fast.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "assets").mkdir()
    diba.onnx.folder.export_folder(str(tmp_path / "model"), str(tmp_path / "a" / "b"), head=4)
    assert exported["path"] == tmp_path / "a" / "b" / "model.onnx"
    assert exported["options"] == {"head": 4}
    assert not exported["model"].training
    assert {p.dtype for p in exported["model"].parameters()} == {torch.float32}
    assert {"input_ids", "attention_mask"} <= set(exported["example"])
    assert len(exported["example"]["input_ids"]) == 2
    assert (exported["example"]["attention_mask"] == 0).any()  # of two lengths
    copied = {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= copied
    assert not any(name.endswith(".safetensors") or name == "assets" for name in copied)


def test_sounds_and_images_of_the_configuration(exported: dict[str, Any], tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    tiny_models.build("whisper")[0].save_pretrained(tmp_path / "sound")
    diba.onnx.folder.export_folder(str(tmp_path / "sound"), str(tmp_path / "out"))
    assert shapes(exported) == {"input_features": (2, 8, 40), "decoder_input_ids": (2, 3)}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(tmp_path / "image")
    diba.onnx.folder.export_folder(str(tmp_path / "image"), str(tmp_path / "out"))
    assert shapes(exported) == {"pixel_values": (2, 3, 32, 32)}


def test_a_model_without_sizes_is_refused(exported: dict[str, Any], tmp_path: Path) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    conv = {"conv_dim": (8,), "conv_stride": (2,), "conv_kernel": (3,), "num_conv_pos_embedding_groups": 2}
    Wav2Vec2Model(Wav2Vec2Config(**sizes, **conv)).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"the model takes input_values.*use diba.onnx.export"):
        diba.onnx.folder.export_folder(str(tmp_path / "model"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_sizes_of_a_program(exported: dict[str, Any], tmp_path: Path) -> None:
    tiny_models.build("bert")[0].save_pretrained(tmp_path / "text")
    export = diba.executorch.folder.export_folder
    export(str(tmp_path / "text"), str(tmp_path / "out"), precision="exact")
    assert exported["path"] == tmp_path / "out" / "model.pte"
    positions = exported["model"].config.max_position_embeddings
    assert exported["options"] == {"precision": "exact", "largest": {"length": positions}}
    assert shapes(exported) == {"input_ids": (1, 12), "attention_mask": (1, 12)}
    export(str(tmp_path / "text"), str(tmp_path / "out"), length=9, batch=4)
    assert exported["options"] == {"largest": {"length": 9, "batch": 4}}
    assert shapes(exported) == {"input_ids": (2, 9), "attention_mask": (2, 9)}
    tiny_models.build("whisper")[0].save_pretrained(tmp_path / "sound")
    export(str(tmp_path / "sound"), str(tmp_path / "out"))
    assert exported["options"] == {"largest": {}}
    for folder in ("out", "new"):  # what was there stays, a new folder goes
        with pytest.raises(ValueError, match=r"length is 9; the model takes input_features, leave it out"):
            export(str(tmp_path / "sound"), str(tmp_path / folder), length=9)
    assert (tmp_path / "out" / "config.json").exists()
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match=r"batch is 0"):
        export(str(tmp_path / "text"), str(tmp_path / "other"), batch=0)
    assert not (tmp_path / "other").exists()
