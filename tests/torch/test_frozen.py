"""Frozen binary layers: bits and values of the trained ones, products, gradients, states, bad input."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import diba
import diba.torch
from diba.torch import APBConv2d, APBLinear, DibaAPBConv2d, DibaAPBLinear, binarize, freeze, report
from diba.torch.ops.apb import apb_linear

SHAPES = pytest.mark.parametrize(("m", "n"), [(7, 5), (33, 300), (24, 64)])


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


def trained(m: int, n: int, **settings: Any) -> APBLinear:
    """A layer as after training: weights of different sizes, zeros, and an alpha of any value."""
    layer = APBLinear(n, m, **({"exceptions": 0.05} | settings))
    with torch.no_grad():
        layer.weight.copy_(torch.randn(m, n) * (0.01 + torch.rand(m, 1)))
        layer.weight[0, :2] = torch.tensor([0.0, -0.0])
        layer.fit()
        layer.log_alpha.add_(0.0123)
    return layer


def frozen(layer: Any) -> Any:
    [found] = freeze(nn.Sequential(copy.deepcopy(layer)))
    return found


# ---------------------------------------------------------------- what is stored


@SHAPES
@pytest.mark.parametrize("settings", [{}, {"exceptions": 0}, {"scales": "rows"}, {"learn_delta": True}])
def test_bits_are_those_of_training_and_values_within_16_bits(
    m: int, n: int, settings: dict[str, Any]
) -> None:
    layer = trained(m, n, **settings)
    stored = frozen(layer)
    assert type(stored) is DibaAPBLinear
    w = layer.dense_weight().detach().double().numpy()
    alpha = layer.alpha.detach().double()[:, None].expand(m, n).numpy()
    outside = np.abs(layer.weight.detach().double().numpy()) > alpha + float(layer.delta.detach()) * (
        1 + 1e-6
    )
    f = stored.matrix()
    np.testing.assert_array_equal(f.signs.to_dense() > 0, w >= 0)
    assert abs(len(f.columns) - outside.sum()) <= 1
    own = f.alpha.astype(np.float64)[:, None] + np.zeros((m, n))
    assert (np.abs(own - alpha) <= np.maximum(2.0**-11 * alpha, 2.0**-24 * alpha.max()) + 2e-7 * alpha).all()
    found = f.to_dense(np.float64)
    distance = np.abs(np.abs(w) - alpha) * outside
    bound = np.where(outside, np.maximum(2.0**-11 * distance, 2.0**-24 * distance.max()), 0)
    bound += 3e-7 * np.abs(w) + np.where(outside, 0, np.abs(own - alpha))
    assert (np.abs(found - w) <= bound).all()
    assert torch.equal(stored.weight, torch.from_numpy(f.to_dense()))
    assert stored.bits_per_weight == pytest.approx(f.bits_per_weight)
    held = {t.data_ptr(): t.nbytes for t in (*stored.buffers(), stored.alpha)}
    padding = m * (-n % 8) / 8
    assert sum(held.values()) - padding == pytest.approx(f.bits_per_weight * m * n / 8 + 1 + 2 * f.alpha.size)
    again = frozen(layer)
    assert all(
        torch.equal(a, b)
        for a, b in zip(stored.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_a_model_is_frozen_as_a_whole() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    binarize(model, 0.1, scales="rows")
    seen: list[int] = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    model[3].tag = "kept"
    x, bias = torch.randn(4, 3, 6, 6), model[3].bias
    before = model(x).detach()
    assert freeze(model) is model
    assert (type(model[0]), type(model[3])) == (DibaAPBConv2d, DibaAPBLinear)
    assert model[3].bias is bias
    assert model[3].tag == "kept"
    after = model(x)
    assert len(seen) == 2
    assert (after - before).norm() < 0.02 * before.norm()  # products of 45 dB
    found = report(model)
    assert [layer.alphabet for layer in found.layers] == ["apb", "apb"]
    assert found.bytes_after == sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    assert "apb" not in repr(model).lower() or "DibaAPBLinear(in_features=288" in repr(model)
    dense = model[0].to_dense_module()
    assert type(dense) is nn.Conv2d
    assert torch.equal(dense.weight, model[0].dense_weight())
    assert diba.torch.convert(nn.Sequential(model, nn.Linear(9, 9)), k=2, progress=False)  # goes past them
    with pytest.raises(ValueError, match="binarize"):
        freeze(model)
    with pytest.raises(ValueError, match="Sequential"):
        freeze(APBLinear(3, 3))
    with pytest.raises(TypeError, match="Module"):
        freeze({})  # type: ignore[type-var]
    broken = nn.Sequential(APBLinear(4, 4), APBLinear(4, 4))
    with torch.no_grad():
        broken[1].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"weight of 1 .*finite"):
        freeze(broken)
    assert isinstance(broken[0], APBLinear)


# ---------------------------------------------------------------- products


def exact(layer: DibaAPBLinear, x: Tensor) -> Tensor:
    """The product in float64, from the matrix entry by entry."""
    w = torch.from_numpy(layer.matrix().to_dense(np.float64))
    return functional.linear(x.double(), w, None if layer.bias is None else layer.bias.double())


@SHAPES
@pytest.mark.parametrize("exceptions", [0.0, 0.05])
@pytest.mark.parametrize("scales", ["layer", "rows"])
def test_products(m: int, n: int, exceptions: float, scales: str) -> None:
    layer = frozen(trained(m, n, exceptions=exceptions, scales=scales)).requires_grad_(False)
    for shape in ((n,), (3, 1, n), (40, n), (0, n)):
        x = torch.randn(shape)
        y, right = layer(x), exact(layer, x)
        assert y.dtype == torch.float32
        assert y.shape == right.shape
        assert (y - right).norm() <= 0.02 * right.norm() + 1e-6  # tables round the activations
        near = copy.deepcopy(layer).double()(x.double())
        torch.testing.assert_close(near, right, rtol=1e-10, atol=1e-10)
        for dtype in (torch.bfloat16, torch.float16):
            found = copy.deepcopy(layer).to(dtype)(x.to(dtype))
            assert found.dtype == dtype
            assert (found.double() - right).norm() <= 0.03 * right.norm() + 1e-3
    rows = torch.randn(9, n)
    assert torch.equal(layer(rows)[4], layer(rows[4]))  # alone as in a batch


def test_convolutions() -> None:
    facts: dict[str, Any] = {"stride": 2, "padding": (1, 0), "dilation": (1, 2), "padding_mode": "circular"}
    conv = APBConv2d(3, 6, (3, 2), exceptions=0.1, **facts)
    layer, x = frozen(conv), torch.randn(2, 3, 9, 8)
    assert type(layer) is DibaAPBConv2d
    dense = layer.to_dense_module()
    y = layer(x)
    assert (y - dense(x)).norm() <= 0.02 * y.norm()
    torch.testing.assert_close(copy.deepcopy(layer).double()(x.double()), dense.double()(x.double()))
    assert "stride=(2, 2)" in repr(layer)
    with pytest.raises(ValueError, match="groups is 2"):
        DibaAPBConv2d(2, 2, 1, groups=2)


@pytest.mark.parametrize("scales", ["layer", "rows"])
def test_gradients(scales: str) -> None:
    layer = frozen(trained(31, 70, scales=scales)).double()
    x = torch.randn(2, 3, 70, dtype=torch.float64, requires_grad=True)
    above = torch.randn(2, 3, 31, dtype=torch.float64)
    wanted = [x, layer.alpha, layer.bias]
    found = torch.autograd.grad(layer(x), wanted, above)
    expected = torch.autograd.grad(functional.linear(x, layer.dense_weight(), layer.bias), wanted, above)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    single = layer.float()
    again = torch.autograd.grad(single(x.float()), [x, single.alpha, single.bias], above.float())
    for a, b in zip(again, expected, strict=True):
        assert (a.double() - b).norm() <= 0.03 * b.norm()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("exceptions", [0.0, 0.05])
def test_the_operator_keeps_torchs_rules(exceptions: float) -> None:
    layer = frozen(trained(20, 70, exceptions=exceptions))
    x = torch.randn(3, 70, requires_grad=True)
    torch.library.opcheck(torch.ops.diba.apb_linear.default, (x, *layer._parts(), layer.bias, 70))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))
    program = torch.export.export(layer, (x.detach(),))  # the layer itself, with buffers that are None
    assert torch.equal(program.module()(x.detach()), layer(x))
    meta = copy.deepcopy(layer).to("meta")
    assert meta(torch.empty(3, 70, device="meta")).shape == (3, 20)
    with pytest.raises(ValueError, match="last axis must have 70"):
        layer(torch.zeros(3, 71))
    with pytest.raises(TypeError, match="floating point"):
        layer(torch.zeros(3, 70, dtype=torch.int64))
    parts = list(layer._parts())
    parts[1] = parts[1][:, ::2]
    with pytest.raises(ValueError, match="signs"):
        apb_linear(x, *parts, None, 70)


# ---------------------------------------------------------------- modules


def test_copies_casts_and_states() -> None:
    layer = frozen(trained(8, 65))
    x = torch.randn(2, 65)
    y = layer(x)
    for other in (DibaAPBLinear(65, 8), DibaAPBLinear(65, 8, entries=3)):
        assert not torch.equal(other(x), y)
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x), y)
    plain = frozen(trained(8, 65, exceptions=0))
    other.load_state_dict(plain.state_dict())  # from some exceptions to none
    assert torch.equal(other(x), plain(x))
    for same in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(same(x), y)
    saved = io.BytesIO()
    torch.save(layer.state_dict(), saved)
    saved.seek(0)
    other.load_state_dict(torch.load(saved))
    assert torch.equal(other(x), y)
    half = copy.deepcopy(layer).half()
    assert (half.alpha.dtype, half.signs.dtype, half.weight.dtype) == (
        torch.float32,
        torch.uint8,
        torch.float16,
    )
    assert torch.equal(half.values, layer.values)
    wrong = layer.state_dict()
    wrong["signs"] = wrong["signs"].float()
    with pytest.raises(RuntimeError, match=r"signs is torch\.float32"):
        other.load_state_dict(wrong)
    with pytest.raises(RuntimeError, match=r"weight of a dense layer"):
        other.load_state_dict(nn.Linear(65, 8).state_dict())
    averaged = torch.optim.swa_utils.AveragedModel(
        layer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9999), use_buffers=True
    )
    for _ in range(2):
        averaged.update_parameters(layer)
    assert torch.equal(averaged(x), y)


def test_changes_are_noticed() -> None:
    layer = frozen(trained(8, 65)).requires_grad_(False)
    x = torch.randn(2, 65)
    layer(x)
    with torch.no_grad():
        layer.values[:, 1] ^= 128  # the signs of all exceptions
        layer.signs[:, 0] ^= 255
    assert (layer(x) - exact(layer, x)).norm() < 0.02 * layer(x).norm()
    f = diba.apb(np.random.default_rng(1).standard_normal((8, 65)), exceptions=0.2)
    layer.set_matrix(f)
    assert (layer(x) - exact(layer, x)).norm() < 0.02 * layer(x).norm()
    np.testing.assert_array_equal(layer.matrix().to_dense(), f.to_dense())


def test_tensors_that_make_no_matrix_are_refused() -> None:
    layer = frozen(trained(8, 65)).requires_grad_(False)
    x = torch.randn(2, 65)
    layer(x)
    with torch.no_grad():
        layer.columns[2] = 200
    with pytest.raises(ValueError, match="columns"):
        layer(x)
    layer = frozen(trained(8, 65)).requires_grad_(False)
    with torch.no_grad():
        layer.counts[2, 0] += 1
    with pytest.raises(ValueError, match="starts"):
        layer(x)


def test_from_dense_and_what_is_refused() -> None:
    dense = nn.Linear(65, 8)
    layer = DibaAPBLinear.from_dense(dense, exceptions=0.1, scales="rows")
    f = diba.apb(dense.weight.detach(), exceptions=0.1, scales="rows")
    np.testing.assert_array_equal(layer.matrix().to_dense(), f.to_dense())
    assert torch.equal(layer.bias, dense.bias)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"torch\.nn\.Linear"):
        DibaAPBLinear.from_dense(nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match="both given"):
        DibaAPBLinear.from_dense(dense, f, exceptions=0.1)
    for wrong in (diba.apb(np.ones((8, 64)), exceptions=0), diba.apb(dense.weight.detach(), exceptions=0.1)):
        with pytest.raises(ValueError, match=r"shape|alphas"):
            layer.set_matrix(wrong)
    with pytest.raises(TypeError, match=r"diba\.apb"):
        layer.set_matrix(dense.weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 or 8"):
        DibaAPBLinear(65, 8, alphas=3)
    with pytest.raises(ValueError, match="entries"):
        DibaAPBLinear(65, 8, entries=521)
    with pytest.raises(AttributeError, match="set_matrix"):
        layer.weight = nn.Parameter(torch.zeros(8, 65))
