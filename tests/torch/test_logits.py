"""Losses of logits in parts: against torch's own, which hold everything at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from diba.torch.retuning import logits as parts


@pytest.fixture(params=[2**22, 22, 1], ids=["at once", "two rows", "one row"], autouse=True)
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_AT_ONCE", request.param)


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_divergence_and_its_gradient(temperature: float) -> None:
    student, teacher = made(2, 5, 11).requires_grad_(), made(2, 5, 11, seed=1)
    value = parts.divergence(student, teacher, temperature)
    log_q, log_p = (functional.log_softmax(z / temperature, -1).flatten(0, 1) for z in (student, teacher))
    expected = temperature**2 * functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(3 * value, student), torch.autograd.grad(3 * expected, student)
    )


def test_classes_that_the_teacher_rules_out() -> None:
    student, teacher = made(4, 6).requires_grad_(), made(4, 6, seed=1)
    teacher[:, 2] = -torch.inf
    value = parts.divergence(student, teacher, 1.0)
    others = [0, 1, 3, 4, 5]
    p, log_p = teacher[:, others].softmax(-1), teacher[:, others].log_softmax(-1)
    expected = (p * (log_p - student.log_softmax(-1)[:, others])).sum(-1).mean()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, student), torch.autograd.grad(expected, student))


def test_the_surprise_and_its_gradient() -> None:
    values, classes = made(7, 11).requires_grad_(), torch.tensor([0, 10, 3, 3, 5, 1, 9])
    value = parts.surprise(values, classes)
    expected = functional.cross_entropy(values, classes, reduction="sum")
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(0.5 * value, values), torch.autograd.grad(0.5 * expected, values)
    )


def test_no_rows() -> None:
    empty = made(0, 3).requires_grad_()
    assert parts.divergence(empty, made(0, 3), 1.0).item() == 0
    assert parts.surprise(empty, torch.zeros(0, dtype=torch.long)).item() == 0
    assert parts.drawn(empty.detach(), torch.Generator()).shape == (0,)


def test_draws_follow_the_probabilities() -> None:
    """Of 20,000 draws a class of probability p gets p within 5 standard deviations of a binomial."""
    count, values = 20_000, made(1, 3)
    found = parts.drawn(values.expand(count, -1), torch.Generator().manual_seed(0))
    p = values.softmax(-1)[0]
    shares = torch.bincount(found, minlength=3) / count
    assert bool(((shares - p).abs() <= 5 * (p * (1 - p) / count).sqrt()).all())
