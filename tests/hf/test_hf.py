"""diba.hf: compressing while loading, round trips, the guard against loading without diba, dense again."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys

import pytest
import torch
import transformers

import diba.torch
from diba.checkpoints.description import Description
from diba.checkpoints.layers import LayerDescription
from diba.layers.config import Config
from diba.torch.conversion.convert import convert
from diba.torch.modules.layer import FactoredLayer
from run_python import python

FAST = {"bits_per_weight": 2, "method": "greedy", "effort": "fast"}
BITS, DIAGONALS = ("b1", "b2"), ("d1", "d2", "d3")
IDS = torch.arange(12).reshape(2, 6)


def bert(cls="BertForMaskedLM"):
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    return getattr(transformers, cls)(config)


def llama(tie=False):
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=tie,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=60, n_embd=32, n_layer=1, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def whisper():
    config = transformers.WhisperConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=8,
        max_source_positions=16,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return transformers.WhisperForConditionalGeneration(config)


MODELS = {"bert": bert, "llama": llama, "gpt2": gpt2, "whisper": whisper}


@pytest.fixture(autouse=True)
def quiet_and_repeatable():
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()


def outputs(model):
    model.eval()
    features = {}
    if hasattr(model.config, "num_mel_bins"):
        sound = (
            torch.linspace(-1, 1, 2 * 8 * 32)
            .reshape(2, 8, 32)
            .to(model.model.decoder.embed_tokens.weight.dtype)
        )
        features = {"input_features": sound, "decoder_input_ids": IDS}
    with torch.no_grad():
        return model(**(features or {"input_ids": IDS}))[0]


def saved(model, folder, **options):
    model.save_pretrained(folder, **options)
    return folder


def loaded(cls, folder, **options):
    """A model from a folder, with nothing to report about its tensors."""
    model, info = cls.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model


def converted(model, **settings):
    convert(model, progress=False, **{**FAST, **settings})  # leaves it ready to be saved
    assert model.config.quantization_config is model.hf_quantizer.quantization_config
    return model


def assert_same_tensors(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


# ---------------------------------------------------------------- compressing while loading, and round trips


@pytest.mark.parametrize("name", MODELS)
def test_loading_compresses_like_convert_and_survives_round_trips(name, tmp_path):
    model = MODELS[name]()
    cls = type(model)
    compressed = loaded(cls, saved(model, tmp_path / "dense"), quantization_config=diba.hf.DibaConfig(**FAST))
    report = diba.torch.report(convert(model, progress=False, **FAST))
    assert_same_tensors(compressed, model)
    mine = diba.torch.report(compressed)
    without_time = [dataclasses.replace(layer, seconds=0) for layer in report.layers]
    assert [dataclasses.replace(layer, seconds=0) for layer in mine.layers] == without_time
    assert mine.skipped == report.skipped
    assert (mine.parameters_before, mine.bytes_before) == (report.parameters_before, report.bytes_before)
    assert (mine.parameters_after, mine.bytes_after) == (report.parameters_after, report.bytes_after)

    expected = outputs(compressed)
    saved(compressed, tmp_path / "whole")
    saved(compressed, tmp_path / "sharded", max_shard_size="3KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    for folder in ("whole", "sharded"):
        again = loaded(cls, tmp_path / folder)
        assert diba.torch.report(again) == mine
        assert_same_tensors(again, compressed)
        assert torch.equal(outputs(again), expected)
    auto = {"bert": "AutoModelForMaskedLM", "whisper": "AutoModelForSpeechSeq2Seq"}
    auto = getattr(transformers, auto.get(name, "AutoModelForCausalLM"))
    maps = ["cpu", "auto"] if importlib.util.find_spec("accelerate") else [None]
    for device_map in maps:
        assert_same_tensors(loaded(auto, tmp_path / "whole", device_map=device_map), compressed)
    assert_same_tensors(loaded(cls, saved(again, tmp_path / "second")), compressed)


@pytest.mark.parametrize("name", MODELS)
def test_diagonals_stay_float32_whatever_the_dtype(name, tmp_path):
    model = converted(MODELS[name]())
    factors = [
        f"{n}.{own}"
        for n, m in model.named_modules()
        if isinstance(m, FactoredLayer)
        for own in DIAGONALS + BITS
    ]
    expected = model.state_dict()
    saved(model, tmp_path)
    half = loaded(type(model), tmp_path, dtype=torch.bfloat16)
    for key, tensor in half.state_dict().items():
        if key in factors:
            assert tensor.dtype == (torch.uint8 if key[-2:] in BITS else torch.float32)
            assert torch.equal(tensor, expected[key]), key
        else:
            assert tensor.dtype == torch.bfloat16, key
    assert outputs(half).dtype == torch.bfloat16
    saved(half, tmp_path / "half")
    again = loaded(type(model), tmp_path / "half", dtype=torch.bfloat16)
    assert_same_tensors(again, half)
    if name != "whisper":  # the first parameter, which says what "auto" is, is not one of ours
        assert_same_tensors(loaded(type(model), tmp_path / "half", dtype="auto"), half)


def test_retuned_diagonals_survive(tmp_path):
    model = converted(llama())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name[-2:] in DIAGONALS:
                parameter.mul_(torch.rand_like(parameter) + 1 / 3)  # no 16-bit floats
    again = loaded(type(model), saved(model, tmp_path))
    assert_same_tensors(again, model)
    assert all(p.requires_grad for p in again.parameters())


def test_base_models_and_models_with_a_head_read_each_other(tmp_path):
    model = converted(bert())
    saved(model, tmp_path / "head")
    saved(model.bert, tmp_path / "base")  # an inner model by itself
    query = "encoder.layer.0.attention.self.query"
    for folder in ("head", "base"):
        base, info = transformers.BertModel.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert {key.split(".")[0] for key in info["missing_keys"]} == {"pooler"}
        assert all(
            key.startswith("cls.") and not key.endswith("dense.weight") for key in info["unexpected_keys"]
        )
        assert torch.equal(base.get_submodule(query).b1, model.bert.get_submodule(query).b1)
    classes = transformers.BertForSequenceClassification
    head, info = classes.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert torch.equal(head.bert.get_submodule(query).d1, model.bert.get_submodule(query).d1)
    config = gpt2().config
    config.quantization_config = model.config.quantization_config.to_dict()
    with pytest.raises(ValueError, match="GPT2LMHeadModel has none of them"):
        transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "head", config=config)


def test_new_heads_and_skipped_layers_stay_dense(tmp_path):
    saved(bert("BertModel"), tmp_path)
    config = diba.hf.DibaConfig(**FAST, modules_to_not_convert=["pooler.dense"], skip=[r"re:.*\.key"])
    model = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path, quantization_config=config, num_labels=30
    )
    reasons = {layer.name: layer.reason for layer in diba.torch.report(model).skipped}
    assert reasons["classifier"] == "not in the checkpoint"
    dense = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert dense == {"classifier", "bert.pooler.dense", "bert.encoder.layer.0.attention.self.key"}
    assert dense <= set(reasons)
    config = diba.hf.DibaConfig(**FAST, skip=["re:bert.*"])
    with pytest.raises(ValueError, match=r"nothing of the model would be compressed: none of its weights"):
        transformers.BertForSequenceClassification.from_pretrained(
            tmp_path, quantization_config=config, num_labels=30
        )


@pytest.mark.parametrize(
    "make", [lambda: llama(tie=True), bert, gpt2, whisper], ids=["llama", "bert", "gpt2", "whisper"]
)
def test_tied_embeddings(make, tmp_path):
    model = make()
    cls = type(model)
    saved(model, tmp_path / "dense")
    default = loaded(cls, tmp_path / "dense", quantization_config=diba.hf.DibaConfig(**FAST))
    assert default.get_output_embeddings().weight is default.get_input_embeddings().weight
    tied = loaded(cls, tmp_path / "dense", quantization_config=diba.hf.DibaConfig(**FAST, tied=True))
    assert_same_tensors(tied, converted(model, tied=True))
    again = loaded(cls, saved(tied, tmp_path / "tied"))
    again.tie_weights()
    head, table = again.get_output_embeddings(), again.get_input_embeddings()
    for name in DIAGONALS + BITS:
        assert getattr(head, name) is getattr(table, name)
    assert torch.equal(outputs(again), outputs(tied))
    weight = table.dense_weight()
    again.dequantize()
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert torch.equal(again.get_input_embeddings().weight, weight)
    assert_same_tensors(loaded(cls, saved(again, tmp_path / "plain")), again)


# ---------------------------------------------------------------- without diba, and dense again


@pytest.mark.slow
def test_loading_without_diba_is_an_error_and_dequantized_models_need_none(tmp_path):
    cases = []
    for name, make in MODELS.items():
        model = converted(make())
        size = "3KB" if name in ("llama", "gpt2") else "1GB"
        cases.append((type(model).__name__, saved(model, tmp_path / name, max_shard_size=size)))
    cases.append(("BertForSequenceClassification", shutil.copytree(tmp_path / "bert", tmp_path / "classes")))
    dense = saved(model.dequantize(), tmp_path / "plain")
    assert "quantization_config" not in json.loads((dense / "config.json").read_text())
    code = """
import json, pathlib, sys, transformers
*cases, plain = zip(sys.argv[1::2], sys.argv[2::2])
for cls, folder in cases:
    for options in ({}, {"ignore_mismatched_sizes": True}):
        try:
            getattr(transformers, cls).from_pretrained(folder, **options)
        except ValueError as error:
            print("locked", str(error).rpartition(": ")[2])
    path = pathlib.Path(folder, "config.json")
    config = json.loads(path.read_text())
    del config["transformers_weights"]
    path.write_text(json.dumps(config))
    try:
        getattr(transformers, cls).from_pretrained(folder)
    except RuntimeError as error:
        print(cls, error)
info = getattr(transformers, plain[0]).from_pretrained(plain[1], output_loading_info=True)[1]
assert not any(info.values())
assert "diba" not in sys.modules
"""
    cases.append((type(model).__name__, dense))
    arguments = [str(part) for case in cases for part in case]
    run = python(code, *arguments, TORCH_DEVICE_BACKEND_AUTOLOAD="0", HF_HUB_OFFLINE="1")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    way = "locked this model is compressed by diba; python -m pip install 'diba[hf]', then import diba.hf"
    assert lines[::3] == lines[1::3] == [way] * (len(cases) - 1), run.stderr
    assert [line.split()[0] for line in lines[2::3]] == [cls for cls, _ in cases[:-1]], run.stderr


@pytest.mark.parametrize("name", MODELS)
def test_dequantize(name, tmp_path):
    model = converted(MODELS[name]())
    layers = {n: m for n, m in model.named_modules() if isinstance(m, FactoredLayer)}
    assert layers
    dense = model.dequantize()
    assert dense is model
    for layer_name, layer in layers.items():
        now = model.get_submodule(layer_name)
        assert not isinstance(now, FactoredLayer)
        assert torch.equal(now.weight, layer.dense_weight())
        assert (now.bias is None) == (layer.bias is None)
    assert not hasattr(model.config, "quantization_config")
    assert not any(getattr(m, "is_quantized", False) for m in model.modules())
    again = loaded(type(model), saved(model, tmp_path))
    assert getattr(again, "hf_quantizer", None) is None
    assert torch.equal(outputs(again), outputs(model))


# ---------------------------------------------------------------- running and training


def test_generate_and_pipeline(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    model = converted(llama())
    made = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert made.shape[1] > IDS.shape[1]
    sound = torch.linspace(-1, 1, 8 * 32).reshape(1, 8, 32)
    assert len(converted(whisper()).generate(sound, max_new_tokens=4)) == 1
    masked = converted(bert())
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[MASK]", *"abcdefghijk"])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]"
    )
    saved(masked, tmp_path)
    words.save_pretrained(tmp_path)
    fill = transformers.pipeline("fill-mask", model=str(tmp_path), tokenizer=str(tmp_path), device="cpu")
    ids = torch.tensor([[3, 2, 5]])  # the words of "a [MASK] c"
    expected = masked.eval()(ids).logits[0, 1].softmax(-1).topk(3)
    found = fill("a [MASK] c", top_k=3)
    assert [answer["token"] for answer in found] == expected.indices.tolist()


def test_training_and_gradient_checkpointing():
    model = converted(llama())
    model.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None)  # its name in newer versions
            (enable or model.gradient_checkpointing_enable)()
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert any(name.endswith("d2") for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, gradients[1][name]), name
    assert model.hf_quantizer.is_trainable
    assert model.hf_quantizer.is_qat_trainable
    assert model.hf_quantizer.is_compileable


def test_casts_and_sizes():
    model = converted(llama())
    before = model.state_dict()
    model.to(torch.bfloat16)
    for name, tensor in model.state_dict().items():
        if name[-2:] in DIAGONALS + BITS:
            assert torch.equal(tensor, before[name]), name
        else:
            assert tensor.dtype == torch.bfloat16, name
    assert outputs(model).dtype == torch.bfloat16
    everything = (*model.parameters(), *model.buffers())
    assert model.get_memory_footprint() == sum(t.nbytes for t in everything)


# ---------------------------------------------------------------- config


def test_config_round_trip():
    layers = {r"re:.*\.z": {"k": 3}, "a.b": None, r"re:.*": {"bits_per_weight": 1, "alphabet": "sign"}}
    size = {"shape": (4, 5), "k": 3, "alphabet": "sign"}
    described = {
        "z": LayerDescription(kind="Linear", **size, bias=True, shared="y"),
        "y": LayerDescription(kind="Embedding", **size, bias=False),
    }
    factors = Description(layers=described).to_dict()["factors"]
    config = diba.hf.DibaConfig(
        snr_db=9.5, layers=layers, skip=["c"], factors=factors, modules_to_not_convert=["d"], tied=True
    )
    assert config.settings == Config(snr_db=9.5, layers=layers, skip=["c"], tied=True)
    again = diba.hf.DibaConfig.from_dict(json.loads(config.to_json_string()))  # which sorts keys
    assert again == config
    assert list(again.settings.layers) == list(layers)
    assert dict(config) == again.to_dict()
    _, unused = diba.hf.DibaConfig.from_dict(config.to_dict(), return_unused_kwargs=True, seed=3, x=1)
    assert unused == {"x": 1}
    assert diba.hf.DibaConfig.from_dict(config.to_dict(), seed=3).settings.seed == 3
    assert diba.hf.DibaConfig(factors=factors).settings is None
    assert config != diba.hf.DibaConfig(snr_db=9.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits_per_wieght": 2}, "unknown key 'bits_per_wieght'.*did you mean 'bits_per_weight'"),
        ({}, "exactly one of"),
        ({"bits_per_weight": 2, "format_version": 2, "new": 1}, "upgrade diba"),
        ({"bits_per_weight": 2, "quant_method": "gptq"}, "'gptq'; it must be 'diba'"),
        ({"factors": [1]}, "factors is a list"),
        ({"factors": {"a": {"kind": "Linear", "k": 1}}}, r"factors\['a'\] must have"),
    ],
)
def test_config_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        diba.hf.DibaConfig(**settings)


def test_config_refuses_wrong_kinds():
    with pytest.raises(TypeError, match="modules_to_not_convert"):
        diba.hf.DibaConfig(bits_per_weight=2, modules_to_not_convert="lm_head")


def test_damaged_and_newer_checkpoints(tmp_path):
    saved(converted(llama()), tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text()
    config = json.loads(text)
    layer = config["quantization_config"]["factors"]["lm_head"]
    crcs = {layer.pop("crc32_entry"), *layer.pop("crc32").values()}
    assert len(crcs) == 6
    told = {"objective", "snr_db", "output_snr_db", "seconds", "bias_corrected"}
    assert set(layer.pop("recipe")) == told
    assert layer == {
        "kind": "Linear",
        "shape": [60, 32],
        "k": 21,
        "alphabet": "sign",
        "bias": False,
        "dtype": "float32",
        "diagonal_bits": 16,
    }
    path.write_text(text.replace('"format_version": 1', '"format_version": 7'))
    with pytest.raises(ValueError, match="upgrade diba"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


# ---------------------------------------------------------------- what is refused


def test_loading_refuses(tmp_path):
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    saved(model, tmp_path)

    def load(config, **options):
        return transformers.LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config, **options)

    with pytest.raises(ValueError, match="weight of lm_head has 1 NaN"):
        load(diba.hf.DibaConfig(**FAST))
    with pytest.raises(ValueError, match="needs calibration"):
        load(diba.hf.DibaConfig(**FAST, objective="covariance"))
    with pytest.raises(ValueError, match="names no layer"):
        load(diba.hf.DibaConfig(**FAST, skip=["lm_heat"]))
    with pytest.raises(ValueError, match="layers on the disk"):
        load(diba.hf.DibaConfig(**FAST), device_map={"": "disk"})
    layer = LayerDescription(kind="Linear", shape=(2, 2), k=1, alphabet="sign", bias=False)
    with pytest.raises(ValueError, match="no size"):
        load(diba.hf.DibaConfig.of(Description(layers={"x": layer})))


def test_attach_refuses():
    with pytest.raises(TypeError, match="model is"):
        diba.hf.attach("model")
    with pytest.raises(TypeError, match="settings is"):
        diba.hf.attach(llama(), {"bits_per_weight": 2})
    with pytest.raises(ValueError, match=r"no transformers\.PreTrainedModel with layers"):
        diba.hf.attach(llama())
    model = converted(llama())
    model.hf_quantizer = transformers.quantizers.AutoHfQuantizer.from_config(
        transformers.FineGrainedFP8Config()
    )
    with pytest.raises(ValueError, match="quantized with fp8"):
        diba.hf.attach(model)


def test_attach_finds_models_inside_others_and_records_settings(tmp_path):
    model = torch.nn.ModuleList([torch.nn.Linear(4, 4), bert("BertModel")])
    settings = Config(**FAST, skip=["0"])
    convert(model, settings, progress=False)
    assert diba.hf.attach(model, settings) is model
    saved(model[1], tmp_path)
    again = loaded(transformers.AutoModel, tmp_path)
    assert again.config.quantization_config.settings == settings
    assert_same_tensors(again, model[1])


def test_import_again_and_imports_that_fail():
    importlib.reload(diba.hf)
    assert transformers.quantizers.auto.AUTO_QUANTIZATION_CONFIG_MAPPING["diba"] is diba.hf.DibaConfig
    assert transformers.quantizers.auto.AUTO_QUANTIZER_MAPPING["diba"] is diba.hf.DibaQuantizer
    code = """
import sys, types
import diba
for version in (None, "4.57.1"):
    sys.modules["transformers"] = None if version is None else types.SimpleNamespace(__version__=version)
    try:
        import diba.hf
    except ImportError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    missing, old = run.stdout.splitlines()
    assert "diba[hf]" in missing
    assert "5.0 or newer, and 4.57.1 is installed" in old
    assert "diba[hf]" in old
