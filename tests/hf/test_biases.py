"""Models of transformers whose layers were given biases: saved, loaded, and made dense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import diba
import diba.checkpoints.integrity
import diba.torch


def dense() -> Any:
    """A language model without biases."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    """The same, two layers being given biases."""
    made = dense()
    diba.torch.convert(
        made,
        batches=[{"input_ids": torch.randint(3, 60, (4, 12))} for _ in range(2)],
        layers={r"re:.*\.(o|down)_proj": {"bias": "add"}},
        bits_per_weight=2.5,
        effort="fast",
        progress=False,
    )
    return made


ADDED = ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"]


def test_a_checkpoint_with_added_biases_is_loaded_into_the_dense_architecture(
    model: Any, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    ids = torch.randint(3, 60, (2, 7))
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    report = diba.torch.report(loaded)
    assert [layer.name for layer in report.layers if layer.bias_added] == ADDED
    assert report.layers == diba.torch.report(model).layers
    assert loaded.num_parameters() == report.parameters_before == dense().num_parameters()
    found = diba.checkpoints.integrity.inspect(tmp_path)
    assert {layer.name for layer in found.layers if layer.bias_added} == set(ADDED)
    assert found.parameters_before == report.parameters_before
    base = transformers.LlamaModel.from_pretrained(tmp_path)  # with other names of the same modules
    assert base.layers[0].mlp.down_proj.bias_added
    loaded.save_pretrained(tmp_path / "again")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again.model.layers[0].mlp.down_proj.bias, model.model.layers[0].mlp.down_proj.bias)


def test_a_bias_that_is_missing_or_not_announced_is_noticed(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    entry = config["quantization_config"]["factors"][ADDED[0]]
    assert entry["bias"] == "added"
    for value in (False, True, "more"):  # the CRC of the entry tells, too
        entry["bias"] = value
        path.write_text(json.dumps(config))
        with pytest.raises(diba.FormatError, match=r"bias is 'more'|damaged"):
            transformers.LlamaForCausalLM.from_pretrained(tmp_path)


def test_dense_layers_made_of_it_keep_the_bias(model: Any) -> None:
    layer = model.get_submodule(ADDED[1])
    plain = layer.to_dense_module()
    assert torch.equal(plain.bias, layer.bias)
    assert not hasattr(plain, "bias_added")
