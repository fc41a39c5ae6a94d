"""benchmarks/apb: quantizers, files and plan, on small layers and no data."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import diba.torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    Benchmark = Callable[[str], ModuleType]


# ---- quantizers


def weight(count: int = 60) -> torch.Tensor:
    return torch.randn(6, count // 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [2, 3])
def test_learned_steps_have_the_published_values_and_gradients(benchmark: Benchmark, bits: int) -> None:
    """Equations 1, 3 and 5 of the paper, entry by entry."""
    w = weight().requires_grad_()
    quantizer = benchmark("apb.quantizers").LearnedStep(w, bits)
    low, high = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    s = float(quantizer.scale.detach())
    assert s == pytest.approx(2 * float(w.detach().abs().mean()) / math.sqrt(high), rel=1e-6)
    incoming = torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    result = quantizer(w)
    result.backward(incoming)
    of_step = 0.0
    for v, g, q, dw in zip(
        *(x.detach().flatten().tolist() for x in (w, incoming, result, w.grad)), strict=True
    ):
        inside = -low < v / s < high
        level = max(-low, min(high, round(v / s)))
        assert q == pytest.approx(s * level, rel=1e-6, abs=1e-7)
        assert dw == pytest.approx(g if inside else 0.0, rel=1e-5)
        of_step += g * (level - v / s if inside else level)
    factor = 1 / math.sqrt(w.numel() * high)
    assert float(quantizer.scale.grad) == pytest.approx(factor * of_step, rel=1e-4)


def test_plain_binary_weights_pass_gradients_through_the_sign(benchmark: Benchmark) -> None:
    w = weight().requires_grad_()
    quantizer = benchmark("apb.quantizers").PlainBinary(w)
    incoming = torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    result = quantizer(w)
    result.backward(incoming)
    expected = w.detach().sign() * w.detach().abs().mean()
    torch.testing.assert_close(result.detach(), expected)
    torch.testing.assert_close(w.grad, incoming)
    torch.testing.assert_close(quantizer.scale.grad, (incoming * w.detach().sign()).sum())


# ---- files


class Small(nn.Module):
    """Something of every kind that files hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(40, 24)
        self.head = nn.Linear(24, 10)


def small() -> Small:
    torch.manual_seed(0)
    model = Small().eval()
    model.norm.running_mean.normal_()
    return model


def small_layers(model: Small, change: Callable[[nn.Module], object]) -> Small:
    change(model.conv)
    change(model.linear)
    return model


def test_dense_networks_come_back_whole(benchmark: Benchmark) -> None:
    files, model = benchmark("apb.files"), small()
    file = files.stored(model, narrow=False)
    back = files.rebuilt(file, Small())
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    floats = sum(tensor.numel() for name, tensor in model.state_dict().items() if "tracked" not in name)
    assert 4 * floats < len(file) < 4 * floats + 1500  # the header of the file


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_codes_come_back_and_take_their_bits(benchmark: Benchmark, bits: int) -> None:
    files, quantizers = benchmark("apb.files"), benchmark("apb.quantizers")
    model = small_layers(small(), lambda layer: quantizers.quantize(layer, bits))
    file = files.stored(model)
    back = files.rebuilt(file, Small())
    for name in ("conv", "linear"):
        rounded = 2.0**-11 * getattr(model, name).weight.abs()  # the scale in 16 bits
        assert ((getattr(back, name).weight - getattr(model, name).weight).abs() <= rounded).all()
    torch.testing.assert_close(back.head.weight, model.head.weight, rtol=2.0**-11, atol=2.0**-25)
    packed = bits * (8 * 27 + 40 * 24) // 8 + 2 * 2
    rest = 2 * (4 * 8 + 24 + 24 * 10 + 10)
    assert packed + rest < len(file) < packed + rest + 1500


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_binary_weights_with_exceptions_come_back(benchmark: Benchmark, share: float) -> None:
    files = benchmark("apb.files")
    model = small()
    diba.torch.binarize(model, share, skip=["head"])
    trained = copy.deepcopy(model)
    file = files.stored(diba.torch.freeze(model))
    back = files.rebuilt(file, Small())
    for name in ("conv", "linear"):
        dense, layer = getattr(back, name).weight.detach(), getattr(trained, name)
        wanted = layer.dense_weight().detach()
        # a scale and a correction, each rounded to 16 bits
        bound = 2.0**-11 * (layer.alpha.detach() + (wanted.abs() + layer.alpha.detach())) + 2.0**-24
        assert ((dense - wanted).abs() <= bound).all()
    exceptions = int(share * 8 * 27) + int(share * 40 * 24)
    packed = 8 * 4 + 40 * 24 // 8 + 2 * 2 + 3 * exceptions  # rows of signs are whole bytes
    rest = 2 * (4 * 8 + 24 + 24 * 10 + 10)
    assert packed + rest < len(file) < packed + rest + 2000


@pytest.mark.parametrize("alphabet", ["binary", "sign"])
def test_factors_come_back(benchmark: Benchmark, alphabet: Any) -> None:
    files = benchmark("apb.files")
    model = small()
    diba.torch.convert(model, bits_per_weight=4, alphabet=alphabet, skip=["head"], convolutions=True,
                       effort="fast", progress=False)  # fmt: skip
    back = files.rebuilt(files.stored(model), Small())
    for name in ("conv", "linear"):
        np.testing.assert_allclose(
            getattr(back, name).weight.detach(), getattr(model, name).weight.detach(), rtol=1e-5, atol=1e-6
        )


# ---- networks


def test_networks_are_of_the_stated_size_and_all_but_the_ends_is_compressed(benchmark: Benchmark) -> None:
    networks = benchmark("apb.networks")
    for name, count in (("mlp", 669_706), ("cnn", 314_634)):
        model = networks.NETWORKS[name].make()
        assert sum(p.numel() for p in model.parameters()) == count
        inner = networks.inner_layers(model)
        assert sum(layer.weight.numel() for layer in inner.values()) > 0.97 * count
        assert model.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_wider_networks_have_as_many_bytes(benchmark: Benchmark, name: str) -> None:
    plan, networks, files = benchmark("apb.plan"), benchmark("apb.networks"), benchmark("apb.files")
    quantizers, arms = benchmark("apb.quantizers"), benchmark("apb.arms")
    for form, width in plan.WIDER[name].items():
        wide, usual = networks.NETWORKS[name].make(width), networks.NETWORKS[name].make()
        for layer in networks.inner_layers(wide).values():
            quantizers.quantize(layer, 1)
        share = float(form.split()[1]) / 100
        diba.torch.freeze(diba.torch.binarize(usual, share, skip=arms.outer(usual)))
        assert len(files.stored(wide)) == pytest.approx(len(files.stored(usual)), rel=0.01)


def test_batches_are_the_same_for_a_seed_and_other_for_the_next_epoch(benchmark: Benchmark) -> None:
    training = benchmark("apb.training")
    part = torch.arange(600.0).view(600, 1, 1, 1).expand(600, 1, 2, 2), torch.arange(600)
    first, again, later = (list(training.batches(part, *at)) for at in ((0, 3), (0, 3), (1, 3)))
    assert len(first) == 600 // training.BATCH
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][1], later[0][1])
    assert len(set(torch.cat([y for _, y in first]).tolist())) == 512


# ---- plan


def test_rates_are_chosen_by_validation_and_finished_cells_are_kept(benchmark: Benchmark) -> None:
    plan = benchmark("apb.plan")
    wanted = list(plan.cells(["mlp"], ["LSQ"], 2))
    done: dict[str, dict[str, float]] = {}
    course = []
    while cell := plan.following(done, wanted):
        course.append(cell)
        # the test set would choose otherwise
        done[cell.key] = {"validation": -abs(cell.rate - 0.0021), "test": abs(cell.rate - 0.0021)}
    rates = plan.ARMS["LSQ"].rates
    assert [(cell.seed, cell.rate) for cell in course[:6]] == [(seed, r) for seed in (0, 1) for r in rates]
    assert all(cell.rate == 0.002 for cell in course[6:])
    assert [(cell.form, cell.seed) for cell in course[6:]] == [("3 bits", 0), ("3 bits", 1)]
    assert plan.following(done, wanted) is None


def test_rates_are_chosen_by_all_seeds_that_tried_them(benchmark: Benchmark) -> None:
    plan = benchmark("apb.plan")
    low, middle, high = plan.ARMS["APB"].rates
    done: dict[str, dict[str, float]] = {}

    def tried(seed: int, rate: float, validation: float) -> None:
        done[plan.Cell("cnn", "APB", plan.ARMS["APB"].tried, seed, rate).key] = {"validation": validation}

    for rate, validation in ((low, 0.8), (middle, 0.9)):
        tried(0, rate, validation)
    assert plan.chosen_rate(done, "cnn", "APB") is None
    tried(0, high, 0.85)
    assert plan.chosen_rate(done, "cnn", "APB") == middle
    tried(1, middle, 0.8)
    tried(1, high, 0.9)
    assert plan.chosen_rate(done, "cnn", "APB") == middle  # the lowest rate has not been tried with it
    tried(1, low, 0.7)
    assert plan.chosen_rate(done, "cnn", "APB") == high


def test_a_stopped_run_goes_on(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    apb = benchmark("apb.apb")
    measured: list[str] = []

    def measure(cell: Any, chosen: Any) -> dict[str, Any]:
        if len(measured) == 2 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        measured.append(cell.key)
        return {"validation": cell.rate, "test": 0.9, "bytes": 1000, "bits": 1.0, "network": cell.network,
                "arm": cell.arm, "form": cell.form, "seed": cell.seed, "rate": cell.rate,
                "cpu_seconds": 1.0}  # fmt: skip

    monkeypatch.setattr(apb, "measure", measure)
    call = ["--networks", "mlp", "--arms", "float32", "LSQ", "--seeds", "1"]
    call += ["--json", str(tmp_path / "a.json"), "--keep", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        apb.main(call)
    apb.main(call)
    assert len(measured) == len(set(measured)) == 7


# ---- table, figure, latency


def report(benchmark: Benchmark) -> dict[str, Any]:
    """Binary weights and APB, three seeds, and a rate that validation did not choose."""
    plan = benchmark("apb.plan")
    cells = {}
    for arm, form, size, test in (("float32", "32 bits", 2_680_000, 0.90), ("APB", "1 %", 125_000, 0.89)):
        for seed in range(3):
            for rate, validation in zip(plan.ARMS[arm].rates, (0.8, 0.9, 0.85), strict=True):
                cell = plan.Cell("mlp", arm, form, seed, rate)
                cells[cell.key] = vars(cell) | {
                    "bytes": size, "bits": 1.345, "validation": validation,
                    "test": test + 0.001 * seed + (0.05 if validation < 0.9 else 0), "cpu_seconds": 30.0,
                }  # fmt: skip
    machine = {"diba": "1", "cpu": "a cpu", "isa": "avx2"}
    return {"machine": machine, "distilled": False, "cells": cells}


def test_the_table_has_the_chosen_rates_and_differences_by_seed(benchmark: Benchmark) -> None:
    lines = benchmark("apb.table").table(report(benchmark)).splitlines()
    assert "| APB | 1 % | 1.34 | 125.0 | 89.10 | 89.00 to 89.20 | -1.00 | 3 | 0.002 |" in lines
    assert sum(line.startswith("| APB") for line in lines) == 1


def test_the_figure_is_drawn(benchmark: Benchmark, tmp_path: Path) -> None:
    benchmark("apb.figure").draw(report(benchmark), [tmp_path / "a.svg"])
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "kB on disk" in text
    assert "MLP" in text


def test_every_contestant_of_latency_answers(benchmark: Benchmark) -> None:
    latency = benchmark("apb.latency")
    for name in ("mlp", "cnn"):
        for model in dict(latency.networks(name)).values():
            assert latency.inferring(model, torch.randn(3, 1, 28, 28))().shape == (3, 10)


# ---- exceptions under a factorization


def test_an_exception_pays_where_its_error_is_worth_its_bits(benchmark: Benchmark) -> None:
    exceptions = benchmark("quality.exceptions")
    assert exceptions.exception_bits((384, 384)) == 16 + 18
    assert exceptions.exception_bits((256, 256)) == 16 + 16
    errors = np.ones((100, 100), np.float32)
    errors[3, 4] = 5.1 * 34 / (10 / math.log(10))  # just more, times the mean, than its bits are worth
    errors[5, 6] = 4.9 * 34 / (10 / math.log(10))
    assert exceptions.paying(errors, 34) == 1


def test_outliers_become_exceptions_within_the_bits(benchmark: Benchmark) -> None:
    """Of a matrix of signs of rank one and a few large entries, which are exact in 16 bits."""
    exceptions = benchmark("quality.exceptions")
    random = np.random.default_rng(0)
    A = np.outer(random.choice([-1.0, 1.0], 64), random.choice([-1.0, 1.0], 96)).astype(np.float32)
    places = random.integers(0, 64, 5), np.arange(0, 50, 10)
    A[places] = 40.0
    found, stored = exceptions.with_exceptions(A, 2.0, 5, np.abs(A), 1)
    assert np.array_equal(found[places], A[places])
    assert stored <= 2.0
    rest = np.ones(A.shape, bool)
    rest[places] = False
    assert np.square(found - A)[rest].mean() < 1e-3  # of ones


def test_diagonals_are_taken_out_before_outliers_are_looked_for(benchmark: Benchmark) -> None:
    balanced = benchmark("quality.exceptions").balanced
    A = np.outer(np.geomspace(1e-3, 1e3, 30), np.geomspace(1, 100, 40)).astype(np.float32)
    np.testing.assert_allclose(balanced(A), 1, rtol=1e-4)
    A[3, 4] *= 10
    assert balanced(A).argmax() == 3 * 40 + 4
    assert balanced(A).max() > 4
