"""convert: which layers it replaces by what, what it leaves, and what is left after trouble."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import pickle
import signal
import sys
import threading
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import threadpoolctl

pytest.importorskip("torch")

import torch
from torch import nn

import diba
from diba.layers.config import Config
from diba.solvers.second_moments import factor_shrinkage
from diba.solvers.size import no_size_warning
from diba.torch import Calibration, Moments
from diba.torch.conversion import report as reports
from diba.torch.conversion.convert import convert
from diba.torch.conversion.report import Report
from diba.torch.conversion.run import Conversion
from diba.torch.model.selection import select, targets
from diba.torch.modules.kinds import compressed
from diba.torch.modules.layer import FactoredLayer

if TYPE_CHECKING:
    from collections.abc import Callable

    from diba import Progress

FAST = {"method": "greedy", "alphabet": "binary", "threads": 1}
EPS = 2.0**-52


def quiet(model: nn.Module, **settings: Any) -> Report:
    assert convert(model, **{"bits_per_weight": 4, "progress": False} | FAST | settings) is model
    return reports.report(model)


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16, bias=False), nn.Linear(16, 2))


def reasons(model: nn.Module, **settings: Any) -> dict[str, str]:
    return {layer.name: layer.reason for layer in select(model, Config(k=4, **settings)).skipped}


def dense_twin(model: nn.Module, dense: nn.Module) -> nn.Module:
    """The dense model with the weights that the factors stand for, in float64."""
    twin = copy.deepcopy(dense).double()
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, FactoredLayer):
            f = module.factorization()
            b = [bits.to_dense().astype(np.float64) for bits in (f.b1, f.b2)]
            product = (f.d1[:, None] * b[0] * f.d2.astype(np.float64)) @ b[1] * f.d3.astype(np.float64)
            weight = torch.from_numpy(product)
            owner, _, own = name.rpartition(".")
            holder = twin.get_submodule(owner)
            if isinstance(holder, nn.MultiheadAttention) and own != "out_proj":
                holder.in_proj_weight.data.chunk(3)["qkv".index(own[0])].copy_(weight)
                continue
            old: Any = holder.get_submodule(own)
            weight = weight.T if type(old).__name__ == "Conv1D" else weight.reshape(old.weight.shape)
            old.weight = nn.Parameter(weight)
    return twin


def same_outputs(model: nn.Module, dense: nn.Module, *inputs: Any, **kwargs: Any) -> None:
    """In float64 the model computes what the dense one does with the same matrices, but for rounding."""
    expected = dense_twin(model, dense)(*inputs, **kwargs)
    found = copy.deepcopy(model).double()(*inputs, **kwargs)
    assert found.shape == expected.shape
    # Sums of at most 2^7 terms through at most 2^4 layers; a sum may cancel all but 2^-10 of its terms.
    assert (found - expected).abs().max() <= 2**21 * EPS * expected.abs().max()


# ---------------------------------------------------------------- what it does


def test_layers_have_the_factors_that_solve_gives() -> None:
    model = perceptron()
    dense = copy.deepcopy(model)
    convert(
        model,
        Config(bits_per_weight=4, seed=5, layers={"2": {"k": 9, "alphabet": "sign"}}, **FAST),
        progress=False,
    )
    report = reports.report(model)
    first = diba.solve(dense[0].weight.detach().numpy(), bits_per_weight=4, seed=5, method="greedy")
    second = diba.solve(dense[2].weight.detach().numpy(), k=9, alphabet="sign", seed=5, method="greedy")
    assert model[0].factorization() == first
    assert model[2].factorization() == second
    assert [(layer.name, layer.kind, layer.shape, layer.k) for layer in report.layers] == [
        ("0", "Linear", (32, 24), first.k),
        ("2", "Linear", (16, 32), 9),
    ]
    [left] = report.skipped
    assert left.name == "3"
    assert "bits_per_weight is 4, too small for a 2 x 16 matrix: k = 1 already takes 10.06" in left.reason
    assert report.layers[0].snr_db == round(first.snr_db(dense[0].weight), 4)
    assert report.layers[1].alphabet == "sign"
    same_outputs(model, dense, torch.randn(5, 24, dtype=torch.float64))


def test_the_report_counts() -> None:
    model = perceptron()
    report = quiet(model)
    first, second = (module.factorization() for module in (model[0], model[2]))
    assert report.weights == 32 * 24 + 16 * 32
    assert report.dense_bytes == 4 * report.weights
    assert report.bits_per_weight == pytest.approx(
        (first.bits_per_weight * 768 + second.bits_per_weight * 512) / 1280
    )
    assert report.parameters_before == 1280 + 32 + 32 + 2
    diagonals = 32 + first.k + 24 + 16 + second.k + 32
    assert report.parameters_after == report.parameters_before - 1280 + diagonals
    bits = sum(t.nbytes for t in model.buffers())
    assert report.memory_bytes == 4 * diagonals + bits
    assert report.file_bytes == 2 * diagonals + bits
    assert report.bytes_before == 4 * report.parameters_before
    assert report.bytes_after == 4 * report.parameters_after + bits
    assert report.worst is min(report.layers, key=lambda layer: layer.snr_db)
    assert report.mean_snr_db == pytest.approx(np.mean([layer.snr_db for layer in report.layers]))


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_factor(threads: int) -> None:
    def model() -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(*(nn.Linear(20, 20 + 4 * i) for i in range(5)), nn.Linear(20, 400))

    one, several = model(), model()
    before = quiet(one, threads=1)
    seen: list[int] = []
    after = quiet(several, threads=threads, progress=lambda state: seen.append(state.done))
    assert seen == [0, 1, 2, 3, 4, 5, 6]
    assert [layer.name for layer in after.layers] == [layer.name for layer in before.layers]
    for a, b in zip(one, several, strict=True):
        assert a.factorization() == b.factorization()


def test_the_dense_weight_is_free_once_its_layer_is_replaced() -> None:
    for threads in (1, 2):
        model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
        weights = {name: weakref.ref(p) for name, p in model.named_parameters() if "weight" in name}
        alive: list[bool] = []

        def look(state: Progress, weights: Any = weights, alive: Any = alive) -> None:
            if state.item is not None:
                alive.append(weights[f"{state.item}.weight"]() is not None)

        quiet(model, threads=threads, progress=look)
        assert alive == [False] * 4


def test_snr_is_reached() -> None:
    model = perceptron()
    report = quiet(model, bits_per_weight=None, snr_db=6.0, skip=["3"])
    assert all(layer.snr_db >= 6 for layer in report.layers)


@pytest.mark.parametrize("threads", [1, 2])
def test_layers_larger_than_is_useful_are_named_once(threads: int) -> None:
    """By the line of the call, also where worker threads solve."""
    model = nn.Sequential(nn.Linear(24, 20), nn.Linear(20, 30), nn.Linear(30, 24))
    rules = {"0": {"k": 44}, "2": {"bits_per_weight": 9}}  # 43 is 4 bits per weight of 20 x 24
    with pytest.warns(UserWarning, match="larger k than is useful") as caught:
        convert(model, bits_per_weight=3, layers=rules, threads=threads, progress=False)
    assert [warning.filename for warning in caught] == [__file__]
    text = str(caught[0].message)
    assert text.startswith("2 of 3 layers ")
    assert "k is 44 for '0' (20 x 24; use 43 or less), k is " in text
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        convert(nn.Sequential(nn.Linear(24, 20)), k=43, progress=False)
        with no_size_warning():
            convert(nn.Sequential(nn.Linear(24, 20)), k=44, progress=False)
    assert not others


def test_a_filter_that_makes_errors_of_warnings_stops_no_conversion(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = convert(nn.Sequential(nn.Linear(24, 20)), k=44, progress=False)
    assert model[0].k == 44
    assert "k is 44 for '0'" in caplog.text


def test_an_snr_that_takes_more_than_is_useful_is_warned_of() -> None:
    """Which k it takes is known when it is solved."""
    with pytest.warns(UserWarning, match=r"larger than useful for a 16 x 16 matrix"):
        convert(nn.Sequential(nn.Linear(16, 16)), snr_db=40, progress=False)


def test_every_kind_of_layer() -> None:
    class Conv1D(nn.Module):  # as transformers has it
        def __init__(self, nf: int, nx: int) -> None:
            super().__init__()
            self.nf, self.nx = nf, nx
            self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

        def forward(self, x: Any) -> Any:
            return x @ self.weight + self.bias

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(30, 24)
            self.along = nn.Conv1d(24, 20, 3, padding=1)
            self.across = nn.Conv2d(1, 18, (3, 5), stride=2, padding="valid")
            self.mix = Conv1D(12, 18)

        def forward(self, ids: Any) -> Any:
            x = self.along(self.table(ids).movedim(-1, 1))
            return self.mix(self.across(x[:, None]).movedim(1, -1))

    torch.manual_seed(0)
    model = Net()
    dense = copy.deepcopy(model)
    report = quiet(model, bits_per_weight=None, k=12, embeddings=True)
    assert [(layer.name, layer.kind, layer.shape) for layer in report.layers] == [
        ("table", "Embedding", (30, 24)),
        ("along", "Conv1d", (20, 72)),
        ("across", "Conv2d", (18, 15)),
        ("mix", "Conv1D", (12, 18)),
    ]
    same_outputs(model, dense, torch.randint(0, 30, (2, 17)))
    assert reasons(Net(), convolutions=False) == {
        "table": "embeddings=False",
        "along": "convolutions=False",
        "across": "convolutions=False",
    }
    # An exact name speaks for a layer that a flag leaves out; a pattern does not.
    named = targets(Net(), Config(k=4, convolutions=False, layers={"table": {"k": 5}, "re:a.*": {"k": 6}}))
    assert [(target.name, target.settings.k) for target in named] == [("table", 5), ("mix", 4)]


def test_bfloat16_weights_keep_their_dtype() -> None:
    model = perceptron().bfloat16()
    matrix = model[0].weight.detach().float().numpy()
    quiet(model)
    assert model[0].factorization() == diba.solve(matrix, bits_per_weight=4, method="greedy")
    assert model[0].weight.dtype == torch.bfloat16
    assert model(torch.randn(3, 24, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_what_hangs_on_a_layer_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = self.b = nn.Linear(16, 16)  # one module under two names
            self.c = nn.Linear(16, 16)
            self.bias = self.c.bias

        def forward(self, x: Any) -> Any:
            return self.c(self.b(self.a(x)))

    model = Net().eval()
    model.a.weight.requires_grad_(False)
    calls: list[str] = []
    handle = model.a.register_forward_hook(lambda *_: calls.append("a"))
    model.c.register_forward_pre_hook(lambda *_, **__: calls.append("c"), with_kwargs=True)
    dense = copy.deepcopy(model)
    report = quiet(model, layers={"b": {"k": 7}})
    assert [layer.name for layer in report.layers] == ["a", "c"]
    assert model.a is model.b
    assert model.a.k == 7  # rules may use any of the names
    assert not model.a.training
    assert not model.a.d2.requires_grad
    assert model.c.d2.requires_grad
    assert model.c.bias is model.bias
    same_outputs(model, dense, torch.randn(3, 16, dtype=torch.float64))
    calls.clear()
    model(torch.randn(2, 16))
    handle.remove()
    model(torch.randn(2, 16))
    assert calls == ["a", "a", "c", "c"]


def test_conversion_inside_inference_mode_gives_layers_that_train() -> None:
    model = perceptron()
    with torch.inference_mode():
        quiet(model)
    model(torch.randn(2, 24)).sum().backward()
    assert model[0].d2.grad is not None


# ---------------------------------------------------------------- what it leaves


def test_weights_that_others_read_are_left() -> None:
    class Own(nn.Linear):
        def forward(self, x: Any) -> Any:
            return 2 * super().forward(x)

    class Same(nn.Linear):
        pass

    class Attention(nn.MultiheadAttention):
        pass

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention(16, 2)
            self.own = Own(16, 16)
            self.same = Same(16, 16)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
            self.grouped = nn.Conv2d(16, 16, 1, groups=2)
            self.patched = nn.Linear(16, 16)
            self.patched.forward = lambda x: x  # as accelerate does it
            self.lookup = nn.Embedding(16, 16, max_norm=1.0)
            self.recurrent = nn.LSTM(16, 16)

    model = Net()
    found = reasons(model, embeddings=True)
    held = {"attention.in_proj_weight", "recurrent.weight_ih_l0", "recurrent.weight_hh_l0"}
    layers = {"attention.out_proj", "own", "normed", "grouped", "patched", "lookup"}
    assert found.keys() == layers | held
    assert "nn.MultiheadAttention reads" in found["attention.out_proj"]
    assert "nn.MultiheadAttention reads" in found["attention.in_proj_weight"]
    assert "nn.LSTM reads its weights itself; written with nn.Linear" in found["recurrent.weight_hh_l0"]
    assert found["own"] == "its Own has a forward of its own"
    assert "computed from other parameters" in found["normed"]
    assert "groups is 2" in found["grouped"]
    assert "max_norm" in found["lookup"]
    assert [target.name for target in targets(model, Config(k=4))] == ["same"]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_transformer_encoder_keeps_away_from_its_fast_path() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2).eval()
    dense = copy.deepcopy(model)
    report = quiet(model, skip=["re:layers.0.*"])
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    assert [layer.name for layer in report.layers] == [
        f"layers.1.{name}" for name in (*names, "linear1", "linear2")
    ]
    assert type(model.layers[0].self_attn) is nn.MultiheadAttention
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 4:] = True
    dense.enable_nested_tensor = dense.use_nested_tensor = False
    with torch.no_grad():
        same_outputs(model, dense, x)
        same_outputs(model, dense, x, src_key_padding_mask=padding)
    same_outputs(model, dense, x)


class Tied(nn.Module):
    """Embedding and output layer with one weight, a third user if wanted."""

    def __init__(self, stranger: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(40, 24)
        self.body = nn.Linear(24, 24)
        self.head = nn.Linear(24, 40)
        self.head.weight = self.embed.weight
        if stranger:
            self.direct = self.embed.weight

    def forward(self, ids: Any) -> Any:
        return self.head(self.body(self.embed(ids)))


def test_tied_weights_are_left_unless_asked_for() -> None:
    model = Tied()
    report = quiet(model)
    assert [layer.name for layer in report.layers] == ["body"]
    assert {layer.name: layer.reason for layer in report.skipped} == {
        "embed": "embeddings=False",
        "head": "shares its weight with embed; tied=True compresses both",
    }
    assert model.head.weight is model.embed.weight
    assert "shares its weight with head" in reasons(Tied(), embeddings=True)["embed"]


def test_tied_layers_share_one_factorization() -> None:
    model = Tied()
    dense = copy.deepcopy(model)
    report = quiet(model, tied=True, layers={"embed": {"k": 20}})
    assert [(layer.name, layer.k, layer.tied) for layer in report.layers] == [
        ("body", report.layers[0].k, ()),
        ("head", 20, ("embed",)),
    ]
    for name in ("d1", "d2", "d3", "b1", "b2"):
        assert getattr(model.head, name) is getattr(model.embed, name)
    assert report.weights == 40 * 24 + 24 * 24  # once
    bits = 40 * 3 + 20 * 3 + model.body.b1.nbytes + model.body.b2.nbytes
    assert sum(buffer.nbytes for buffer in model.buffers()) == bits
    same_outputs(model, dense, torch.tensor([[1, 5, 39]]))
    model(torch.tensor([[1, 5]])).sum().backward()
    assert model.embed.d1.grad is model.head.d1.grad is not None


def test_a_group_with_a_member_that_stays_dense_stays_dense() -> None:
    assert reasons(Tied(), tied=True, skip=["embed"]) == {
        "embed": "left out by 'embed'",
        "head": "shares its weight with embed, which stays dense",
    }
    assert "a module of another kind, which stays dense" in reasons(Tied(stranger=True), tied=True)["head"]


def test_a_weight_that_is_shared_with_its_transpose_stays_dense() -> None:
    """transformers' ``Conv1D`` holds its matrix the other way round than an embedding."""
    transformers = pytest.importorskip("transformers.pytorch_utils")
    model = nn.Sequential(nn.Embedding(40, 24), transformers.Conv1D(24, 40))
    model[1].weight = model[0].weight
    found = reasons(model, tied=True, embeddings=True)
    assert found == {
        "0": "shares its weight with 1, which uses it transposed or reshaped",
        "1": "shares its weight with 0, which uses it transposed or reshaped",
    }


def test_a_second_call_leaves_what_is_converted() -> None:
    model = perceptron()
    first = quiet(model)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    second = quiet(model, skip=["3"], layers={"0": {"k": 3}})
    assert second.layers == first.layers
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())
    assert second.weight_share == 1280 / 1312
    assert second.byte_share == 1280 / (1312 + 32 + 2)


# ---------------------------------------------------------------- calibration


def correlated(n: int, count: int = 400, seed: int = 0) -> np.ndarray:
    """Inputs with a covariance far from the identity, shape (count, n)."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, n)) * 2.0 ** -np.arange(n) @ rng.standard_normal((n, n))


def moments(n: int, m: int | None = None) -> Moments:
    X = correlated(n)
    rows = None if m is None else np.exp2(-np.arange(m) / 4)
    return Moments(X.T @ X / len(X), len(X), rows)


def test_objectives_are_those_of_solve() -> None:
    A = perceptron()[0].weight.detach().numpy()
    known = moments(24, 32)
    plain = Moments(known.second, known.count)
    options: dict[str, Any] = {"bits_per_weight": 4, "method": "greedy"}
    given = known.second, factor_shrinkage(24, known.count, 4)
    expected = {
        ("auto", "plain moments"): diba.solve(A, covariance=given, **options),
        ("covariance", "plain moments"): diba.solve(A, covariance=given, **options),
        ("importance", "plain moments"): diba.solve(A, importance=plain.importance, **options),
        ("importance", "gradients"): diba.solve(A, importance=known.importance, **options),
        ("plain", "gradients"): diba.solve(A, **options),
    }
    for (objective, kind), f in expected.items():
        model = perceptron()
        calibration = Calibration({"0": known if kind == "gradients" else plain})
        with pytest.warns(
            UserWarning, match="calibration did not reach 1 of 2 layers, 2; they get objective"
        ):
            report = quiet(model, calibration=calibration, layers={"0": {"objective": objective}})
        assert model[0].factorization() == f
        assert report.layers[0].objective == ("covariance" if objective == "auto" else objective)
        assert report.layers[1].objective == "plain"  # without moments
        assert report.layers[1].output_snr_db is None
        E, S = (A - f.to_dense()).astype(np.float64), known.second
        signal, noise = (np.trace(M @ S @ M.T) for M in (A.astype(np.float64), E))
        assert report.layers[0].output_snr_db == pytest.approx(
            10 * math.log10(signal / noise), rel=1e-6, abs=5e-5
        )


def test_few_vectors_are_trusted_less() -> None:
    A = perceptron()[0].weight.detach().numpy()
    S = moments(24).second
    for count, share in ((10, 0.6), (1000, math.cbrt(24 / 1024)), (100_000, 0.1)):
        model = perceptron()
        quiet(model, calibration=Calibration({"0": Moments(S, count)}), layers={"2": {"objective": "plain"}})
        expected = diba.solve(A, covariance=(S, share), bits_per_weight=4, method="greedy")
        assert model[0].factorization() == expected


def test_gradients_weigh_the_rows_of_the_covariance_objective() -> None:
    known = moments(24, 32)
    A = perceptron()[0].weight.detach().numpy().astype(np.float64)

    def error(calibration: Moments) -> float:
        model = perceptron()
        quiet(model, calibration=Calibration({"0": calibration}), layers={"2": {"objective": "plain"}})
        f = model[0].factorization()
        assert f.diagonal_bits == 16
        E = known.gradient_rms[:, None] * (A - f.to_dense())
        return float(np.trace(E @ known.second @ E.T))

    assert error(known) < 0.7 * error(Moments(known.second, known.count))


def test_inputs_that_are_always_zero_weigh_nothing() -> None:
    model = perceptron()
    dead = Moments(np.zeros((24, 24)), 10)
    with pytest.warns(UserWarning, match="calibration did not reach 2 of 2 layers, 0, 2; "):
        report = quiet(model, calibration=Calibration({"0": dead}), objective="auto")
    assert report.layers[0].objective == "plain"
    assert model[0].factorization() == diba.solve(
        perceptron()[0].weight.detach().numpy(), bits_per_weight=4, method="greedy"
    )


def test_batches_give_moments_in_execution_order() -> None:
    X = torch.tensor(correlated(24), dtype=torch.float32)
    order: list[str] = []
    model, blind, dense = (perceptron() for _ in range(3))
    report = quiet(model, batches=[X[:200], X[200:]], progress=lambda state: order.append(state.item))
    quiet(blind)
    assert order == [None, "0", "2"]
    assert [layer.objective for layer in report.layers] == ["covariance"] * 2
    assert report.layers[0].output_snr_db > report.layers[0].snr_db

    @torch.no_grad()
    def error(found: nn.Module) -> float:
        twin = dense_twin(found, dense)
        return float((twin(X.double()) - dense.double()(X.double())).square().mean())

    assert error(model) < 0.5 * error(blind)
    assert isinstance(model[0], FactoredLayer)


class Branches(nn.Module):
    """Three layers read one input, two read what these make, as in attention and what follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(24, size) for size in (16, 20, 12))
        self.second = nn.ModuleList(nn.Linear(48, size) for size in (24, 18))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(torch.cat([layer(x) for layer in self.first], -1))
        return torch.cat([layer(y) for layer in self.second], -1)


def test_layers_of_one_input_are_solved_side_by_side_with_the_same_factors() -> None:
    X = torch.tensor(correlated(24), dtype=torch.float32)
    torch.manual_seed(3)
    models = [Branches()]
    models.append(copy.deepcopy(models[0]))
    for model, threads in zip(models, (1, 2), strict=True):
        report = quiet(model, threads=threads, batches=[X[:200], X[200:]])
        assert len(report.layers) == 5
    one, two = (model.state_dict() for model in models)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


# ---------------------------------------------------------------- trouble


def test_an_exception_leaves_a_model_that_works() -> None:
    model = perceptron()
    dense = copy.deepcopy(model)

    def stop(state: Progress) -> None:
        if state.done:
            assert (state.task, state.item, state.done, state.total) == ("convert", "0", 1, 2)
            assert state.detail.snr_db == state.snr_db
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough") as caught:
        quiet(model, progress=stop)
    assert "has replaced 1 of 2 layers" in caught.value.__notes__[0]
    assert isinstance(model[0], FactoredLayer)
    assert model[2].weight is not None
    assert type(model[2]) is nn.Linear
    same_outputs(model, dense, torch.randn(3, 24, dtype=torch.float64))
    half = reports.report(model)
    assert [layer.name for layer in half.layers] == ["0"]
    assert {left.name: left.reason for left in half.skipped}["2"] == "not compressed"
    assert [layer.name for layer in quiet(model).layers] == ["0", "2"]  # goes on


def test_an_error_in_one_thread_stops_the_others_and_keeps_what_is_ready(monkeypatch: Any) -> None:
    solve = diba.solve

    def fails(A: Any, **options: Any) -> diba.Factorization:
        if A.shape == (16, 16):
            raise MemoryError("no more")
        return solve(A, **options)

    monkeypatch.setattr("diba.layers.solved.solve", fails)
    model = nn.Sequential(nn.Linear(16, 17), nn.Linear(17, 16), nn.Linear(16, 16), nn.Linear(16, 4))
    with pytest.raises(MemoryError, match="no more") as caught:
        quiet(model, threads=2, skip=["3"])
    done = sum(isinstance(module, FactoredLayer) for module in model)
    assert f"has replaced {done} of 3 layers" in caught.value.__notes__[0]
    assert type(model[2]) is nn.Linear
    model(torch.randn(2, 16))


def test_one_piece_of_memory_for_all_weights_is_released() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 2))
    whole = torch.cat([p.detach().flatten() for p in model.parameters()])  # as a mapped file holds them
    start = 0
    for p in model.parameters():
        p.data = whole[start : (start := start + p.numel())].view_as(p)
    model[1].bias.data = model[1].weight.data  # two names of one place stay one
    expected = {
        name: p.detach().clone() for name, p in model.named_parameters() if not name.startswith("0.w")
    }
    del whole, p
    kept = model[2].weight
    convert(model, k=5, effort="fast", skip=["2"], progress=False)
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())
    assert model[2].weight is kept
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in expected.items())
    assert model[1].bias.data_ptr() == model[1].weight.data_ptr()


def test_conversion_works_without_threadpoolctl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which only saves time: the factors are the same."""
    model = perceptron()
    expected = copy.deepcopy(model)
    quiet(expected)
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    quiet(model)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), expected.buffers(), strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_numpy_has_one_thread_while_layers_are_solved(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def limits() -> set[int]:
        return {
            library["num_threads"]
            for library in threadpoolctl.threadpool_info()
            if library["user_api"] == "blas"
        }

    watch, seen = Conversion.watch, set()

    def looking(self: Conversion, name: str) -> Callable[[Any], None]:
        seen.update(limits())
        return watch(self, name)

    monkeypatch.setattr(Conversion, "watch", looking)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = limits()
        convert(model, k=5, effort="fast", threads=threads, batches=[torch.randn(64, 16)], progress=False)
        assert limits() == before
    assert seen == {1}


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals are sent the POSIX way")
@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_stops_all_solvers(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, iterations = Conversion.watch, []

    def interrupting(self: Conversion, name: str) -> Callable[[Any], None]:
        show = watch(self, name)

        def report(progress: Any) -> None:
            iterations.append(progress.done)
            if len(iterations) == 10:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            show(progress)

        return report

    monkeypatch.setattr(Conversion, "watch", interrupting)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have switched it off
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            convert(model, k=60, effort="best", method="admm", threads=threads, progress=False)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert "has replaced 0 of 4 layers" in caught.value.__notes__[0]
    assert max(iterations) < 2400  # of the ramp: none ran to its end
    assert all(type(module) is nn.Linear for module in model)
    end = time.monotonic() + 60  # for one that was only starting when the interrupt came
    while any("diba-convert" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


def broken(value: float) -> nn.Sequential:
    model = perceptron()
    with torch.no_grad():
        model[2].weight[3, 4] = value
    return model


@pytest.mark.parametrize(
    ("model", "settings", "kind", "message"),
    [
        (lambda: broken(math.nan), {}, ValueError, r"the weight of 2 has 1 NaN or infinite entries, of 512"),
        (lambda: broken(-math.inf), {}, ValueError, "the weight of 2 has 1 NaN"),
        (lambda: perceptron().to("meta"), {}, ValueError, "weight of 0 is on the meta device"),
        (lambda: nn.Sequential(nn.LazyLinear(4)), {}, ValueError, "weight of 0 is lazy"),
        (lambda: nn.Linear(4, 4), {}, ValueError, "model is itself a Linear"),
        (lambda: nn.Sequential(nn.ReLU()), {}, ValueError, "model has no layer to compress"),
        (lambda: 3, {}, TypeError, "model is 3"),
        (perceptron, {"skip": ["4"]}, ValueError, "'4' in skip or layers names no layer"),
        (perceptron, {"layers": {"re:lin.*": None}}, ValueError, "'re:lin.*' in skip or layers names no"),
        (perceptron, {"bits": 3}, ValueError, "unknown key 'bits'"),
        (perceptron, {"config": Config(k=2)}, ValueError, "config and the keyword 'bits_per_weight'"),
        (perceptron, {"progress": "yes"}, TypeError, "progress is 'yes'"),
        (perceptron, {"calibration": 3}, TypeError, "calibration is 3"),
        (perceptron, {"calibration": {}, "objective": "covariance"}, ValueError, "no moments of its inputs"),
        (perceptron, {"objective": "importance"}, ValueError, "objective is 'importance' for 0"),
        (perceptron, {"calibration": {"1": moments(24)}}, ValueError, "calibration has none of the layers"),
        (perceptron, {"calibration": {"0": moments(23)}}, ValueError, r"second is \(23, 23\)"),
    ],
)
def test_errors_come_before_any_work(
    model: Callable[[], Any], settings: dict[str, Any], kind: type[Exception], message: str
) -> None:
    found = model()
    with pytest.raises(kind, match=message):
        quiet(found, **settings)
    if isinstance(found, nn.Module):
        assert not any(isinstance(module, FactoredLayer) for module in found.modules())


def test_names_that_match_nothing_are_explained() -> None:
    model = nn.Sequential()
    model.encoder = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model.lm_head = nn.Linear(8, 8)
    with pytest.raises(ValueError, match="did you mean 'lm_head'"):
        select(model, Config(k=2, skip=["lm_heads"]))
    with pytest.raises(ValueError, match=r"'encoder' .* it holds 2 layers: use 're:encoder\\\.\.\*'"):
        select(model, Config(k=2, layers={"encoder": None}))
    assert [target.name for target in targets(model, Config(k=2, skip=[r"re:encoder\..*"]))] == ["lm_head"]


# ---------------------------------------------------------------- what it shows


def test_texts_of_the_report(tmp_path: Any) -> None:
    model = perceptron()
    report = quiet(model, calibration=Calibration({"0": moments(24)}), layers={"2": {"objective": "plain"}})
    first, second = report.layers
    lines = str(report).splitlines()
    assert lines[0] == (
        "2 layers compressed: 97.5 % of 1,312 weights in matrices, 95.0 % of the model's 5.38 kB; "
        "1 left dense"
    )
    assert lines[1].split() == [
        "layer",
        "kind",
        "shape",
        "k",
        "bits/weight",
        "SNR",
        "dB",
        "output",
        "SNR",
        "dB",
        "seconds",
    ]
    assert lines[2].split()[:6] == ["0", "Linear", "32", "x", "24", str(first.k)]
    [left] = [line for line in lines if line.startswith("left dense: ")]
    assert left.startswith("left dense: bits_per_weight is 4, too small")
    assert left.endswith(": 3 (32 weights, 128 bytes)")
    assert {"objective covariance: 0", "objective plain: 2"} <= set(lines)
    worst = report.table(worst_first=True, limit=1).splitlines()
    assert report.worst is not None
    assert worst[2].split()[0] == report.worst.name
    assert worst[3] == "... and 1 more"

    path = tmp_path / "report"
    data = json.loads(report.to_json(path))
    assert path.read_text() == report.to_json()
    assert data["layers"][0]["shape"] == [32, 24]
    assert data["layers"][1]["output_snr_db"] is None
    assert data["skipped"] == [
        {"name": "3", "kind": "Linear", "reason": report.skipped[0].reason}
        | {"shape": [2, 16], "weights": 32, "bytes": 128}
    ]
    assert (data["matrix_weights"], data["bytes_before"]) == (1312, 4 * 1346)
    assert (data["weight_share"], data["byte_share"]) == (1280 / 1312, 1280 / 1346)
    assert data["memory_bytes"] == report.memory_bytes
    rows = list(csv.DictReader(io.StringIO(report.to_csv(path))))
    assert path.read_text() == report.to_csv()
    assert [row["name"] for row in rows] == ["0", "2", "3"]
    assert [row["weights"] for row in rows] == ["768", "512", "32"]
    assert [row["reason"] for row in rows] == ["", "", report.skipped[0].reason]
    assert float(rows[1]["snr_db"]) == second.snr_db
    layers, left = report.to_markdown().split("\n\n")[1:]
    for table, rows_of_it in ((layers, 2), (left, 1)):
        assert len({line.count("|") for line in table.splitlines()}) == 1
        assert len(table.splitlines()) == 2 + rows_of_it
    assert "| 3 | Linear | 2 x 16 | 32 | 128 |" in left
    assert ">32 x 24</td>" in report._repr_html_()
    assert rows[0]["shape"] == "32 x 24"
    assert (rows[0]["tied"], rows[2]["dense_bytes"]) == ("", "128")
    assert ">2 x 16</td>" in report._repr_html_()


def test_progress_is_shown_in_lines(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    quiet(perceptron(), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "diba: convert 2/2, 2, SNR " in err
    quiet(perceptron())
    assert capsys.readouterr().err == ""


def test_a_bar_moves_with_the_work_within_layers() -> None:
    """Weighted by m n k, in units of layers, and never backwards."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    seen: list[Progress] = []
    run = Conversion(model, Config(k=6, method="admm", threads=1), progress=True)
    with run:
        run._tell = seen.append
        run.independently()
    done = [state.done for state in seen]
    assert done == sorted(done)
    assert done[-1] == 2
    assert any(0 < share < 1 for share in done)
    first = next(state for state in seen if state.item == "0")
    assert first.done == pytest.approx(2 * 64 / 72)


def test_a_report_knows_what_it_is_told() -> None:
    model = perceptron()
    quiet(model)
    data = [torch.randn(4, 24)] * 3
    course = diba.torch.retune(model, data, lambda m, x: m(x).square().mean(), max_steps=3, progress=False)
    report = reports.report(model, retuned=course, figures={"accuracy": 0.75})
    assert report.facts.retuning is not None
    assert report.facts.retuning.losses == tuple(course.losses)
    assert report.to_dict()["facts"]["figures"] == {"accuracy": 0.75}
    text = report.to_html(title="mine")
    for said in ("<h1>mine</h1>", "accuracy</span><b>0.75", "3 steps, loss "):
        assert said in text


# ---------------------------------------------------------------- the report at any time


def same_report(found: Report, expected: Report) -> None:
    """All of it, also what is not compared."""
    assert found == expected
    assert str(found) == str(expected)


def test_copies_and_pickles_report_the_same() -> None:
    model = perceptron()
    report = quiet(model)
    assert report.settings == Config(bits_per_weight=4, **FAST).to_dict()
    assert report.seconds is not None
    same_report(reports.report(copy.deepcopy(model)), report)
    same_report(reports.report(pickle.loads(pickle.dumps(model))), report)
    same_report(reports.report(model), report)


def test_a_dense_model_has_a_report() -> None:
    model = nn.Sequential(perceptron(), nn.LSTM(4, 4))
    report = reports.report(model)
    assert report.layers == ()
    assert report.seconds is report.settings is report.worst is None
    assert {x.name: x.reason for x in report.skipped} == {
        **dict.fromkeys(("0.0", "0.2", "0.3"), "not compressed"),
        **dict.fromkeys(("1.weight_ih_l0", "1.weight_hh_l0"), report.skipped[-1].reason),
    }
    assert report.parameters_before == report.parameters_after == sum(p.numel() for p in model.parameters())
    assert str(report).startswith("0 layers compressed: 0.0 % of ")
    with pytest.raises(TypeError, match="model is 3"):
        reports.report(3)  # type: ignore[arg-type]


def test_several_calls_are_one_report() -> None:
    model = perceptron()
    quiet(model, skip=["0"], seed=5)
    report = quiet(model, skip=["3"])
    assert [layer.name for layer in report.layers] == ["0", "2"]
    assert {x.name: x.reason for x in report.skipped} == {"3": "left out by '3'"}
    assert report.settings == Config(bits_per_weight=4, skip=["3"], **FAST).to_dict()
    once = quiet(perceptron(), skip=["3"])
    assert (report.parameters_before, report.bytes_before) == (once.parameters_before, once.bytes_before)
    # What holds a model, or is held by it, knows of its layers, too.
    outer = nn.ModuleDict({"inner": model})
    assert [x.name for x in reports.report(outer).layers] == ["inner.0", "inner.2"]
    assert reports.report(outer).skipped[0].reason == "left out by '3'"


def test_layers_that_nobody_remembers_are_reported_without_snr() -> None:
    model = perceptron()
    model[0] = compressed(model[0], k=5)
    report = reports.report(model)
    [layer] = report.layers
    assert layer.objective is layer.snr_db is layer.output_snr_db is layer.seconds is None
    assert "SNR unknown" in str(report)
    assert str(report).splitlines()[2].split()[-3:] == ["-", "-", "-"]
    assert math.isnan(report.mean_snr_db)
    assert json.loads(report.to_json())["mean_snr_db"] is None
    quiet(model)
    assert [x.name for x in reports.report(model).worst_first()] == ["2", "0"]


# ---------------------------------------------------------------- transformers


def test_tied_models_of_transformers_stay_tied(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertForMaskedLM(config).eval()
    report = quiet(model, bits_per_weight=None, k=16, tied=True)
    names = {layer.name: layer.tied for layer in report.layers}
    assert names["cls.predictions.decoder"] == ("bert.embeddings.word_embeddings",)
    decoder, table = model.cls.predictions.decoder, model.bert.embeddings.word_embeddings
    assert decoder.bias is model.cls.predictions.bias
    with torch.no_grad():
        ids = torch.tensor([[1, 7, 3]])
        before = model(ids).logits
        model.tie_weights()
        assert decoder.d2 is table.d2
        assert decoder.b1 is table.b1
        assert torch.equal(model(ids).logits, before)
    assert model.all_tied_weights_keys["cls.predictions.decoder.d1"] == "bert.embeddings.word_embeddings.d1"
