"""LoRA of PEFT on diba's linear layers."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
import transformers

import diba
from diba.torch.conversion.convert import convert
from diba.torch.modules.layer import FactoredLayer
from diba_autoload import after_import

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
def case(request, peft):
    """(Compressed model, LoRA configuration, layers it means.)"""
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    make, targets = MODELS[request.param]
    model = make()
    convert(model, progress=False, bits_per_weight=2, method="greedy", effort="fast")
    diba.hf.attach(model)
    named = [
        name
        for name, m in model.named_modules()
        if isinstance(m, FactoredLayer) and name.split(".")[-1] in targets
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


def test_adapters_train_and_the_base_does_not(case, peft):
    model, config, named = case
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    base = logits(model)
    adapted = peft.get_peft_model(model, config)
    assert torch.equal(logits(adapted), base)  # B is zero
    wrapped = {
        name.removeprefix("base_model.model.")
        for name, m in adapted.named_modules()
        if isinstance(m, diba.hf.peft.LoraDibaLinear)
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


def test_an_adapter_is_the_sum_with_a_product_of_two_matrices(case, peft):
    model, config, named = case
    layer = model.get_submodule(named[0])
    x = torch.randn(3, layer.in_features)
    plain = layer(x)
    adapted = peft.get_peft_model(model, config)
    fill(adapted)
    lora = adapted.get_base_model().get_submodule(named[0])
    A, B = (getattr(lora, name)["default"].weight.double() for name in ("lora_A", "lora_B"))
    product = x.double() @ A.T @ B.T * 2
    size = x.double().abs() @ A.abs().T @ B.abs().T * 2 + plain.double().abs()
    terms = layer.in_features + 2 + 2
    assert ((lora(x).double() - plain.double() - product).abs() <= terms * 2**-23 * size).all()


def test_saved_adapters_load(case, peft, tmp_path):
    model, config, _ = case
    model.save_pretrained(tmp_path / "base")
    model = type(model).from_pretrained(tmp_path / "base")  # adapters name the folder of their base
    adapted = peft.get_peft_model(model, config)
    fill(adapted)
    expected = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    assert not any("d1" in name for name in peft.load_peft_weights(tmp_path / "adapter"))
    ways = {
        "PeftModel": lambda: peft.PeftModel.from_pretrained(
            type(model).from_pretrained(tmp_path / "base"), tmp_path / "adapter"
        ),
        "folder of the adapter": lambda: type(model).from_pretrained(tmp_path / "adapter"),
    }
    for way, load in ways.items():
        assert torch.equal(logits(load().eval()), expected), way
    base = type(model).from_pretrained(tmp_path / "base")
    base.load_adapter(tmp_path / "adapter")
    assert torch.equal(logits(base), expected)
    base.delete_adapter("default")
    base.add_adapter(config, "another")  # transformers' own way
    assert any(isinstance(module, diba.hf.peft.LoraDibaLinear) for module in base.modules())
    base.save_pretrained(tmp_path / "added")
    assert not (tmp_path / "added" / "model.safetensors").exists()


def test_merging_needs_dense_layers(case, peft):
    model, config, named = case
    adapted = peft.get_peft_model(model, config)
    fill(adapted)
    with pytest.raises(ValueError, match="cannot be merged into packed factors"):
        adapted.merge_and_unload()
    with pytest.raises(ValueError, match="cannot be merged into packed factors"):
        adapted.get_base_model().get_submodule(named[0]).merge()
    adapted.get_base_model().dequantize()
    lora = adapted.get_base_model().get_submodule(named[0])
    dense = lora.get_base_layer().weight.detach().clone()
    delta = lora.get_delta_weight("default")
    merged = adapted.merge_and_unload()
    weight = merged.get_submodule(named[0]).weight
    assert weight.shape == dense.shape
    assert torch.equal(weight, dense + delta)
    assert not any(isinstance(module, FactoredLayer) for module in merged.modules())


def test_merging_is_refused_before_dense_layers_are_merged(peft):
    model = llama()
    convert(model, progress=False, bits_per_weight=2, effort="fast", skip=["re:.*q_proj"])
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    fill(adapted)
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    with pytest.raises(ValueError, match="cannot be merged into packed factors"):
        adapted.merge_and_unload()
    after = adapted.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# ---------------------------------------------------------------- what "all-linear" means, and refusals


def packed(**settings):
    torch.manual_seed(0)
    model = llama()
    convert(model, progress=False, bits_per_weight=2, effort="fast", **settings)
    return model.eval()


@pytest.mark.parametrize("skip", [[], ["lm_head"], ["re:.*q_proj"]])
def test_all_linear_means_what_it_means_in_the_dense_model(skip, peft):
    def targets(model):
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=2))
        first = set(adapted.targeted_module_names)
        adapted.add_adapter("second", peft.LoraConfig(target_modules="all-linear", r=2))
        again = {name for name, m in adapted.get_base_model().named_modules() if hasattr(m, "lora_A")}
        assert all(
            set(adapted.get_base_model().get_submodule(n).lora_A) == {"default", "second"} for n in again
        )
        return first, again

    assert targets(packed(skip=skip)) == targets(llama())


def test_all_linear_leaves_the_classifier_out(peft):
    config = transformers.LlamaConfig(**SIZES, num_labels=3)

    def targets(compress):
        model = transformers.LlamaForSequenceClassification(config)
        if compress:
            convert(model, progress=False, bits_per_weight=2, effort="fast")
        lora = peft.LoraConfig(target_modules="all-linear", r=2, task_type="SEQ_CLS")
        return set(peft.get_peft_model(model, lora).get_base_model().peft_config["default"].target_modules)

    assert targets(True) == targets(False)


@pytest.mark.filterwarnings("ignore:.*(rank|alpha)_pattern keys did not match:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*target_parameters.*no parameter was matched:RuntimeWarning")
def test_experts_take_adapters_by_their_names(peft):
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        **SIZES, num_local_experts=2, num_experts_per_tok=1, num_key_value_heads=4
    )
    model = transformers.MixtralForCausalLM(config).eval()
    size = model.num_parameters()
    convert(model, progress=False, bits_per_weight=2, effort="fast")
    assert model.num_parameters() == size
    base = logits(model)
    down = [
        name
        for name, module in model.named_modules()
        if ".down." in name and isinstance(module, FactoredLayer)
    ]
    assert len(down) == 2
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=down, r=2))
    fill(adapted)
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == {
        f"base_model.model.{name}.lora_{side}.default.weight" for name in down for side in "AB"
    }
    assert not torch.equal(logits(adapted), base)
    with pytest.warns(
        UserWarning, match=r"down_proj, gate_up_proj of .*experts get no adapters.*experts\.down\.0"
    ):
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=2))
    assert {name.split(".")[-1] for name in adapted.targeted_module_names} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }


def test_saved_modules_are_factored_layers(tmp_path, peft):
    model = packed()
    dense_before = model.lm_head.dense_weight().clone()
    lora = peft.LoraConfig(target_modules=["q_proj"], r=2, modules_to_save=["lm_head"])
    adapted = peft.get_peft_model(model, lora)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad and "lora_" not in name}
    assert {name.rsplit(".", 1)[1] for name in trained} == {"d1", "d2", "d3"}
    with torch.no_grad():
        adapted.get_parameter(next(iter(sorted(trained)))).mul_(2)  # d1
    expected = logits(adapted)
    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(packed(), tmp_path)
    assert torch.equal(logits(loaded), expected)
    loaded.set_adapter("default")
    head = loaded.get_base_model().lm_head.modules_to_save["default"]
    assert torch.equal(head.dense_weight(), 2 * dense_before)


REFUSED = {
    "IA3": ("IA3Config", {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "LOHA": ("LoHaConfig", {"target_modules": ["q_proj"], "r": 2}),
    "ADALORA": ("AdaLoraConfig", {"target_modules": ["q_proj"], "total_step": 10}),
    "VERA": ("VeraConfig", {"target_modules": "all-linear"}),
    "LORA": ("LoraConfig", {"target_modules": ["embed_tokens", "q_proj"]}),
    "init_lora_weights='pissa_niter_4'": (
        "LoraConfig",
        {"target_modules": ["q_proj"], "init_lora_weights": "pissa_niter_4"},
    ),
    "trainable_token_indices": (
        "LoraConfig",
        {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]},
    ),
    "prompts": ("PromptTuningConfig", {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_put_on_factors_is_refused_before_anything_changes(what, peft):
    model = packed(embeddings=True, tied=True)
    modules = dict(model.named_modules())
    name, settings = REFUSED[what]
    with pytest.raises(ValueError, match=r"of diba.*model\.dequantize\(\)") as caught:
        peft.get_peft_model(model, getattr(peft, name)(**settings))
    assert what in str(caught.value)
    after = dict(model.named_modules())
    assert after.keys() == modules.keys()
    assert all(after[name] is module for name, module in modules.items())


def test_other_adapters_work_beside_factors(peft):
    model = packed()  # with a dense embedding
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    prompted = peft.get_peft_model(copy.deepcopy(model), prompts)
    assert prompted.word_embeddings.weight.shape == (60, 32)
    assert logits(prompted).shape == (2, 9, 60)
    with pytest.warns(UserWarning, match="Unsupported layer type.*RMSNorm"):  # PEFT's, of dense models too
        norms = peft.get_peft_model(model, peft.LNTuningConfig(target_modules=["input_layernorm"]))
    assert torch.equal(logits(norms), logits(packed()))


def test_all_linear_in_other_models(peft):
    """All of it, the last layer too: only models of transformers say which is their head."""
    for factored in (False, True):
        model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Linear(6, 8))
        if factored:
            convert(model, k=3, progress=False)
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=2))
        found = {name.split(".lora_")[0] for name, _ in adapted.named_parameters() if ".lora_" in name}
        assert found == {"base_model.model.0", "base_model.model.1"}


# ---------------------------------------------------------------- waiting for PEFT


def test_a_peft_that_is_too_old_is_a_warning(monkeypatch):
    monkeypatch.delattr(diba.hf, "peft")
    monkeypatch.setitem(sys.modules, "diba.hf.peft", None)
    with pytest.warns(UserWarning, match=r"adapters will not work on diba's layers.*PEFT 0\.18 or newer"):
        diba.hf._teach_peft()


def test_importing_diba_does_not_import_peft(imported):
    assert "peft" not in imported


def test_an_action_runs_once_at_the_end_of_an_import(tmp_path, monkeypatch):
    (tmp_path / "late_package").mkdir()
    (tmp_path / "late_package" / "__init__.py").write_text("from .inner import value\n")
    (tmp_path / "late_package" / "inner.py").write_text("value = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    seen = []
    for _ in range(2):
        after_import("late_package", lambda: seen.append(sys.modules["late_package"].value))
    assert seen == []
    import late_package  # type: ignore[import-not-found]
    import late_package.inner

    assert seen == [7]
    assert late_package.__spec__.loader.get_source("late_package") == "from .inner import value\n"
    after_import("late_package", lambda: seen.append("now"))
    assert seen == [7, "now"]
    for name in ("late_package", "late_package.inner"):
        monkeypatch.delitem(sys.modules, name)
    after_import("absent_package", lambda: seen.append("never"))
    with pytest.raises(ModuleNotFoundError, match="absent_package"):
        __import__("absent_package")
