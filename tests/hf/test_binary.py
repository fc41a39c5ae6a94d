"""Checkpoints with binary weights and exceptions: back to the last bit, and refused where damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import diba
from diba.compressing.reading import Weights
from diba.torch import BitLinear, DibaAPBLinear, DibaBitConv2d, DibaBitLinear, binarize, freeze, report

IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture(autouse=True)
def quiet_and_repeatable():
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()


def frozen(exceptions=0.05, **settings):
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=36,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    return freeze(binarize(model, exceptions, skip=["lm_head"], **settings))


@torch.no_grad()
def outputs(model):
    return model(input_ids=IDS)[0]


@pytest.mark.parametrize(
    "settings", [{}, {"exceptions": 0}, {"scales": "rows"}, {"layers": {"re:.*down_proj": None}}]
)
def test_saved_and_loaded(settings, tmp_path):
    model = frozen(**settings)
    model.save_pretrained(tmp_path / "one")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert type(other.model.layers[0].mlp.up_proj) is DibaAPBLinear
    assert torch.equal(outputs(other), outputs(model))
    assert report(other).layers == report(model).layers
    other.save_pretrained(tmp_path / "two", max_shard_size="5KB")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    assert torch.equal(outputs(again), outputs(model))
    assert report(other).bytes_after == other.get_memory_footprint()
    checked = diba.checkpoints.integrity.inspect(tmp_path / "one")
    assert {x.name: x.bits_per_weight for x in checked.layers} == {
        x.name: x.bits_per_weight for x in report(model).layers
    }
    stored = load_file(tmp_path / "one" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    size = sum(stored[key].nbytes for key in stored if key.startswith(f"{name}."))
    layer = other.get_submodule(name)
    padding = 36 * (-36 % 8) / 8
    bits = layer.bits_per_weight * 36 * 36
    assert size == pytest.approx(bits / 8 + padding + 1 + layer.alpha.numel() * (4 - layer.diagonal_bits / 8))
    model.dequantize()
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert torch.allclose(outputs(other), outputs(model), atol=0.05 * float(outputs(model).abs().max()))


def test_loaded_into_a_model_of_ones_own_and_as_arrays(tmp_path):
    model = frozen()
    model.save_pretrained(tmp_path)
    dense = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(tmp_path)).eval()
    assert torch.equal(outputs(diba.torch.load(dense, tmp_path)), outputs(model))
    name = "model.layers.0.mlp.down_proj"
    found = Weights(tmp_path)[name]
    assert isinstance(found, diba.APB)
    np.testing.assert_array_equal(found.to_dense(), model.get_submodule(name).dense_weight().detach().numpy())


@pytest.mark.parametrize("own", ["alpha", "signs", "counts", "columns", "values", "exponent"])
@pytest.mark.parametrize("damage", ["changed", "missing", "shape", "dtype"])
def test_damaged_tensors_are_refused(own, damage, tmp_path):
    frozen().save_pretrained(tmp_path)
    name = "model.layers.0.mlp.up_proj"
    path, key = tmp_path / "model.safetensors", f"{name}.{own}"
    tensors = load_file(path)
    if damage == "missing":
        del tensors[key]
    elif damage == "changed":
        tensors[key].view(torch.uint8).flatten()[0] ^= 1
    elif damage == "shape":
        tensors[key] = torch.cat([tensors[key], tensors[key]])
    else:
        tensors[key] = tensors[key].to(torch.int16)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(diba.FormatError, match=key):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(diba.FormatError, match=key):
        diba.checkpoints.integrity.inspect(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("entries", 3),
        ("entries", -1),
        ("alphas", 2),
        ("alphas", 0),
        ("shape", [48, 35]),
        ("k", 7),
        ("diagonal_bits", 8),
    ],
)
def test_damaged_descriptions_are_refused(key, value, tmp_path):
    frozen().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["factors"]["model.layers.0.mlp.up_proj"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(diba.FormatError, match="up_proj"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("own", "change", "message"),
    [
        ("counts", lambda t: t.zero_(), "sum"),
        ("columns", lambda t: t.fill_(255), "column beyond 35"),
        ("values", lambda t: t.fill_(255), "NaN"),
        ("signs", lambda t: t.fill_(255), "past its last column"),
    ],
)
def test_tensors_that_make_no_matrix_are_not_saved(own, change, message, tmp_path):
    model = frozen()
    change(getattr(model.model.layers[0].mlp.up_proj, own))
    with pytest.raises(diba.FormatError, match=f"up_proj.{own}.*{message}"):
        model.save_pretrained(tmp_path)


# ---------------------------------------------------------------- few bits on both sides


def bitwise(**bits):
    model = frozen(layers={"re:.*(up|down)_proj": None})
    for name in ("up_proj", "down_proj"):
        mlp = model.model.layers[0].mlp
        setattr(mlp, name, BitLinear.from_dense(getattr(mlp, name), **bits))
    return freeze(model)


@pytest.mark.parametrize(("a", "w"), [(1, 1), (2, 1), (1, 2)])
def test_bits_on_both_sides_are_saved_and_loaded(a, w, tmp_path):
    model = bitwise(activation_bits=a, weight_bits=w)
    model.save_pretrained(tmp_path)
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(other.model.layers[0].mlp.up_proj) is DibaBitLinear
    assert other.model.layers[0].mlp.up_proj.activation_bits == a
    assert torch.equal(outputs(other), outputs(model))
    assert report(other).layers == report(model).layers
    assert report(other).bytes_after == other.get_memory_footprint()
    found = {x.name: x.alphabet for x in diba.checkpoints.integrity.inspect(tmp_path).layers}
    assert found["model.layers.0.mlp.down_proj"] == f"{w}x{a}"
    dense = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(tmp_path)).eval()
    assert torch.equal(outputs(diba.torch.load(dense, tmp_path)), outputs(model))


@pytest.mark.parametrize(("a", "w"), [(1, 1), (2, 2)])
def test_convolutions_of_bits_are_saved_and_loaded(a, w, tmp_path):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=3
    )
    model = transformers.ResNetForImageClassification(config).eval()
    freeze(diba.torch.bitwise(model, a, w, skip=["re:.*embedder.*", "re:classifier.*"]))
    model.save_pretrained(tmp_path)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(x).logits
        other = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
        kinds = {type(layer) for layer in other.resnet.encoder.modules() if hasattr(layer, "kernel_size")}
        assert DibaBitConv2d in kinds
        assert torch.nn.Conv2d not in kinds
        assert torch.equal(other(x).logits, before)
        assert report(other).layers == report(model).layers
        assert report(other).layers[0].alphabet == f"{w}x{a}"
        dense = transformers.ResNetForImageClassification(
            transformers.ResNetConfig.from_pretrained(tmp_path)
        ).eval()
        assert torch.equal(diba.torch.load(dense, tmp_path)(x).logits, before)
        assert report(other).bytes_after == other.get_memory_footprint()
        other.dequantize()
    assert type(other.resnet.encoder.stages[0].layers[0].layer[0].convolution) is torch.nn.Conv2d


@pytest.mark.parametrize("own", ["scale", "planes"])
@pytest.mark.parametrize("damage", ["changed", "missing", "shape"])
def test_damaged_bits_are_refused(own, damage, tmp_path):
    bitwise(activation_bits=2).save_pretrained(tmp_path)
    path, key = tmp_path / "model.safetensors", f"model.layers.0.mlp.up_proj.{own}"
    tensors = load_file(path)
    if damage == "missing":
        del tensors[key]
    elif damage == "changed":
        tensors[key].view(torch.uint8).flatten()[0] ^= 1
    else:
        tensors[key] = torch.cat([tensors[key], tensors[key]])
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(diba.FormatError, match=key):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
