"""Subclasses and attributes of dense layers: what a layer with factors keeps, what makes one stay dense."""

from __future__ import annotations

import copy
import pickle
from abc import ABC
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pytest
import torch
from torch import nn

from diba.layers.config import Config
from diba.torch.conversion.convert import convert
from diba.torch.conversion.report import report
from diba.torch.model.selection import select
from diba.torch.modules.layer import FactoredLayer
from diba.torch.modules.linear import DibaLinear

if TYPE_CHECKING:
    from collections.abc import Callable

CHEAP = {"k": 4, "method": "greedy", "effort": "fast", "threads": 1, "progress": False}
T = TypeVar("T")


class Plain(nn.Linear, ABC, Generic[T]):
    """Adds nothing but a start of its own and a text."""

    bias: nn.Parameter

    def __init__(self, n: int, m: int, init: str = "zeros") -> None:
        super().__init__(n, m)
        self.init = init

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)

    def _init_weights(self) -> None:
        """Called by a model when it is made."""

    def extra_repr(self) -> str:
        return "mine"


class Scale(nn.Linear):
    def __init__(self, n: int, m: int) -> None:
        super().__init__(n, m)
        self.scale = nn.Parameter(torch.ones(1))


class Adapted(nn.Linear):
    def __init__(self, n: int, m: int) -> None:
        super().__init__(n, m)
        self.lora_A = nn.Linear(n, 2, bias=False)


class Counted(nn.Linear):
    def __init__(self, n: int, m: int) -> None:
        super().__init__(n, m)
        self.register_buffer("seen", torch.zeros(()))


class Marked(nn.Linear):
    def __init__(self, n: int, m: int) -> None:
        super().__init__(n, m)
        self.scaling = 2.0


class Method(nn.Linear):
    def merged(self) -> torch.Tensor:
        return self.weight


class Mixin:
    @property
    def rank(self) -> int:
        return 3


class Mixed(Mixin, nn.Linear):
    pass


class Deeper(Method):
    pass


class Called(nn.Linear):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().__call__(x)


class Table(nn.Embedding):
    scale = 3.0


class Kernel(nn.Conv2d):
    def extra_state(self) -> None:
        pass


def assigned(name: str, value: Any) -> nn.Linear:
    layer = nn.Linear(16, 16)
    setattr(layer, name, value)
    return layer


LOST: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: Scale(16, 16), "its parameter 'scale' would be lost"),
    (lambda: Adapted(16, 16), "its submodule 'lora_A' would be lost"),
    (lambda: Counted(16, 16), "its buffer 'seen' would be lost"),
    (lambda: Marked(16, 16), "its attribute 'scaling' would be lost"),
    (lambda: Method(16, 16), "'merged', which its class Method adds, would be lost"),
    (lambda: Mixed(16, 16), "'rank', which its class Mixed adds, would be lost"),
    (lambda: Deeper(16, 16), "'merged', which its class Deeper adds, would be lost"),
    (lambda: Called(16, 16), "'__call__', which its class Called adds, would be lost"),
    (lambda: Table(16, 16), "'scale', which its class Table adds, would be lost"),
    (lambda: Kernel(16, 16, 1), "'extra_state', which its class Kernel adds, would be lost"),
    (lambda: assigned("gain", nn.Parameter(torch.ones(16))), "its parameter 'gain' would be lost"),
    (lambda: assigned("after", nn.Dropout()), "its submodule 'after' would be lost"),
    (lambda: assigned("hook", lambda x: x), "its attribute 'hook' would be lost"),
    (lambda: assigned("k", 3), "its attribute 'k' would be lost"),  # DibaLinear has another one
    (lambda: assigned("dtype", torch.int8), "its attribute 'dtype' would be lost"),
]


@pytest.mark.parametrize(("make", "reason"), LOST, ids=[reason.split("'")[1] for _, reason in LOST])
def test_a_layer_that_would_lose_something_stays_dense(make: Callable[[], nn.Module], reason: str) -> None:
    model = nn.Sequential(make(), nn.Linear(16, 16))
    found = {left.name: left for left in select(model, Config(k=4, embeddings=True)).skipped}
    assert found["0"].reason == reason
    assert found["0"].weights == 256
    before = model[0]
    made = report(convert(model, embeddings=True, **CHEAP))
    assert "1" in {layer.name for layer in made.layers}
    assert model[0] is before
    if isinstance(before, nn.Linear):
        with pytest.raises(ValueError, match=f"module cannot be replaced: {reason}"):
            DibaLinear.from_dense(before, k=4)


def test_a_subclass_that_adds_nothing_is_compressed() -> None:
    model = nn.Sequential(Plain[int](16, 16), Plain(16, 16, init="ones"))
    assert [layer.name for layer in report(convert(model, **CHEAP)).layers] == ["0", "1"]
    assert [layer.init for layer in model] == ["zeros", "ones"]


def test_attributes_that_somebody_set_stay_on_the_layer() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Conv1d(4, 4, 3), nn.Embedding(16, 8))
    table = {"a": 1}
    for number, layer in enumerate(model):
        layer.note, layer.table, layer.vector = number, table, torch.ones(3)
    convert(model, embeddings=True, **CHEAP)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for number, layer in enumerate(model):
        assert isinstance(layer, FactoredLayer)
        assert layer.note == number
        assert layer.table is table
        assert torch.equal(layer.vector, torch.ones(3))
        assert [other[number].note for other in copies] == [number, number]
        dense = layer.to_dense_module()
        assert (dense.note, dense.table) == (number, table)
    assert "note" not in model.state_dict()
    plain = nn.Sequential(nn.Linear(16, 16))
    convert(plain, **CHEAP)
    assert vars(plain[0]).keys() < vars(model[0]).keys()


class Quantized(nn.Parameter):
    """A weight of another library: numbers that only it understands."""


def test_weights_of_other_libraries_stay() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[0].weight = Quantized(torch.randn(16, 16))
    [left] = select(model, Config(k=4)).skipped
    assert left.reason == "its weight is a Quantized, whose values only its own library can read"
    assert left.weights == 256


# ---------------------------------------------------------------- transformers


def falcon() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
    torch.manual_seed(0)
    config = transformers.FalconConfig(**sizes, bias=True, bos_token_id=1, eos_token_id=2)
    model = transformers.FalconForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


def test_falcon_is_compressed_calibrated_saved_and_loaded(tmp_path: Any) -> None:
    model = falcon()
    dense = copy.deepcopy(model)
    ids = torch.arange(24).reshape(2, 12)
    made = report(convert(model, batches=[{"input_ids": ids}], **CHEAP))
    inner = (
        "self_attention.query_key_value",
        "self_attention.dense",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    )
    names = [f"transformer.h.{number}.{name}" for number in (0, 1) for name in inner]
    assert {layer.name: layer.objective for layer in made.layers} == dict.fromkeys(names, "covariance")
    assert {left.name for left in made.skipped} == {"transformer.word_embeddings", "lm_head"}
    with torch.no_grad():
        wide = copy.deepcopy(model).double()
        for name in names:
            layer, old = wide.get_submodule(name), dense.double().get_submodule(name)
            old.weight.copy_(layer.dense_weight())
            old.bias.copy_(layer.bias)
        found, wanted = wide(ids).logits, dense(ids).logits
        # The same numbers in float64: sums of at most 2^7 terms through 2^4 layers, as in test_torch_convert.
        assert (found - wanted).abs().max() <= 2**21 * 2.0**-52 * wanted.abs().max()
        expected = model(ids).logits
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        assert torch.equal(again(ids).logits, expected)
    assert all(isinstance(again.get_submodule(name), DibaLinear) for name in names)


def test_attributes_of_a_model_of_transformers_survive_a_round_trip(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")

    class Noted(transformers.BertModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.encoder.layer[0].output.dense.note = "residual"

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1}
    model = Noted(transformers.BertConfig(vocab_size=20, max_position_embeddings=16, **sizes))
    convert(model, **CHEAP)
    model.save_pretrained(tmp_path)
    for found in (model, Noted.from_pretrained(tmp_path)):
        layer = found.encoder.layer[0].output.dense
        assert isinstance(layer, DibaLinear)
        assert layer.note == "residual"


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "whisper"])
def test_no_layer_of_the_usual_models_is_lost(name: str) -> None:
    pytest.importorskip("transformers")
    import tiny_models

    model, _ = tiny_models.build(name)
    selection = select(model, Config(k=1, tied=True, embeddings=True))
    found = {target.name for target in selection.targets} | {t for x in selection.targets for t in x.tied}
    assert set(tiny_models.dense_layers(model)) <= found
    left = {x.reason for x in selection.skipped}
    assert left <= {"its WhisperPositionalEmbedding has a forward of its own"}
