"""Drawn errors whose squared gradients are second derivatives: against the matrices they stand for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import diba.torch
from diba.torch.retuning.curvature import curvature

ROWS, OUTPUTS, DRAWS = 6, 4, 4000


class Net(nn.Module):
    """One weight matrix; its outputs are logits, or hidden states."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(OUTPUTS, 3, dtype=torch.float64))
        self.name = name

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {self.name: torch.tanh(x @ self.weight.T)}


def pair(name: str) -> tuple[Net, Net, Tensor]:
    torch.manual_seed(0)
    model = Net(name)
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        model.weight += 0.3 * torch.randn_like(model.weight)
    return model, teacher, torch.randn(ROWS, 3, dtype=torch.float64)


def gauss_newton(model: Net, x: Tensor, hessian: Callable[[Tensor], Tensor]) -> Tensor:
    """The diagonal of J' H J, row by row of x, with the Jacobian by automatic differentiation."""

    def outputs(weight: Tensor) -> Tensor:
        return functional_call(model, {"weight": weight}, (x,))[model.name]

    j = jacrev(outputs)(model.weight.detach()).flatten(2)  # rows, outputs, weights
    y = outputs(model.weight.detach())
    found = sum(((j[row].T @ hessian(y[row])) * j[row].T).sum(1) for row in range(ROWS))
    return found.view_as(model.weight)  # type: ignore[union-attr]


def drawn(model: Net, x: Tensor, scalar: Any) -> Tensor:
    total = torch.zeros_like(model.weight)
    for _ in range(DRAWS):
        [gradient] = torch.autograd.grad(scalar(model, x), [model.weight])
        total += gradient.square() / DRAWS
    return total


def covariance(logits: Tensor) -> Tensor:
    p = logits.softmax(0)
    return torch.diag(p) - torch.outer(p, p)


# A mean of squares of sums of at least six independent draws: the relative deviation of one is about
# sqrt(2) at most for nearly normal sums, 3 for the few labels here, so that of the mean is 3 / sqrt(4000).
# Five of them.
SURE = 5 * 3 / DRAWS**0.5


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_of_logits(temperature: float) -> None:
    model, teacher, x = pair("logits")
    loss = diba.torch.distillation(teacher, temperature=temperature)
    expected = gauss_newton(model, x, lambda y: covariance(y / temperature) / ROWS)
    torch.testing.assert_close(drawn(model, x, curvature(loss, None)), expected, rtol=SURE, atol=0)


def test_distillation_of_features_and_a_teacher_alone() -> None:
    model, teacher, x = pair("last_hidden_state")
    energy = teacher(x)["last_hidden_state"].square().sum()
    expected = gauss_newton(model, x, lambda y: 2 * torch.eye(OUTPUTS, dtype=torch.float64) / energy)
    torch.testing.assert_close(drawn(model, x, curvature(None, teacher)), expected, rtol=SURE, atol=0)


def test_any_other_loss_is_taken_for_the_cross_entropy_of_the_logits() -> None:
    model, _, x = pair("logits")
    expected = gauss_newton(model, x, lambda y: covariance(y) / ROWS)
    for loss in (None, lambda model, batch: model(batch)["logits"].sum()):
        torch.testing.assert_close(drawn(model, x, curvature(loss, None)), expected, rtol=SURE, atol=0)


def test_a_teacher_and_a_loss_add_up() -> None:
    model, teacher, x = pair("logits")
    expected = gauss_newton(model, x, lambda y: 2 * covariance(y) / ROWS)
    both = curvature(lambda model, batch: model(batch)["logits"].sum(), teacher)
    torch.testing.assert_close(drawn(model, x, both), expected, rtol=SURE, atol=0)


def test_seeds_decide_the_draws() -> None:
    model, teacher, x = pair("logits")
    values = [curvature(None, teacher, seed)(model, x).item() for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
