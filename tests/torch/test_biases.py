"""Biases that are corrected or added: against least squares and energies in NumPy, in float64."""

from __future__ import annotations

import copy
import math
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import diba.torch
from diba.torch import Calibration, Moments
from diba.torch.calibration import propagate
from diba.torch.conversion.biases import free_biases
from diba.torch.model.selection import targets
from diba.torch.modules.vectors import Products

if TYPE_CHECKING:
    from numpy.typing import NDArray

N, M = 24, 20
FAST = {"bits_per_weight": 3, "effort": "fast", "progress": False}


def inputs(seed: int, count: int = 300, n: int = N) -> torch.Tensor:
    """Correlated vectors, whose mean is as large as what varies."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, n)) @ rng.standard_normal((n, n)) / math.sqrt(n)
    return torch.tensor(mixed + rng.standard_normal(n), dtype=torch.float32)


def exact(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.detach().double().numpy()


def matrix(layer: Any) -> NDArray[np.float64]:
    return layer.factorization().to_dense().astype(np.float64)


def decibels(energy: Any, error: Any) -> float:
    return 10 * math.log10(float(np.sum(energy**2)) / float(np.sum(error**2)))


# ---------------------------------------------------------------- one layer


def linear() -> tuple[nn.Module, torch.Tensor, NDArray[np.float64]]:
    return nn.Linear(N, M), inputs(1), exact(inputs(1))


def convolution() -> tuple[nn.Module, torch.Tensor, NDArray[np.float64]]:
    """Positions at the edges read zeros, which count."""
    x = inputs(2, 4 * 3 * 5, 6).reshape(4, 3, 5, 6) + 1
    patches = nn.functional.unfold(x.double(), 3, padding=1).movedim(1, 2).flatten(0, 1)
    return nn.Conv2d(3, M, 3, padding=1), x, patches.numpy()


LAYERS = {"linear": linear, "convolution": convolution}


@pytest.mark.parametrize("by", ["calibration", "batches"])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_bias_is_that_of_least_squares_and_counts_in_the_snr(kind: str, by: str) -> None:
    torch.manual_seed(0)
    dense, x, X = LAYERS[kind]()
    A, b = exact(dense.weight).reshape(M, -1), exact(dense.bias)
    model = nn.Sequential(copy.deepcopy(dense))
    given: dict[str, Any] = {"batches": [x]}
    if by == "calibration":
        given = {"calibration": diba.torch.calibrate(model, [x], progress=False)}
        moments = given["calibration"]["0"]
        np.testing.assert_allclose(moments.mean, X.mean(0), rtol=0, atol=1e-6 * np.abs(X).max())
    kept = model[0].bias
    diba.torch.convert(model, **given, **FAST)
    assert model[0].bias is kept  # the object that an optimizer may hold
    F = matrix(model[0])
    rest = X @ (A - F).T + b  # least squares with a column of ones alone
    best = np.linalg.lstsq(np.ones((len(X), 1)), rest, rcond=None)[0][0]
    scale = np.abs(X).max() * np.abs(A).sum(1).max()
    np.testing.assert_allclose(exact(model[0].bias), best, rtol=0, atol=1e-5 * scale)
    [layer] = diba.torch.report(model).layers
    assert layer.bias_corrected
    assert not layer.bias_added
    assert layer.output_snr_db == pytest.approx(decibels(X @ A.T, rest - exact(model[0].bias)), abs=1e-3)
    assert layer.output_snr_db > decibels(X @ A.T, rest - b)
    assert "biases corrected in 1 layers" in str(diba.torch.report(model))


def test_the_covariance_is_factored_for_and_not_the_second_moments() -> None:
    torch.manual_seed(0)
    X = exact(inputs(3)) + 5
    dense = nn.Linear(N, M)
    moments = Moments(X.T @ X / len(X), len(X), mean=X.mean(0))
    covariance = Moments(moments.centred().second, len(X))
    np.testing.assert_allclose(covariance.second, np.cov(X.T, bias=True), rtol=0, atol=1e-11)
    found = {}
    for name, known in {"free": moments, "kept": covariance, "uncentred": moments}.items():
        model = nn.Sequential(copy.deepcopy(dense))
        bias = "keep" if name == "uncentred" else "correct"
        diba.torch.convert(model, calibration=Calibration({"0": known}), bias=bias, **FAST)
        found[name] = model[0]
    assert found["free"].factorization() == found["kept"].factorization()
    assert found["free"].factorization() != found["uncentred"].factorization()
    for name in ("kept", "uncentred"):  # without a mean there is nothing to correct by
        assert torch.equal(found[name].bias, dense.bias)
        assert not vars(found[name])["_diba_recipe"].bias_corrected


def test_biases_stay_without_data_and_with_other_objectives() -> None:
    torch.manual_seed(0)
    dense, x = nn.Sequential(nn.Linear(N, M), nn.Linear(M, M, bias=False)), inputs(4)
    for options in ({}, {"batches": [x], "objective": "importance"}, {"batches": [x], "objective": "plain"}):
        model = diba.torch.convert(copy.deepcopy(dense), bias="add", **options, **FAST)
        assert torch.equal(model[0].bias, dense[0].bias)
        assert model[1].bias is None
    model = diba.torch.convert(copy.deepcopy(dense), batches=[x], **FAST)
    assert model[1].bias is None


def test_a_bias_is_added_where_that_is_asked_for() -> None:
    torch.manual_seed(0)
    dense, x = nn.Sequential(nn.Linear(N, M, bias=False), nn.Linear(M, M, bias=False)), inputs(5)
    model = copy.deepcopy(dense)
    diba.torch.convert(model, batches=[x], layers={"0": {"bias": "add"}}, **FAST)
    assert model[1].bias is None
    X = exact(x)
    best = (X @ (exact(dense[0].weight) - matrix(model[0])).T).mean(0)
    np.testing.assert_allclose(exact(model[0].bias), best, rtol=0, atol=1e-5)
    report = diba.torch.report(model)
    assert [(x.bias_added, x.bias_corrected) for x in report.layers] == [(True, True), (False, False)]
    assert "biases added to 1 layers: 0" in str(report)
    assert report.parameters_before == sum(p.numel() for p in dense.parameters())
    assert report.bytes_before == 4 * report.parameters_before
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert diba.torch.report(twin).layers[0].bias_added
        assert torch.equal(twin(x), model(x))
    assert torch.equal(model[0].to_dense_module().bias, model[0].bias)


def test_biases_and_factors_that_others_use_too_stay() -> None:
    first, second, third = (nn.Linear(N, N) for _ in range(3))
    second.bias = first.bias
    model = nn.Sequential(first, second, third)
    found = targets(model, diba.torch.Config(bits_per_weight=2))
    assert free_biases(model, found) == {"2"}
    twin = nn.Linear(N, N)
    twin.weight = third.weight
    model.append(twin)
    found = targets(model, diba.torch.Config(bits_per_weight=2, tied=True))
    assert free_biases(model, found) == set()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_biases_of_half_precision_are_rounded_and_that_counts(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = inputs(6)
    model = nn.Sequential(nn.Linear(N, M))
    with torch.no_grad():
        model[0].bias += 30  # roundings are as large as what the factors lose
    model = model.to(dtype)
    A, b, X = exact(model[0].weight), exact(model[0].bias), exact(x)
    moments = Moments(X.T @ X / len(X), len(X), mean=X.mean(0))
    diba.torch.convert(model, calibration=Calibration({"0": moments}), **FAST)
    assert model[0].bias.dtype == dtype
    rest = X @ (A - matrix(model[0])).T + b
    assert torch.equal(model[0].bias, torch.from_numpy(rest.mean(0)).to(dtype))
    [layer] = diba.torch.report(model).layers
    assert layer.output_snr_db == pytest.approx(decibels(X @ A.T, rest - exact(model[0].bias)), abs=5.1e-5)


def test_entries_that_the_dtype_cannot_hold_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(N, M)).half()
    A, before = exact(model[0].weight), model[0].bias.clone()
    X = exact(inputs(7)) + 4e6  # about a third of the new entries leave float16
    moments = Moments(X.T @ X / len(X), len(X), mean=X.mean(0))
    diba.torch.convert(model, calibration=Calibration({"0": moments}), **FAST)
    wanted = torch.from_numpy(exact(before) + (A - matrix(model[0])) @ X.mean(0)).half()
    assert 0 < int(wanted.isfinite().sum()) < M
    assert torch.equal(model[0].bias, torch.where(wanted.isfinite(), wanted, before))


# ---------------------------------------------------------------- moments


def test_moments_about_the_mean_are_exact_far_from_zero() -> None:
    """Distances of 1 around 1,000 in float32: products about zero would have errors as large as they."""
    X = torch.tensor(np.random.default_rng(0).standard_normal((500, 8)), dtype=torch.float32) + 1000
    sums = Products(8)
    for part in X.split(200):
        sums.add(part, part)
    second, mean = sums.mean().numpy(), sums.means()[0].numpy()
    found = Moments((second + second.T) / 2, 500, mean=mean).centred().second
    rows = exact(X)
    size = np.abs(rows - rows.mean(0)).max() + 1000 / 256  # from the origin, which has 8 bits
    assert np.abs(found - np.cov(rows.T, bias=True)).max() <= 500 * 2.0**-23 * size**2


def test_weighted_means_and_products_have_the_same_weights() -> None:
    rng = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(60, 5, generator=rng) + 1 for _ in range(2))
    w = torch.rand(60, generator=rng)
    sums = Products(5)
    sums.add(X[:20], Y[:20], w[:20])
    sums.add(X[20:], Y[20:], w[20:])
    W = exact(w)[:, None]
    np.testing.assert_allclose(sums.mean(), (W * exact(X)).T @ exact(Y) / W.sum(), rtol=0, atol=1e-5)
    for found, values in zip(sums.means(), (X, Y), strict=True):
        np.testing.assert_allclose(found, (W * exact(values)).sum(0) / W.sum(), rtol=0, atol=1e-5)


def test_equal_vectors_and_constant_inputs() -> None:
    """Nothing varies: the second moments are factored for, and the bias makes the mean exact."""
    torch.manual_seed(0)
    x = inputs(8, 1).expand(50, N)
    dense = nn.Linear(N, M)
    model = nn.Sequential(copy.deepcopy(dense))
    diba.torch.convert(model, batches=[x], **FAST)
    y = exact(x[0]) @ matrix(model[0]).T + exact(model[0].bias)
    np.testing.assert_allclose(y, exact(dense(x)[0]), rtol=0, atol=1e-5)
    some = inputs(9)
    some[:, 3] = 7
    centred = diba.torch.calibrate(nn.Sequential(dense), [some], progress=False)["0"].centred().second
    assert not centred[3].any()
    assert not centred[:, 3].any()
    model = nn.Sequential(copy.deepcopy(dense))
    diba.torch.convert(model, batches=[some], **FAST)
    with torch.no_grad():
        assert float((model(some) - dense(some)).square().mean()) < float(dense(some).square().mean())


# ---------------------------------------------------------------- in execution order


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(N, M), nn.ReLU(), nn.Linear(M, M), nn.ReLU(), nn.Linear(M, 12)).double()


def test_targets_in_execution_order_are_those_of_centred_least_squares() -> None:
    model, x = chain(), inputs(10).double()
    dense, seen = copy.deepcopy(model), {}

    def factor(tasks: Any) -> None:
        for task in tasks:
            seen[task.name] = task
            layer = copy.deepcopy(model[int(task.name)])
            noise = torch.randn(layer.weight.shape, dtype=torch.float64)
            with torch.no_grad():
                layer.weight.mul_(1 + 0.2 * noise)
            inner = x
            for module in model[: int(task.name)]:
                inner = module(inner)
            check(task, exact(inner))
            model[int(task.name)] = layer

    def check(task: Any, Y: NDArray[np.float64]) -> None:
        """With shrinkage, least squares has further rows: those of the diagonal."""
        inner = x
        for module in dense[: int(task.name)]:
            inner = module(inner)
        X, layer = exact(inner), dense[int(task.name)]
        A, b, share = exact(layer.weight), exact(layer.bias), max(0.1, len(X.T) / (2 * (len(X.T) + len(X))))
        spread = np.cov(Y.T, bias=True).diagonal()
        extra = np.maximum(0, 0.01 * np.median(spread) - spread)
        spread = spread + extra
        ridge = np.sqrt(share * spread + (1 - share) * extra)
        root = math.sqrt((1 - share) / len(X))
        left = np.block([[root * Y, np.full((len(Y), 1), root)], [np.diag(ridge), np.zeros((len(ridge), 1))]])
        right = np.concatenate([root * (X @ A.T + b), ridge[:, None] * A.T])
        solution = np.linalg.lstsq(left, right, rcond=None)[0].T
        np.testing.assert_allclose(task.matrix, solution[:, :-1], rtol=0, atol=1e-4)
        np.testing.assert_allclose(task.bias, solution[:, -1], rtol=0, atol=1e-4)

    propagate.run(model, ["0", "2", "4"], [x], factor, free_biases={"0", "2", "4"})
    assert list(seen) == ["0", "2", "4"]


def test_the_mean_outputs_of_every_layer_are_those_of_the_dense_model() -> None:
    """Also of the last one, for which the dense model is needed after two biases were corrected."""
    model, x = chain().float(), inputs(11)
    dense = copy.deepcopy(model)
    diba.torch.convert(model, batches=[x[:150], x[150:]], **FAST)
    with torch.no_grad():
        for stop in (1, 3, 5):
            wanted, found = dense[:stop](x), model[:stop](x)
            left = (wanted - found).double()
            # products are rounded to bytes, far less than what the factors lose
            assert float(left.mean(0).abs().max()) < 0.1 * float(left.square().mean().sqrt())


def test_a_second_call_goes_on() -> None:
    x = inputs(12)
    whole = diba.torch.convert(chain().float(), batches=[x], **FAST)
    model, teacher = chain().float(), chain().float()

    def stop(state: diba.Progress) -> None:
        if state.item == "2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diba.torch.convert(model, batches=[x], teacher=teacher, **{**FAST, "progress": stop})
    diba.torch.convert(model, batches=[x], teacher=teacher, **FAST)
    for name, value in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


class Block(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(N, M, bias=bias), nn.Linear(M, N, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


@pytest.mark.parametrize("bias", [True, False])
def test_reconstructed_blocks_have_corrected_or_added_biases(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(bias), Block(bias))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [inputs(seed, 40) for seed in range(4)]
    teacher = copy.deepcopy(model)
    how = {"steps": 3, "tune_steps": 2}
    diba.torch.convert(model, batches=batches, reconstruct=how, teacher=teacher, bias="add", **FAST)
    report = diba.torch.report(model)
    assert [layer.bias_added for layer in report.layers] == [not bias] * 4
    assert all(layer.bias_corrected for layer in report.layers)
    assert all(block.loss <= block.loss_factored for block in report.blocks.values())
    assert all(torch.equal(teacher.state_dict()[name], value) for name, value in before.items())


# ---------------------------------------------------------------- files


def test_means_are_saved_merged_and_missing_in_files_of_before(tmp_path: Any, source_root: Any) -> None:
    model = nn.Sequential(nn.Linear(N, M))
    parts = [diba.torch.calibrate(model, [inputs(seed, 90 + seed)], progress=False) for seed in (0, 1)]
    merged = parts[0].merge(parts[1])
    X = np.concatenate([exact(inputs(seed, 90 + seed)) for seed in (0, 1)])
    np.testing.assert_allclose(merged["0"].mean, X.mean(0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(merged["0"].centred().second, np.cov(X.T, bias=True), rtol=0, atol=1e-5)
    merged.save(tmp_path / "new")
    read = Calibration.load(tmp_path / "new")
    assert read["0"].mean.tobytes() == merged["0"].mean.tobytes()
    old = Calibration({"0": Moments(merged["0"].second, 181)})
    assert old.merge(parts[0])["0"].mean is None
    old.save(tmp_path / "old")
    assert Calibration.load(tmp_path / "old")["0"].mean is None
    corpus = source_root / "tests" / "corpus" / "calibration"
    before = Calibration.load(corpus / "good" / "several")  # version 1
    assert all(moments.mean is None for moments in before.values())
    for name, message in {
        "means-of-version-1": r"tensor 'mean\.0' is unexpected",
        "version-3": "format_version",
        "nan-mean": r"tensor 'mean\.0' has NaN",
        "mean-beyond-the-squares": r"tensor 'mean\.0' has entries whose squares are larger",
    }.items():
        with pytest.raises(diba.FormatError, match=message):
            Calibration.load(corpus / "bad" / name)
    for wrong, message in (
        (np.zeros(3), r"mean is of float64, shape \(3,\)"),
        (np.zeros(N, np.float32), "mean is of float32"),
        (np.full(N, np.nan), "mean has NaN"),
        (np.full(N, 1e6), "mean has entries whose squares are larger"),
    ):
        with pytest.raises(ValueError, match=message):
            Calibration({"0": Moments(merged["0"].second, 9, mean=wrong)}).save(tmp_path / "x")


@pytest.mark.parametrize("value", ["corrected", None, True])
def test_a_word_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="bias is"):
        diba.torch.Config(bits_per_weight=2, bias=value)
