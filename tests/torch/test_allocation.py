"""diba.torch.allocate: shares by measured losses, layers that share one k, a model that stays as it was."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diba
import diba.torch
from diba.allocation.waterfill import shared_k
from diba.layers.config import Config
from diba.solvers.size import stored_bits, uniform_k
from diba.torch.allocation.loss import spliced
from diba.torch.model.selection import targets
from diba.torch.modules.kinds import dense_matrix
from diba.torch.retuning.losses import distillation

QUIET: dict[str, Any] = {"progress": False, "threads": 1}


class Sum(nn.Module):
    """Two layers of one shape, of which the second is hardly heard."""

    def __init__(self, share: float = 0.05) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quiet, self.loud = nn.Linear(24, 24, bias=False), nn.Linear(24, 24, bias=False)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return self.loud(x) + self.share * self.quiet(x)


class Attention(nn.Module):
    """Projections of the shapes of grouped queries."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.o_proj = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.cat([self.k_proj(x), self.v_proj(x)], -1)
        return x + self.o_proj(torch.tanh(self.q_proj(x)) + mixed)


def blocks() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Attention(), Attention()).eval()


def inputs(n: int, count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [3 * torch.randn(32, n, generator=generator) for _ in range(count)]


def divergence(model: nn.Module, changed: nn.Module, batches: list[Tensor]) -> tuple[float, float]:
    """KL(model | changed) for each vector, the mean over batches, in float64; and a bound of its rounding."""
    found, largest = [], 0.0
    with torch.no_grad():
        for x in batches:
            p, q = (m(x).double().log_softmax(-1) for m in (model, changed))
            found.append(float((p.exp() * (p - q)).sum(-1).mean()))
            largest = max(largest, float(p.abs().max()), float(q.abs().max()))
    # The logits are the same; both logarithms, products and sums of weights of sum 1 are rounded to float32.
    return sum(found) / len(found), 8 * largest * 2.0**-23


def with_factors(model: nn.Module, sizes: dict[str, int], **options: Any) -> nn.Module:
    """A copy in which layers have the dense form of factors, found by diba.solve alone."""
    changed = copy.deepcopy(model)
    for name, k in sizes.items():
        layer: Any = changed.get_submodule(name)
        f = diba.solve(layer.weight.detach().numpy(), k, effort="fast", alphabet="sign", threads=1, **options)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(f.to_dense()))
    return changed


# ---------------------------------------------------------------- curves and shares


def test_curves_are_the_losses_that_a_copy_with_these_factors_has() -> None:
    model, batches = Sum(0.5), inputs(24)
    found = diba.torch.allocate(model, 4, by="loss", batches=batches, **QUIET)
    for name, curve in found.curves.items():
        noises = dict(zip(curve.k.tolist(), curve.noise.tolist(), strict=True))
        assert list(noises.values()) == sorted(noises.values(), reverse=True)
        measured = [uniform_k(24, 24, bits) for bits in (2, 4, 8)]
        assert (min(noises), max(noises)) == (measured[0], measured[-1])
        for k in measured:
            noise = noises[k]
            expected, rounding = divergence(model, with_factors(model, {name: k}), batches)
            assert abs(noise - expected) <= rounding < 0.1 * expected
    uniform = [curve.noise[curve.k == uniform_k(24, 24, 4)].item() for curve in found.curves.values()]
    assert found.uniform_noise == pytest.approx(sum(uniform))


def test_factors_are_those_for_the_inputs_that_calibration_saw() -> None:
    model, batches = Sum(0.5), inputs(24)
    rotation = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(2)))[0]
    narrow = [x * torch.linspace(2, 0.02, 24) @ rotation for x in batches]
    moments = diba.torch.calibrate(model, narrow, progress=False)
    plain, fitted = (
        diba.torch.allocate(model, 3, by="loss", batches=narrow, calibration=known, **QUIET)
        for known in (None, moments)
    )
    assert all((fitted.curves[name].noise < plain.curves[name].noise).all() for name in plain.curves)


def test_bits_go_to_the_layer_whose_error_is_heard() -> None:
    model, batches = Sum(), inputs(24)
    budget = 2 * stored_bits(24, 24, uniform_k(24, 24, 4))
    by_weights = diba.torch.allocate(model, 4, **QUIET)
    found = diba.torch.allocate(model, 4, by="loss", batches=batches, **QUIET)
    assert abs(by_weights.k["loud"] - by_weights.k["quiet"]) <= 2
    assert found.k["quiet"] == uniform_k(24, 24, 2)  # the smallest size
    assert found.k["loud"] > by_weights.k["loud"]
    assert found.total_bits == sum(stored_bits(24, 24, k) for k in found.k.values()) <= budget
    best, _ = divergence(model, with_factors(model, found.k), batches)
    even, _ = divergence(model, with_factors(model, by_weights.k), batches)
    assert best < even
    again = diba.allocate(model, 4, by="loss", batches=iter(batches), **QUIET)  # read once
    assert again == found
    assert all((again.curves[name].noise == found.curves[name].noise).all() for name in found.k)


def test_any_loss_and_other_sizes() -> None:
    model, batches = Sum(), inputs(24)
    calls = []

    def only_the_quiet_layer(model: Any, batch: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled() or model.training)
        noise = torch.randn(())  # the same each time, and not that of the caller
        return (model.quiet(batch) - Sum().quiet(batch)).square().mean() + noise

    state = torch.get_rng_state()
    model.train()
    with pytest.warns(UserWarning, match="1 of 2 layers, loud, change no loss.*smallest size") as caught:
        found = diba.torch.allocate(
            model, 3, by="loss", batches=batches, loss=only_the_quiet_layer, sizes=(0.75, 1.5), **QUIET
        )
    assert caught[0].filename == __file__
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert calls == [False] * 4 * 5  # the dense model, and two layers at two sizes
    assert found.k["loud"] == uniform_k(24, 24, 0.75 * 3)
    assert found.k["quiet"] > uniform_k(24, 24, 3)


def test_a_distillation_may_have_the_model_itself_as_teacher() -> None:
    model, batches = Sum(), inputs(24)
    one, other = (
        diba.torch.allocate(
            model, 3, by="loss", batches=batches, loss=distillation(teacher, features=True), **QUIET
        )
        for teacher in (model, copy.deepcopy(model))
    )
    assert one == other
    assert one.k["loud"] > one.k["quiet"]


def test_answers_that_are_remembered_outlive_the_teacher() -> None:
    model, batches = Sum(), inputs(24, 2)
    teacher = copy.deepcopy(model)
    loss = distillation(model)
    loss.remember(batches)
    loss.remember(batches)
    assert loss.cached_bytes == 2 * 32 * 24 * 4
    with torch.no_grad():
        model.loud.weight.mul_(1.5)
        for x in batches:
            assert torch.equal(loss(model, x), distillation(teacher)(model, x))
            assert float(loss(teacher, x)) == 0
    with pytest.raises(ValueError, match="teacher is the model itself"):
        loss(model, torch.ones(2, 24))


def test_progress_counts_layers() -> None:
    seen: list[diba.Progress] = []
    groups = [["q_proj", "k_proj", "v_proj"]]
    diba.torch.allocate(
        blocks(), 4, by="loss", batches=inputs(16, 2), groups=groups, progress=seen.append, threads=1
    )
    assert {(state.task, state.total) for state in seen} == {("allocate", 8)}
    assert all(0 <= state.done <= 8 for state in seen)
    ends = [(3, "0.v_proj"), (4, "0.o_proj"), (7, "1.v_proj"), (8, "1.o_proj")]
    assert [end for end in ends if end in [(state.done, state.item) for state in seen]] == ends
    assert (seen[-1].done, seen[-1].item) == ends[-1]


# ---------------------------------------------------------------- groups


ALIKE = ["q_proj", "k_proj", "v_proj"]


@pytest.mark.parametrize("by", ["weights", "outputs", "fisher", "loss"])
def test_layers_of_a_group_share_their_k(by: str) -> None:
    model, batches = blocks(), inputs(16)
    options: dict[str, Any] = {"by": by, **QUIET}
    if by != "weights":
        options["calibration"] = diba.torch.calibrate(
            model, batches, loss=diba.torch.fisher(), progress=False
        )
    if by == "loss":
        options["batches"] = batches
    found = diba.torch.allocate(model, 5, groups=[ALIKE], **options)
    for block in "01":
        assert len({found.k[f"{block}.{name}"] for name in ALIKE}) == 1
    shapes = {target.name: target.shape for target in targets(model, Config(bits_per_weight=5))}
    assert list(found.k) == list(shapes)
    assert found.total_bits == sum(stored_bits(*shapes[name], k) for name, k in found.k.items())
    assert found.total_bits <= 5 * sum(m * n for m, n in shapes.values())
    assert found.groups == tuple(tuple(f"{block}.{name}" for name in ALIKE) for block in "01")
    assert found.at(5) == found
    layers = {name: {"k": k} for name, k in found.k.items()}
    made = diba.torch.convert(copy.deepcopy(model), bits_per_weight=5, layers=layers, progress=False)
    (first,) = {(made[0].get_submodule(name).b2.shape, made[0].get_submodule(name).k) for name in ALIKE}
    assert first[0][0] == first[1]  # second factors of one shape: they can be stacked


def test_a_group_is_measured_as_a_whole() -> None:
    model, batches = blocks(), inputs(16)
    found = diba.torch.allocate(model, 5, by="loss", batches=batches, groups=[ALIKE], **QUIET)
    names = [f"0.{name}" for name in ALIKE]
    curves = [found.curves[name] for name in names]
    shapes = [(16, 16), (8, 16), (8, 16)]
    for bits in (2.5, 5, 10):
        k = shared_k(shapes, bits)
        noise = sum(curve.noise[curve.k == k].item() for curve in curves)
        expected, rounding = divergence(model, with_factors(model, dict.fromkeys(names, k)), batches)
        assert abs(noise - expected) <= rounding + 1e-12 * expected


def test_ways_to_name_a_group() -> None:
    model = blocks()
    forms: list[list[Any]] = [
        [ALIKE],
        [tuple(f"0.{name}" for name in ALIKE), [f"1.{name}" for name in ALIKE]],
        [r"re:(.*)\.(?:q|k|v)_proj"],
        [r"re:0\.(?:q|k|v)_proj", r"re:1\.(?:q|k|v)_proj"],
    ]
    found = [diba.torch.allocate(model, 5, groups=form, **QUIET) for form in forms]
    assert all(one == found[0] for one in found)
    joined = diba.torch.allocate(model, 5, groups=[r"re:.*(?:q|k|v)_proj"], **QUIET)
    assert len({joined.k[f"{block}.{name}"] for block in "01" for name in ALIKE}) == 1
    skipped = Config(bits_per_weight=5, skip=["0.q_proj", "0.k_proj", "0.v_proj"])
    rest = diba.torch.allocate(model, 5, config=skipped, groups=[ALIKE], **QUIET)
    assert [len(group) for group in rest.groups] == [3]


@pytest.mark.parametrize(
    ("groups", "kind", "message"),
    [
        ("q_proj", TypeError, "groups is 'q_proj'.*must be a list"),
        ([3], TypeError, r"groups\[0\] is 3"),
        (["q_proj"], ValueError, r"groups\[0\] is 'q_proj'.*a list of names"),
        (["re:("], ValueError, r"groups\[0\] is 're:\(', which is not a regular expression"),
        (["re:nothing"], ValueError, "matches no layer that is factored"),
        ([["q_proj", 3]], TypeError, r"an entry of groups\[0\] is 3"),
        ([["q_prj", "k_proj"]], ValueError, r"'q_prj'.*ends \(did you mean 'q_proj'"),
        ([["re:.*q_proj"]], ValueError, "a pattern must be an entry of groups itself"),
        ([["q_proj"]], ValueError, r"groups\[0\] joins no two layers, only 0.q_proj, 1.q_proj"),
        ([["q_proj", "k_proj"], ["k_proj", "v_proj"]], ValueError, r"groups\[1\] has 0.k_proj, which groups"),
        ([["0.q_proj", "wide"]], ValueError, r"joins 0.q_proj \(16 x 16\), wide \(16 x 24\).*equally many"),
    ],
)
def test_bad_groups(groups: Any, kind: type[Exception], message: str) -> None:
    model = blocks()
    model.add_module("wide", nn.Linear(24, 16))
    with pytest.raises(kind, match=message):
        diba.torch.allocate(model, 5, groups=groups, **QUIET)


# ---------------------------------------------------------------- the model stays as it was


def encoder() -> nn.Module:
    """A model with fused projections, which are cut apart meanwhile."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    return nn.TransformerEncoder(layer, 1)


class Stop:
    """A loss that is interrupted at one of its calls."""

    def __init__(self, error: BaseException, at: int) -> None:
        self.error, self.left = error, at

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        if self.left == 0:
            raise self.error
        self.left -= 1
        return model(batch).square().mean()


@pytest.mark.parametrize("at", [0, 2, 3, 6])
@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("build", [blocks, encoder])
def test_everything_is_back_after_an_interruption(build: Any, error: BaseException, at: int) -> None:
    model = build().train()
    next(model.parameters()).requires_grad_(False)
    parameters = dict(model.named_parameters())
    before = {name: (value.clone(), value._version, value.data_ptr()) for name, value in parameters.items()}
    modules, modes = dict(model.named_modules()), [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(type(error)):
        diba.torch.allocate(
            model, 5, by="loss", batches=[torch.ones(1, 3, 16)] * 2, loss=Stop(error, at), **QUIET
        )
    assert dict(model.named_modules()) == modules
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in parameters.items())
    for name, (value, version, place) in before.items():
        assert torch.equal(after[name].view(torch.int32), value.view(torch.int32))
        assert (after[name]._version, after[name].data_ptr()) == (version, place)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted


def test_everything_is_back_at_the_end() -> None:
    model = encoder()
    parameters = dict(model.named_parameters())
    before = {name: value.clone() for name, value in parameters.items()}
    found = diba.torch.allocate(model, 5, by="loss", batches=[torch.randn(2, 3, 16)] * 2, **QUIET)
    assert {"layers.0.self_attn.q_proj", "layers.0.linear1"} <= set(found.k)
    assert all(value is parameters[name] for name, value in model.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in parameters.items())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 12), nn.Linear(12, 20)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x))


def test_matrices_of_every_kind_of_layer_are_exchanged() -> None:
    transformers = pytest.importorskip("transformers")
    convolution = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(5, 7, dtype=torch.float64),
            "turned": transformers.pytorch_utils.Conv1D(6, 5),
            "short": nn.Conv1d(3, 4, 2),
            "flat": convolution,
            "tied": Tied(),
        }
    )
    found = targets(model, Config(k=2, tied=True, embeddings=True))
    assert {target.name for target in found} == {"linear", "turned", "short", "flat", "tied.head"}
    rng = np.random.default_rng(0)
    matrices = {target: rng.standard_normal(target.shape).astype(np.float32) for target in found}
    weights = {name: module.weight for name, module in model.named_modules() if hasattr(module, "weight")}
    with spliced(matrices):
        for target, matrix in matrices.items():
            assert np.array_equal(dense_matrix(target.module), matrix)
        assert model["tied"].table.weight is model["tied"].head.weight
        assert model["linear"].weight.dtype == torch.float64
    assert all(model.get_submodule(name).weight is weight for name, weight in weights.items())


# ---------------------------------------------------------------- bad arguments


def moments(gradients: bool) -> Any:
    loss = diba.torch.fisher() if gradients else None
    return diba.torch.calibrate(Sum(), inputs(24, 1), loss=loss, progress=False)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"by": "speed"}, ValueError, "by is 'speed'"),
        ({"by": 3}, (TypeError, ValueError), "by is 3"),
        ({"by": "loss"}, ValueError, "by is 'loss' without batches"),
        ({"batches": inputs(24, 1)}, ValueError, "batches is given and by is None"),
        ({"by": "weights", "loss": distillation(Sum())}, ValueError, "loss is given and by is 'weights'"),
        ({"by": "weights", "calibration": {}}, ValueError, "by is 'weights', which needs no calibration"),
        ({"by": "outputs"}, ValueError, "by is 'outputs' without calibration"),
        ({"by": "fisher"}, ValueError, "calibration has no gradients"),
        ({"by": "fisher", "calibration": moments(False)}, ValueError, "calibration has no gradients"),
        ({"by": "loss", "batches": []}, ValueError, "batches is empty"),
        ({"by": "loss", "batches": torch.ones(2, 24)}, TypeError, r"batches is .*use \[batches\]"),
        ({"by": "loss", "batches": inputs(24, 1), "loss": "kl"}, TypeError, "loss is 'kl'"),
        (
            {"by": "loss", "batches": inputs(24, 1), "loss": lambda model, batch: model(batch)},
            TypeError,
            "must return a scalar tensor",
        ),
        (
            {"by": "loss", "batches": [*inputs(24, 1), torch.full((2, 24), math.inf)]},
            ValueError,
            "loss of the dense model is nan in batch 1",
        ),
        (
            {"by": "loss", "batches": inputs(24, 1), "loss": lambda model, batch: batch.sum()},
            ValueError,
            "the same whatever becomes of any layer",
        ),
        ({"by": "loss", "batches": inputs(24, 1), "sizes": (2, 3)}, ValueError, "sizes is"),
    ],
)
def test_bad_arguments(options: dict[str, Any], kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        diba.torch.allocate(Sum(), 4, **options, **QUIET)


def test_losses_that_end_with_some_factors_name_them() -> None:
    dense = Sum()

    def loss(model: Any, batch: Tensor) -> Tensor:
        changed = not torch.equal(model.loud.weight, dense.loud.weight)
        return model(batch).mean() + (math.inf if changed else 0)

    with pytest.raises(ValueError, match=r"with factors for loud \(k = \d+\) is inf in batch 0"):
        diba.torch.allocate(Sum(), 4, by="loss", batches=inputs(24, 1), loss=loss, **QUIET)


def test_the_default_rule_is_that_of_the_calibration() -> None:
    for known, by in ((None, "weights"), (moments(False), "outputs"), (moments(True), "fisher")):
        options: dict[str, Any] = {"calibration": known, **QUIET}
        assert diba.torch.allocate(Sum(), 4, **options) == diba.torch.allocate(Sum(), 4, by=by, **options)
    plain, weighed = (
        diba.torch.allocate(Sum(), 4, calibration=moments(gradients), by="outputs", **QUIET)
        for gradients in (False, True)
    )
    assert plain == weighed
