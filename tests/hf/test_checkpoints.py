"""Checkpoints of transformers models: whole whenever they are saved, and refused where they are damaged."""

from __future__ import annotations

import importlib.machinery
import json
import os
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import diba
import diba_autoload
from diba import FormatError
from diba.torch import DibaEmbedding, DibaLinear, convert, report
from run_python import python

FAST = {"bits_per_weight": 2, "method": "greedy", "effort": "fast", "progress": False}
IDS = torch.arange(12).reshape(2, 6)
FACTORS = ("d1", "d2", "d3", "b1", "b2")


@pytest.fixture(autouse=True)
def quiet_and_repeatable():
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()


def llama(tie=False, cls="LlamaForCausalLM"):
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
def outputs(model, **inputs):
    return model(input_ids=IDS, **inputs)[0]


def loaded(folder, cls="AutoModelForCausalLM", **options):
    return getattr(transformers, cls).from_pretrained(folder, **options)


def assert_loads_alike(model, folder, **options):
    model.save_pretrained(folder, **options)
    assert torch.equal(outputs(loaded(folder, type(model).__name__)), outputs(model))


# ---------------------------------------------------------------- saved at any moment


def test_saved_from_the_callback_and_after_an_interrupt(tmp_path):
    model, seen = llama(), {}

    def save(state):
        if not (done := state.done):
            return
        model.save_pretrained(tmp_path / str(done), max_shard_size="5KB" if done == 2 else "1GB")
        seen[done] = outputs(model)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(model, **{**FAST, "progress": save})
    assert list(seen) == [1, 2, 3, 4]
    for done, logits in seen.items():
        assert torch.equal(outputs(loaded(tmp_path / str(done))), logits)
    again = loaded(tmp_path / "2")  # half converted, further, and saved again
    assert len(report(again).layers) == 2
    convert(again, **FAST)
    assert len(report(again).layers) == 8
    convert(model, **FAST)
    assert_loads_alike(again, tmp_path / "whole")
    assert torch.equal(outputs(again), outputs(model))


def test_saved_while_other_layers_are_solved(tmp_path):
    model, seen = llama(), {}

    def save(state):
        if state.done:
            model.save_pretrained(tmp_path / str(state.done))
            seen[state.done] = outputs(model)

    convert(model, **{**FAST, "progress": save, "threads": 2})
    for done in (1, 5, len(seen)):
        assert torch.equal(outputs(loaded(tmp_path / str(done))), seen[done])


def test_saved_while_experts_are_taken_apart(tmp_path):
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_local_experts": 2}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads)).eval()
    seen = {}

    def save(state):
        if (done := state.done) in (
            3,
            5,
            10,
            state.total,
        ):  # no expert is factored; one is; all of a layer are, none of the other
            model.save_pretrained(tmp_path / str(done), max_shard_size="20KB" if done == 5 else "1GB")
            seen[done] = outputs(model)

    convert(model, **{**FAST, "progress": save, "threads": 1})
    assert len(seen) == 4
    for done, logits in seen.items():
        assert torch.equal(outputs(loaded(tmp_path / str(done))), logits), done


@pytest.mark.slow
def test_layers_put_in_by_hand_without_importing_diba_hf(tmp_path):
    code = """
import sys
import diba.torch, torch, transformers
assert "diba.hf" not in sys.modules  # transformers has no models yet
torch.manual_seed(0)
shape = dict(hidden_size=36, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=60)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).eval()
model.lm_head = diba.torch.DibaLinear.from_dense(model.lm_head, bits_per_weight=2)
model.model.layers[0].mlp._modules["up_proj"] = diba.torch.DibaLinear.from_dense(
    model.model.layers[0].mlp.up_proj, bits_per_weight=2
)
model.save_pretrained(sys.argv[1])
torch.save(model(torch.arange(12).reshape(2, 6)).logits.detach(), sys.argv[1] + "/logits.pt")
"""
    done = python(code, str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    model = loaded(tmp_path)
    assert isinstance(model.lm_head, DibaLinear)
    assert torch.equal(model(IDS).logits, torch.load(tmp_path / "logits.pt"))


def test_layers_put_in_and_taken_out_by_hand(tmp_path):
    model = llama()
    layer = DibaLinear.from_dense(model.lm_head, bits_per_weight=2)
    model.lm_head = layer
    assert_loads_alike(model, tmp_path / "in")
    assert model.hf_quantizer is not None  # from now on
    model.lm_head = layer.to_dense_module()
    assert_loads_alike(model, tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    model.model.layers[0].mlp.up_proj = DibaLinear.from_dense(model.model.layers[0].mlp.up_proj, k=3)
    assert_loads_alike(model, tmp_path / "other")


def test_parts_are_saved_by_themselves_and_leave_the_whole_alone(tmp_path):
    model = llama()
    convert(model, **FAST)
    before = model.config.quantization_config.to_dict()
    assert "model.layers.0.mlp.up_proj" in before["factors"]
    model.model.save_pretrained(tmp_path / "part")
    assert model.config.quantization_config.to_dict() == before
    part = loaded(tmp_path / "part", "AutoModel")
    assert torch.equal(outputs(part), outputs(model.model))
    inside = torch.nn.ModuleDict({"text": llama(cls="LlamaModel"), "other": torch.nn.Linear(4, 4)})
    inside["text"].layers[0].mlp.up_proj = DibaLinear.from_dense(inside["text"].layers[0].mlp.up_proj, k=3)
    assert_loads_alike(inside["text"], tmp_path / "inside")


def test_tensors_given_to_save_pretrained_are_the_ones_that_are_saved(tmp_path):
    model = llama()
    convert(model, **FAST)
    averaged = {name: t * 0.5 if t.is_floating_point() else t for name, t in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=averaged)
    for name, tensor in loaded(tmp_path).state_dict().items():
        assert torch.equal(tensor, averaged[name]), name
    del averaged["lm_head.b2"]
    with pytest.raises(ValueError, match=r"state_dict has no lm_head\.b2"):
        model.save_pretrained(tmp_path, state_dict=averaged)
    with torch.no_grad():
        model.lm_head.d1[3] = torch.nan
    with pytest.raises(FormatError, match=r"the model: lm_head\.d1 has NaN"):
        model.save_pretrained(tmp_path)


def test_other_quantizers_are_not_written_over(tmp_path):
    model = llama()
    model.lm_head = DibaLinear.from_dense(model.lm_head, bits_per_weight=2)
    model.hf_quantizer = transformers.quantizers.AutoHfQuantizer.from_config(
        transformers.FineGrainedFP8Config()
    )
    with pytest.raises(ValueError, match="quantized with fp8"):
        model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="save_pretrained of this model will refuse: model is quantized"):
        convert(model, **FAST)


# ---------------------------------------------------------------- tied


def test_a_tied_head_survives_the_base_models_checkpoint(tmp_path):
    model = llama(tie=True)
    convert(model, **FAST, tied=True)
    model.model.save_pretrained(tmp_path)
    again = loaded(tmp_path)
    assert again.lm_head.b1 is again.model.embed_tokens.b1
    assert torch.equal(outputs(again), outputs(model))
    assert_loads_alike(again, tmp_path / "again")
    base = loaded(tmp_path / "again", "LlamaModel")
    assert torch.equal(outputs(base), outputs(model.model))


def test_factors_of_a_layer_that_the_model_does_not_have(tmp_path):
    """Saved under the name of a shared embedding, which the decoder alone lacks."""
    sizes = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in
             (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))}  # fmt: skip
    config = transformers.MarianConfig(
        vocab_size=60, decoder_vocab_size=60, d_model=16, max_position_embeddings=32, **sizes,
        pad_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.MarianMTModel(config).eval()
    convert(model, **FAST, tied=True)
    model.save_pretrained(tmp_path)
    assert_loads_alike_with = outputs(loaded(tmp_path, "MarianMTModel"), decoder_input_ids=IDS)
    assert torch.equal(assert_loads_alike_with, outputs(model, decoder_input_ids=IDS))
    decoder = loaded(tmp_path, "MarianForCausalLM")
    for own in FACTORS:
        assert torch.equal(getattr(decoder.lm_head, own), getattr(model.lm_head, own))
        assert getattr(decoder.lm_head, own) is getattr(decoder.model.decoder.embed_tokens, own)


@pytest.mark.parametrize("factored", ["embedding", "head", "both"])
def test_tied_models_whose_layers_were_untied_by_hand(factored, tmp_path):
    model = llama(tie=True)
    if factored != "head":
        model.model.embed_tokens = DibaEmbedding.from_dense(model.model.embed_tokens, bits_per_weight=2)
    if factored != "embedding":
        model.lm_head = DibaLinear.from_dense(model.lm_head, bits_per_weight=3)
    assert_loads_alike(model, tmp_path)


# ---------------------------------------------------------------- refused


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = llama(tie=True)
    convert(model, **FAST, tied=True)
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    return folder


LAYER = "model.layers.0.mlp.up_proj"


def damage(source, target, tensors=lambda t: None, factors=lambda f: None, config=lambda c: None):
    shutil.copytree(source, target)
    held = load_file(target / "model.safetensors")
    tensors(held)
    save_file(held, target / "model.safetensors", {"format": "pt"})
    settings = json.loads((target / "config.json").read_text())
    factors(settings["quantization_config"]["factors"])
    config(settings["quantization_config"])
    (target / "config.json").write_text(json.dumps(settings))
    return target


def set_bits(name, bits):
    def change(tensors):
        tensors[name].view(torch.uint8)[-1:] ^= bits

    return change


CASES = {
    "a factor is missing": ({"tensors": lambda t: t.pop(f"{LAYER}.b1")}, f"{LAYER}.b1 is missing"),
    "a bit": ({"tensors": set_bits(f"{LAYER}.b1", 1)}, f"{LAYER}.b1 is missing or damaged"),
    "a number": ({"tensors": set_bits(f"{LAYER}.d3", 1)}, f"{LAYER}.d3 is missing or damaged"),
    "an alphabet": (
        {"factors": lambda f: f[LAYER].update(alphabet="binary")},
        rf"factors\['{LAYER}'\] is damaged",
    ),
    "k": ({"factors": lambda f: f[LAYER].update(k=50_000_000)}, rf"factors\['{LAYER}'\] is damaged"),
    "an entry is missing": ({"factors": lambda f: f.pop(LAYER)}, "entries in factors are missing"),
    "all entries are": ({"config": lambda c: c.pop("factors")}, "factored in the files"),
    "their CRC": ({"config": lambda c: c.pop("crc32_factors")}, "entries in factors are missing"),
    "no entries": ({"config": lambda c: c.update(factors=None)}, "factors is null"),
    "a layer is missing": (
        {"tensors": lambda t: [t.pop(f"{LAYER}.{own}") for own in (*FACTORS, "weight")]},
        f"the tensors of {LAYER} are missing",
    ),
    "a dense tensor is renamed": (
        {"tensors": lambda t: t.update(nrom=t.pop("model.norm.weight"))},
        "the files hold other tensors than were saved",
    ),
    "the owner is missing": (
        {"tensors": lambda t: [t.pop(f"model.embed_tokens.{own}") for own in (*FACTORS, "weight")]},
        r"the tensors of model\.embed_tokens are missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_damaged_checkpoints_are_refused(case, checkpoint, tmp_path):
    changes, message = CASES[case]
    folder = damage(checkpoint, tmp_path / "damaged", **changes)
    for options in ({}, {"ignore_mismatched_sizes": True}):
        with pytest.raises(FormatError, match=message):
            loaded(folder, **options)


def test_shards_and_files_that_are_cut_short(checkpoint, tmp_path):
    model = loaded(checkpoint)
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert torch.equal(outputs(loaded(tmp_path)), outputs(model))
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"model-00002-of-\d+\.safetensors: is cut short"):
        loaded(tmp_path)
    shards[1].write_bytes(shards[0].read_bytes())
    with pytest.raises(
        FormatError, match=r"model-00002-of-\d+\.safetensors: .* is in model-00001-of-\d+\.safetensors, too"
    ):
        loaded(tmp_path)


def test_a_claim_of_fifty_million_takes_no_memory(checkpoint, tmp_path):
    """Even with an entry that is right by its CRC, and tensors under other names."""
    from diba.checkpoints.description import Description
    from diba.checkpoints.layers import LayerDescription

    large = LayerDescription(kind="Linear", shape=(48, 36), k=50_000_000, alphabet="binary", bias=False)

    def claim(settings):
        whole = Description.from_dict(settings)
        changed = Description(layers={**whole.layers, LAYER: large})
        settings.update(changed.to_dict())

    folder = damage(checkpoint, tmp_path / "shapes", config=claim)
    with pytest.raises(FormatError, match=rf"{LAYER}\.d2 has shape \(\d+,\), expected \(50000000,\)"):
        loaded(folder)
    moved = {"tensors": lambda t: [t.pop(f"{LAYER}.{own}") for own in (*FACTORS, "weight")]}
    folder = damage(checkpoint, tmp_path / "moved", config=claim, **moved)
    with pytest.raises(FormatError, match=f"{LAYER} is not in the files, which hold"):
        loaded(folder)


def test_models_of_other_sizes_and_kinds(checkpoint):
    size = r"as a matrix of \d+ x \d+ without bias, and the model of \d+ x \d+"
    for changed, message in (
        ({"intermediate_size": 40}, rf"mlp\.\w+_proj {size} without bias"),
        ({"mlp_bias": True}, rf"mlp\.\w+_proj {size} with bias"),
    ):
        with pytest.raises(ValueError, match=message):
            loaded(checkpoint, **changed)


def test_models_with_another_module_in_the_place_of_a_layer(checkpoint):
    class Shorter(transformers.LlamaForCausalLM):
        """With nothing in the place of a layer that the checkpoint has."""

        def __init__(self, config):
            super().__init__(config)
            self.model.layers[0].mlp.up_proj = torch.nn.Identity()

    message = rf"has a Linear at {LAYER}, and the model a Identity; load it with the class that it was saved"
    with pytest.raises(ValueError, match=message):
        Shorter.from_pretrained(checkpoint)


def test_factors_are_not_compressed_again(checkpoint, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(checkpoint, folder)
    settings = json.loads((folder / "config.json").read_text())
    del settings["quantization_config"], settings[diba_autoload.LOCK]
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(FormatError, match=r"factored in the files, .* cannot be compressed again"):
        loaded(folder, quantization_config=diba.hf.DibaConfig(bits_per_weight=2))


def test_tensors_from_memory_are_checked_once_they_are_loaded(checkpoint):
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    model = transformers.LlamaForCausalLM.from_pretrained(None, config=config, state_dict=dict(tensors))
    assert torch.equal(outputs(model), outputs(loaded(checkpoint)))
    tensors[f"{LAYER}.b2"][0, 0] ^= 1
    with pytest.raises(FormatError, match=rf"{LAYER}\.b2 is missing or damaged"):
        transformers.LlamaForCausalLM.from_pretrained(None, config=config, state_dict=tensors)
    tensors[f"{LAYER}.b2"] = tensors[f"{LAYER}.b2"].to(torch.int16)
    with pytest.raises(FormatError, match=rf"{LAYER}\.b2 is torch.int16 of shape .* must be torch.uint8"):
        transformers.LlamaForCausalLM.from_pretrained(None, config=config, state_dict=tensors)


# ---------------------------------------------------------------- without importing diba.hf


@pytest.mark.slow
def test_from_pretrained_alone_finds_diba(checkpoint, source_root, tmp_path):
    """By the entry point, which is written out here: tests may run from the sources, without a wheel."""
    entry_points = tomllib.loads((source_root / "pyproject.toml").read_text())["project"]["entry-points"]
    text = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in entry_points.items()
    )
    info = tmp_path / "diba_for_this_test-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: diba-for-this-test\nVersion: 1\n")
    (info / "entry_points.txt").write_text(text)
    paths = os.pathsep.join(
        [str(tmp_path), str(Path(diba.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    code = """
import sys
import torch
assert not any(name.partition(".")[0] in ("diba", "transformers") for name in sys.modules)
from transformers import LlamaForCausalLM
assert "diba" not in sys.modules
model, info = LlamaForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(info.values()), info
print(type(model.lm_head).__module__, hasattr(model.config, "transformers_weights"))
"""
    done = python(code, str(checkpoint), PYTHONPATH=paths, HF_HUB_OFFLINE="1")
    assert done.stdout == "diba.torch.modules.linear False\n", done.stderr


def test_a_module_that_is_half_imported_when_the_waiting_begins(tmp_path, monkeypatch):
    (tmp_path / "half_imported.py").write_text(
        "import diba_autoload, sys\n"
        "seen = []\n"
        "diba_autoload.after_import(__name__, lambda: seen.append(sys.modules[__name__].value))\n"
        "value = 3\n"
    )
    (tmp_path / "another_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    # The one finder that knows the other module comes next, and is not passed over.
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    import half_imported  # type: ignore[import-not-found]

    assert half_imported.seen == []
    import another_module  # type: ignore[import-not-found]  # noqa: F401

    assert half_imported.seen == [3]
    assert not any(getattr(finder, "name", None) == "half_imported" for finder in sys.meta_path)
    for name in ("half_imported", "another_module"):
        monkeypatch.delitem(sys.modules, name)


def test_failures_of_the_entry_point_reach_nobody(monkeypatch):
    def fails(*args):
        raise RuntimeError

    monkeypatch.setattr(diba_autoload, "after_import", fails)
    diba_autoload.register()


def test_the_lock_is_written_once_and_only_for_factors(checkpoint, tmp_path):
    for folder, model in (("packed", loaded(checkpoint)), ("dense", loaded(checkpoint).dequantize())):
        assert not hasattr(model.config, diba_autoload.LOCK)
        model.save_pretrained(tmp_path / folder)
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config.get(diba_autoload.LOCK) == (diba_autoload.LOCKED if folder == "packed" else None)
    other = transformers.AutoConfig.from_pretrained(checkpoint)
    assert getattr(other, diba_autoload.LOCK) == diba_autoload.LOCKED
    model.save_pretrained(tmp_path / "process", is_main_process=False)
    assert not (tmp_path / "process" / "config.json").exists()


# ---------------------------------------------------------------- double precision, and on the disk


def test_double_precision_survives(tmp_path):
    model = llama()
    convert(model, **FAST)
    model.double()
    with torch.no_grad():
        model.lm_head.d1.mul_(1 / 3)  # no float32
    model.save_pretrained(tmp_path)
    again = loaded(tmp_path, dtype=torch.float64)
    assert again.lm_head.d1.dtype == torch.float64
    assert torch.equal(outputs(again), outputs(model))
    assert loaded(tmp_path, dtype=torch.float32).lm_head.d1.dtype == torch.float32
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.d1"][0] += np.finfo(np.float64).eps
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match=r"lm_head\.d1 is missing or damaged"):
        loaded(tmp_path, dtype=torch.float32)  # which does not show it


def test_layers_on_the_disk(checkpoint, tmp_path):
    pytest.importorskip("accelerate")
    disk = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "offload"}
    model = llama()
    convert(model, **FAST)
    model.save_pretrained(tmp_path / "first")
    away = loaded(tmp_path / "first", **disk)
    assert away.lm_head.d1.is_meta
    assert torch.equal(outputs(away), outputs(model))
    with pytest.warns(UserWarning, match="offloaded modules"):
        away.save_pretrained(tmp_path / "second")
    assert torch.equal(outputs(loaded(tmp_path / "second")), outputs(model))
    folder = damage(tmp_path / "first", tmp_path / "damaged", tensors=set_bits(f"{LAYER}.b2", 4))
    with pytest.raises(FormatError, match=rf"{LAYER}\.b2 is missing or damaged"):
        loaded(folder, **disk)
    with pytest.raises(ValueError, match=r"lm_head shares its factors .* device_map offloads one of them"):
        loaded(checkpoint, **disk)
