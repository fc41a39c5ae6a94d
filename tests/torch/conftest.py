"""Fixtures of the tests of retuning: a small dense model, its factored copy, data with its answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from small_models import dense_model, factored, inputs


@pytest.fixture(scope="module")
def dense() -> nn.Sequential:
    return dense_model()


@pytest.fixture
def model(dense: nn.Sequential) -> nn.Sequential:
    return factored(dense)


@pytest.fixture(scope="module")
def batches(dense: nn.Sequential) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        return [(x, dense(x)) for x in inputs(16)]
