"""Losses: distillation against its formula; the loss without labels, and the Fisher information."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import diba
from diba.torch import Calibration, Moments, calibrate, distillation, fisher
from small_models import dense_model, factored, inputs

ROWS = 20_000


@pytest.fixture(scope="module")
def dense() -> nn.Sequential:
    return dense_model()


@pytest.fixture
def model(dense: nn.Sequential) -> nn.Sequential:
    return factored(dense)


# ---------------------------------------------------------------- distillation


def test_distillation_is_the_divergence(dense: nn.Sequential, model: nn.Sequential) -> None:
    """Against its formula in float64; float32 keeps 16 units of 2^-23 of each term."""
    x = inputs(1)[0]
    t = 2.0
    with torch.no_grad():
        model[0].d1.mul_(2)  # far away, so that the terms do not cancel
        loss = distillation(dense, temperature=t)(model, x).item()
        p, q = (torch.softmax(net(x).double() / t, -1) for net in (dense, model))
    expected = float(t * t * (p * (p.log() - q.log())).sum(-1).mean())
    terms = float(t * t * (p * (p.log().abs() + q.log().abs())).sum(-1).mean())
    assert abs(loss - expected) <= 2e-6 * terms
    assert loss > 100 * 2e-6 * terms  # so the check above means something


def test_features_are_compared_by_their_relative_error(dense: nn.Sequential, model: nn.Sequential) -> None:
    x = inputs(1)[0]
    with torch.no_grad():
        loss = distillation(dense, features=True)(model, x).item()
        y, z = dense(x).double(), model(x).double()
    assert loss == pytest.approx(float((y - z).square().sum() / y.square().sum()), rel=1e-4)


class Output(dict):  # type: ignore[type-arg]
    """As a transformers model returns it."""


class Tokens(nn.Module):
    """Logits and a loss for every token."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(11, 6)
        self.calls = 0

    def forward(self, input_ids: Tensor, attention_mask: Any = None, labels: Any = None) -> Output:
        self.calls += 1
        logits = self.table(input_ids)
        loss = None if labels is None else functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return Output(logits=logits, loss=loss, hidden_states=(logits, logits + 1))


def test_masked_tokens_do_not_count() -> None:
    teacher, student = Tokens(0), Tokens(1)
    ids = torch.arange(10).view(2, 5)
    keep = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    loss = distillation(teacher)
    expected = loss(student, {"input_ids": ids[keep.bool()].view(1, -1)}).item()
    masked = loss(student, {"input_ids": ids, "attention_mask": keep}).item()
    labelled = loss(student, {"input_ids": ids, "labels": torch.where(keep == 1, 3, -100)}).item()
    assert masked == pytest.approx(expected, rel=1e-6)
    assert labelled == pytest.approx(expected, rel=1e-6)
    assert loss(student, {"input_ids": ids}).item() != pytest.approx(expected, rel=1e-3)


def test_weight_mixes_in_the_models_own_loss() -> None:
    teacher, student = Tokens(0), Tokens(1)
    batch = {"input_ids": torch.arange(5)[None], "labels": torch.ones(1, 5, dtype=torch.int64)}
    task, imitation = student(**batch)["loss"].item(), distillation(teacher)(student, batch).item()
    mixed = distillation(teacher, weight=0.25)(student, batch).item()
    assert mixed == pytest.approx(0.25 * imitation + 0.75 * task, rel=1e-6)
    with pytest.raises(ValueError, match=r"weight is 0.25 and Tokens returns no loss"):
        distillation(teacher, weight=0.25)(student, {"input_ids": torch.arange(5)[None]})


def test_kept_outputs_spare_the_teacher() -> None:
    teacher, student = Tokens(0).train(), Tokens(1)
    loss = distillation(teacher, cache=True)
    ids = torch.arange(10).view(2, 5)
    first = loss(student, {"input_ids": ids}).item()
    assert loss(student, {"input_ids": ids.clone()}).item() == first  # found by its content
    assert teacher.calls == 1
    assert loss.cached_bytes == 2 * 5 * 6 * 4
    loss(student, {"input_ids": ids + 1})
    assert teacher.calls == 2
    assert teacher.training  # it ran in eval mode, and is as before


def test_outputs_are_kept_up_to_a_number_of_bytes() -> None:
    teacher, student, one = Tokens(0), Tokens(1), 5 * 6 * 4
    loss = distillation(teacher, cache=2 * one + 1)
    for _ in range(2):
        for first in range(3):
            loss(student, {"input_ids": torch.arange(first, first + 5)[None]})
    assert loss.cached_bytes == 2 * one
    assert teacher.calls == 4  # the third batch was not kept
    for wrong in (-1, 2.5):
        with pytest.raises((ValueError, TypeError), match=r"cache (is|=) ?"):
            distillation(teacher, cache=wrong)


def test_what_cannot_be_distilled_is_refused(dense: nn.Sequential, model: nn.Sequential) -> None:
    with pytest.raises(ValueError, match=r"teacher is the model itself.*deepcopy"):
        distillation(model)(model, inputs(1)[0])
    with pytest.raises(TypeError, match="teacher is"):
        distillation("dense")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight is 2"):
        distillation(dense, weight=2)
    with pytest.raises(ValueError, match="output has shape"):
        distillation(dense[:2])(model, inputs(1)[0])


# ---------------------------------------------------------------- fisher


def mean_squares(model: nn.Module, batches: list[Any], **options: Any) -> dict[str, np.ndarray]:
    found = calibrate(model, batches, loss=fisher(**options), progress=False)
    return {name: moments.gradient_rms**2 for name, moments in found.items()}


def test_squared_gradients_are_the_fisher_information_of_logits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    x = torch.randn(ROWS, 4)
    p = model(x).detach().double().softmax(-1).numpy()
    fourth = p * (1 - p) ** 4 + (1 - p) * p**4  # fourth moment of p - [the label that was drawn]
    expected = p * (1 - p)
    deviation = np.sqrt((fourth - expected**2).sum(0)) / ROWS
    found = mean_squares(model, [x[:5000], x[5000:]])["0"]
    assert np.all(np.abs(found - expected.mean(0)) < 5 * deviation)


def test_squared_gradients_of_features_are_those_of_the_jacobian() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4))
    found = mean_squares(model, [torch.randn(ROWS, 5)], features=True)
    np.testing.assert_array_equal(found["1"], np.ones(4))
    W = model[1].weight.detach().double().numpy()
    expected = np.square(W).sum(0)
    # (s'w)^2 over random signs s: the variance is 2 (sum w^2)^2 - 2 sum w^4
    deviation = np.sqrt((2 * expected**2 - 2 * (W**4).sum(0)) / ROWS)
    assert np.all(np.abs(found["0"] - expected) < 5 * deviation)


class Words(nn.Module):
    """Logits of every position, as language models give them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, labels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(x), loss=None)


def test_positions_without_a_label_draw_none() -> None:
    torch.manual_seed(0)
    model, x = Words(), torch.randn(2, 6, 8)
    labels = torch.zeros(2, 6, dtype=torch.long)
    whole = fisher()(model, {"x": x, "labels": labels}).item()
    labels[:, 3:] = -100
    half = fisher()(model, {"x": x, "labels": labels}).item()
    short = fisher()(model, {"x": x[:, :3], "labels": labels[:, :3]}).item()
    assert half == pytest.approx(short, rel=1e-6)
    assert half < whole


def test_a_seed_is_a_sequence_of_draws() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 8), torch.randn(100, 4)
    state = torch.get_rng_state()
    one, two, other = fisher(), fisher(seed=0), fisher(seed=1)
    first, second = one(model, x).item(), one(model, x).item()
    assert [two(model, x).item(), two(model, x).item()] == [first, second]
    assert len({first, second, other(model, x).item()}) == 3
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="seed is -1"):
        fisher(seed=-1)


def test_bits_go_where_a_layer_is_used_most() -> None:
    torch.manual_seed(0)
    first = nn.Linear(40, 40, bias=False)
    model = nn.Sequential(first, copy.deepcopy(first))
    known = np.eye(40), 100, np.ones(40)

    def shares(outputs: int) -> dict[str, int]:
        moments = Calibration({"0": Moments(*known), "1": Moments(*known, outputs)})
        return dict(diba.allocate(model, 2, calibration=moments).k)

    even, uneven = shares(0), shares(6400)
    assert abs(even["0"] - even["1"]) <= 1
    assert uneven["1"] > even["1"]
    assert uneven["0"] < even["0"]


def test_all_positions_of_a_convolution_count_as_outputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AvgPool2d(2), nn.Conv2d(2, 4, 1))
    found = calibrate(model, [torch.randn(3, 3, 64, 64)], loss=fisher(features=True), progress=False)
    assert [found[name].outputs for name in ("0", "2")] == [3 * 64 * 64, 3 * 32 * 32]
    assert found["0"].count < found["0"].outputs  # a sample of the inputs is enough
