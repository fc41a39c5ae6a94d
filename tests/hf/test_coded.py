"""Checkpoints with 8- and 4-bit tables: back to the last bit, tied or not, and refused where damaged."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import diba
from diba.torch import DibaCodedEmbedding, DibaCodedLinear, convert, report

IDS = torch.arange(12).reshape(2, 6)
SETTINGS = {"bits_per_weight": 2, "method": "greedy", "effort": "fast", "progress": False}
FORMS = pytest.mark.parametrize(("bits", "tie"), [(8, True), (4, True), (8, False), (4, False)])


@pytest.fixture(autouse=True)
def quiet_and_repeatable():
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()


def llama(tie, cls="LlamaForCausalLM"):
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=36,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tie,
    )
    return getattr(transformers, cls)(config).eval()


@torch.no_grad()
def outputs(model):
    return model(input_ids=IDS)[0]


def converted(bits, tie):
    return convert(llama(tie), embeddings=bits, head=bits, **SETTINGS)


@FORMS
def test_saved_and_loaded(bits, tie, tmp_path):
    model = converted(bits, tie)
    model.save_pretrained(tmp_path / "one")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert type(other.lm_head) is DibaCodedLinear
    assert type(other.model.embed_tokens) is DibaCodedEmbedding
    assert torch.equal(outputs(other), outputs(model))
    assert (other.lm_head.codes is other.model.embed_tokens.codes) == tie
    assert report(other).layers == report(model).layers
    other.save_pretrained(tmp_path / "two", max_shard_size="5KB")
    assert torch.equal(
        outputs(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "two")), outputs(model)
    )
    assert diba.torch.report(other).bytes_after == other.get_memory_footprint()
    found = {layer.name: layer.bits_per_weight for layer in report(other).layers}
    stored = load_file(tmp_path / "one" / "model.safetensors")
    owner = "model.embed_tokens" if "model.embed_tokens.codes" in stored else "lm_head"
    size = sum(stored[key].nbytes for key in stored if key.startswith(f"{owner}."))
    assert size == pytest.approx(found["lm_head"] * 60 * 36 / 8)


@FORMS
def test_made_dense_again(bits, tie):
    model = converted(bits, tie)
    before = outputs(model)
    model.dequantize()
    assert type(model.lm_head) is torch.nn.Linear
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tie
    # activations of 13 bits or more in the product, and factors in 45 dB
    assert torch.allclose(outputs(model), before, atol=0.05 * before.abs().max())


def test_a_head_tied_to_the_table_of_a_base_model(tmp_path):
    base = convert(llama(True, "LlamaModel"), embeddings=8, **SETTINGS)
    base.save_pretrained(tmp_path)
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert type(model.lm_head) is DibaCodedLinear
    assert model.lm_head.codes is model.model.embed_tokens.codes
    inner = transformers.LlamaModel.from_pretrained(tmp_path)
    assert torch.equal(inner(IDS)[0], base(IDS)[0])


def test_compressed_while_loaded(tmp_path):
    llama(False).save_pretrained(tmp_path)
    settings = {key: value for key, value in SETTINGS.items() if key != "progress"}
    config = diba.hf.DibaConfig(embeddings=4, head=8, **settings)
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    assert (model.lm_head.bits, model.model.embed_tokens.bits) == (8, 4)
    other = convert(llama(False), embeddings=4, head=8, **SETTINGS)
    dense = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    other = convert(dense, embeddings=4, head=8, **SETTINGS)
    assert torch.equal(outputs(model), outputs(other))


@pytest.mark.parametrize("own", ["d1", "codes", "steps"])
@pytest.mark.parametrize("damage", ["changed", "missing", "shape", "dtype"])
def test_damaged_tensors_are_refused(own, damage, tmp_path):
    converted(4, False).save_pretrained(tmp_path)
    path, key = tmp_path / "model.safetensors", f"lm_head.{own}"
    tensors = load_file(path)
    if damage == "missing":
        del tensors[key]
    elif damage == "changed":
        tensors[key].view(torch.uint8).flatten()[3] ^= 1
    elif damage == "shape":
        tensors[key] = tensors[key][1:].contiguous()
    else:
        tensors[key] = tensors[key].to(torch.int16)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(diba.FormatError, match=key):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(diba.FormatError, match=key):
        diba.checkpoints.integrity.inspect(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("codes", 8), ("codes", 5), ("group", 48), ("shape", [60, 35]), ("k", 7), ("group", None)],
)
def test_damaged_descriptions_are_refused(key, value, tmp_path):
    converted(4, False).save_pretrained(tmp_path / "good")
    folder = shutil.copytree(tmp_path / "good", tmp_path / "bad")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["factors"]["lm_head"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(diba.FormatError, match="lm_head"):
        transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_a_vocabulary_keeps_its_size_and_other_libraries_notice(tmp_path):
    model = converted(8, True)
    with pytest.raises(ValueError, match="DibaCodedEmbedding"):
        model.resize_token_embeddings(64)
    assert model.num_parameters() == llama(True).num_parameters()
    assert model.dtype == torch.float32
    assert model.half().dtype == torch.float16


@torch.no_grad()
def test_compiled_decoding_with_a_static_cache():
    """One graph without breaks; the tokens are those of the model as it is."""
    model = converted(8, True)
    prompt = IDS[:1]
    found = {}
    for name, call in (
        ("eager", model),
        ("compiled", torch.compile(model, fullgraph=True, backend="aot_eager")),
    ):
        cache = transformers.StaticCache(config=model.config, max_cache_len=16)
        out = model(prompt, past_key_values=cache, cache_position=torch.arange(6))
        found[name] = []
        for position in range(6, 16):
            token = out.logits[:, -1:].argmax(-1)
            found[name].append(int(token))
            out = call(token, past_key_values=cache, cache_position=torch.tensor([position]))
    assert found["compiled"] == found["eager"]


@torch.no_grad()
def test_exported_as_a_program():
    model = converted(4, True)
    program = torch.export.export(model, (), {"input_ids": IDS, "use_cache": False})
    assert torch.equal(program.module()(input_ids=IDS, use_cache=False)[0], outputs(model))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_adapters_beside_tables():
    peft = pytest.importorskip("peft")
    model = converted(8, False)
    with pytest.raises(ValueError, match="lm_head, a DibaCodedLinear of diba; no layer was changed"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["lm_head"], r=2))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=2))
    wrapped(input_ids=IDS, labels=IDS).loss.backward()
    trained = {
        name for name, p in wrapped.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert trained
    assert all("lora_" in name for name in trained)


def test_experts_in_8_bits(tmp_path):
    config = transformers.MixtralConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        num_experts_per_tok=1,
    )
    model = transformers.MixtralForCausalLM(config).eval()
    dense = outputs(model)
    convert(model, codes=8, embeddings=8, progress=False)
    assert (outputs(model) - dense).norm() < 0.03 * dense.norm()  # 45 dB a layer, and some layers
    assert not [x for x in report(model).skipped if x.weights > 64]  # the router is a parameter
    model.save_pretrained(tmp_path)
    assert torch.equal(outputs(transformers.MixtralForCausalLM.from_pretrained(tmp_path)), outputs(model))
