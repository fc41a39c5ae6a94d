"""Losses of logits that hold no other tensor of their size but the gradient.

The logits of a language model are its largest tensor, 50,000 numbers a token and more: with the losses of
torch, a softmax and its logarithm are held beside them for the backward pass. Here both are made again, some
rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["divergence", "drawn", "surprise"]

_AT_ONCE = 2**22  # numbers of a part


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(teacher | student)`` of softened logits, the mean over rows; a scalar.

    Classes whose logit in the teacher is minus infinity are ruled out.

    Args:
        student: Logits, shape (..., classes); they get the gradient.
        teacher: Logits of the same shape.
        temperature: T.
    """
    value: Tensor = _Divergence.apply(_rows(student), _rows(teacher), temperature)  # type: ignore[no-untyped-call]
    return value


def surprise(logits: Tensor, classes: Tensor) -> Tensor:
    """The cross entropy of logits (rows, n) with a class for each row, summed; a scalar."""
    value: Tensor = _Surprise.apply(logits, classes)  # type: ignore[no-untyped-call]
    return value


def drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One class for every row of logits, by inversion: torch.multinomial takes seconds for a vocabulary."""
    levels = torch.rand(len(logits), 1, generator=generator).to(logits)
    found = [_inverted(logits[part], levels[part]) for part in _parts(logits)]
    return torch.cat(found) if found else levels[:, 0].long()


def _inverted(logits: Tensor, levels: Tensor) -> Tensor:
    sums = logits.softmax(-1).cumsum(-1)
    found = torch.searchsorted(sums, levels * sums[:, -1:], right=True)[:, 0]
    return found.clamp_max(logits.shape[-1] - 1)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.temperature = temperature
        total = student.new_zeros(())
        for part in _parts(student):
            log_p, log_q = (_log_softmax(z[part], temperature) for z in (teacher, student))
            terms = log_p.exp() * (log_p - log_q)
            total += terms.masked_fill_(log_p == -torch.inf, 0).sum()
        return total * (temperature**2 / max(1, len(student)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        student, teacher = ctx.saved_tensors
        found = torch.empty_like(student)
        for part in _parts(student):
            p, q = (_log_softmax(z[part], ctx.temperature).exp_() for z in (teacher, student))
            found[part] = q.sub_(p)
        return found.mul_(gradient * (ctx.temperature / max(1, len(student)))), None, None


class _Surprise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor) -> Tensor:
        ctx.save_for_backward(logits, classes)
        total = logits.new_zeros(())
        for part in _parts(logits):
            total -= logits[part].log_softmax(-1).gather(1, classes[part, None]).sum()
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, classes = ctx.saved_tensors
        found = torch.empty_like(logits)
        for part in _parts(logits):
            found[part] = logits[part].softmax(-1)
        found.scatter_add_(1, classes[:, None], -torch.ones_like(found[:, :1]))
        return found.mul_(gradient), None


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)


def _rows(logits: Tensor) -> Tensor:
    return logits.reshape(-1, logits.shape[-1])


def _parts(logits: Tensor) -> Iterator[slice]:
    """Rows of at most _AT_ONCE numbers together."""
    rows = max(1, _AT_ONCE // max(1, logits.shape[-1]))
    return (slice(begin, begin + rows) for begin in range(0, len(logits), rows))
