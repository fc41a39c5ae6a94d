"""One training of a block: its steps, the order of its batches, and its state on the disk."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..retuning.latents import LatentSteps
from ..retuning.settings import Training

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..retuning.settings import Group
    from .kept import KeptTraining

__all__ = ["train"]

_BETAS = 0.9, 0.95  # of Adam; the bits need gradients of few steps only
_SCHEDULE = Training(warmup_ratio=0.05)


class _Order:
    """The numbers of the batches in random order, again and again."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._count, self._generator = count, generator
        self.left: list[int] = []

    def next(self) -> int:
        if not self.left:
            self.left = torch.randperm(self._count, generator=self._generator).tolist()[::-1]
        return self.left.pop()


def train(
    groups: Sequence[Group],
    steps: int,
    latents: Sequence[nn.Parameter],
    *,
    caps: Sequence[float],
    squares: Callable[[], list[Tensor]],
    loss_of: Callable[[int], Tensor],
    batches: int,
    generator: torch.Generator,
    reach: float,
    on_step: Callable[[], object],
    kept: KeptTraining | None,
) -> None:
    """Train parameters by Adam and latents by their own steps, or go on where an earlier run was stopped.

    Args:
        groups: Parameters with their learning rates; none of them is empty.
        steps: Number of steps.
        latents: Of bits.
        caps: Of each of them, the share that may flip in a step at the full rate.
        squares: Estimates of the loss's second derivatives for the latents.
        loss_of: The loss of a batch.
        batches: Number of batches.
        generator: Of their order.
        reach: How far latents move, see ``settings``.
        on_step: Called after every step, also for those of an earlier run.
        kept: Where the state is kept; None: nowhere.
    """
    changing = [*(p for group in groups for p in group["params"]), *latents]
    known = None if kept is None else kept.read()
    if known is not None:
        _take(changing, known["tensors"])
        for _ in range(known["step"]):
            on_step()
    if known is not None and known["ended"]:
        generator.set_state(known["generator"])
        return
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    optimizer = torch.optim.Adam([{**group} for group in groups], lr=0.0, betas=_BETAS, fused=fused or None)
    rates = [group["lr"] for group in optimizer.param_groups]
    factors = [_SCHEDULE.lr_factor(step, steps) for step in range(steps)]
    order = _Order(batches, generator)
    moves = _moves(latents, caps, squares, reach, known)
    if known is not None:
        optimizer.load_state_dict(known["optimizer"])
        order.left = known["order"]
        generator.set_state(known["generator"])

    def state(step: int, ended: bool) -> dict[str, Any]:
        found = {"step": step, "ended": ended, "generator": generator.get_state()}
        found["tensors"] = [tensor.detach().clone() for tensor in changing]  # no others of its storage
        if not ended:
            found |= {"optimizer": optimizer.state_dict(), "order": order.left}
            found["moves"] = [move.state() for move in moves]
        return found

    done = 0 if known is None else known["step"]
    for factor in factors[done:]:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(order.next())
        if not loss.requires_grad or not loss.isfinite():
            break  # the held-out loss decides what becomes of it
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for latent, move in zip(latents, moves, strict=True):
            move.step(latent.grad, factor, factor / sum(factors))
            latent.grad = None
        done += 1
        if kept is not None:
            kept.write(partial(state, done, False))
        on_step()
    if kept is not None:
        kept.write(partial(state, done, True))


def _moves(
    latents: Sequence[nn.Parameter],
    caps: Sequence[float],
    squares: Callable[[], list[Tensor]],
    reach: float,
    known: dict[str, Any] | None,
) -> list[LatentSteps]:
    """The steps of the latents, as they are at the start or as they were kept."""
    moving = [(latent.detach(), cap) for latent, cap in zip(latents, caps, strict=True)]
    if known is None:
        pairs = zip(moving, squares(), strict=True)
        return [LatentSteps(latent, square, reach, cap) for (latent, cap), square in pairs]
    states = zip(moving, known["moves"], strict=True)
    return [LatentSteps.of(latent, state, reach, cap) for (latent, cap), state in states]


@torch.no_grad()
def _take(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
