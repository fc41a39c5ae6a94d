"""Layers of 8 and 4 bits an entry: what codes mean, products and gradients in float64, and conversion."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import diba.torch
from diba._internal.codes import Codes, quantize
from diba._internal.rounding import quantize_for
from diba._internal.snr import output_energy_and_error, snr_db
from diba.torch import CodedLayer, Config, DibaCodedEmbedding, DibaCodedLinear, DibaLinear, convert, report
from diba.torch.model.swap import replace
from diba.torch.ops.codes import code_linear

EPS = 2.0**-23
FORMS = pytest.mark.parametrize(("bits", "group"), [(8, 32), (4, 32), (4, 64)])


def matrix(m: int, n: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Rows of different sizes, with a zero row and an outlier."""
    w = np.random.default_rng(seed).standard_normal((m, n)) * np.exp(np.arange(m) % 5)[:, None]
    w[0], w[2, n // 2] = 0, 80
    return w.astype(np.float32)


def decoded(codes: Codes) -> np.ndarray[Any, np.dtype[np.float64]]:
    """W by the definition, one entry after the other."""
    (m, n), w = codes.shape, np.zeros(codes.shape)
    for i in range(m):
        for j in range(n):
            if codes.bits == 8:
                entry = int(codes.codes[i, j]) - 128
            else:
                assert codes.steps is not None
                byte = int(codes.codes[i, j // 2])
                entry = (byte // 16 if j % 2 else byte % 16) - 8
                entry *= int(codes.steps[i, j // codes.group]) - 128
            w[i, j] = float(codes.d1[i]) * entry
    return w


def linear(m: int, n: int, bias: bool = False, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(n, m, bias)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(matrix(m, n, seed)))
    return layer


# ---------------------------------------------------------------- codes


@FORMS
@pytest.mark.parametrize("n", [1, 31, 64, 97])
def test_codes_follow_the_definition_and_are_as_near_as_rounding(bits: int, group: int, n: int) -> None:
    w = matrix(9, n)
    codes = quantize(w, bits, group)
    exact = decoded(codes)
    np.testing.assert_array_equal(codes.rows(), exact.astype(np.float32))
    np.testing.assert_array_equal(codes.rows(np.array([[4, 1]])), codes.rows()[[[4, 1]]])
    assert not exact[0].any()
    size, shares = n if bits == 8 else group, np.zeros(2)
    for row, found in zip(w[1:].astype(np.float64), exact[1:], strict=True):
        plain = 0.0
        for first in range(0, n, size):
            block = row[first : first + size]
            step = np.abs(block).max() / (2 ** (bits - 1) - 1)
            plain += np.square(np.rint(block / step) * step - block).sum()
        shares += np.array([np.square(found - row).sum(), plain]) / np.square(row).sum()
    assert shares[0] <= 1.1 * shares[1] + 1e-6  # steps of a 63rd of the largest one cost little
    assert codes.d1.nbytes + codes.codes.nbytes + (0 if codes.steps is None else codes.steps.nbytes) == (
        9 * 4 + 9 * math.ceil(n * bits / 8) + (9 * math.ceil(n / group) if bits == 4 else 0)
    )


@pytest.mark.parametrize(("n", "group"), [(96, 32), (97, 64), (30, 32), (1, 32)])
def test_codes_for_given_inputs_lower_the_error_of_products(n: int, group: int) -> None:
    w = matrix(60, n)
    mixing = np.random.default_rng(1).standard_normal((n, n)) * np.exp(-np.arange(n) / 12)
    S = mixing @ mixing.T
    plain, fitted = quantize(w, 4, group), quantize_for(w, S, group)
    ridge = S + 0.1 * np.trace(S) / n * np.eye(n)

    def energy(codes: Codes) -> np.ndarray[Any, np.dtype[np.float64]]:
        errors = decoded(codes) - w
        return ((errors @ ridge) * errors).sum(1)  # type: ignore[no-any-return]

    before, after = energy(plain), energy(fitted)
    assert (after <= before * (1 + 1e-4) + 1e-20).all()  # no row is worse, up to float32
    assert n < 30 or after[1:].sum() < 0.75 * before[1:].sum()
    assert fitted.steps is not None
    np.testing.assert_array_equal(fitted.steps, plain.steps)
    if n % 2:
        assert (fitted.codes[:, -1] >> 4 == 8).all()  # the unused code is a zero
    zero = quantize_for(w, np.zeros((n, n)), group)  # inputs that were never seen
    assert np.isfinite(zero.d1).all()


def test_what_codes_cannot_be() -> None:
    for bits, group in ((7, 32), (8, 48), (4, 16)):
        with pytest.raises(ValueError, match="must be"):
            DibaCodedLinear(64, 8, bits=bits, group=group)
    with pytest.raises(TypeError):
        DibaCodedLinear(64, 8, bits=True)
    with pytest.raises(ValueError, match="65537"):
        DibaCodedLinear(65537, 1, device="meta")
    with pytest.raises(TypeError, match=r"torch\.nn\.Linear"):
        DibaCodedLinear.from_dense(nn.Embedding(3, 4))
    layer = DibaCodedLinear.from_dense(linear(5, 64))
    with pytest.raises(ValueError, match="bits"):
        layer.set_codes(quantize(matrix(5, 64), 4))
    with pytest.raises(AttributeError, match="set_codes"):
        layer.weight = nn.Parameter(torch.zeros(5, 64))


# ---------------------------------------------------------------- products


def bound(layer: DibaCodedLinear, x: Tensor) -> Tensor:
    """Half a step of the activations for every weight, and float32's rounding of a product and two scales."""
    w = copy.deepcopy(layer).double().dense_weight()
    most = (128 if layer.bits == 8 else 504) * layer.in_features
    step = x.double().abs().amax(-1, keepdim=True) / min(
        32767 if layer.bits == 8 else 127 * 256, (2**31 - 1) // most
    )
    sums = functional.linear(x.double().abs(), w.abs())
    return step / 2 * w.abs().sum(1) + 8 * EPS * sums


@FORMS
@pytest.mark.parametrize("shape", [(64,), (3, 1, 97), (21, 128), (0, 64)])
@pytest.mark.parametrize("bias", [False, True])
def test_products(bits: int, group: int, shape: tuple[int, ...], bias: bool) -> None:
    dense = linear(70, shape[-1], bias)
    layer = DibaCodedLinear.from_dense(dense, bits=bits, group=group).requires_grad_(False)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal(shape).astype(np.float32))
    w, shift = (
        copy.deepcopy(layer).double().dense_weight(),
        None if dense.bias is None else dense.bias.double(),
    )
    exact = functional.linear(x.double(), w, shift)
    y = layer(x)
    assert y.dtype == torch.float32
    rest = 0 if shift is None else 2 * EPS * (exact.abs() + shift.abs())
    assert ((y - exact).abs() <= bound(layer, x) + rest).all()
    if len(shape) > 1:
        assert torch.equal(layer(x[:1]), y[:1])  # alone as in a batch
    near = copy.deepcopy(layer).double()(x.double())
    assert torch.allclose(near, exact, rtol=1e-12, atol=1e-12)
    for dtype in (torch.bfloat16, torch.float16):
        found = copy.deepcopy(layer).to(dtype)(x.to(dtype))
        assert found.dtype == dtype
        assert torch.allclose(found.double(), exact, rtol=0.02, atol=0.02 * w.abs().sum(1).max().item())


def test_whole_numbers_are_multiplied_exactly() -> None:
    layer = DibaCodedLinear.from_dense(linear(600, 96, True))
    with torch.no_grad():
        layer.d1.fill_(0.5)
        layer.bias.fill_(3)  # type: ignore[union-attr]
    x = torch.from_numpy(np.random.default_rng(3).integers(-5, 6, (19, 96))).float()
    x[:, 0] = 8191  # its step is then 1/4: 32767 steps are more than four times as many
    e = layer.codes.double() - 128
    found, exact = layer(x), 0.5 * (x.double() @ e.T) + 3
    assert ((found - exact).abs() <= 4 * EPS * exact.abs() + bound(layer, x)).all()


@FORMS
def test_gradients(bits: int, group: int) -> None:
    layer = DibaCodedLinear.from_dense(linear(5000, 40, True), bits=bits, group=group).double()
    x = torch.randn(2, 3, 40, dtype=torch.float64, requires_grad=True)
    above = torch.randn(2, 3, 5000, dtype=torch.float64)
    wanted = [x, layer.d1, layer.bias]
    found = torch.autograd.grad(layer(x), wanted, above)
    expected = torch.autograd.grad(functional.linear(x, layer.dense_weight(), layer.bias), wanted, above)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max()))
    single = layer.float()
    again = torch.autograd.grad(single(x.float()), [x, single.d1], above.float())
    for a, b in zip(again, expected, strict=False):
        assert torch.allclose(a.double(), b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
    single.d1.requires_grad_(False)
    [of_x] = torch.autograd.grad(single(x.float()).sum(), [x])
    assert of_x.abs().sum() > 0


@FORMS
def test_the_operator_keeps_torchs_rules(bits: int, group: int) -> None:
    layer = DibaCodedLinear.from_dense(linear(20, 70, True), bits=bits, group=group)
    x = torch.randn(3, 70, requires_grad=True)
    arguments = (x, layer.d1, layer.codes, layer.steps, layer.bias, 70, group)
    torch.library.opcheck(code_linear, arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="last axis must have 70"):
        layer(torch.zeros(3, 71))
    with pytest.raises(TypeError, match="floating point"):
        layer(torch.zeros(3, 70, dtype=torch.int64))
    with pytest.raises(ValueError, match="codes"):
        code_linear(x, layer.d1, layer.codes[:, ::2], layer.steps, None, 70, group)


# ---------------------------------------------------------------- look-ups


@FORMS
@pytest.mark.parametrize("padding", [None, 3])
def test_embeddings(bits: int, group: int, padding: int | None) -> None:
    dense = nn.Embedding(30, 97, padding_idx=padding)
    with torch.no_grad():
        dense.weight.copy_(torch.from_numpy(matrix(30, 97)))
    layer = DibaCodedEmbedding.from_dense(dense, bits=bits, group=group)
    ids = torch.tensor([[3, 7, 7], [29, 0, 3]])
    exact = torch.from_numpy(decoded(layer.matrix_codes()))
    rows = layer(ids.int())
    assert torch.equal(rows, exact[ids].float())
    assert torch.equal(copy.deepcopy(layer).bfloat16()(ids), exact[ids].bfloat16())
    above = torch.randn(2, 3, 97)
    [found] = torch.autograd.grad(rows, [layer.d1], above)
    weight = functional.embedding(ids, layer.dense_weight(), padding_idx=padding)
    [expected] = torch.autograd.grad(weight, [layer.d1], above)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-4)
    with pytest.raises(TypeError, match="int64"):
        layer(ids.float())
    with pytest.raises(IndexError):
        layer(torch.tensor([30]))
    back = layer.to_dense_module()
    assert type(back) is nn.Embedding
    assert back.padding_idx == padding
    assert torch.equal(back.weight, layer.dense_weight())


# ---------------------------------------------------------------- modules


@FORMS
def test_copies_casts_and_states(bits: int, group: int) -> None:
    layer = DibaCodedLinear.from_dense(linear(8, 65, True), bits=bits, group=group)
    x = torch.randn(2, 65)
    other = DibaCodedLinear(65, 8, bits=bits, group=group)
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    half = copy.deepcopy(layer).half()
    assert (half.d1.dtype, half.codes.dtype, half.weight.dtype) == (torch.float32, torch.uint8, torch.float16)
    assert layer.weight.shape == (8, 65)
    assert f"bits={bits}" in repr(layer)
    wrong = layer.state_dict()
    wrong["codes"] = wrong["codes"].float()
    with pytest.raises(RuntimeError, match=r"codes is torch\.float32"):
        other.load_state_dict(wrong)
    averaged = torch.optim.swa_utils.AveragedModel(
        layer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9999), use_buffers=True
    )
    for _ in range(2):
        averaged.update_parameters(layer)
    assert torch.equal(averaged(x), layer(x))


# ---------------------------------------------------------------- conversion


class Model(nn.Module):
    """Tokens, a hidden layer, and scores of tokens."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.tokens, self.hidden = nn.Embedding(90, 32), nn.Linear(32, 32)
        self.scores = nn.Linear(32, 90, bias=False)
        if tied:
            self.scores.weight = self.tokens.weight

    def get_output_embeddings(self) -> nn.Linear:
        return self.scores

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.scores(torch.tanh(self.hidden(self.tokens(ids))))
        return scores


def kinds_of(model: Model) -> tuple[str, str, str]:
    return tuple(type(part).__name__ for part in (model.tokens, model.hidden, model.scores))  # type: ignore[return-value]


CODED = "DibaCodedEmbedding", "DibaLinear", "DibaCodedLinear"


@pytest.mark.parametrize(
    ("tied", "settings", "expected"),
    [
        (False, {"embeddings": 8, "head": 4}, CODED),
        (False, {"embeddings": 4}, ("DibaCodedEmbedding", "DibaLinear", "DibaLinear")),
        (False, {"head": 8}, ("Embedding", "DibaLinear", "DibaCodedLinear")),
        (True, {"embeddings": 8}, CODED),
        (True, {"head": 8}, CODED),
        (True, {"embeddings": 4, "head": 4}, CODED),
        (True, {"embeddings": "auto"}, CODED),
        (False, {"embeddings": "auto", "head": "auto"}, CODED),
        (True, {"embeddings": None}, ("Embedding", "DibaLinear", "Linear")),
        (True, {"tied": True, "embeddings": True}, ("DibaEmbedding", "DibaLinear", "DibaLinear")),
        (True, {"layers": {"tokens": {"codes": 8}}}, CODED),
        (False, {"layers": {"scores": {"codes": 8}}}, ("Embedding", "DibaLinear", "DibaCodedLinear")),
        (
            False,
            {"embeddings": 8, "layers": {"tokens": {"k": 9}}},
            ("DibaEmbedding", "DibaLinear", "DibaLinear"),
        ),
        (True, {"embeddings": 8, "skip": ["scores"]}, ("Embedding", "DibaLinear", "Linear")),
    ],
)
def test_which_layers_get_codes(tied: bool, settings: dict[str, Any], expected: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model, ids = Model(tied), torch.arange(12)[None]
    convert(model, bits_per_weight=3, progress=False, **settings)
    assert kinds_of(model) == expected
    if tied and expected == CODED:
        assert model.scores.codes is model.tokens.codes
        assert model.scores.d1 is model.tokens.d1
    found = report(model)
    coded = [layer for layer in model.modules() if isinstance(layer, CodedLayer)]
    names = {layer.alphabet for layer in found.layers}
    assert bool(coded) == bool(names & {"int8", "int4"})
    # what the report counts is what lies in memory
    assert found.bytes_after == sum(
        t.nbytes for t in {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    )
    again = Model(tied)
    assert model(ids).shape == again(ids).shape
    assert Config.from_dict(found.settings or {}).to_dict() == found.settings


@pytest.mark.parametrize(("tied", "expected"), [(True, (8, 8)), (False, (4, 8))])
def test_bits_that_lose_nothing(tied: bool, expected: tuple[int, int]) -> None:
    model = convert(Model(tied), bits_per_weight=3, embeddings="auto", head="auto", progress=False)
    assert (model.tokens.bits, model.scores.bits) == expected


def test_codes_with_batches_leave_the_others_as_they_are() -> None:
    torch.manual_seed(0)
    batches = [torch.randint(0, 90, (4, 8)) for _ in range(3)]
    models = []
    for settings in ({}, {"embeddings": 8, "head": 8}):
        torch.manual_seed(1)
        model = Model(tied=True)
        models.append(convert(model, bits_per_weight=3, batches=batches, progress=False, **settings))
    plain, coded = models
    assert torch.equal(plain.hidden.b1, coded.hidden.b1)  # type: ignore[arg-type]
    assert kinds_of(coded) == CODED
    only = convert(Model(tied=False), codes=8, batches=batches, progress=False, embeddings=8)
    assert kinds_of(only) == ("DibaCodedEmbedding", "DibaCodedLinear", "DibaCodedLinear")


def test_output_layers_of_4_bits_are_fitted_to_the_inputs_that_batches_give() -> None:
    torch.manual_seed(0)
    batches = [torch.randint(0, 90, (16, 8)) for _ in range(3)]
    found = {}
    for name, settings in {
        "fitted": {"batches": batches},
        "plain": {"batches": batches, "objective": "plain"},
        "none": {},
    }.items():
        torch.manual_seed(1)
        model = Model(tied=True)
        if name == "fitted":
            moments = diba.torch.calibrate(model, batches, progress=False)
        convert(model, bits_per_weight=3, embeddings=4, progress=False, **settings)  # type: ignore[arg-type]
        found[name] = next(layer for layer in report(model).layers if layer.name == "scores")
        if name == "plain":
            torch.manual_seed(1)
            dense, codes = Model(tied=True).scores.weight.detach().numpy(), model.scores.matrix_codes()
            plain = snr_db(*output_energy_and_error(dense, codes.rows(), moments["scores"].second))
    assert [layer.objective for layer in found.values()] == ["covariance", "plain", "plain"]
    assert found["fitted"].output_snr_db > plain + 1  # type: ignore[operator]
    torch.manual_seed(1)
    model = convert(Model(tied=True), bits_per_weight=3, embeddings=4, calibration=moments, progress=False)
    assert next(x for x in report(model).layers if x.name == "scores").objective == "covariance"


def test_what_cannot_get_codes() -> None:
    with pytest.raises(ValueError, match=r"share one weight.*8 and of 4"):
        convert(Model(tied=True), bits_per_weight=3, embeddings=8, head=4)
    with pytest.raises(ValueError, match="no output layer"):
        convert(nn.Sequential(nn.Linear(32, 32)), bits_per_weight=3, head=8)
    model = nn.Sequential(nn.Conv1d(3, 5, 2), nn.Linear(32, 32))
    convert(model, codes=8, progress=False)
    assert [entry.reason for entry in report(model).skipped] == ["codes=8 is for nn.Linear and nn.Embedding"]
    for settings in ({"embeddings": 5}, {"embeddings": "all"}, {"head": 16}, {"codes": 2}, {"group": 33}):
        with pytest.raises(ValueError, match="must be"):
            Config(bits_per_weight=2, **settings)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be"):
        Config(bits_per_weight=2, head=True)
    with pytest.raises(ValueError, match="no size"):
        Config(embeddings=8)


def test_allocation_leaves_codes_out() -> None:
    found = diba.torch.allocate(
        Model(tied=True), 2, config=Config(bits_per_weight=2, embeddings=8), progress=False
    )
    assert list(found.k) == ["hidden"]


def test_retuning_trains_through_a_table_that_stays() -> None:
    torch.manual_seed(0)
    model, teacher = Model(tied=True), Model(tied=True)
    model.load_state_dict(teacher.state_dict())
    convert(model, bits_per_weight=2, embeddings=8, progress=False)
    before = copy.deepcopy(model.state_dict())
    batches = [torch.randint(0, 90, (4, 8)) for _ in range(6)]
    result = diba.torch.retune(model, batches, teacher=teacher, epochs=3, progress=False)
    assert result.loss_after < result.loss_before
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if not key.startswith("hidden"))
    assert not torch.equal(before["hidden.d1"], after["hidden.d1"])


def test_a_table_is_replaced_at_once() -> None:
    model = Model(tied=True)
    codes = quantize(model.tokens.weight.detach().numpy(), 8)
    new = replace(model, [model.scores, model.tokens], codes)
    assert isinstance(new, DibaCodedLinear)
    assert isinstance(model.hidden, nn.Linear)
    assert not isinstance(model.hidden, DibaLinear)
    assert new.to_dense_module().weight.equal(model.tokens.dense_weight())  # type: ignore[operator]
