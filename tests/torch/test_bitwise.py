"""Layers of 1 and 2 bits on both sides: what they compute, training, freezing, models, bad input."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import diba
import diba.torch
from diba.torch import (
    APBLinear,
    BitConv2d,
    BitLayer,
    BitLinear,
    DibaBitConv2d,
    DibaBitLinear,
    binarize,
    bitwise,
    freeze,
    report,
)
from diba.torch.ops.bits import bit_linear, numbers_of, packed_levels

BITS = pytest.mark.parametrize(("a", "w"), [(1, 1), (2, 1), (1, 2), (2, 2)])


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


def frozen(layer: BitLinear) -> DibaBitLinear:
    [found] = freeze(nn.Sequential(copy.deepcopy(layer)))
    return found  # type: ignore[return-value]


def levels(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Numbers and steps by :class:`diba.Levels`, in float64."""
    found, step = diba.Levels.rounded(x.detach().float().numpy(), bits)
    return torch.from_numpy(found.to_dense()).double(), torch.from_numpy(step).double()


@BITS
def test_products_with_zeros_are_zero(a: int, w: int) -> None:
    layer = BitLinear(70, 9, activation_bits=a, weight_bits=w)
    with torch.no_grad():
        layer.weight[3] = 0
    stored, x = frozen(layer), torch.randn(4, 70, requires_grad=True)
    for each in (layer, stored, copy.deepcopy(stored).double()):
        own: Any = each.bias
        assert torch.equal(each(torch.zeros(2, 70, dtype=own.dtype)), own.expand(2, -1))
        assert torch.equal(each(x.to(own.dtype))[:, 3], own[3].expand(4))
    layer(torch.cat([x, torch.zeros(1, 70)])).square().sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad.isfinite().all()  # type: ignore[union-attr]
    assert layer.weight.grad[3].abs().sum() > 0  # type: ignore[index]  # it can become another row


@BITS
@pytest.mark.parametrize("n", [1, 64, 70])
def test_products(a: int, w: int, n: int) -> None:
    layer = BitLinear(n, 9, activation_bits=a, weight_bits=w)
    stored = frozen(layer).requires_grad_(False)
    weights, scale = levels(layer.weight, w)
    assert torch.equal(numbers_of(stored.planes, n, torch.float64), weights)
    torch.testing.assert_close(stored.dense_weight().double(), weights * scale[:, None], rtol=1e-6, atol=0)
    for shape in ((n,), (3, 2, n), (130, n), (0, n)):
        x = torch.randn(shape)
        if not x.numel():
            assert stored(x).shape == (0, 9)
            continue
        numbers, steps = levels(x.reshape(-1, n), a)
        right = (numbers @ weights.T) * steps[:, None] * scale + layer.bias.double()  # type: ignore[union-attr]
        y = stored(x)
        # a product of two scales, and a sum
        assert ((y.double().view(right.shape) - right).abs() <= 2.0**-22 * (right.abs() + 1)).all()
        assert torch.equal(layer(x), y)  # the trained layer's outputs, to the last bit
        if len(shape) > 1:
            assert torch.equal(stored(x[1]), y[1])  # alone as in a batch
        near = copy.deepcopy(stored).double()(x.double())
        assert (near.view(right.shape) - right).abs().max() < 1e-5
        meta = stored.planes, stored.scale, stored.bias
        torch.testing.assert_close(
            torch.ops.diba.bit_linear(x.double(), *meta, n, a), near, rtol=1e-6, atol=1e-6
        )
        half = copy.deepcopy(stored).bfloat16()(x.bfloat16())
        assert half.dtype == torch.bfloat16


def test_packing_without_the_kernel() -> None:
    for bits in (1, 2):
        x = torch.randn(5, 77)
        planes, step = packed_levels(x, bits)
        others, same = packed_levels(x.double(), bits)
        assert torch.equal(planes, others)
        torch.testing.assert_close(step.double(), same, rtol=1e-6, atol=0)


@BITS
def test_gradients_pass_straight_through(a: int, w: int) -> None:
    layer = BitLinear(40, 6, activation_bits=a, weight_bits=w)
    x = torch.randn(2, 7, 40, requires_grad=True)
    above = torch.randn(2, 7, 6)
    of_x, of_w, of_bias = torch.autograd.grad(layer(x), [x, layer.weight, layer.bias], above)  # type: ignore[list-item]
    numbers, steps = levels(x.reshape(-1, 40), a)
    weights, scale = levels(layer.weight, w)
    g = above.reshape(-1, 6).double()
    inside = x.detach().reshape(-1, 40).abs() <= 2**a * steps[:, None]
    expected = (g @ (scale[:, None] * weights)) * inside
    assert 0 < inside.double().mean() < 1
    torch.testing.assert_close(of_x.double().reshape(-1, 40), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(of_w.double(), g.T @ (numbers * steps[:, None]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(of_bias.double(), g.sum(0), rtol=1e-5, atol=1e-5)
    stored = frozen(layer)
    again = torch.autograd.grad(stored(x), [x, stored.scale, stored.bias], above)  # type: ignore[list-item]
    torch.testing.assert_close(again[0], of_x, rtol=1e-5, atol=1e-5)
    sums = (g * (numbers @ weights.T) * steps[:, None]).sum(0)
    torch.testing.assert_close(again[1].double(), sums, rtol=1e-5, atol=1e-4)


@BITS
def test_a_small_problem_is_learned(a: int, w: int) -> None:
    x = torch.randn(256, 16)
    y = ((x @ torch.randn(16)) > 0).long()
    model = nn.Sequential(
        nn.Linear(16, 128),
        nn.BatchNorm1d(128),
        BitLinear(128, 64, activation_bits=a, weight_bits=w),
        nn.Linear(64, 2),
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    model.eval()
    with torch.no_grad():
        before = model(x)
        assert torch.equal(freeze(model)(x), before)
    [entry] = report(model).layers
    assert (entry.alphabet, entry.bits_per_weight) == (f"{w}x{a}", w + 32 / 128)


@BITS
def test_states_copies_and_the_operator(a: int, w: int) -> None:
    layer = BitLinear(70, 9, activation_bits=a, weight_bits=w)
    stored, x = frozen(layer), torch.randn(4, 70, requires_grad=True)
    other = DibaBitLinear(70, 9, activation_bits=a, weight_bits=w)
    assert not torch.equal(other(x), stored(x))
    other.load_state_dict(stored.state_dict())
    assert torch.equal(other(x), stored(x))
    assert torch.equal(copy.deepcopy(stored)(x), stored(x))
    assert copy.deepcopy(stored).half().scale.dtype == torch.float32
    dense = stored.to_dense_module()
    assert type(dense) is nn.Linear
    again = DibaBitLinear.from_dense(dense, activation_bits=a, weight_bits=w)
    assert torch.equal(again.planes, stored.planes) or w == 2  # whose step is that of the rounded weights
    torch.library.opcheck(
        torch.ops.diba.bit_linear.default, (x, stored.planes, stored.scale, stored.bias, 70, a)
    )
    assert f"activation_bits={a}, weight_bits={w}" in repr(layer)
    assert f"activation_bits={a}, weight_bits={w}" in repr(stored)


def test_what_is_refused() -> None:
    for made in (BitLinear, DibaBitLinear):
        with pytest.raises(ValueError, match="activation_bits is 3"):
            made(4, 4, activation_bits=3)
        with pytest.raises(TypeError, match="weight_bits"):
            made(4, 4, weight_bits="1")
        with pytest.raises(TypeError, match=r"torch\.nn\.Linear"):
            made.from_dense(nn.Conv2d(1, 1, 1))
    layer = DibaBitLinear(70, 9)
    with pytest.raises(ValueError, match="last axis must have 70"):
        layer(torch.zeros(3, 71))
    with pytest.raises(TypeError, match="floating"):
        layer(torch.zeros(3, 70, dtype=torch.int32))
    with pytest.raises(ValueError, match="shape of weight"):
        layer.set_weight(torch.zeros(9, 71))
    with pytest.raises(ValueError, match="planes"):
        bit_linear(torch.zeros(3, 70), layer.planes[..., ::2], layer.scale, None, 70, 1)
    with pytest.raises(ValueError, match="bits is 3"):
        bit_linear(torch.zeros(3, 70), layer.planes, layer.scale, None, 70, 3)
    trained = BitLinear.from_dense(nn.Linear(4, 4), activation_bits=2)
    assert isinstance(trained, BitLinear)
    with torch.no_grad():
        trained.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"weight of 0 .*finite"):
        freeze(nn.Sequential(trained))


# ---------------------------------------------------------------- models


class Net(nn.Module):
    """Convolutions, lines, and kinds of layers that stay dense."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.narrow = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2)
        self.sound = nn.Conv1d(3, 4, 3)
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)


def test_which_layers_are_replaced() -> None:
    model = Net()
    weight, seen = model.first.weight, []
    model.first.register_forward_hook(lambda *_: seen.append(1))
    same = bitwise(model, 2, skip=["last", "second"], layers={"re:conv": {"weight_bits": 2}})
    assert same is model
    assert isinstance(model.first, BitLinear)
    assert model.first.weight is weight
    assert (model.first.activation_bits, model.first.weight_bits) == (2, 1)
    assert isinstance(model.conv, BitConv2d)
    assert (model.conv.activation_bits, model.conv.weight_bits) == (2, 2)
    assert {type(layer) for layer in (model.narrow, model.sound, model.second, model.last)} == {
        *(nn.Conv2d, nn.Conv1d, nn.Linear)
    }
    reasons = {entry.name: entry.reason for entry in report(model).skipped}
    assert reasons["sound"] == "a Conv1d has no form of few bits on both sides"
    assert reasons["narrow"] == "groups is 2, must be 1"
    assert "left out by 'last'" in reasons["last"]
    binarize(model, skip=["last"], convolutions=False)  # the rest of it
    assert isinstance(model.second, APBLinear)
    model.first(torch.randn(1, 8))
    freeze(model)
    model.first(torch.randn(1, 8))
    assert seen == [1, 1]
    assert (type(model.conv), type(model.first)) == (DibaBitConv2d, DibaBitLinear)
    plain = bitwise(Net(), convolutions=False)
    assert type(plain.conv) is nn.Conv2d


@pytest.mark.parametrize(
    ("error", "message", "settings"),
    [
        (ValueError, "activation_bits is 3", {"activation_bits": 3}),
        (TypeError, "weight_bits", {"weight_bits": "1"}),
        (TypeError, "weight_bits", {"weight_bits": True}),
        (ValueError, "'thirst'.*first", {"skip": ["thirst"]}),
        (ValueError, r"layers\['first'\].*weight_bits is 8", {"layers": {"first": {"weight_bits": 8}}}),
        (ValueError, "unknown key 'bits'", {"layers": {"first": {"bits": 1}}}),
        (TypeError, "layers", {"layers": ["first"]}),
        (ValueError, "nothing of the model", {"skip": ["re:.*"]}),
    ],
)
def test_what_bitwise_refuses(error: type[Exception], message: str, settings: dict[str, Any]) -> None:
    model = Net()
    with pytest.raises(error, match=message):
        bitwise(model, **settings)
    assert not any(isinstance(module, BitLayer) for module in model.modules())


@pytest.mark.parametrize("name", ["scale", "planes", "activation_bits", "matrix", "_form"])
def test_attributes_that_would_be_lost(name: str) -> None:
    model = Net()
    setattr(model.second, name, "mine")
    with pytest.raises(ValueError, match=f"attribute '{name}' would be lost"):
        bitwise(model)
    assert type(model.first) is nn.Linear  # nothing was replaced
