"""The linear layer, and what all layers share: state, dtypes, the dense weight, dense layers in and out."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn import functional

import diba
from diba.torch.modules.kinds import compressed, factored_matrix, kind_of, replaceable
from diba.torch.modules.layer import FactoredLayer
from diba.torch.modules.linear import DibaLinear
from diba.torch.modules.weight import Weight

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ALPHABETS = pytest.mark.parametrize("alphabet", ["binary", "sign"])
M, K, N = 21, 13, 34  # no multiples of 8: rows of bits end within a byte


def normals(*shape: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def layer_of(factors: Any, bias: Tensor | None = None, **options: Any) -> DibaLinear:
    return DibaLinear.from_factorization(factors.diba, bias=bias, **options)


def snr(exact: Tensor, found: Tensor) -> float:
    """In dB; the fast products keep 40 dB (docs/run.md)."""
    exact, noise = exact.double(), exact.double() - found.double()
    return float(10 * torch.log10(exact.square().sum() / noise.square().sum()))


def same_state(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.fixture
def layer(make_factors: Any) -> DibaLinear:
    return layer_of(make_factors(M, K, N, "sign"), normals(M).float())


# ---------------------------------------------------------------- results


@ALPHABETS
@pytest.mark.parametrize("shape", [(N,), (5, N), (2, 3, N), (0, N)])
def test_forward_in_float64_is_the_product(make_factors: Any, alphabet: str, shape: tuple[int, ...]) -> None:
    factors, x, bias = make_factors(M, K, N, alphabet), normals(*shape), normals(M)
    y = layer_of(factors, bias).double()(x)
    exact = x.numpy() @ factors.dense().T + bias.numpy()
    sums = np.abs(x.numpy()) @ factors.magnitude().T + np.abs(bias.numpy())
    assert y.shape == (*shape[:-1], M)
    assert y.dtype == torch.float64
    assert (np.abs(y.detach().numpy() - exact) <= 2 * (N + K + 4) * 2.0**-52 * sums).all()


@ALPHABETS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forward_keeps_the_dtype_of_its_input(make_factors: Any, alphabet: str, dtype: torch.dtype) -> None:
    factors = make_factors(M, K, N, alphabet)
    x = normals(40, N).to(dtype)
    y = layer_of(factors, dtype=dtype)(x)
    assert y.dtype == dtype
    exact = x.double() @ torch.from_numpy(factors.dense()).T
    assert snr(exact, y.detach()) > 40


def test_all_diagonals_and_the_bias_train_and_no_bit_moves(layer: DibaLinear) -> None:
    before = layer.factorization()
    target, x = normals(60, M).float(), normals(60, N).float()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = functional.mse_loss(layer(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = layer.factorization()
    assert losses[-1] < losses[0] / 2
    assert (after.b1, after.b2) == (before.b1, before.b2)
    for name in ("d1", "d2", "d3"):
        assert (getattr(after, name) != getattr(before, name)).all()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, N + 1), ValueError, f"must have {N} entries"),
        (torch.zeros(2, N, dtype=torch.int64), TypeError, "must be floating"),
    ],
)
def test_a_wrong_input_is_refused(layer: DibaLinear, x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        layer(x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, "k is 0"),
        ({"in_features": 2.5}, TypeError, "in_features is 2.5"),
        ({"out_features": 0}, ValueError, "out_features is 0"),
        ({"alphabet": "ternary"}, ValueError, "alphabet is 'ternary'"),
        ({"dtype": torch.int8}, TypeError, "dtype is torch.int8; it must be a floating"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DibaLinear(**{"in_features": 4, "out_features": 3, "k": 2, **options})


def test_compiled_and_exported(layer: DibaLinear) -> None:
    x = normals(6, N).float()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))
    compiled(x).sum().backward()
    found = layer.d2.grad.clone()
    layer.zero_grad()
    layer(x).sum().backward()
    assert torch.equal(found, layer.d2.grad)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert torch.equal(exported.module()(x[:4]), layer(x[:4]))


def test_a_parametrized_diagonal(layer: DibaLinear) -> None:
    class Doubled(nn.Module):
        def forward(self, d: Tensor) -> Tensor:
            return 2 * d

    x = normals(3, N).float()
    y = layer(x) - layer.bias
    nn.utils.parametrize.register_parametrization(layer, "d1", Doubled())
    assert torch.allclose(layer(x) - layer.bias, 2 * y, rtol=1e-4, atol=1e-4)


def test_reading_the_dtype_of_the_weight_can_be_compiled(layer: DibaLinear) -> None:
    class Caster(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.to(self.inner.weight.dtype))

    x = normals(6, N).float()
    assert torch.equal(torch.compile(Caster(), fullgraph=True, backend="aot_eager")(x), layer(x))


# ---------------------------------------------------------------- factors in and out


@ALPHABETS
def test_factors_come_back_bit_equal(make_factors: Any, alphabet: str) -> None:
    factors = make_factors(M, K, N, alphabet)
    layer = layer_of(factors)
    assert layer.factorization() == factors.diba
    assert layer.alphabet == alphabet
    assert layer.k == K
    assert layer.bias is None
    assert np.array_equal(layer.b1.numpy(), factors.diba.b1.packed_rows())
    assert np.array_equal(layer.b2.numpy(), factors.diba.b2.packed_rows())


def test_a_factorization_is_a_copy(layer: DibaLinear) -> None:
    before = layer.factorization()
    with torch.no_grad():
        layer.d1.add_(1)
        layer.b1.zero_()
    assert before != layer.factorization()
    assert before.d1[0] + 1 == layer.factorization().d1[0]


def test_set_factorization_works_in_place_and_is_seen(make_factors: Any, layer: DibaLinear) -> None:
    x, held = normals(3, N).float(), layer.d1
    y = layer(x)
    other = make_factors(M, K, N, "sign", seed=9).diba
    layer.set_factorization(other)
    assert layer.d1 is held
    assert held.requires_grad
    assert layer.factorization() == other
    assert torch.equal(layer(x), DibaLinear.from_factorization(other, bias=layer.bias)(x))
    assert not torch.equal(layer(x), y)


@pytest.mark.parametrize(
    ("shape", "alphabet", "message"),
    [
        ((M + 1, K, N), "sign", "shape of f"),
        ((M, K + 1, N), "sign", "k of f is 14; it must be 13"),
        ((M, K, N), "binary", "alphabet of f is binary; it must be sign"),
    ],
)
def test_other_factors_are_refused(
    make_factors: Any, layer: DibaLinear, shape: tuple[int, int, int], alphabet: str, message: str
) -> None:
    before = layer.factorization()
    with pytest.raises(ValueError, match=message):
        layer.set_factorization(make_factors(*shape, alphabet).diba)
    assert layer.factorization() == before
    with pytest.raises(TypeError, match=r"f is .* must be a Factorization"):
        layer.set_factorization(np.eye(3))


def test_sizes_are_those_of_the_factorization(make_factors: Any) -> None:
    f = diba.solve(np.random.default_rng(0).standard_normal((M, N)), k=K, effort="fast")
    layer = DibaLinear.from_factorization(f)
    assert layer.bits_per_weight == f.bits_per_weight
    assert f.diagonal_bits == 16
    assert f"bits_per_weight={f.bits_per_weight:.2f}" in repr(layer)
    assert layer.nbytes == 4 * (M + K + N) + M * 2 + K * 5
    with torch.no_grad():
        layer.d1.mul_(1 / 3)
    assert layer.bits_per_weight == layer.factorization().bits_per_weight > f.bits_per_weight


# ---------------------------------------------------------------- state


def test_the_state_is_plain(layer: DibaLinear) -> None:
    state = layer.state_dict()
    assert {name: (tuple(t.shape), t.dtype) for name, t in state.items()} == {
        "d1": ((M,), torch.float32),
        "d2": ((K,), torch.float32),
        "d3": ((N,), torch.float32),
        "bias": ((M,), torch.float32),
        "b1": ((M, 2), torch.uint8),
        "b2": ((K, 5), torch.uint8),
    }
    assert all(type(p) is nn.Parameter for p in layer.parameters())
    assert all(type(b) is Tensor for b in layer.buffers())


def by_state_dict(layer: nn.Module, tmp_path: Path) -> nn.Module:
    fresh = DibaLinear(N, M, K, alphabet="sign")
    fresh.load_state_dict(layer.state_dict())
    return fresh


def by_assignment(layer: nn.Module, tmp_path: Path) -> nn.Module:
    fresh = DibaLinear(N, M, K, alphabet="sign", device="meta")
    fresh.load_state_dict(layer.state_dict(), assign=True)
    return fresh


def by_to_empty(layer: nn.Module, tmp_path: Path) -> nn.Module:
    fresh = DibaLinear(N, M, K, alphabet="sign", device="meta").to_empty(device="cpu")
    fresh.load_state_dict(layer.state_dict())
    return fresh


def by_deepcopy(layer: nn.Module, tmp_path: Path) -> nn.Module:
    return copy.deepcopy(layer)


def by_pickle(layer: nn.Module, tmp_path: Path) -> nn.Module:
    return pickle.loads(pickle.dumps(layer))


def by_torch_save(layer: nn.Module, tmp_path: Path) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    fresh = DibaLinear(N, M, K, alphabet="sign")
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    return fresh


def by_safetensors(layer: nn.Module, tmp_path: Path) -> nn.Module:
    save_model(layer, str(tmp_path / "layer.safetensors"))
    fresh = DibaLinear(N, M, K, alphabet="sign")
    assert load_model(fresh, str(tmp_path / "layer.safetensors")) == (set(), [])
    return fresh


@pytest.mark.parametrize(
    "way", [by_state_dict, by_assignment, by_to_empty, by_deepcopy, by_pickle, by_torch_save, by_safetensors]
)
def test_the_state_survives(
    layer: DibaLinear, tmp_path: Path, way: Callable[[nn.Module, Path], nn.Module]
) -> None:
    x = normals(3, N).float()
    y = layer(x)  # also packs the bits, which a copy must not share
    other = way(layer, tmp_path)
    assert same_state(layer, other)
    assert torch.equal(other(x), y)
    with torch.no_grad():
        other.b1.bitwise_not_()
        other.b1[:, -1].bitwise_and_(2 ** (K % 8) - 1)
    assert not torch.equal(other(x), y)
    assert way is by_assignment or torch.equal(layer(x), y)


def test_loading_keeps_diagonals_float32_and_refuses_cast_bits(layer: DibaLinear) -> None:
    state = {name: t.bfloat16() if t.is_floating_point() else t for name, t in layer.state_dict().items()}
    fresh = DibaLinear(N, M, K, alphabet="sign", device="meta")
    fresh.load_state_dict(state, assign=True)
    assert [d.dtype for d in fresh.diagonals()] == [torch.float32] * 3
    assert fresh.dtype == fresh.weight.dtype == fresh.bias.dtype == torch.bfloat16
    assert torch.equal(fresh.d1, layer.d1.bfloat16().float())
    state["b1"] = state["b1"].float()
    with pytest.raises(RuntimeError, match=r"b1 is torch\.float32; it must be torch\.uint8"):
        fresh.load_state_dict(state)


def test_a_state_of_another_size_is_refused(layer: DibaLinear) -> None:
    with pytest.raises(RuntimeError, match="size mismatch for d2"):
        DibaLinear(N, M, K + 1).load_state_dict(layer.state_dict())


@ALPHABETS
def test_a_random_start_is_like_a_fresh_dense_layer(alphabet: str) -> None:
    torch.manual_seed(0)
    layer = DibaLinear(203, 195, 101, alphabet=alphabet, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    weight = layer.dense_weight().detach()
    assert layer.factorization().shape == (195, 203)  # which refuses set bits past the end of a row
    assert 0.4 < weight.square().mean() * 3 * 203 < 2.5  # nn.Linear: 1 / (3 n)
    assert weight.mean().abs() < weight.std() / 5
    assert 0.4 < layer.b1.bitwise_and(1).float().mean() < 0.6
    assert layer.bias.abs().max() <= 203**-0.5
    assert layer(torch.ones(203)).isfinite().all()


def test_the_meta_device_has_no_values() -> None:
    layer = DibaLinear(N, M, K, device="meta")
    assert layer(torch.empty(2, N, device="meta")).shape == (2, M)
    assert layer.weight.device.type == "meta"
    assert "k=13" in repr(layer)
    with pytest.raises(RuntimeError, match="meta device"):
        layer.factorization()


# ---------------------------------------------------------------- dtypes


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("cast", "dtype"),
    [
        (lambda model: model.to(torch.bfloat16), torch.bfloat16),
        (lambda model: model.half(), torch.float16),
        (lambda model: model.double().bfloat16(), torch.bfloat16),
        (lambda model: model.type(torch.float16), torch.float16),
        (lambda model: model.to("cpu", torch.bfloat16).float(), torch.float32),
        (lambda model: model.bfloat16().to("cpu"), torch.bfloat16),
        (lambda model: model.double(), torch.float64),
    ],
)
def test_casts_leave_diagonals_and_bits_alone(
    make_factors: Any, bias: bool, cast: Callable[[nn.Module], nn.Module], dtype: torch.dtype
) -> None:
    layer = layer_of(make_factors(M, K, N, "binary"), torch.ones(M) if bias else None)
    layer(normals(2, N).float()).sum().backward()
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    cast(nn.Sequential(layer, nn.Linear(M, 2)))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for d, name in zip(layer.diagonals(), ("d1", "d2", "d3"), strict=True):
        assert d.dtype == d.grad.dtype == wide
        assert torch.equal(d, before[name].to(wide))
    assert torch.equal(layer.b1, before["b1"])
    assert torch.equal(layer.b2, before["b2"])
    assert layer.weight.dtype == layer.dtype == layer.dense_weight().dtype == dtype
    if bias:
        assert layer.bias.dtype == layer.bias.grad.dtype == dtype
    assert layer(normals(2, N).to(dtype)).dtype == dtype


def test_diagonals_are_float32_under_another_default() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        layer = DibaLinear(N, M, K)
    finally:
        torch.set_default_dtype(torch.float32)
    assert [d.dtype for d in layer.diagonals()] == [torch.float32] * 3
    assert layer.bias.dtype == layer.weight.dtype == torch.bfloat16


def test_to_meta_and_back(layer: DibaLinear) -> None:
    layer.bfloat16().to("meta")
    assert {t.device.type for t in layer.state_dict().values()} == {"meta"}
    layer.to_empty(device="cpu")
    assert [d.dtype for d in layer.diagonals()] == [torch.float32] * 3
    assert layer.bias.dtype == torch.bfloat16


def tied(**settings: Any) -> nn.Module:
    """An embedding and the output layer that shares its weight, both compressed."""
    model = nn.Module()
    model.table, model.head = nn.Embedding(96, 64), nn.Linear(64, 96, bias=False)
    model.head.weight = model.table.weight
    return diba.torch.convert(model, progress=False, **settings)


TIED = pytest.mark.parametrize(
    "settings", [{"codes": 8, "embeddings": 8}, {"k": 32, "tied": True, "embeddings": True}]
)


@TIED
def test_tied_layers_share_their_bits_wherever_they_are_moved(settings: dict[str, Any]) -> None:
    for move in (
        lambda m: m.to("meta"),
        lambda m: m.to_empty(device="cpu"),
        lambda m: m.half(),
        copy.deepcopy,
    ):
        model = move(tied(**settings))
        for name in model.table.bit_names:
            assert getattr(model.table, name) is getattr(model.head, name)
        moved = model.to("meta")
        assert all(getattr(moved.table, name) is getattr(moved.head, name) for name in model.table.bit_names)


@TIED
def test_moved_layers_keep_what_only_one_of_them_was_given(settings: dict[str, Any]) -> None:
    model = tied(**settings)
    name, before = model.table.bit_names[0], getattr(model.table, model.table.bit_names[0]).clone()
    model.table.to_empty(device="cpu")
    getattr(model.table, name).fill_(7)
    model.head._apply(torch.clone)  # as a move to another device: a new tensor of the same values
    assert torch.equal(getattr(model.head, name), before)


# ---------------------------------------------------------------- the weight


def test_metadata_of_the_weight_build_nothing(layer: DibaLinear, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = layer.dense_weight()
    monkeypatch.setattr(FactoredLayer, "dense_weight", lambda self: pytest.fail("built"))
    w = layer.weight
    assert isinstance(w, Tensor)
    assert (w.shape, w.size(), w.size(1), w.dim(), w.ndim) == (dense.shape, dense.size(), N, 2, 2)
    assert (w.dtype, w.device, w.layout) == (dense.dtype, dense.device, dense.layout)
    assert (w.numel(), w.nbytes, w.element_size(), len(w)) == (M * N, 4 * M * N, 4, M)
    assert w.is_floating_point()
    assert w.requires_grad
    assert w.grad is None
    assert not w.is_meta
    assert "DibaLinear" in repr(w)
    assert (w.data.shape, w.data.requires_grad) == (dense.shape, False)
    layer.requires_grad_(False)
    assert not layer.weight.requires_grad


@ALPHABETS
def test_any_use_of_the_weight_gives_its_values(make_factors: Any, alphabet: str) -> None:
    factors = make_factors(M, K, N, alphabet)
    layer, x = layer_of(factors), normals(3, N).float()
    exact = torch.from_numpy(factors.dense())
    bound = (2 * (K + 3) * 2.0**-23) * torch.from_numpy(factors.magnitude())
    for found in (
        layer.weight.detach(),
        layer.weight.data.clone(),
        layer.weight[:],
        layer.weight.T.T,
        +layer.weight,
    ):
        assert type(found) is Tensor
        assert ((found - exact).abs() <= bound).all()
    dense = layer.dense_weight()
    assert torch.equal(functional.linear(x, layer.weight), functional.linear(x, dense))
    assert torch.equal(x @ layer.weight.T, x @ dense.T)
    assert torch.equal(torch.cat([layer.weight, layer.weight]), torch.cat([dense, dense]))
    assert torch.equal(nn.Parameter(layer.weight.detach()), dense)
    target = torch.zeros(M, N)
    assert torch.equal(target.copy_(layer.weight), dense)


@ALPHABETS
def test_the_weight_is_differentiable(make_factors: Any, alphabet: str) -> None:
    layer = layer_of(make_factors(5, 3, 7, alphabet)).double()

    def product(*diagonals: Tensor) -> Tensor:
        state = dict(zip(("d1", "d2", "d3"), diagonals, strict=True))
        with torch.nn.utils.parametrize.cached():
            return torch.func.functional_call(Weigher(layer), {f"layer.{n}": d for n, d in state.items()}, ())

    assert torch.autograd.gradcheck(product, layer.diagonals())
    (layer.weight.data * 2).sum()
    assert not (layer.weight.data * 2).requires_grad


class Weigher(nn.Module):
    def __init__(self, layer: DibaLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        return self.layer.weight * 1


def test_nothing_dense_is_kept(layer: DibaLinear, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[weakref.ref[Tensor]] = []
    build = FactoredLayer.dense_weight

    def watched(self: FactoredLayer) -> Tensor:
        dense = build(self)
        built.append(weakref.ref(dense))
        return dense

    monkeypatch.setattr(FactoredLayer, "dense_weight", watched)
    weight = layer.weight
    norms = [weight.norm().item() for _ in range(2)]
    gc.collect()
    assert norms[0] == norms[1]
    assert len(built) == 2
    assert all(reference() is None for reference in built)


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.normal_(),
        lambda w: w.data.zero_(),
        lambda w: nn.init.xavier_uniform_(w),
        lambda w: nn.init.zeros_(tensor=w),
        lambda w: w.__setitem__(0, 1.0),
        lambda w: w.__iadd__(1),
        lambda w: w.requires_grad_(False),
        lambda w: setattr(w, "data", torch.zeros(M, N)),
        lambda w: setattr(w, "requires_grad", False),
        lambda w: torch.add(torch.ones(M, N), 1, out=w),
    ],
)
def test_writing_into_the_weight_is_refused(layer: DibaLinear, write: Callable[[Tensor], Any]) -> None:
    before = copy.deepcopy(layer)
    with pytest.raises(RuntimeError, match="weight of DibaLinear"), torch.no_grad():
        write(layer.weight)
    assert same_state(layer, before)


def test_initialisers_of_transformers_pass_the_weight_by(layer: DibaLinear) -> None:
    assert layer.weight._is_hf_initialized


def test_the_weight_cannot_be_replaced(layer: DibaLinear) -> None:
    for value in (nn.Parameter(torch.zeros(M, N)), torch.zeros(M, N), None):
        with pytest.raises(AttributeError, match="weight of DibaLinear cannot be set"):
            layer.weight = value
    assert "weight" not in layer.state_dict()
    assert isinstance(layer.weight, Weight)


def test_nothing_below_autograd_gets_the_weight(layer: DibaLinear) -> None:
    """There it would be a tensor without values, and its gradient would be lost."""
    with (
        torch._C.DisableTorchFunctionSubclass(),
        pytest.raises(RuntimeError, match=r"use .*dense_weight\(\)"),
    ):
        torch.add(layer.weight, 1)


# ---------------------------------------------------------------- dense layers


class Conv1D(nn.Module):
    """Named and made as that of transformers."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(normals(nx, nf).float())
        self.bias = nn.Parameter(normals(nf, seed=2).float())

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_a_dense_layer_and_back(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dense = nn.Linear(N, M, dtype=dtype).eval()
    dense.bias.requires_grad_(False)
    layer = DibaLinear.from_dense(dense, k=K, effort="fast")
    assert layer.factorization() == diba.solve(dense.weight.detach().float().numpy(), k=K, effort="fast")
    assert torch.equal(layer.bias, dense.bias)
    assert layer.bias is not dense.bias
    assert (layer.dtype, layer.training, layer.bias.requires_grad, layer.d1.requires_grad) == (
        dtype,
        False,
        False,
        True,
    )
    back = layer.to_dense_module()
    assert type(back) is nn.Linear
    assert torch.equal(back.weight, layer.dense_weight())
    assert torch.equal(back.bias, dense.bias)
    assert (back.training, back.bias.requires_grad, back.weight.requires_grad) == (False, False, True)
    assert (back.weight.dtype, back.in_features, back.out_features) == (dtype, N, M)


def test_a_frozen_layer_stays_frozen(make_factors: Any) -> None:
    dense = nn.Linear(N, M, bias=False).requires_grad_(False)
    layer = DibaLinear.from_dense(dense, make_factors(M, K, N, "sign").diba)
    assert not any(p.requires_grad for p in layer.parameters())
    assert layer.bias is None
    assert layer.training
    assert not layer.to_dense_module().weight.requires_grad


def test_conv1d_of_transformers(make_factors: Any) -> None:
    dense, x = Conv1D(M, N), normals(4, N).float()
    layer = compressed(dense, k=60, effort="fast")
    assert isinstance(layer, DibaLinear)
    assert (layer.in_features, layer.out_features, layer.fan_in_fan_out) == (N, M, True)
    assert layer.weight.shape == layer.dense_weight().shape == dense.weight.shape == (N, M)
    assert factored_matrix(dense).shape == (M, N)
    assert snr(dense(x).detach(), layer(x).detach()) > 15
    assert snr(torch.addmm(layer.bias, x, layer.weight).detach(), layer(x).detach()) > 40


def test_conv1d_comes_back_as_itself() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    dense = pytorch_utils.Conv1D(M, N).bfloat16().eval()
    layer = DibaLinear.from_dense(dense, k=4, effort="fast")
    back = layer.to_dense_module()
    assert type(back) is type(dense)
    assert torch.equal(back.weight, layer.dense_weight())
    assert torch.equal(back.bias, dense.bias)
    assert back.weight.dtype == torch.bfloat16
    assert not back.training


class Shifted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 1)


class Renamed(nn.Linear):
    pass


def test_which_layers_are_replaced() -> None:
    linear = nn.Linear(4, 3)
    assert replaceable(linear) is replaceable(Renamed(4, 3)) is not None
    assert factored_matrix(linear).data_ptr() == linear.weight.data_ptr()
    for other in (nn.ReLU(), nn.Bilinear(2, 2, 2)):
        assert kind_of(other) is factored_matrix(other) is None
        with pytest.raises(TypeError, match=f"module is a {type(other).__name__}"):
            compressed(other, k=2)
        with pytest.raises(TypeError, match=r"must be a torch\.nn\.Linear"):
            DibaLinear.from_dense(other, k=2)
    for other in (Shifted(4, 3), nn.MultiheadAttention(4, 2).out_proj):
        assert kind_of(other) is kind_of(linear)
        assert replaceable(other) is factored_matrix(other) is None
        for make in (compressed, DibaLinear.from_dense):
            with pytest.raises(ValueError, match=f"its {type(other).__name__} has a forward of its own"):
                make(other, k=2)


def test_subclasses_of_conv1d_are_layers_of_its_kind() -> None:
    class Plain(Conv1D):
        pass

    class Doubled(Conv1D):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    plain, doubled = Plain(M, N), Doubled(M, N)
    assert replaceable(plain) is kind_of(doubled) is kind_of(Conv1D(M, N)) is not None
    assert torch.equal(factored_matrix(plain), plain.weight.T)
    assert "forward of its own" in kind_of(doubled).obstacle(doubled)


def test_a_layer_of_a_subclass_is_of_that_class(make_factors: Any) -> None:
    class Own(DibaLinear):
        pass

    layer = Own.from_dense(nn.Linear(N, M), make_factors(M, K, N, "sign").diba)
    assert type(layer) is Own
    assert type(layer.to_dense_module()) is nn.Linear


def test_a_layer_without_shape_is_refused() -> None:
    lazy = nn.LazyLinear(3)
    assert factored_matrix(lazy) is None
    with pytest.raises(ValueError, match="no shape before the first call; leave this LazyLinear dense"):
        compressed(lazy, k=2)


def test_wrong_factors_for_a_layer_are_refused(make_factors: Any) -> None:
    dense, f = nn.Linear(N, M), make_factors(M, K, N, "sign").diba
    with pytest.raises(ValueError, match=r"shape of f is \(34, 21\); it must be \(21, 34\)"):
        compressed(dense, f.T)
    with pytest.raises(TypeError, match="f and k are both given"):
        compressed(dense, f, k=3)
    with pytest.raises(TypeError, match="must be a Factorization"):
        compressed(dense, np.eye(3))
    with pytest.raises(ValueError, match="no size"):
        compressed(dense)
