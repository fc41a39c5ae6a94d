"""LoRA of PEFT on diba's linear layers."""

from __future__ import annotations

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")
peft = pytest.importorskip("peft")

import diba.hf  # noqa: E402
from diba.hf.peft import LoraDiBALinear  # noqa: E402
from diba.torch.convert import convert  # noqa: E402
from diba.torch.factors import Factors  # noqa: E402

# PEFT 0.21 reads a property that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

IDS = torch.arange(12).reshape(2, 6)
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


def bert():
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, max_position_embeddings=32))


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=60, n_embd=32, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


MODELS = {
    "llama": (llama, ["q_proj", "down_proj"]),
    "bert": (bert, ["query", "dense"]),
    "gpt2": (gpt2, ["c_attn"]),
}


@pytest.fixture(params=MODELS)
def case(request):
    """(Compressed model, LoRA configuration that is not registered, layers it means.)"""
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    make, targets = MODELS[request.param]
    model = make()
    convert(model, progress=False, bits_per_weight=2, method="greedy", effort="fast")
    diba.hf.attach(model)
    named = [
        name for name, m in model.named_modules() if isinstance(m, Factors) and name.split(".")[-1] in targets
    ]
    assert named
    config = peft.LoraConfig(
        target_modules=targets, r=2, lora_alpha=4, lora_dropout=0.0, init_lora_weights="gaussian"
    )
    return model.eval(), config, named


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def fill(model):
    """Adapters that do something: both of their matrices random."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)


def test_adapters_train_and_the_base_does_not(case):
    model, config, named = case
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    base = logits(model)
    assert diba.hf.register_lora(config) is config
    adapted = peft.get_peft_model(model, config)
    assert torch.equal(logits(adapted), base)  # B is zero
    wrapped = {
        name.removeprefix("base_model.model.")
        for name, m in adapted.named_modules()
        if isinstance(m, LoraDiBALinear)
    }
    assert wrapped == set(named)
    fill(adapted)
    adapted.train()
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(named)
    for name, parameter in adapted.named_parameters():
        assert ("lora_" in name) == parameter.requires_grad
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name
    adapted.eval()
    assert not torch.equal(logits(adapted), base)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), base)
    model = adapted.unload()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_is_the_sum_with_a_product_of_two_matrices(case):
    model, config, named = case
    layer = model.get_submodule(named[0])
    x = torch.randn(3, layer.in_features)
    plain = layer(x)
    adapted = peft.get_peft_model(model, diba.hf.register_lora(config))
    fill(adapted)
    lora = adapted.get_base_model().get_submodule(named[0])
    A, B = (getattr(lora, name)["default"].weight.double() for name in ("lora_A", "lora_B"))
    product = x.double() @ A.T @ B.T * 2
    size = x.double().abs() @ A.abs().T @ B.abs().T * 2 + plain.double().abs()
    terms = layer.in_features + 2 + 2
    assert ((lora(x).double() - plain.double() - product).abs() <= terms * 2**-23 * size).all()


def test_saved_adapters_load(case, tmp_path):
    model, config, _ = case
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, diba.hf.register_lora(config))
    fill(adapted)
    expected = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    assert not any("d1" in name for name in peft.load_peft_weights(tmp_path / "adapter"))
    base = type(model).from_pretrained(tmp_path / "base")
    again = diba.hf.register_lora(peft.LoraConfig.from_pretrained(tmp_path / "adapter"))
    assert torch.equal(
        logits(peft.PeftModel.from_pretrained(base, tmp_path / "adapter", config=again)), expected
    )
    base = type(model).from_pretrained(tmp_path / "base")
    base.add_adapter(diba.hf.register_lora(config))  # transformers' own way
    assert any(isinstance(module, LoraDiBALinear) for module in base.modules())
    base.save_pretrained(tmp_path / "added")
    assert not (tmp_path / "added" / "model.safetensors").exists()


def test_merging_needs_dense_layers(case):
    model, config, named = case
    adapted = peft.get_peft_model(model, diba.hf.register_lora(config))
    fill(adapted)
    with pytest.raises(ValueError, match="cannot be merged into packed factors"):
        adapted.merge_and_unload()
    adapted.get_base_model().dequantize()
    lora = adapted.get_base_model().get_submodule(named[0])
    dense = lora.get_base_layer().weight.detach().clone()
    delta = lora.get_delta_weight("default")
    merged = adapted.merge_and_unload()
    weight = merged.get_submodule(named[0]).weight
    assert weight.shape == dense.shape
    assert torch.equal(weight, dense + delta)
    assert not any(isinstance(module, Factors) for module in merged.modules())


def test_refusals(case):
    model, config, _ = case
    with pytest.raises(TypeError, match=r"must be a peft\.LoraConfig"):
        diba.hf.register_lora({"r": 2})
    with pytest.raises(ValueError, match="DiBALinear"):  # PEFT's own: the configuration is not registered
        peft.get_peft_model(model, config)
