"""Convolutions of 1 and 2 bits on both sides: patch by patch, gradients, freezing, states, bad input."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import diba
from diba.torch import BitConv2d, DibaBitConv2d, bitwise, freeze, report
from diba.torch.modules.state import as_numpy

BITS = pytest.mark.parametrize(("a", "w"), [(1, 1), (2, 1), (1, 2), (2, 2)])
GEOMETRIES: list[tuple[Any, dict[str, Any]]] = [
    (1, {}),
    ((3, 2), {"padding": "valid"}),
    ((3, 2), {"stride": 2, "padding": (1, 0), "dilation": (1, 2)}),
    (3, {"padding": 2, "padding_mode": "reflect", "stride": (1, 3), "bias": False}),
    ((2, 3), {"padding": "same", "padding_mode": "replicate", "dilation": (1, 2)}),
    (3, {"padding": 1, "padding_mode": "circular"}),
]
GEOMETRY = pytest.mark.parametrize(("kernel", "settings"), GEOMETRIES)
PADS: Any = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


def frozen(layer: BitConv2d) -> DibaBitConv2d:
    [found] = freeze(nn.Sequential(copy.deepcopy(layer)))
    assert isinstance(found, DibaBitConv2d)
    return found


# ---------------------------------------------------------------- patch by patch


def places(conv: Any, shape: torch.Size) -> np.ndarray:
    """Which entry of an input each entry of a patch is, (positions, positions, n); -1: a zero of the padding.

    An array of numbers is padded, and cut by slices.
    """
    numbers = np.arange(np.prod(shape[-3:])).reshape(shape[-3:])
    around = []
    for axis in range(2):
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        if isinstance(conv.padding, str):
            before = reach // 2 if conv.padding == "same" else 0
            around.append((before, reach - before if conv.padding == "same" else 0))
        else:
            around.append((conv.padding[axis],) * 2)
    filled = {"constant_values": -1} if conv.padding_mode == "zeros" else {}
    padded = np.pad(numbers, [(0, 0), *around], PADS[conv.padding_mode], **filled)
    (tall, wide), (down, right), (apart, beside) = conv.kernel_size, conv.stride, conv.dilation
    high, broad = apart * (tall - 1) + 1, beside * (wide - 1) + 1
    return np.array(
        [
            [
                padded[:, i : i + high : apart, j : j + broad : beside].ravel()
                for j in range(0, padded.shape[2] - broad + 1, right)
            ]
            for i in range(0, padded.shape[1] - high + 1, down)
        ]
    )


def levels(rows: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and steps of rows, in float64."""
    found, step = diba.Levels.rounded(rows, bits)
    return found.to_dense().astype(np.float64), step.astype(np.float64)


def patches(conv: Any, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The places of the patches of all images, as if these were one array, and their values."""
    one = places(conv, x.shape)
    size = x[0].numel()
    every = np.stack([np.where(one < 0, -1, one + image * size) for image in range(len(x))])
    return every, np.where(every < 0, np.float32(0), as_numpy(x).ravel()[every])


@BITS
@GEOMETRY
def test_products_patch_by_patch(a: int, w: int, kernel: Any, settings: dict[str, Any]) -> None:
    conv = BitConv2d(5, 6, kernel, **settings, activation_bits=a, weight_bits=w)
    stored = frozen(conv)
    x = torch.randn(3, 5, 9, 8)
    _, rows = patches(conv, x)
    numbers, steps = levels(rows.reshape(-1, rows.shape[-1]), a)
    weights, scale = levels(as_numpy(conv.weight).reshape(6, -1), w)
    shift = 0 if conv.bias is None else as_numpy(conv.bias)
    right = (numbers @ weights.T) * steps[:, None] * scale + shift
    right = np.moveaxis(right.reshape(*rows.shape[:3], 6), -1, 1)
    with torch.no_grad():
        y = stored(x)
        assert y.shape == right.shape
        # a product of two scales, and a sum
        assert np.all(np.abs(as_numpy(y) - right) <= 2.0**-22 * (np.abs(right) + 1))
        assert torch.equal(conv(x), y)  # the trained layer's outputs, to the last bit
        assert torch.equal(stored(x[1]), y[1])  # alone as in a batch
        assert torch.equal(conv(x[1]), y[1])
        last = x.to(memory_format=torch.channels_last)
        for layer in (conv, stored):
            found = layer(last)
            assert torch.equal(found, y)
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert layer(x).is_contiguous()
        torch.testing.assert_close(stored.double()(x.double()), y.double(), rtol=1e-5, atol=1e-5)
        assert conv.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def straight(
    g: np.ndarray,
    vectors: np.ndarray,
    weights: np.ndarray,
    scale: np.ndarray,
    inside: np.ndarray,
    every: np.ndarray,
    inputs: int,
) -> list[np.ndarray]:
    """Gradients of so many inputs, of weights and bias, from those above, (vectors, m)."""
    of_x = np.zeros(inputs + 1)
    np.add.at(of_x, every.ravel(), ((g * scale) @ weights * inside).ravel())  # the last is of the padding
    return [of_x[:-1], (g.T @ vectors).ravel(), g.sum(0)]


@BITS
@GEOMETRY
def test_gradients_pass_straight_through(a: int, w: int, kernel: Any, settings: dict[str, Any]) -> None:
    conv = BitConv2d(3, 4, kernel, **settings, activation_bits=a, weight_bits=w)
    x = torch.randn(2, 3, 7, 8, requires_grad=True)
    y = conv(x)
    above = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *conv.parameters()], above)
    every, rows = patches(conv, x.detach())
    n = rows.shape[-1]
    numbers, steps = levels(rows.reshape(-1, n), a)
    weights, scale = levels(as_numpy(conv.weight).reshape(4, -1), w)
    g = np.moveaxis(as_numpy(above).astype(np.float64), 1, -1).reshape(-1, 4)
    inside = np.abs(rows.reshape(-1, n)) <= 2**a * steps[:, None]
    own = g, numbers * steps[:, None], weights, scale, inside
    sizes = straight(*(np.abs(t) for t in own), every, x.numel())  # the sums of absolute values
    for ours, right, size in zip(found, straight(*own, every, x.numel()), sizes, strict=False):
        assert np.all(np.abs(as_numpy(ours).ravel() - right) <= (g.size + 8) * 2.0**-23 * size)
    stored = frozen(conv)
    [again, of_scale] = torch.autograd.grad(stored(x), [x, stored.scale], above)
    torch.testing.assert_close(again, found[0], rtol=1e-5, atol=1e-5)
    sums = (g * (numbers @ weights.T) * steps[:, None]).sum(0)
    torch.testing.assert_close(of_scale.double(), torch.from_numpy(sums), rtol=1e-5, atol=1e-4)


def test_some_gradients_only() -> None:
    conv = BitConv2d(3, 4, 3, padding=1).requires_grad_(False)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad is not None
    assert conv.weight.grad is None
    conv.weight.requires_grad_()
    conv(x.detach()).sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.abs().sum() > 0


def test_no_patches_are_held_for_the_gradients() -> None:
    conv = BitConv2d(4, 6, 5, padding=2)
    x = torch.randn(2, 4, 16, 16, requires_grad=True)
    held: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.numel()) or t, lambda t: t):
        conv(x)
    assert sum(held) == x.numel() + conv.weight.numel()


# ---------------------------------------------------------------- training, freezing, states


@BITS
def test_stripes_are_told_apart(a: int, w: int) -> None:
    labels = torch.arange(64) % 2
    stripes = torch.tensor([1.0, -1.0]).repeat(4)[:, None].expand(8, 8)
    x = torch.stack([stripes if label else stripes.T for label in labels])[:, None] + torch.randn(64, 1, 8, 8)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)),
        *(nn.Conv2d(16, 16, 3, padding=1, padding_mode="replicate"), nn.BatchNorm2d(16), nn.Hardtanh()),
        *(nn.Conv2d(16, 16, 3, stride=2), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(144, 2)),
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)  # made before: there are no new parameters
    bitwise(model, a, w, skip=["0", "8"])
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    model.eval()
    with torch.no_grad():
        before = model(x)
        assert torch.equal(freeze(model)(x), before)
    found = report(model).layers
    assert [layer.name for layer in found] == ["2", "5"]
    assert {(layer.kind, layer.alphabet, layer.bits_per_weight) for layer in found} == {
        ("Conv2d", f"{w}x{a}", w + 32 / 144)
    }


@BITS
def test_states_copies_and_dense_layers(a: int, w: int) -> None:
    settings: dict[str, Any] = {"stride": 2, "padding": 1, "padding_mode": "circular"}
    conv = BitConv2d(5, 6, (3, 2), **settings, activation_bits=a, weight_bits=w)
    stored, x = frozen(conv), torch.randn(2, 5, 9, 8)
    other = DibaBitConv2d(5, 6, (3, 2), **settings, activation_bits=a, weight_bits=w)
    assert not torch.equal(other(x), stored(x))
    other.load_state_dict(stored.state_dict())
    assert torch.equal(other(x), stored(x))
    again = BitConv2d(5, 6, (3, 2), **settings, activation_bits=a, weight_bits=w)
    again.load_state_dict(conv.state_dict())
    for same in (again, copy.deepcopy(again), copy.deepcopy(stored)):
        assert torch.equal(same(x), stored(x))
    dense = stored.to_dense_module()
    assert type(dense) is nn.Conv2d
    assert torch.equal(dense.weight, stored.dense_weight())
    assert (dense.stride, dense.padding, dense.padding_mode) == ((2, 2), (1, 1), "circular")
    nearest = DibaBitConv2d.from_dense(nn.Conv2d(5, 6, (3, 2), **settings), activation_bits=a, weight_bits=w)
    assert nearest(x).shape == stored(x).shape
    for layer in (conv, stored):
        assert "5, 6, kernel_size=(3, 2), stride=(2, 2), padding=(1, 1)" in repr(layer)
        assert f"activation_bits={a}, weight_bits={w}" in repr(layer)


def test_what_is_taken_from_a_dense_layer() -> None:
    dense = nn.Conv2d(3, 4, (3, 1), stride=(2, 1), padding="valid", bias=False).eval().double()
    dense.tag = "kept"  # type: ignore[assignment]
    conv = BitConv2d.from_dense(dense, activation_bits=2)
    assert (conv.kernel_size, conv.stride, conv.padding, conv.bias) == ((3, 1), (2, 1), "valid", None)
    assert conv.weight is dense.weight
    assert not conv.training
    stored = frozen(conv)
    assert stored.tag == conv.tag == "kept"
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(stored(x), conv(x), rtol=1e-5, atol=1e-5)
    conv.padding, conv.padding_mode = (1, 1), "circular"  # as some programs do
    torch.testing.assert_close(frozen(conv)(x), conv(x), rtol=1e-5, atol=1e-5)
    meta = copy.deepcopy(conv).to("meta")
    assert meta(x.to("meta")).shape == conv(x).shape


def test_what_is_refused() -> None:
    for made in (BitConv2d, DibaBitConv2d):
        with pytest.raises(ValueError, match="activation_bits is 3"):
            made(4, 4, 1, activation_bits=3)
        with pytest.raises(TypeError, match=r"torch\.nn\.Conv2d"):
            made.from_dense(nn.Linear(1, 1))
        with pytest.raises(ValueError, match="groups is 2"):
            made.from_dense(nn.Conv2d(2, 2, 1, groups=2))
        with pytest.raises(ValueError, match="padd"):
            made(2, 2, 1, padding="none")
        conv = made(3, 4, 3)
        for shape in ((2, 4, 5, 5), (3, 5), (1, 1, 3, 5, 5)):
            with pytest.raises(ValueError, match="3 channels"):
                conv(torch.zeros(shape))
        with pytest.raises(TypeError, match="floating"):
            conv(torch.zeros(2, 3, 5, 5, dtype=torch.int32))
    stored = DibaBitConv2d(3, 4, 3)
    with pytest.raises(ValueError, match="groups is 2"):
        DibaBitConv2d(2, 2, 1, groups=2)
    with pytest.raises(ValueError, match="shape of weight"):
        stored.set_weight(torch.zeros(4, 27))
    trained = BitConv2d(3, 4, 3)
    with torch.no_grad():
        trained.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"weight of 0 .*finite"):
        freeze(nn.Sequential(trained))
    with pytest.raises(ValueError, match="itself a BitConv2d"):
        freeze(BitConv2d(3, 4, 3))
