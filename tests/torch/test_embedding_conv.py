"""Embeddings and convolutions on packed factors against torch's own, in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import diba
from diba.torch.modules import embedding
from diba.torch.modules.conv import DibaConv1d, DibaConv2d
from diba.torch.modules.embedding import DibaEmbedding
from diba.torch.modules.kinds import compressed, factored_matrix, kind_of, replaceable
from diba.torch.ops.operators import reference

ALPHABETS = pytest.mark.parametrize("alphabet", ["binary", "sign"])
ROWS, K, DIM = 50, 13, 21
EPS = 2.0**-52


def normals(*shape: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def snr(exact: Tensor, found: Tensor) -> float:
    """In dB; the fast products keep 40 dB (docs/run.md)."""
    exact, noise = exact.detach().double(), (exact - found).detach().double()
    return float(10 * torch.log10(exact.square().sum() / noise.square().sum()))


# ---------------------------------------------------------------- embedding


def random_ids(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, ROWS, shape))


@ALPHABETS
@pytest.mark.parametrize("shape", [(), (7,), (2, 3), (0,)])
def test_rows_of_an_embedding(make_factors: Any, alphabet: str, shape: tuple[int, ...]) -> None:
    factors, ids = make_factors(ROWS, K, DIM, alphabet), random_ids(*shape)
    layer = DibaEmbedding.from_factorization(factors.diba)
    exact, sums = (torch.from_numpy(a)[ids] for a in (factors.dense(), factors.magnitude()))
    for dtype in (torch.int64, torch.int32):
        rows = copy.deepcopy(layer).double()(ids.to(dtype))
        assert rows.shape == (*shape, DIM)
        assert ((rows - exact).abs() <= 2 * (K + 3) * EPS * sums).all()
    for dtype in (torch.float32, torch.bfloat16):
        rows = layer.to(dtype)(ids)
        assert rows.dtype == dtype
        assert 0 in shape or snr(exact, rows) > 38  # a single row may be below the usual 40


@ALPHABETS
def test_a_look_up_unpacks_its_rows_only(
    make_factors: Any, alphabet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = DibaEmbedding.from_factorization(make_factors(ROWS, K, DIM, alphabet).diba)
    unpacked = []

    def watched(bits: Tensor, *others: Any) -> Tensor:
        unpacked.append(bits.shape[:-1].numel())
        return unpack(bits, *others)

    unpack = reference.unpack
    monkeypatch.setattr(embedding.reference, "unpack", watched)
    layer(random_ids(2, 3))
    assert unpacked == [6]


@ALPHABETS
@pytest.mark.parametrize("padding", [None, 4, -1])
def test_gradients_of_an_embedding(make_factors: Any, alphabet: str, padding: int | None) -> None:
    f, ids, above = (
        make_factors(ROWS, K, DIM, alphabet).diba,
        torch.tensor([[4, 4, 9], [49, 0, 4]]),
        normals(2, 3, DIM),
    )
    layer = DibaEmbedding.from_factorization(f, padding_idx=padding).double()
    found = torch.autograd.grad(layer(ids), layer.diagonals(), above)
    rows = functional.embedding(ids, layer.dense_weight(), padding_idx=padding)
    expected = torch.autograd.grad(rows, layer.diagonals(), above)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-11 * b.abs().max())
    assert torch.equal(layer(ids), layer.eval()(ids))
    if padding is not None:
        assert found[0][padding] == 0
        assert layer.padding_idx == padding % ROWS


def test_a_tied_output_layer(make_factors: Any) -> None:
    factors, x = make_factors(ROWS, K, DIM, "sign"), normals(3, DIM)
    layer = DibaEmbedding.from_factorization(factors.diba).double()
    y = functional.linear(x, layer.weight)
    exact, sums = (x @ torch.from_numpy(factors.dense()).T, x.abs() @ torch.from_numpy(factors.magnitude()).T)
    assert ((y - exact).abs() <= 2 * (DIM + K + 3) * EPS * sums).all()
    y.sum().backward()
    assert all(d.grad.abs().max() > 0 for d in layer.diagonals())


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.tensor([0.0]), TypeError, "ids are torch.float32; they must be torch.int64 or torch.int32"),
        (torch.tensor([True]), TypeError, "ids are torch.bool"),
        (torch.tensor([ROWS]), IndexError, "out of range"),
        (torch.tensor([-1]), IndexError, "out of range"),
    ],
)
def test_wrong_ids_are_refused(ids: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DibaEmbedding(ROWS, DIM, K)(ids)


def test_embedding_from_dense_and_back() -> None:
    torch.manual_seed(0)
    dense = nn.Embedding(ROWS, DIM, padding_idx=2, dtype=torch.bfloat16)
    layer = compressed(dense, k=K, effort="fast")
    assert type(layer) is DibaEmbedding
    assert layer.factorization() == diba.solve(dense.weight.detach().float().numpy(), k=K, effort="fast")
    assert (layer.num_embeddings, layer.embedding_dim, layer.padding_idx) == (ROWS, DIM, 2)
    assert (layer.dtype, layer(random_ids(3)).dtype) == (torch.bfloat16, torch.bfloat16)
    assert not layer(torch.tensor(2)).any()
    assert "50, 21, padding_idx=2, k=13" in repr(layer)
    back = layer.to_dense_module()
    assert type(back) is nn.Embedding
    assert torch.equal(back.weight, layer.dense_weight())
    assert back.padding_idx == 2
    assert DibaEmbedding.from_dense(back, layer.factorization()).factorization() == layer.factorization()


def test_a_fresh_embedding() -> None:
    torch.manual_seed(0)
    layer = DibaEmbedding(203, 195, 101, padding_idx=-1)
    weight = layer.dense_weight().detach()
    assert 0.4 < weight[:-1].square().mean() < 2.5  # nn.Embedding: 1
    assert not weight[-1].any()
    with pytest.raises(ValueError, match="padding_idx is 203"):
        DibaEmbedding(203, 195, 101, padding_idx=203)


@pytest.mark.parametrize("setting", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_other_embeddings_are_refused(setting: dict[str, Any]) -> None:
    dense = nn.Embedding(ROWS, DIM, **setting)
    (name,) = setting
    assert factored_matrix(dense) is None
    assert name in kind_of(dense).obstacle(dense)
    with pytest.raises(ValueError, match=f"{name} is .*, must be .*leave this Embedding dense"):
        compressed(dense, k=2)


class Positions(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids + 2)


def test_embeddings_with_their_own_forward_are_left_alone() -> None:
    assert replaceable(Positions(ROWS, DIM)) is None


# ---------------------------------------------------------------- convolutions

SETTINGS = [
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2, "bias": False},
    {"kernel_size": 1, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 2, "dilation": 3},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
]
TWO_AXES = [
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"kernel_size": (1, 3), "padding": "same"},
    {"kernel_size": (1, 1), "stride": (1, 3)},
]
CHANNELS, OUTPUTS = 5, 7


def convolution(
    make_factors: Any, axes: int, alphabet: str, settings: dict[str, Any]
) -> tuple[Any, Any, Any]:
    """(factored layer, dense layer of the same weight, dense layer of all absolute values), in float64."""
    kind, torchs = ((DibaConv1d, nn.Conv1d), (DibaConv2d, nn.Conv2d))[axes - 1]
    dense = torchs(CHANNELS, OUTPUTS, **settings).double()
    factors = make_factors(OUTPUTS, K, dense.weight[0].numel(), alphabet)
    absolute = copy.deepcopy(dense)
    with torch.no_grad():
        dense.weight.copy_(torch.from_numpy(factors.dense()).view_as(dense.weight))
        absolute.weight.copy_(torch.from_numpy(factors.magnitude()).view_as(dense.weight))
        if dense.bias is not None:
            absolute.bias.abs_()
    others = {name: value for name, value in settings.items() if name not in ("kernel_size", "bias")}
    return (
        kind.from_factorization(factors.diba, settings["kernel_size"], bias=dense.bias, **others).double(),
        dense,
        absolute,
    )


@ALPHABETS
@pytest.mark.parametrize(
    ("axes", "settings"),
    [*((1, s) for s in SETTINGS), *((2, s) for s in SETTINGS + TWO_AXES)],
    ids=lambda value: (
        " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else f"{value}d"
    ),
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_a_convolution_is_torchs(
    make_factors: Any, axes: int, alphabet: str, settings: dict[str, Any]
) -> None:
    layer, dense, absolute = convolution(make_factors, axes, alphabet, settings)
    x = normals(3, CHANNELS, *(11, 8)[:axes])
    terms = layer.d3.numel() + K + 4
    for given in (x, x[0]):
        y, exact = layer(given), dense(given)
        assert y.shape == exact.shape
        assert y.is_contiguous()
        assert ((y - exact).abs() <= 2 * terms * EPS * absolute(given.abs())).all()
        with torch.no_grad():  # patches are copied in another order
            assert torch.equal(layer(given), y)
    assert layer.float()(x.float()).dtype == torch.float32
    assert snr(dense(x), layer(x.float())) > 40


@pytest.mark.parametrize("settings", SETTINGS[:5])
def test_channels_last_stays_channels_last(make_factors: Any, settings: dict[str, Any]) -> None:
    layer, _, _ = convolution(make_factors, 2, "sign", settings)
    x = normals(3, CHANNELS, 11, 8)
    y = layer(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(y, layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", [SETTINGS[1], SETTINGS[3]])
def test_gradients_of_a_convolution(make_factors: Any, settings: dict[str, Any]) -> None:
    layer, dense, _ = convolution(make_factors, 2, "binary", settings)
    x = normals(2, CHANNELS, 6, 5).requires_grad_()
    y = layer(x)
    above = normals(*y.shape)
    found = torch.autograd.grad(y, [x, *layer.diagonals()], above)
    stride, padding = dense.stride, dense.padding
    exact = functional.conv2d(x, layer.dense_weight(), layer.bias, stride, padding)
    expected = torch.autograd.grad(exact, [x, *layer.diagonals()], above)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-11 * b.abs().max())


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_convolution_from_dense_and_back(kind: Any) -> None:
    torch.manual_seed(0)
    settings = {"stride": 2, "padding": 3, "dilation": 2, "padding_mode": "circular"}
    dense = kind(CHANNELS, OUTPUTS, 3, **settings).bfloat16().eval()
    layer = compressed(dense, k=K, effort="fast")
    matrix = dense.weight.detach().float().flatten(1).numpy()
    assert layer.factorization() == diba.solve(matrix, k=K, effort="fast")
    assert torch.equal(layer.bias, dense.bias)
    assert layer.weight.shape == dense.weight.shape
    back = layer.to_dense_module()
    assert type(back) is kind
    assert repr(back) == repr(dense)
    assert torch.equal(back.weight, layer.dense_weight())
    assert torch.equal(back.bias, dense.bias)
    assert not back.training


def test_a_convolution_is_printed_as_torchs() -> None:
    """With what is not usual, in torch's words; and its size."""
    plain = DibaConv1d(8, 6, 3, k=4)
    assert plain.extra_repr().startswith("8, 6, kernel_size=(3,), stride=(1,), bias=True, ")
    options: dict[str, Any] = {"stride": 2, "padding": (1, 2), "dilation": 2, "padding_mode": "reflect"}
    dense, layer = (
        nn.Conv2d(8, 6, 3, bias=False, **options),
        DibaConv2d(8, 6, 3, k=4, bias=False, **options),
    )
    own = dense.extra_repr().replace(", bias=False", "").split(", padding_mode")[0]
    assert layer.extra_repr().startswith(f"{own}, padding_mode='reflect', bias=False, k=4")


def test_the_state_of_embeddings_and_convolutions_survives() -> None:
    for one, other in (
        (DibaEmbedding(ROWS, DIM, K), DibaEmbedding(ROWS, DIM, K, device="meta")),
        (DibaConv2d(CHANNELS, OUTPUTS, 3, K), DibaConv2d(CHANNELS, OUTPUTS, 3, K, device="meta")),
    ):
        x = random_ids(4) if isinstance(one, DibaEmbedding) else normals(1, CHANNELS, 5, 6).float()
        other.load_state_dict(one.state_dict(), assign=True)
        assert torch.equal(other(x), one(x))
        assert torch.equal(copy.deepcopy(one)(x), one(x))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["embedding", "1x1", "3x3"])
def test_compiled(kind: str) -> None:
    layer = {
        "embedding": lambda: DibaEmbedding(ROWS, DIM, K, padding_idx=3),
        "1x1": lambda: DibaConv2d(CHANNELS, OUTPUTS, 1, K, stride=2),
        "3x3": lambda: DibaConv2d(CHANNELS, OUTPUTS, 3, K, padding=1),
    }[kind]()
    x = random_ids(4) if kind == "embedding" else normals(2, CHANNELS, 5, 6).float()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groups": 5}, ValueError, "groups is 5; it must be 1"),
        ({"stride": 0}, ValueError, "stride is 0"),
        ({"kernel_size": (3, 3, 3)}, ValueError, r"kernel_size is \(3, 3, 3\); it must be one number, or 2"),
        ({"padding": "full"}, ValueError, "padding is 'full'; it must be one of 'same', 'valid'"),
        ({"padding": "same", "stride": 2}, ValueError, r"stride is \(2, 2\); it must be 1"),
        ({"padding": -1}, ValueError, "padding is -1"),
        ({"padding_mode": "mirror"}, ValueError, "padding_mode is 'mirror'"),
        ({"in_channels": 1.5}, TypeError, "in_channels is 1.5"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    usual = {"in_channels": CHANNELS, "out_channels": 10, "kernel_size": 3, "k": K}
    with pytest.raises(error, match=message):
        DibaConv2d(**{**usual, **arguments})


@pytest.mark.parametrize("shape", [(2, CHANNELS + 1, 8, 8), (CHANNELS, 8), (1, 2, CHANNELS, 8, 8)])
def test_wrong_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x has shape .* must be \(batch, 5 channels, and 2 axes"):
        DibaConv2d(CHANNELS, OUTPUTS, 3, K)(torch.zeros(shape))


def test_grouped_convolutions_stay_dense() -> None:
    dense = nn.Conv2d(4, 4, 3, groups=4)
    assert kind_of(dense).factored is DibaConv2d
    assert factored_matrix(dense) is None
    assert kind_of(dense).obstacle(dense) == "groups is 4, must be 1"
    with pytest.raises(ValueError, match="groups is 4, must be 1; leave this Conv2d dense"):
        compressed(dense, k=2)
    with pytest.raises(TypeError, match=r"module is a ConvTranspose2d; it must be a torch\.nn\.Conv2d"):
        DibaConv2d.from_dense(nn.ConvTranspose2d(4, 4, 3), k=2)


def test_factors_that_are_no_kernel_are_refused(make_factors: Any) -> None:
    with pytest.raises(
        ValueError, match="f has 20 columns; they must be a multiple of the kernel's 9 pixels"
    ):
        DibaConv2d.from_factorization(make_factors(4, 3, 20, "sign").diba, 3)
