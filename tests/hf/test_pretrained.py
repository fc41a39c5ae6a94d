"""Methods of transformers' models that count, cast or resize, on models with factored layers."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
import transformers

import diba
from diba.torch.conversion.convert import convert
from diba.torch.modules.layer import FactoredLayer

IDS = torch.arange(12).reshape(2, 6)
ROWS = 60
SETTINGS = {
    "linear": {},
    "head dense": {"skip": ["lm_head"]},
    "tied": {"tied": True},
    "everything": {"tied": True, "embeddings": True},
}


def llama(tie):
    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = transformers.LlamaConfig(
        vocab_size=ROWS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=tie,
    )
    return transformers.LlamaForCausalLM(config).eval()


def packed(model, **settings):
    convert(model, bits_per_weight=2, effort="fast", progress=False, **settings)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("tie", [False, True])
def test_counts_are_those_of_the_dense_model(tie, settings):
    dense = llama(tie)
    model = packed(copy.deepcopy(dense), **settings)
    for options in ({}, {"exclude_embeddings": True}):
        assert model.num_parameters(**options) == dense.num_parameters(**options)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert model.num_parameters(only_trainable=True) == trainable < dense.num_parameters(only_trainable=True)
    assert model.dequantize().num_parameters() == dense.num_parameters()


def test_footprint_counts_bits_with_and_without_buffers():
    model = packed(llama(True), tied=True)
    bits = {id(t): t.nbytes for m in model.modules() if isinstance(m, FactoredLayer) for t in (m.b1, m.b2)}
    parameters = sum(p.nbytes for p in model.parameters())
    others = sum(b.nbytes for b in model.buffers() if id(b) not in bits)
    assert others > 0
    assert model.get_memory_footprint() == parameters + sum(bits.values()) + others
    assert model.get_memory_footprint(return_buffers=False) == parameters + sum(bits.values())


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_dtype_and_casts(settings, tmp_path):
    model = packed(llama(False), **settings)
    for cast, dtype in (("half", torch.float16), ("float", torch.float32), ("bfloat16", torch.bfloat16)):
        getattr(model, cast)()
        assert model.dtype == dtype
        assert all(m.dtype == dtype for m in model.modules() if isinstance(m, FactoredLayer))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    loaded.model.rotary_emb = model.model.rotary_emb  # buffers of transformers, which no checkpoint has
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("tie", "settings", "name"),
    [
        (False, "linear", "lm_head"),
        (False, "everything", "model.embed_tokens"),
        (True, "tied", "model.embed_tokens"),
    ],
)
@pytest.mark.parametrize("size", [(70,), (50,), (None, 64)])
def test_resizing_a_factored_vocabulary_is_refused_before_anything_changes(tie, settings, name, size):
    model = packed(llama(tie), **SETTINGS[settings])
    before, expected, modules = model.config.to_dict(), logits(model), dict(model.named_modules())
    rows = size[0] or 64
    message = (
        rf"from 60 to {rows} rows: {name}, a Diba\w+ of diba, .*nothing was changed.*model\.dequantize\(\)"
    )
    with pytest.raises(ValueError, match=message):
        model.resize_token_embeddings(*size)
    assert model.config.to_dict() == before
    assert dict(model.named_modules()) == modules
    assert torch.equal(logits(model), expected)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.resize_token_embeddings(ROWS) is model.get_input_embeddings()
    model.dequantize().resize_token_embeddings(*size)
    assert logits(model).shape == (2, 6, rows)


@pytest.mark.parametrize(("tie", "settings"), [(True, "linear"), (False, "head dense")])
def test_a_dense_vocabulary_is_resized_and_survives(tie, settings, tmp_path):
    model = packed(llama(tie), **SETTINGS[settings])
    expected = logits(model)
    model.resize_token_embeddings(70)
    assert torch.equal(logits(model)[..., :ROWS], expected)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.vocab_size == 70
    assert torch.equal(logits(loaded), logits(model))


def test_models_that_begin_elsewhere_refuse_as_early():
    config = transformers.MobileBertConfig(
        vocab_size=ROWS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        embedding_size=16,
        intra_bottleneck_size=16,
        true_hidden_size=16,
    )
    model = packed(transformers.MobileBertForMaskedLM(config), embeddings=True, tied=True)
    dense = model.cls.predictions.dense  # the first that transformers would replace, and not factored
    with pytest.raises(ValueError, match="nothing was changed"):
        model.resize_token_embeddings(70)
    assert model.cls.predictions.dense is dense
    assert dense.weight.shape == (16, ROWS)


def test_methods_are_wrapped_once():
    before = {name: vars(transformers.PreTrainedModel)[name] for name in diba.hf.model_methods._WRAPPERS}
    importlib.reload(diba.hf)
    assert {name: vars(transformers.PreTrainedModel)[name] for name in before} == before
