"""Training with binary weights and exceptions: the function, its gradients, its parameters, resuming."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import diba.torch
from diba.torch import APBConv2d, APBLinear, binarize, exception_penalty
from diba.torch.binary.forms import BORDER, binarized, fitted, held_delta, share_outside

ROWS = pytest.mark.parametrize("rows", [False, True])


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


def parts(m: int, n: int, rows: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Weights with a zero of either sign and one on the border, alpha and delta, in float64."""
    w = torch.randn(m, n, dtype=torch.float64)
    alpha = torch.rand(m if rows else 1, 1, dtype=torch.float64) / 4 + 0.7
    delta = torch.tensor(0.9, dtype=torch.float64)
    w[0, :3] = torch.tensor([0.0, -0.0, -(float(alpha[0]) + 0.9)])
    return w, alpha, delta


# ---------------------------------------------------------------- the function and its gradients


@ROWS
def test_the_function_entry_by_entry(rows: bool) -> None:
    w, alpha, delta = parts(5, 40, rows)
    found = binarized(w, alpha, delta)
    for i in range(5):
        a = float(alpha[i if rows else 0])
        for j in range(40):
            value = float(w[i, j])
            inside = abs(value) - a <= 0.9
            assert float(found[i, j]) == ((a if value >= 0 else -a) if inside else value)
    assert float(share_outside(w, alpha, delta)) == pytest.approx(float((found == w).double().mean()))


@ROWS
def test_gradients_entry_by_entry(rows: bool) -> None:
    w, alpha, delta = (t.requires_grad_() for t in parts(6, 50, rows))
    above = torch.randn(6, 50, dtype=torch.float64)
    of_w, of_alpha, of_delta = torch.autograd.grad(binarized(w, alpha, delta), [w, alpha, delta], above)
    w, alpha, delta = w.detach(), alpha.detach(), delta.detach()
    assert torch.equal(of_w, above)
    expected, border = np.zeros(alpha.shape), 0.0
    for i in range(6):
        row, a = i if rows else 0, float(alpha[i if rows else 0])
        half = BORDER * (a + 0.9)
        for j in range(50):
            value, g = float(w[i, j]), float(above[i, j])
            along, excess = g * (1 if value >= 0 else -1), abs(value) - a
            moved = -along * excess / (2 * half) if abs(excess - 0.9) <= half else 0.0
            border += moved
            expected[row] += (along if excess <= 0.9 else 0.0) + moved
    np.testing.assert_allclose(of_alpha, expected, rtol=1e-12, atol=1e-12)
    assert float(of_delta) == pytest.approx(border, rel=1e-12)
    alpha.requires_grad_()
    [alone] = torch.autograd.grad(binarized(w, alpha, delta), [alpha], above)  # a held border
    sides = torch.where(w < 0, -1.0, 1.0) * above * (w.abs() - alpha.detach() <= delta)
    torch.testing.assert_close(alone, sides.sum_to_size(alpha.shape), rtol=1e-12, atol=1e-12)


def smooth(w: Tensor, alpha: Tensor, delta: Tensor, half: Tensor) -> Tensor:
    """The function with a ramp of width ``2 half`` in place of the jump at the border."""
    excess = w.abs() - alpha
    inside = ((delta - excess + half) / (2 * half)).clamp(0, 1)
    return w - inside * w.sign() * excess


@ROWS
def test_gradients_are_those_of_the_function_with_a_ramp(rows: bool) -> None:
    """By finite differences; of alpha without what lies on the ramp, where only the jump counts fully."""
    w, alpha, delta = parts(7, 60, rows)
    w[0, :2] = 0.3  # the sign of zero has no derivative
    half = BORDER * (alpha + delta)
    above = torch.randn(7, 60, dtype=torch.float64)
    step = 1e-7

    def slope(change: Any) -> float:
        ends = [(above * smooth(w, *change(s), half)).sum() for s in (step, -step)]
        return float(ends[0] - ends[1]) / (2 * step)

    delta.requires_grad_()
    [of_delta] = torch.autograd.grad(binarized(w, alpha, delta), [delta], above)
    delta = delta.detach()
    assert float(of_delta) == pytest.approx(slope(lambda s: (alpha, delta + s)), rel=1e-5)
    above[(w.abs() - alpha - delta).abs() <= half + step] = 0
    alpha.requires_grad_()
    [of_alpha] = torch.autograd.grad(binarized(w, alpha, delta), [alpha], above)
    alpha = alpha.detach()
    for row in range(len(alpha)):
        one = torch.zeros_like(alpha)
        one[row] = 1
        assert float(of_alpha[row]) == pytest.approx(slope(lambda s, o=one: (alpha + s * o, delta)), rel=1e-5)


def test_the_gradient_of_delta_is_the_slope_over_many_weights() -> None:
    """Where weights lie densely, the jump itself has a slope: that of the exact function."""
    w = torch.linspace(-4, 4, 400_001, dtype=torch.float64)[None]
    alpha, delta = torch.full((1, 1), 0.8, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    above = torch.exp(-w * w / 2) * (1.5 + torch.sin(w)) / 1000
    for moved in (alpha, delta):
        moved.requires_grad_()
        [found] = torch.autograd.grad(binarized(w, alpha, delta), [moved], above)
        moved.requires_grad_(False)
        step = torch.tensor(1e-3, dtype=torch.float64)
        ends = [
            (above * binarized(w, *((alpha + s, delta) if moved is alpha else (alpha, delta + s)))).sum()
            for s in (step, -step)
        ]
        slope = float(ends[0] - ends[1]) / float(2 * step)
        if moved is alpha:  # delta is held, so that autograd gave the part without the border
            delta.requires_grad_()
            [border] = torch.autograd.grad(binarized(w, alpha, delta), [delta], above)
            delta.requires_grad_(False)
            found = found + border
        # the band is a tenth of the border wide either way; the density curves by some percent within it
        assert float(found.sum()) == pytest.approx(slope, rel=0.05)


# ---------------------------------------------------------------- parameters from statistics


@ROWS
@pytest.mark.parametrize("exceptions", [0.0, 0.003, 0.05, 0.4])
def test_the_share_is_held_exactly(rows: bool, exceptions: float) -> None:
    w = torch.randn(30, 41)
    alpha, delta = fitted(w, exceptions, rows)
    outside = w.abs() - alpha > delta
    assert int(outside.sum()) == int(exceptions * w.numel())
    again = held_delta(w, alpha, exceptions, last=delta * 1.1)
    assert torch.equal(again, delta)
    assert torch.equal(held_delta(w, alpha, exceptions, last=delta * 2), delta)  # a useless hint
    # at its best with these exceptions: moving alpha either way is worse
    best = (binarized(w, alpha, delta) - w).square().sum()
    for factor in (0.98, 1.02):
        moved = torch.where(outside, w, factor * alpha * w.sign())
        assert (moved - w).square().sum() > best


def test_a_share_too_large_keeps_delta_at_zero() -> None:
    layer = APBLinear(50, 60, exceptions=0.9)
    with torch.no_grad():
        layer.log_alpha.fill_(layer.weight.abs().median().log())
    assert layer.delta.item() == 0
    assert layer.share == pytest.approx(0.5, abs=0.01)


def test_alpha_of_weights_of_one_size_and_of_zeros() -> None:
    layer = APBLinear(8, 4, exceptions=0.1)
    with torch.no_grad():
        layer.weight.fill_(-0.25)
    layer.fit()
    assert layer.alpha.item() == pytest.approx(0.25, rel=1e-6)
    with torch.no_grad():
        layer.weight.zero_()
    layer.fit()
    assert math.isfinite(layer.log_alpha.item())
    assert torch.isfinite(layer(torch.ones(1, 8))).all()


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("scales", ["layer", "rows"])
def test_layers_compute_with_the_binarized_weight(learn: bool, scales: str) -> None:
    made: dict[str, Any] = {"exceptions": 0.1, "learn_delta": learn, "scales": scales}
    line = APBLinear(12, 7, **made)
    x = torch.randn(3, 5, 12)
    w = binarized(line.weight, line.alpha[:, None], line.delta)
    assert torch.equal(line(x), functional.linear(x, w, line.bias))
    conv = APBConv2d(3, 6, (3, 2), stride=2, padding=1, padding_mode="reflect", **made)
    image = torch.randn(2, 3, 9, 8)
    dense = nn.Conv2d(3, 6, (3, 2), stride=2, padding=1, padding_mode="reflect")
    with torch.no_grad():
        dense.weight.copy_(conv.dense_weight())
        dense.bias.copy_(conv.bias)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(conv(image), dense(image))
    for layer, found in ((line, line(x)), (conv, conv(image))):
        found.square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
        assert (layer.log_delta is None) != learn
        assert torch.equal(copy.deepcopy(layer).dense_weight(), layer.dense_weight())
    assert "exceptions=0.1" in repr(line)


def problem() -> tuple[Tensor, Tensor]:
    """Points and their classes: whether two projections have one sign."""
    x = torch.randn(512, 16)
    return x, ((x @ torch.randn(16)) * (x @ torch.randn(16)) > 0).long()


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def train(
    model: nn.Module, data: tuple[Tensor, Tensor], steps: int, optimizer: Any, price: float = 0
) -> float:
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(data[0]), data[1])
        (loss + price * exception_penalty(model) if price else loss).backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("learn", [False, True])
def test_a_small_problem_is_learned(learn: bool) -> None:
    data, model = problem(), binarize(small(), 0.05, learn_delta=learn)
    before = [layer.alpha.item() for layer in model if isinstance(layer, APBLinear)]
    first = functional.cross_entropy(model(data[0]), data[1]).item()
    last = train(model, data, 150, torch.optim.Adam(model.parameters(), 3e-3))
    assert last < 0.2 * first
    after = [layer.alpha.item() for layer in model if isinstance(layer, APBLinear)]
    assert all(a != b > 0 for a, b in zip(before, after, strict=True))
    for layer in model:
        if isinstance(layer, APBLinear):
            assert learn or layer.share == pytest.approx(0.05, abs=1.01 / layer.weight.numel())


def test_a_penalty_lowers_the_share_and_nothing_else_is_moved_by_it() -> None:
    model = binarize(small(), 0.1, learn_delta=True)
    penalty = exception_penalty(model)
    total = sum(layer.weight.numel() for layer in model if isinstance(layer, APBLinear))
    count = sum(layer.share * layer.weight.numel() for layer in model if isinstance(layer, APBLinear))
    assert penalty.item() == pytest.approx(count / total)
    penalty.backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None and float(p.grad) < 0) == name.endswith("log_delta"), name
    shares = []
    for price in (0.0, 3.0):
        torch.manual_seed(1)
        data, model = problem(), binarize(small(), 0.1, learn_delta=True)
        train(model, data, 100, torch.optim.Adam(model.parameters(), 1e-2), price)
        shares.append(exception_penalty(model).item())
    assert shares[1] < 0.5 * shares[0]
    with pytest.raises(ValueError, match="learn_delta=True"):
        exception_penalty(binarize(small()))
    with pytest.raises(TypeError, match="Module"):
        exception_penalty([])  # type: ignore[arg-type]


def test_the_share_that_is_held_may_change_from_step_to_step() -> None:
    torch.manual_seed(0)
    data, model = problem(), binarize(small(), 0.01, skip=["4"])
    layers = [model[0], model[2]]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for share in (0.99, 0.5, 0.5, 0.1, 0.0, 0.3, 0.01):
        alphas = [layer.alpha.item() for layer in layers]
        for layer in layers:
            layer.exceptions = share
        assert [layer.alpha.item() for layer in layers] == alphas
        for layer in layers:
            w = layer.weight.detach().abs().flatten()
            kept = layer.dense_weight().detach().abs().flatten() != layer.alpha.detach()
            beyond = int((w > layer.alpha.detach()).sum())  # no other weight is an exception
            assert int(kept.sum()) == min(int(share * w.numel()), beyond)
            assert not share or w[kept].min() > w[~kept].max()  # those farthest from zero
        train(model, data, 2, optimizer)
    assert "exceptions=0.01" in repr(model)


@pytest.mark.parametrize("learn", [False, True])
def test_training_resumes_to_the_same_bytes(learn: bool) -> None:
    data = problem()

    def fresh() -> tuple[nn.Sequential, Any]:
        torch.manual_seed(2)
        model = binarize(small(), 0.04, learn_delta=learn)
        return model, torch.optim.Adam(model.parameters(), 1e-2)

    whole, optimizer = fresh()
    train(whole, data, 8, optimizer)
    half, optimizer = fresh()
    train(half, data, 3, optimizer)
    saved = io.BytesIO()
    torch.save((half.state_dict(), optimizer.state_dict()), saved)
    saved.seek(0)
    state, of_optimizer = torch.load(saved)
    torch.manual_seed(5)
    other = binarize(small(), 0.04, learn_delta=learn)
    optimizer = torch.optim.Adam(other.parameters(), 1e-2)
    other.load_state_dict(state)
    optimizer.load_state_dict(of_optimizer)
    train(other, data, 5, optimizer)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch's tracer
def test_traced_compiled_and_cast() -> None:
    model, x = binarize(small(), 0.05), torch.randn(3, 16)
    compiled = torch.compile(model, backend="aot_eager")
    assert torch.equal(compiled(x), model(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
    assert model.double()(x.double()).dtype == torch.float64
    meta = copy.deepcopy(model).to("meta")
    assert meta(torch.zeros(3, 16, dtype=torch.float64, device="meta")).shape == (3, 2)


# ---------------------------------------------------------------- models


class Net(nn.Module):
    """An embedding, convolutions, a shared weight, and two lines."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.conv, self.narrow = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2)
        self.sound = nn.Conv1d(3, 4, 3)
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 10, bias=False)
        self.last.weight = self.table.weight


def test_which_layers_are_replaced() -> None:
    model = Net()
    weight, seen = model.first.weight, []
    model.first.register_forward_hook(lambda *_: seen.append(1))
    model.first.tag = "kept"  # type: ignore[assignment]
    same = binarize(model, 0.02, skip=["second"], layers={"re:conv": {"scales": "rows", "exceptions": 0.5}})
    assert same is model
    assert isinstance(model.first, APBLinear)
    assert model.first.weight is weight
    assert model.first.tag == "kept"
    model.first(torch.zeros(1, 8))
    assert seen == [1]
    assert isinstance(model.conv, APBConv2d)
    assert (model.conv.scales, model.conv.exceptions) == ("rows", 0.5)
    assert {
        name: type(m).__name__ for name, m in model.named_children() if "APB" not in type(m).__name__
    } == {
        "table": "Embedding",
        "narrow": "Conv2d",
        "sound": "Conv1d",
        "second": "Linear",
        "last": "Linear",
    }
    reasons = {entry.name: entry.reason for entry in diba.torch.report(model).skipped}
    assert "left out by 'second'" in reasons["second"]
    assert reasons["sound"] == "a Conv1d has no binary form"
    assert reasons["last"].startswith("shares its weight with table")
    binarize(model, layers={"second": {}})  # goes on
    assert isinstance(model.second, APBLinear)


@pytest.mark.parametrize(
    ("error", "message", "settings"),
    [
        (ValueError, "below 1", {"exceptions": 1.0}),
        (ValueError, "exceptions", {"exceptions": -0.1}),
        (TypeError, "exceptions", {"exceptions": "few"}),
        (ValueError, "scales", {"scales": "columns"}),
        (TypeError, "learn_delta", {"learn_delta": 1}),
        (ValueError, "'thirst'.*first", {"skip": ["thirst"]}),
        (ValueError, r"layers\['first'\].*exceptions", {"layers": {"first": {"exceptions": 2}}}),
        (ValueError, "unknown key 'share'", {"layers": {"first": {"share": 0.1}}}),
        (TypeError, "layers", {"layers": ["first"]}),
        (TypeError, "overrides", {"layers": {"first": 0.1}}),
        (ValueError, "nothing of the model", {"skip": ["re:.*"]}),
    ],
)
def test_what_is_refused(error: type[Exception], message: str, settings: dict[str, Any]) -> None:
    model = Net()
    with pytest.raises(error, match=message):
        binarize(model, **settings)
    assert not any(isinstance(module, (APBLinear, APBConv2d)) for module in model.modules())


def test_dense_layers_that_cannot_be_taken() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Linear"):
        APBLinear.from_dense(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="groups is 2"):
        APBConv2d.from_dense(nn.Conv2d(2, 2, 1, groups=2))
    broken = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        broken[0].weight[1, 1] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        binarize(broken)
