"""Every weight of a model is compressed or named with its size: modules of every make, counted anew here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")

import torch
from torch import nn
from torch.nn.utils import prune

from diba.layers.config import Config
from diba.torch.conversion import report as reports
from diba.torch.conversion.convert import convert
from diba.torch.model.selection import select
from diba.torch.modules.layer import FactoredLayer
from diba.torch.modules.linear import DibaLinear

if TYPE_CHECKING:
    from collections.abc import Callable

    from diba.torch.conversion.report import Report

CHEAP: dict[str, Any] = {"k": 1, "method": "greedy", "effort": "fast", "threads": 1, "progress": False}


class Strange(nn.Module):
    """Parameters in every place that torch has for them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 6))
        self.flat = nn.Parameter(torch.randn(6))
        self.experts = nn.Parameter(torch.randn(3, 6, 8))
        self.same = self.experts  # another name of it
        self.several = nn.ParameterList([nn.Parameter(torch.randn(4, 4)) for _ in range(2)])
        self.named = nn.ParameterDict({"a": nn.Parameter(torch.randn(2, 3, 4))})
        self.register_buffer("mask", torch.ones(7, 7, dtype=torch.bool))
        self.register_buffer("scratch", torch.ones(7, 7), persistent=False)
        self.bilinear = nn.Bilinear(3, 4, 5)
        self.up = nn.ConvTranspose2d(3, 4, 2)
        self.volume = nn.Conv3d(2, 3, 2)
        self.bag = nn.EmbeddingBag(9, 6)
        self.rnn = nn.GRU(6, 6, bidirectional=True)
        self.cell = nn.LSTMCell(6, 6)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 7))
        self.normed_up = nn.utils.parametrizations.weight_norm(nn.ConvTranspose1d(3, 4, 2))
        self.ortho = nn.utils.parametrizations.orthogonal(nn.Linear(6, 6))
        self.pruned = prune.l1_unstructured(nn.Linear(6, 7), "weight", 3)
        self.norm = nn.LayerNorm((5, 6))
        self.grouped = nn.Conv1d(4, 4, 3, groups=2)
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11)
        self.head.weight = self.embed.weight
        self.stranger = nn.Linear(6, 5)
        self.stranger.weight = self.table
        self.plain = nn.Linear(6, 9)
        self.twice = self.plain


def dense_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's distinct parameters of two or more dimensions, by one of their names."""
    return {name: p for name, p in model.named_parameters() if p.dim() >= 2}


def silent(names: Any, report: Report) -> list[str]:
    """Names of parameters that no line of the report covers."""
    lines = [x.name for x in report.layers] + [t for x in report.layers for t in x.tied]
    lines += [x.name for x in report.skipped]
    return [name for name in names if not any(name == x or name.startswith(f"{x}.") for x in lines)]


def test_every_parameter_of_every_kind_of_module_is_named_with_its_size() -> None:
    model = Strange()
    before = dense_weights(model)
    sizes = {name: (tuple(p.shape), p.numel(), p.nbytes) for name, p in before.items()}
    everything = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    report = reports.report(convert(model, **CHEAP))
    assert [layer.name for layer in report.layers] == ["plain"]
    assert not silent(before, report)
    assert report.matrix_weights == sum(numel for _, numel, _ in sizes.values())
    assert report.bytes_before == everything
    assert report.weight_share == 54 / report.matrix_weights
    assert report.byte_share == 4 * 54 / everything
    found = {x.name: x for x in report.skipped}
    assert len(found) == len(report.skipped)  # each name once
    for name, size in sizes.items():
        left = found.get(name) or found.get(name.removesuffix(".weight"))
        if left is not None and left.weights:
            assert (left.shape, left.weights, left.bytes) == size, name
    assert (found["head"].weights, found["head"].shape) == (0, (11, 6))  # counted as the embedding's
    assert (found["table"].weights, found["table"].shape) == (0, (5, 6))  # as the stranger's
    assert (found["normed"].weights, found["normed"].shape) == (6 * 7 + 7, (7, 6))  # (7, 1) and (7, 6)
    assert (found["mask"].weights, found["mask"].bytes) == (0, 49)
    assert "scratch" not in found
    assert "same" not in found
    assert not any(name.startswith("normed.") for name in found)
    reasons = {name: x.reason for name, x in found.items()}
    assert reasons["experts"] == "a parameter of Strange, which is not a layer that diba can compress"
    assert reasons["rnn.weight_ih_l0_reverse"].startswith("nn.GRU reads its weights itself")
    assert reasons["cell.weight_hh"].startswith("nn.LSTMCell reads its weights itself")
    assert found["volume"].kind == "Conv3d"
    assert "a module of another kind" in reasons["stranger"]
    text = str(report)
    assert text.startswith("1 layer compressed: ")
    assert f"; {len(found)} left dense\n" in text
    assert all(reason in text for reason in reasons.values())
    assert {x["name"] for x in report.to_dict()["skipped"]} == set(found)


def test_a_second_call_counts_what_the_first_compressed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6, dtype=torch.bfloat16), nn.LSTM(8, 8))
    everything = sum(p.nbytes for p in model.parameters())
    first = reports.report(convert(model, skip=["1"], **CHEAP))
    second = reports.report(convert(model, **CHEAP))
    third = reports.report(convert(model, **CHEAP))
    assert first.weight_share == 64 / (112 + 512)
    for report in (second, third):
        assert report.matrix_weights == first.matrix_weights
        assert report.bytes_before == first.bytes_before == everything
        assert report.weight_share == 112 / (112 + 512)
        assert report.byte_share == (4 * 64 + 2 * 48) / everything
    assert [layer.name for layer in third.layers] == ["0", "1"]
    assert str(third).startswith("2 layers compressed: 17.9 % of 624 weights")


def test_all_of_it_is_100_percent_and_nothing_less() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    assert ": 100.0 % of 8,192 weights" in str(reports.report(convert(model, **CHEAP)))
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Bilinear(1, 1, 1))
    assert ": 99.9 % of 8,193 weights" in str(reports.report(convert(model, **CHEAP)))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("make", "settings", "reasons"),
    [
        (lambda: nn.Sequential(nn.Linear(8, 8)), {"skip": ["0"]}, ["left out by '0': 0 (64 weights"]),
        (lambda: nn.Sequential(nn.Embedding(9, 8)), {}, ["embeddings=False: 0 (72 weights"]),
        (tied, {}, ["embeddings=False: 0 (72", "shares its weight with 0; tied=True compresses both: 1 (0"]),
        (
            lambda: nn.Sequential(nn.Linear(8, 2), nn.GRU(8, 8)),
            {"k": None, "bits_per_weight": 1},
            ["too small for a 2 x 8 matrix", "nn.GRU reads its weights itself"],
        ),
    ],
)
def test_compressing_nothing_is_an_error_that_gives_the_reasons(
    make: Callable[[], nn.Module], settings: dict[str, Any], reasons: list[str]
) -> None:
    model = make()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ValueError, match="nothing of the model would be compressed: ") as caught:
        convert(model, **CHEAP | settings)
    assert all(reason in str(caught.value) for reason in reasons)
    assert not any(isinstance(module, FactoredLayer) for module in model.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_modules_are_left_with_a_reason() -> None:
    scripted = torch.jit.script(nn.Linear(8, 8))
    model = nn.Sequential(scripted, nn.Linear(8, 8))
    report = reports.report(convert(model, **CHEAP))
    assert [layer.name for layer in report.layers] == ["1"]
    [left] = report.skipped
    assert (left.name, left.weights) == ("0", 64)
    assert "compiled by torch.jit" in left.reason
    with pytest.raises(TypeError, match="module is a RecursiveScriptModule; it must be"):
        DibaLinear.from_dense(scripted, k=2)
    with pytest.raises(ValueError, match=r"no layer to compress: .*; it has: compiled by torch.jit.* \(64 "):
        convert(torch.jit.script(nn.Sequential(nn.Linear(8, 8))), **CHEAP)


def test_a_lazy_parameter_anywhere_is_an_error_that_names_it() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LazyConvTranspose2d(4, 2))
    with pytest.raises(ValueError, match=r"the weight of 1 is lazy .*; run a batch"):
        select(model, Config(k=2))


def test_a_report_of_nothing_has_no_shares() -> None:
    from diba.torch.conversion.report import Report

    empty = Report()
    assert math.isnan(empty.weight_share)
    assert empty.to_dict()["byte_share"] is None
    assert str(empty).startswith("0 layers compressed: none of 0 weights in matrices")


def test_parameters_that_are_taken_apart_are_named_beside_their_layers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.MixtralConfig(**sizes, num_hidden_layers=1, vocab_size=60, num_local_experts=3)
    model = nn.ModuleDict({"lm": transformers.MixtralForCausalLM(config), "a": nn.MultiheadAttention(32, 4)})
    before = dense_weights(model)
    count = sum(p.numel() for p in before.values())
    report = reports.report(convert(model, skip=["re:a\\..*"], **CHEAP))
    assert not silent(before, report)
    assert report.matrix_weights == count
    found = {x.name: x for x in report.skipped}
    for name in ("gate_up_proj", "down_proj"):
        left = found[f"lm.model.layers.0.mlp.experts.{name}"]
        assert (left.reason, left.weights) == ("its matrices are separate layers", 0)
        assert left.shape == tuple(before[left.name].shape)
    assert found["a.in_proj_weight"].reason == "none of its matrices is compressed"
    assert "\nsplit into layers: lm.model.layers.0.mlp.experts.gate_up_proj, " in str(report)
