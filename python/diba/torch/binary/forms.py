"""Binary weights with exceptions: the function, its gradients, and its parameters from statistics.

Automatic Prune Binarization (Nardini, Rulli, Trani and Venturini, arXiv 2306.08960) keeps a weight w as
``alpha sign(w)`` where ``|w| <= alpha + delta``, and as it is elsewhere. ``docs/binary-networks.md`` derives
the gradients. Weights are matrices (m, n) here, alpha is (1, 1), or (m, 1) for one a row, and delta has no
axes. The sign of zero is +1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["BORDER", "binarized", "border_density", "fitted", "held_delta", "share_outside", "signs"]

BORDER = 0.1
"""Half the width of the band about the border that decides the gradient of delta, over ``alpha + delta``."""

_NEAR = 0.75
"""Entries beyond this part of the last delta are searched for the next one: some three times those kept."""

_ROUNDS = 4


def signs(w: Tensor) -> Tensor:
    """-1 or +1 for every entry; +1 for zeros of either sign."""
    one = torch.ones((), dtype=w.dtype, device=w.device)
    return torch.where(w < 0, -one, one)


def border_density(excess: Tensor, alpha: Tensor, delta: Tensor) -> Tensor:
    """A rectangle of area 1 about the border in place of Dirac's impulse; excess is ``|w| - alpha``."""
    half = BORDER * (alpha + delta)
    return ((excess - delta).abs() <= half).to(excess.dtype) / (2 * half)


class _Binarized(torch.autograd.Function):
    """``alpha sign(w)`` within the border, w beyond it; gradients straight through the sign."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, alpha: Tensor, delta: Tensor) -> Tensor:
        ctx.save_for_backward(w, alpha, delta)
        return torch.where(w.abs() - alpha <= delta, alpha * signs(w), w)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        [grad], [w, alpha, delta] = grads, ctx.saved_tensors
        of_alpha: Tensor | None = None
        of_delta: Tensor | None = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            excess, along = w.abs() - alpha, grad * signs(w)
            each = along * (excess <= delta)
            if ctx.needs_input_grad[2]:  # a border that moves out by dt turns w into alpha sign(w)
                border = -along * excess * border_density(excess, alpha, delta)
                of_delta = border.sum()
                each = each + border
            of_alpha = each.sum_to_size(alpha.shape)
        return grad, of_alpha, of_delta


def binarized(w: Tensor, alpha: Tensor, delta: Tensor) -> Tensor:
    """The weight that a layer multiplies by.

    The gradient of w is that of the result, everywhere. That of alpha adds up the binarized entries, and, if
    delta gets one, the border's share, since the border is at ``alpha + delta``.
    """
    result: Tensor = _Binarized.apply(w, alpha, delta)  # type: ignore[no-untyped-call]
    return result


class _ShareOutside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, alpha: Tensor, delta: Tensor) -> Tensor:
        ctx.save_for_backward(w, alpha, delta)
        return (w.abs() - alpha > delta).to(w.dtype).mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        w, alpha, delta = ctx.saved_tensors
        return None, None, -grads[0] * border_density(w.abs() - alpha, alpha, delta).mean()


def share_outside(w: Tensor, alpha: Tensor, delta: Tensor) -> Tensor:
    """Share of entries beyond the border; it has a gradient for delta alone."""
    result: Tensor = _ShareOutside.apply(w, alpha, delta)  # type: ignore[no-untyped-call]
    return result


@torch.no_grad()
def held_delta(w: Tensor, alpha: Tensor, exceptions: float, last: Tensor | None = None) -> Tensor:
    """The smallest delta that leaves at most this share of the entries beyond the border; at least 0.

    Args:
        w: Shape (m, n).
        alpha: Shape (1, 1) or (m, 1).
        exceptions: From 0 to below 1.
        last: The delta of slightly different weights; it makes the search faster and changes nothing.
    """
    excess = (w.abs() - alpha).flatten()
    most = int(exceptions * excess.numel())
    if most == 0:
        return excess.amax().clamp_(min=0)
    if last is not None and last.device == excess.device:
        near = excess[excess > _NEAR * last]
        if near.numel() > most:  # then the wanted entry is among them
            excess = near
    return excess.kthvalue(excess.numel() - most).values.clamp_(min=0)


@torch.no_grad()
def fitted(w: Tensor, exceptions: float, rows: bool) -> tuple[Tensor, Tensor]:
    """Alpha and delta of least squared error, with that share of exceptions.

    The best alpha is the mean of ``|w|`` over the binarized entries, which depend on alpha only through
    the border, so the two are found in turn.

    Args:
        w: Shape (m, n).
        exceptions: From 0 to below 1.
        rows: Whether every row gets an alpha of its own.
    """
    size = w.abs()
    tiny = torch.finfo(w.dtype).tiny
    axis = 1 if rows else (0, 1)
    alpha = size.mean(axis, keepdim=True)
    for _ in range(_ROUNDS):
        inside = size - alpha <= held_delta(w, alpha, exceptions)
        count = inside.sum(axis, keepdim=True)
        mean = (size * inside).sum(axis, keepdim=True) / count.clamp(min=1)
        alpha = torch.where(count > 0, mean, alpha).clamp(min=tiny)
    return alpha, held_delta(w, alpha, exceptions)
