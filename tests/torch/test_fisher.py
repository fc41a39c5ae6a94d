"""The loss without labels: its squared gradients are the Fisher information, and bits follow them."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diba
from diba.torch import Calibration, Moments, calibrate, fisher

ROWS = 20_000


def mean_squares(model: nn.Module, batches: list[Any], **options: Any) -> dict[str, np.ndarray]:
    found = calibrate(model, batches, loss=fisher(**options), progress=False)
    return {name: moments.gradient_rms**2 for name, moments in found.items()}


def test_squared_gradients_are_the_fisher_information_of_logits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    x = torch.randn(ROWS, 4)
    p = model(x).detach().double().softmax(-1).numpy()
    fourth = p * (1 - p) ** 4 + (1 - p) * p**4  # of p - [the label that was drawn]
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
    assert found["0"].count < found["0"].outputs  # of inputs, a sample is enough
