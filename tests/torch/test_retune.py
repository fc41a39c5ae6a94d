"""Retuning: what trains, what stays, what it gains over random bits; losses and scores."""

from __future__ import annotations

import copy
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diba
from diba.torch.allocation.scores import scores
from diba.torch.modules.layer import FactoredLayer
from diba.torch.modules.linear import DibaLinear
from diba.torch.retuning.flips import Flips
from diba.torch.retuning.losses import distillation
from diba.torch.retuning.retune import bits_checksum, retune
from diba.torch.retuning.settings import Training, trainable
from small_models import SIZES, dense_model, factored, inputs, regression, same, state

FREE = {f"{layer}.{name}" for layer in (0, 2) for name in ("d1", "d2", "d3", "bias")}


# ---------------------------------------------------------------- what trains


@pytest.mark.parametrize("alphabet", ["binary", "sign"])
def test_the_loss_falls_and_only_diagonals_and_biases_change(
    dense: nn.Sequential, batches: list[Any], alphabet: Any
) -> None:
    model = factored(dense, alphabet)
    before, bits = state(model), bits_checksum(model)
    test = (inputs(1, seed=9)[0], dense(inputs(1, seed=9)[0]).detach())
    start = regression(model, test).item()
    report = retune(model, batches, regression, epochs=6, lr=0.02, progress=False)
    assert regression(model, test).item() < 0.7 * start  # on data that it has not seen
    assert same(before, state(model)) == FREE
    assert bits_checksum(model) == bits
    assert report.steps == len(report.losses) == 96
    assert report.losses[-16:].mean() < 0.7 * report.losses[0]
    assert report.skipped == 0
    assert report.flips == {}
    assert report.trained == sum(model.state_dict()[name].numel() for name in FREE)
    assert "96 steps" in str(report)


def test_memory_is_that_of_the_diagonals(model: nn.Sequential, batches: list[Any]) -> None:
    report = retune(model, batches, regression, progress=False)
    everything = sum(m * n + m for n, m in pairwise(SIZES))
    assert report.dense_training_bytes == 12 * everything  # a gradient and two moments, float32
    # The same for what trained; and a step count of 4 bytes for each of the 8 tensors.
    assert report.training_bytes == 12 * report.trained + 8 * 4


def test_biases_stay_unless_wanted(model: nn.Sequential, batches: list[Any]) -> None:
    before = state(model)
    retune(model, batches, regression, biases=False, progress=False)
    assert same(before, state(model)) == {name for name in FREE if not name.endswith("bias")}


def test_norms_train_if_asked() -> None:
    dense = dense_model(norm=True)
    model = factored(dense)
    batches = [(x, dense(x).detach()) for x in inputs(2)]
    before = state(model)
    retune(model, batches, regression, norms=True, biases=False, progress=False)
    changed = same(before, state(model))
    assert {name for name in changed if name.endswith(("weight", "bias"))} == {
        f"{layer}.{name}" for layer in (1, 4) for name in ("weight", "bias")
    }


# ---------------------------------------------------------------- everything is put back


def test_gradients_flags_and_random_numbers_are_as_before(model: nn.Sequential, batches: list[Any]) -> None:
    model.train()
    model[2].eval()
    model[4].weight.requires_grad_(False)
    model[0].d1.grad = torch.full_like(model[0].d1, 7)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    modes: list[bool] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        modes.append(any(module.training for module in model.modules()))
        torch.rand(5)
        return regression(model, batch)

    retune(model, batches, loss, progress=False)
    assert not any(modes)
    assert [module.training for module in model.modules()][:4] == [True, True, True, False]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["4.weight"]
    assert torch.equal(model[0].d1.grad, torch.full_like(model[0].d1, 7))
    assert all(p.grad is None for p in model.parameters() if p is not model[0].d1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_keeps_the_last_step(
    model: nn.Sequential, batches: list[Any], error: type[BaseException]
) -> None:
    before = state(model)
    model.train()
    calls = 0

    def loss(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == 3:
            raise error
        return regression(model, batch)

    with pytest.raises(error):
        retune(model, batches, loss, progress=False)
    after = state(model)
    assert same(before, after) == FREE
    assert [layer.diagonal_bits for layer in (model[0], model[2])] == [16, 16]
    assert all(torch.isfinite(value).all() for value in after.values())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_dropout_runs_if_asked_and_batch_statistics_stay(dense: nn.Sequential) -> None:
    model = nn.Sequential(factored(dense)[0], nn.BatchNorm1d(SIZES[1]), nn.Dropout(0.5))
    with torch.no_grad():
        model[1].running_mean.fill_(0.25)
    x = inputs(1)[0]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            zeros.append(float((model(batch) == 0).float().mean()))
        return model(batch).square().mean()

    for options, dropped, kept in (
        ({}, False, True),
        ({"dropout": True}, True, True),
        ({"batch_statistics": True}, False, False),
    ):
        trained, zeros = copy.deepcopy(model), []
        retune(trained, [x], loss, progress=False, **options)
        assert (zeros[0] > 0.4) == dropped
        assert bool((trained[1].running_mean == 0.25).all()) == kept


# ---------------------------------------------------------------- 16-bit diagonals


def rounded(d: Tensor) -> Tensor:
    """d in float16 times a power of two, by the definition of the file format."""
    e = np.floor(np.log2(float(d.detach().abs().max())))
    return ((d.detach().double() * 2.0**-e).half().double() * 2.0**e).float()


def test_diagonals_keep_16_bits_and_wide_ones_their_32(model: nn.Sequential, batches: list[Any]) -> None:
    with torch.no_grad():
        model[2].d2.mul_(1 + 2**-20)
    before = [layer.bits_per_weight for layer in (model[0], model[2])]
    last: dict[str, Tensor] = {}

    def step(state_now: diba.Progress) -> None:
        last.update(state(model))

    report = retune(model, batches, regression, progress=step)
    assert [layer.diagonal_bits for layer in (model[0], model[2])] == [16, 32]
    assert [layer.bits_per_weight for layer in (model[0], model[2])] == before
    for name in FREE:
        wide = name.endswith("bias") or name.startswith("2.")
        assert torch.equal(model.state_dict()[name], last[name] if wide else rounded(last[name]))
    assert any(not torch.equal(rounded(last[f"0.{name}"]), last[f"0.{name}"]) for name in ("d1", "d2", "d3"))
    with torch.no_grad():  # what was checked is the model as it is
        assert report.loss_after == np.mean([regression(model, batch).item() for batch in batches[::4]])


def test_an_evaluation_at_the_end_sees_the_model_as_it_stays(
    model: nn.Sequential, batches: list[Any]
) -> None:
    report = retune(model, batches, regression, evaluate=state, bits=Flips(reach=100.0), progress=False)
    assert same(report.evaluations[-1][1], state(model)) == set()


def test_training_in_several_calls_loses_nothing(dense: nn.Sequential, batches: list[Any]) -> None:
    """Rounding changes an entry by at most 2^-11 of itself, a quarter of one step at the default rate."""
    losses = []
    for narrow in (True, False):
        model = factored(dense)
        if not narrow:
            with torch.no_grad():
                for layer in (model[0], model[2]):
                    layer.d2.mul_(1 + 2**-20)
        for _ in range(6):
            report = retune(model, batches, regression, max_steps=8, progress=False)
            assert not report.restored
        losses.append(report.loss_after)
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_diagonals_that_are_not_finite_are_not_rounded(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[0].d1[3] = torch.inf
        model[0].d2.mul_(1 + 2**-20)
    before = model[0].d1.clone()
    model[0].round_diagonals()
    assert torch.equal(model[0].d1, before)
    assert torch.equal(model[0].d2, rounded(model[0].d2))


# ---------------------------------------------------------------- steps


def test_accumulated_batches_are_one_large_batch(model: nn.Sequential, batches: list[Any]) -> None:
    """Means over halves average to the mean over all; float64, so only rounding is between them."""
    model.double()
    batches = [(x.double(), y.double()) for x, y in batches[:4]]
    joined = [tuple(torch.cat(pair) for pair in zip(*batches[i : i + 2], strict=True)) for i in (0, 2)]
    other = copy.deepcopy(model)
    options: dict[str, Any] = {"lr": 0.01, "optimizer": torch.optim.SGD, "progress": False}
    one = retune(model, batches, regression, gradient_accumulation_steps=2, **options)
    two = retune(other, joined, regression, **options)
    assert one.steps == two.steps == 2
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


class Relative(torch.optim.Optimizer):
    """``p -= scale^2 gradient``, whatever the rate: a relative step as long as the relative gradient."""

    def __init__(self, groups: Any) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["scale"] ** 2 * p.grad)


def test_clipping_bounds_the_relative_step(model: nn.Sequential, batches: list[Any]) -> None:
    """Gradient descent on gradients of norm 1e-3, both relative to each group's scale."""
    model.double()
    batches = [(x.double(), y.double()) for x, y in batches[:1]]
    scale = {id(p): group["scale"] for group in trainable(model, lr=1) for p in group["params"]}
    named = {name: scale[id(p)] for name, p in model.named_parameters() if id(p) in scale}
    before = state(model)

    options: dict[str, Any] = {"max_grad_norm": 1e-3, "max_loss_change": None, "optimizer": Relative}
    retune(model, batches[:1], lambda m, b: 1e6 * regression(m, b), progress=False, **options)
    after = state(model)
    steps = [(after[name] - before[name]).double().norm() / scale for name, scale in named.items()]
    assert float(torch.stack(steps).norm()) == pytest.approx(1e-3, rel=1e-9)


def step_of(model: nn.Module, batch: Any, sign: float = 1.0, **options: Any) -> tuple[Tensor, Tensor, float]:
    """(gradient, change, loss) of one step of plain gradient descent at a rate far too large."""
    model = copy.deepcopy(model).double()
    batch = tuple(t.double() for t in batch)
    parameters = [p for group in trainable(model) for p in group["params"]]
    gradient = torch.autograd.grad(sign * regression(model, batch), parameters)
    before = [p.detach().clone() for p in parameters]
    options = {"lr": 100.0, "max_grad_norm": None, "optimizer": torch.optim.SGD, "progress": False} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        moved: list[Tensor] = []

        def loss(model: nn.Module, batch: Any) -> Tensor:
            if not torch.is_grad_enabled():  # before the first step, and after it
                moved[:] = [(p - old).detach() for p, old in zip(parameters, before, strict=True)]
            return sign * regression(model, batch)

        report = retune(model, [batch], loss, **options)
    change = torch.cat([t.flatten() for t in moved])
    return torch.cat([g.flatten() for g in gradient]), change, float(report.losses[0])


def test_no_step_changes_the_loss_by_too_much(model: nn.Sequential, batches: list[Any]) -> None:
    """The direction stays, and the length is that at which the change to first order is the share."""
    gradient, whole, _ = step_of(model, batches[0], max_loss_change=None)
    for share in (0.25, 0.01):
        same_gradient, change, loss = step_of(model, batches[0], max_loss_change=share)
        torch.testing.assert_close(same_gradient, gradient, rtol=0, atol=0)
        assert float(-gradient @ change) == pytest.approx(share * loss, rel=1e-9)
        cosine = change @ whole / (change.norm() * whole.norm())
        assert float(cosine) == pytest.approx(1, rel=1e-9)
        assert change.norm() < whole.norm()


def test_steps_that_change_little_are_as_they_are(model: nn.Sequential, batches: list[Any]) -> None:
    *_, whole, _ = step_of(model, batches[0], max_loss_change=None, lr=1e-4)
    *_, change, _ = step_of(model, batches[0], lr=1e-4)
    assert torch.equal(change, whole)


def test_losses_below_zero_bound_no_step(model: nn.Sequential, batches: list[Any]) -> None:
    """Nobody knows how far they can fall."""
    *_, whole, loss = step_of(model, batches[0], sign=-1, max_loss_change=None)
    *_, change, _ = step_of(model, batches[0], sign=-1)
    assert loss < 0
    assert torch.equal(change, whole)


def test_a_step_without_a_finite_loss_is_skipped(model: nn.Sequential, batches: list[Any]) -> None:
    seen: list[dict[str, Tensor]] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(state(model))
        return regression(model, batch) * (np.nan if len(seen) == 2 else 1)

    report = retune(model, batches[:3], loss, progress=False)
    assert (report.steps, report.skipped) == (2, 1)
    assert np.isnan(report.losses).tolist() == [False, True, False]
    assert same(seen[1], seen[2]) == set()
    assert same(seen[0], seen[1]) == FREE


def test_a_loss_that_stays_infinite_puts_everything_back(model: nn.Sequential, batches: list[Any]) -> None:
    before = state(model)
    calls = 0

    def loss(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return regression(model, batch) / (1 if calls <= 3 else 0)

    with pytest.raises(FloatingPointError, match=r"in 10 steps in a row.*inf.*smaller lr"):
        retune(model, batches, loss, progress=False)
    assert calls == 13
    assert same(before, state(model)) == set()


@pytest.mark.parametrize("bits", [None, "flip"])
def test_a_model_that_got_worse_is_put_back(model: nn.Sequential, batches: list[Any], bits: Any) -> None:
    """A rate that flings the diagonals about, and steps that end before they settle."""
    before = state(model)
    options: dict[str, Any] = {"lr": 1.0, "lr_scheduler": "constant", "max_loss_change": None, "bits": bits}
    with pytest.warns(
        UserWarning, match=r"loss of 4 batches rose from .* as it was before: use a smaller lr"
    ):
        report = retune(model, batches, regression, progress=False, **options)
    assert same(before, state(model)) == set()
    assert report.restored
    assert report.flips == {}
    start, end = report.loss_before, report.loss_after
    with torch.no_grad():
        assert start == np.mean([regression(model, batch).item() for batch in batches[::4]]) < end
    assert "undone" in str(report)


def test_statistics_of_batches_are_put_back_too(dense: nn.Sequential) -> None:
    model = nn.Sequential(factored(dense)[0], nn.BatchNorm1d(SIZES[1]))
    before = state(model)
    with pytest.warns(UserWarning, match="rose"):
        report = retune(
            model, inputs(2), lambda m, x: m(x).square().mean(), batch_statistics=True, lr=1e3, progress=False
        )
    assert report.restored
    assert same(before, state(model)) == set()


def test_a_better_model_stays(model: nn.Sequential, batches: list[Any]) -> None:
    report = retune(model, batches, regression, progress=False)
    assert not report.restored
    with torch.no_grad():
        end = np.mean([regression(model, batch).item() for batch in batches[::4]])
    assert report.loss_after == end < report.loss_before


def test_steps_go_through_the_batches_again(model: nn.Sequential, batches: list[Any]) -> None:
    report = retune(
        model, iter(batches[:2]), regression, max_steps=5, progress=False, evaluate=lambda m: m.training
    )
    assert report.steps == 5
    assert report.evaluations == [(0, False), (2, False), (4, False), (5, False)]


def test_the_same_seed_is_the_same_run(dense: nn.Sequential, batches: list[Any]) -> None:
    models = [factored(dense) for _ in range(2)]
    for model in models:
        torch.rand(1)
        retune(model, batches, regression, dropout=True, progress=False)
    assert same(state(models[0]), state(models[1])) == set()


def test_something_else_that_writes_bits_is_noticed(model: nn.Sequential, batches: list[Any]) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        model[0].b1.bitwise_xor_(1)  # type: ignore[index]
        return regression(model, batch)

    with pytest.raises(RuntimeError, match="bits changed"):
        retune(model, batches[:1], loss, progress=False)


# ---------------------------------------------------------------- the control


def test_random_bits_retune_to_far_less(dense: nn.Sequential, batches: list[Any]) -> None:
    """What retuning reaches rests on the bits, not on its freedom alone.

    Random bits leave 88 + 92 numbers per pair of layers to fit a map of thousands: after the same steps the
    factored model's error must be at most half of the control's, a wide margin (it is a fifteenth or less).
    """
    model = factored(dense)
    control = copy.deepcopy(model)
    for layer in control:
        if isinstance(layer, FactoredLayer):
            bias = layer.bias.detach().clone()
            torch.manual_seed(0)
            layer.reset_parameters()
            with torch.no_grad():
                layer.bias.copy_(bias)
    results = []
    test = (inputs(1, seed=9)[0], dense(inputs(1, seed=9)[0]).detach())
    for candidate in (model, control):
        retune(candidate, batches, regression, epochs=6, lr=0.02, progress=False)
        results.append(regression(candidate, test).item())
    assert results[0] < 0.5 * results[1]


def test_teacher_is_shorthand_and_adds_to_a_loss(dense: nn.Sequential, model: nn.Sequential) -> None:
    x = inputs(1)
    start = distillation(dense)(model, x[0]).item()
    report = retune(copy.deepcopy(model), x, teacher=dense, progress=False)
    assert report.losses[0] == pytest.approx(start, rel=1e-6)
    both = retune(model, x, lambda m, b: m(b).sum() * 0 + 5, teacher=dense, progress=False)
    assert both.losses[0] == pytest.approx(start + 5, rel=1e-6)


def test_a_transformer_learns_from_its_dense_self() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    torch.manual_seed(0)
    teacher = transformers.BertModel(config, add_pooling_layer=False).eval()
    model = copy.deepcopy(teacher)
    for name in ("intermediate.dense", "output.dense"):
        block = model.encoder.layer[0]
        dense = block.get_submodule(name)
        f = diba.solve(dense.weight.detach().numpy(), k=24, effort="fast", threads=1)
        parent, child = name.split(".")
        setattr(getattr(block, parent), child, DibaLinear.from_factorization(f, bias=dense.bias))
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(4):
        mask = torch.ones(8, 12, dtype=torch.int64)
        mask[:4, 9:] = 0
        batches.append({"input_ids": torch.from_numpy(rng.integers(0, 50, (8, 12))), "attention_mask": mask})
    before = state(model)
    report = retune(model, batches, teacher=teacher, epochs=10, lr=0.002, norms=True, progress=False)
    assert report.loss_after < 0.8 * report.loss_before
    changed = same(before, state(model))
    assert changed == {n for n in before if n.endswith((".d1", ".d2", ".d3")) or "LayerNorm" in n} | {
        f"encoder.layer.0.{name}.bias" for name in ("intermediate.dense", "output.dense")
    }


def test_progress_is_told_of_every_step(model: nn.Sequential, batches: list[Any]) -> None:
    seen: list[diba.Progress] = []
    report = retune(model, batches, regression, max_steps=3, bits=Flips(reach=100.0), progress=seen.append)
    assert [(state.task, state.done, state.total) for state in seen] == [("retune", i, 3) for i in range(4)]
    assert [state.loss for state in seen] == [None, *report.losses]
    assert seen[0].flips is None
    assert seen[-1].flips is not None
    assert [state.remaining is None for state in seen] == [True, False, False, False]


# ---------------------------------------------------------------- scores


def test_scores_are_squared_slopes(model: nn.Sequential, batches: list[Any]) -> None:
    """Against central differences for the relative change of one entry of d2, in float64.

    A step h gives an error of h^2 and of rounding / h: 1e-5 leaves about 1e-10 of the largest slope.
    """
    model.double()
    batches = [(x.double(), y.double()) for x, y in batches[:2]]
    before = state(model)
    found = scores(model, iter(batches), regression)
    assert list(found) == ["0", "2"]
    assert same(before, state(model)) == set()
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    h = 1e-5
    for name, score in found.items():
        d2 = model.get_submodule(name).d2
        assert score.shape == (24,)
        assert score.dtype == np.float64
        expected = np.zeros(24)
        for i in range(24):
            for batch in batches:
                value = d2[i].item()
                with torch.no_grad():
                    d2[i] = value * (1 + h)
                    up = regression(model, batch).item()
                    d2[i] = value * (1 - h)
                    down = regression(model, batch).item()
                    d2[i] = value
                expected[i] += ((up - down) / (2 * h)) ** 2
        np.testing.assert_allclose(score, expected, rtol=0, atol=1e-7 * expected.max())


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 5}, TypeError, "'steps' is no setting of a training.*did you mean 'max_steps'"),
        ({"clip": 5}, TypeError, "'clip' is no setting of a training; settings are epochs, max_steps"),
        ({"training": Training(), "lr": 1}, ValueError, "training and the keyword 'lr' are both given"),
        ({"training": {"lr": 1}}, TypeError, "training is .*use diba.torch.Training"),
        ({"progress": 3}, TypeError, "progress is 3"),
        ({"loss": 3}, TypeError, "loss is .*; it must be None or a callable"),
        ({"loss": lambda m, b: 1.0}, TypeError, "loss returned .*; it must return a scalar tensor"),
        ({"loss": lambda m, b: m(b[0]).sum().detach()}, ValueError, "does not depend on the diagonals"),
        ({"loss": None}, ValueError, "returns no loss for this batch"),
        ({"batches": []}, ValueError, "batches is empty"),
    ],
)
def test_bad_arguments_are_named(
    model: nn.Sequential, batches: list[Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"batches": batches, "loss": regression, **options}
    if options == {"loss": None}:
        arguments["batches"] = inputs(1)
    before = state(model)
    with pytest.raises(error, match=message):
        retune(model, **{"progress": False, **arguments})
    assert same(before, state(model)) == set()


def test_a_dense_model_is_refused(dense: nn.Sequential, batches: list[Any]) -> None:
    for call in (
        lambda: retune(dense, batches, regression, progress=False),
        lambda: trainable(dense),
        lambda: scores(dense, batches, regression),
    ):
        with pytest.raises(ValueError, match=r"no factored layer.*diba\.torch\.convert"):
            call()
