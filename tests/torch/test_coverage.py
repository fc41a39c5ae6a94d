"""Layers that calibration does not reach: named, on one scale with the others, and told what they got."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

import diba
import diba.torch
import diba.torch.calibration.propagate
from diba.layers.config import Config
from diba.solvers.size import uniform_k
from diba.torch import Calibration, Moments
from diba.torch.allocation.scores import scores
from diba.torch.calibration import blocks
from diba.torch.conversion.convert import convert
from diba.torch.conversion.report import report
from diba.torch.conversion.solving import warn_unreached

CHEAP: dict[str, Any] = {"bits_per_weight": 4, "method": "greedy", "threads": 1, "progress": False}


class Experts(nn.Module):
    """Every token goes to the expert of the block of four inputs that is largest."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 16)) for _ in range(4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = x.unflatten(-1, (4, 4)).sum(-1).argmax(-1)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            if (chosen == number).any():
                y[chosen == number] += expert(x[chosen == number])
        return x + y


class Mixture(nn.Module):
    def __init__(self, kind: str = "chain") -> None:
        super().__init__()
        torch.manual_seed(2)
        self.blocks = nn.ModuleList(Experts() for _ in range(2))
        self.head = nn.Linear(16, 12)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x) if self.kind == "chain" else block(x + 0)  # no sequence of blocks
        return self.head(x)


def tokens(expert: int, count: int = 24) -> torch.Tensor:
    """Tokens that go to one expert of the first block, and to the same of the second."""
    x = torch.randn(count, 16, generator=torch.Generator().manual_seed(expert))
    x[:, 4 * expert : 4 * expert + 4] += 6
    return x


def of(expert: int, block: int) -> list[str]:
    return [f"blocks.{block}.experts.{expert}.{layer}" for layer in (0, 2)]


def names(*experts: int) -> set[str]:
    return {name for expert in experts for block in (0, 1) for name in of(expert, block)}


# ---------------------------------------------------------------- conversion


def test_experts_that_calibration_did_not_reach_are_named_and_get_the_plain_objective() -> None:
    model = Mixture()
    known = diba.torch.calibrate(model, [tokens(0), tokens(1)], progress=False)
    assert set(known) == names(0, 1) | {"head"}
    with pytest.warns(
        UserWarning, match=r"did not reach 8 of 17 layers, blocks\.0\.experts\.2\.0, "
    ) as caught:
        made = report(convert(model, calibration=known, **CHEAP))
    assert len(caught) == 1
    assert "and 5 more; " in str(caught[0].message)
    assert caught[0].filename == __file__
    found = {layer.name: layer.objective for layer in made.layers}
    assert {name for name, objective in found.items() if objective == "plain"} == names(2, 3)
    assert {name for name, objective in found.items() if objective == "covariance"} == set(known)
    assert "objective plain: blocks.0.experts.2.0, " in str(made)
    for layer in made.layers:
        if layer.name in names(2, 3):
            dense = Mixture().get_submodule(layer.name).weight.detach().numpy()
            assert model.get_submodule(layer.name).factorization() == diba.solve(
                dense, bits_per_weight=4, method="greedy", alphabet="sign"
            )


@pytest.mark.parametrize("kind", ["chain", "loose"])
def test_batches_reach_what_any_of_them_reaches(kind: str) -> None:
    model = Mixture(kind)
    with pytest.warns(UserWarning, match="did not reach 4 of 17 layers, blocks.0.experts.3.0, ") as caught:
        made = report(convert(model, batches=[tokens(0), tokens(1), tokens(2)], **CHEAP))
    assert len(caught) == 1
    found = {layer.name: layer.objective for layer in made.layers}
    assert {name for name, objective in found.items() if objective == "plain"} == names(3)
    assert set(found.values()) == {"plain", "covariance"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(Mixture(kind), batches=[tokens(0), torch.cat([tokens(i) for i in range(4)])], **CHEAP)


def test_the_plan_holds_layers_of_all_batches_in_the_order_of_their_calls() -> None:
    model = Mixture()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = blocks.plan(model, layers, [tokens(2), tokens(0), tokens(3), tokens(1)])
    assert found.unreached == ()
    (sequence, head) = found.steps
    assert isinstance(sequence, tuple)
    assert isinstance(head, blocks.Group)
    for number, block in enumerate(sequence):
        order = [name for group in block.groups for name in group.names]
        assert sorted(order) == sorted(name for expert in range(4) for name in of(expert, number))
        assert all(order.index(a) < order.index(b) for a, b in (of(expert, number) for expert in range(4)))
    assert blocks.plan(model, layers, [tokens(2)]).unreached == tuple(
        name for name in layers if name in names(0, 1, 3)
    )
    with pytest.raises(ValueError, match="batches is empty"):
        blocks.plan(model, layers, iter(()))


class Rerouted(nn.Module):
    """The dense model sends a batch where it asks to go; compressed, everything goes to the second expert."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 16)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 12)) for _ in range(2))

    def forward(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        y = self.first(x)
        result: torch.Tensor = self.experts[expert if isinstance(self.first, nn.Linear) else 1](y)
        return result


def test_layers_that_other_batches_reach_once_the_model_is_compressed() -> None:
    model = Rerouted()
    batches = [(tokens(0), 0), (tokens(1), 1)]
    seen: dict[str, Any] = {}

    def factor(layers: Any) -> None:
        for name, matrix, moments, _ in layers:
            seen[name] = matrix, moments
            parent, _, last = name.rpartition(".")
            owner = model.get_submodule(parent)
            new = copy.deepcopy(owner.get_submodule(last))
            setattr(owner, last, nn.Sequential(new) if name == "first" else new)

    names = ["first", *(f"experts.{expert}.{layer}" for expert in (0, 1) for layer in (0, 1))]
    diba.torch.calibration.propagate.run(model, names, batches, factor)
    assert {name for name, (_, moments) in seen.items() if moments is None} == {"experts.0.0", "experts.0.1"}
    x = torch.cat([x for x, _ in batches]).double()
    with torch.no_grad():
        y = copy.deepcopy(model.first).double()(x)
    matrix, moments = seen["experts.1.0"]
    assert moments.count == len(x)  # both batches, although the dense model sends the first elsewhere
    exact = (y.T @ y / len(y)).numpy()
    assert np.abs(moments.second - exact).max() <= 2.0**-15 * np.abs(exact).max()  # sums of 48 in float32
    np.testing.assert_array_equal(
        matrix, model.experts[1][0].weight.detach().numpy()
    )  # nothing to correct by
    with pytest.warns(
        UserWarning, match=r"did not reach 2 of 5 layers, experts\.0\.0, experts\.0\.1; they get"
    ):
        made = report(convert(Rerouted(), batches=batches, **CHEAP))
    assert [layer.objective for layer in made.layers] == [
        "covariance",
        "plain",
        "plain",
        "covariance",
        "covariance",
    ]


def test_layers_that_cannot_be_reached_or_were_not_to_be_are_no_reason_to_warn() -> None:
    model = nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    batches = [torch.randint(20, (2, 9))]
    known = diba.torch.calibrate(model, batches, progress=False)
    del known._moments["2"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(
            copy.deepcopy(model),
            calibration=known,
            embeddings=True,
            layers={"2": {"objective": "plain"}},
            **CHEAP,
        )
        convert(model, batches=batches, embeddings=True, **CHEAP)
    warn_unreached([], 3, "nothing to say")


# ---------------------------------------------------------------- shares of bits


def test_idle_experts_get_the_smallest_size() -> None:
    model = Mixture()
    known = diba.torch.calibrate(model, [tokens(0), tokens(1)], progress=False)
    with pytest.warns(
        UserWarning, match="did not reach 8 of 17 layers.*they get the smallest size"
    ) as caught:
        found = diba.allocate(model, 3, calibration=known)
    assert caught[0].filename == __file__
    smallest = uniform_k(20, 16, 0.5 * 3)
    assert {found.k[name] for name in names(2, 3)} == {smallest}
    assert min(found.k[name] for name in names(0, 1)) > smallest


def scaled(known: Calibration, inputs: float, gradients: float = 1.0) -> Calibration:
    """The same calibration in another unit."""
    result = {}
    for name, moments in known.items():
        rms = None if moments.gradient_rms is None else moments.gradient_rms * gradients
        mean = None if moments.mean is None else moments.mean * math.sqrt(inputs)
        result[name] = Moments(moments.second * inputs, moments.count, rms, moments.gradient_count, mean)
    return Calibration(result)


def language() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(40, 32), nn.Linear(32, 40), nn.Tanh(), nn.Linear(40, 32))


def test_the_unit_of_the_data_does_not_move_bits_between_layers_that_have_some_and_that_have_none() -> None:
    model, config = language(), Config(bits_per_weight=2, embeddings=True)
    known = diba.torch.calibrate(model, [torch.randint(40, (4, 50))], progress=False)
    assert "0" not in known
    shares = [
        diba.torch.allocate(model, 2, config=config, calibration=scaled(known, 2.0**power)).k
        for power in (-40, 0, 40)  # powers of two: rounding changes nothing
    ]
    assert shares[0] == shares[1] == shares[2]
    with torch.no_grad():
        model[0].weight.mul_(2**20)  # nobody has seen that it is loud
    assert diba.torch.allocate(model, 2, config=config, calibration=known).k == shares[0]


def test_a_layer_without_data_costs_what_the_middle_one_of_the_others_does() -> None:
    """One matrix three times, known ones of weights 1 and 9: without data it is worth 5, the mean of both."""
    torch.manual_seed(0)
    table = nn.Embedding(32, 32)
    model = nn.Sequential(table, *(nn.Linear(32, 32, bias=False) for _ in range(3)))
    with torch.no_grad():
        for layer in model[1:]:
            layer.weight.copy_(table.weight)
    config = Config(bits_per_weight=2, embeddings=True, alphabet="binary")
    known = {str(i): Moments(np.eye(32) * worth, 100) for i, worth in ((1, 1.0), (2, 9.0), (3, 9.0))}
    sizes = (0.5, 0.75, 1.0, 1.5, 2.25)  # whose shares use up the budget evenly
    with_median = diba.torch.allocate(model, 2, config=config, calibration=known, sizes=sizes).k
    assert with_median["0"] == with_median["2"]
    weights = {"0": 9.0, "1": 1.0, "2": 9.0, "3": 9.0}
    matrices = {name: table.weight.detach().numpy() for name in weights}
    expected = diba.allocate(matrices, 2, weights=weights, sizes=sizes).k
    assert {name: abs(k - expected[name]) <= 1 for name, k in with_median.items()} == dict.fromkeys(
        weights, True
    )


def test_gradients_that_only_some_layers_have() -> None:
    model = language()
    batches = [torch.randint(40, (4, 50))]
    known = diba.torch.calibrate(model, batches, loss=lambda m, x: m(x).square().mean(), progress=False)
    partly = dict(known)
    partly["1"] = Moments(known["1"].second, known["1"].count)  # loud: its noise is not weighed by gradients
    shares = [
        diba.torch.allocate(model, 2, calibration=scaled(Calibration(partly), 1.0, 2.0**power)).k
        for power in (-30, 0, 30)
    ]
    assert shares[0] == shares[1] == shares[2]
    silent = dict(known)
    silent["1"] = Moments(known["1"].second, known["1"].count, np.zeros(40), 200)
    found = diba.torch.allocate(model, 2, calibration=Calibration(silent)).k
    assert found["1"] == uniform_k(40, 32, 1.0)


def test_moments_under_another_name_of_a_layer_count() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = self.again = nn.Linear(16, 20)
            self.last = nn.Linear(20, 16)

    model = Twice()
    second = np.diag(np.geomspace(1, 1e-6, 16))
    moments = {"again": Moments(second, 1000), "last": Moments(np.eye(20), 1000)}
    renamed = {"first": moments["again"], "last": moments["last"]}
    assert diba.torch.allocate(model, 3, calibration=moments) == diba.torch.allocate(
        model, 3, calibration=renamed
    )


@pytest.mark.parametrize(
    ("calibration", "kind", "message"),
    [
        (3, TypeError, "calibration is 3"),
        ({"5": Moments(np.eye(32), 9)}, ValueError, "calibration has none of the layers"),
        ({"1": Moments(np.eye(31), 9)}, ValueError, r"second is \(31, 31\)"),
    ],
)
def test_calibrations_of_another_model_are_refused(
    calibration: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        diba.allocate(language(), 2, calibration=calibration)


def test_scores_name_the_layers_that_no_loss_reached() -> None:
    model = Mixture()
    convert(model, **CHEAP)
    with pytest.warns(UserWarning, match=r"no loss reached 12 of 17 layers, blocks\.0\.experts\.0\.0, "):
        found = scores(model, [tokens(1)], loss=lambda m, x: m(x).square().mean())
    assert {name for name, values in found.items() if not values.any()} == names(0, 2, 3)
