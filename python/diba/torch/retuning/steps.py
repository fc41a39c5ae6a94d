"""One optimizer step after another: rates, clipping, and what happens when a loss is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..._internal import check
from ..._internal.check_arrays import describe
from .batches import evaluating, plain_grad
from .flips import Flipper
from .groups import Group
from .losses import Loss, batch_norms

__all__ = ["CLIP", "PROMISE", "OptimizerFactory", "Run"]

OptimizerFactory = Callable[[list[Group]], torch.optim.Optimizer]

CLIP = 1.0  # largest norm of the gradient for relative changes
PROMISE = 0.25  # largest share of the loss that a step may remove, by the gradient's account
_PATIENCE = 10  # steps in a row without a finite loss or gradient


class Run:
    """The state of a run: one optimizer step at a time."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        groups: list[Group],
        optimizer: OptimizerFactory | None = None,
        flipper: Flipper | None = None,
        clip: float | None = CLIP,
        promise: float | None = PROMISE,
    ) -> None:
        self.losses: list[float] = []
        self.skipped = 0
        self._model, self._loss, self._groups, self._flipper = model, loss, groups, flipper
        self._clip, self._promise = _limit(clip, "clip"), _limit(promise, "promise")
        self._rates = [group["lr"] for group in groups]
        copies = [dict(group) for group in groups]
        self._optimizer = (
            torch.optim.AdamW(copies, weight_decay=0) if optimizer is None else optimizer(copies)
        )
        self._in_a_row = 0
        changing: list[Tensor] = [p for group in groups for p in group["params"]]
        changing += [buffer for norm in batch_norms(model) for buffer in norm.buffers(recurse=False)]
        if flipper is not None:
            changing += [bits for layer in flipper.layers.values() for bits in (layer.b1, layer.b2)]
        self._before = [(tensor, tensor.detach().clone()) for tensor in changing]

    def step(self, chunk: list[Any], rate: float) -> None:
        """One step on some batches at ``rate`` times each group's learning rate."""
        for group, lr in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = lr * rate
        self._optimizer.zero_grad(set_to_none=True)
        if self._flipper is None:
            value = self._gradients(chunk)
        else:
            self._flipper.check(lambda: float(self._loss(self._model, chunk[0])))
            with self._flipper.watch():
                value = self._gradients(chunk)
        if math.isfinite(value) and self._clip_gradients():
            self._move(value)
            self._in_a_row = 0
            self.losses.append(value)
            if self._flipper is not None:
                self._flipper.step(rate)
        else:
            self._skip(value)

    def finish(self, batch: Any) -> None:
        """After the last step: whether the flips of a turn that is not over stay, by some batch."""
        if self._flipper is not None:
            self._flipper.check(lambda: float(self._loss(self._model, batch)), last=True)

    def mean_loss(self, batches: list[Any]) -> float:
        """Of the model as it is."""
        with plain_grad(False), evaluating(self._model):
            return sum(self._value(batch).item() for batch in batches) / len(batches)

    @torch.no_grad()
    def undo(self) -> None:
        """Put back everything that steps may have changed."""
        for tensor, saved in self._before:
            tensor.copy_(saved)

    def training_bytes(self) -> int:
        """Of gradients and the optimizer's state."""
        state = [
            t for entry in self._optimizer.state.values() for t in entry.values() if isinstance(t, Tensor)
        ]
        gradients: int = sum(p.nbytes for group in self._groups for p in group["params"])
        return gradients + sum(int(t.nbytes) for t in state)

    def _gradients(self, chunk: list[Any]) -> float:
        value = 0.0
        for batch in chunk:
            loss = self._value(batch)
            if not loss.requires_grad:
                raise ValueError(
                    "the loss does not depend on the diagonals; it must be computed from the model's "
                    "outputs, without torch.no_grad() and detach()"
                )
            (loss / len(chunk)).backward()  # type: ignore[no-untyped-call]
            value += loss.item() / len(chunk)
        return value

    def _value(self, batch: Any) -> Tensor:
        loss: Any = self._loss(self._model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TypeError(f"loss returned {describe(loss)}; it must return a tensor with one number")
        return loss

    @torch.no_grad()
    def _clip_gradients(self) -> bool:
        """Scale gradients down to the largest norm; False if they are not finite."""
        scaled = [
            torch.linalg.vector_norm(p.grad) * group["scale"]
            for group in self._groups
            for p in group["params"]
            if p.grad is not None
        ]
        norm = torch.linalg.vector_norm(torch.stack([n.double().cpu() for n in scaled])).item()
        if not math.isfinite(norm):
            return False
        if norm > self._clip:
            for group in self._groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.mul_(self._clip / norm)
        return True

    @torch.no_grad()
    def _move(self, loss: float) -> None:
        """The optimizer's step, shortened where the gradient promises too large a change of the loss.

        Adam moves every entry by its whole rate at first. Thousands of entries of many layers, each helpful
        alone, then mend the same error many times over. (Stochastic Polyak step size: Loizou, Vaswani,
        Laradji and Lacoste-Julien, AISTATS 2021, equation 3.)
        """
        moving = [p for group in self._groups for p in group["params"] if p.grad is not None]
        before = [p.clone() for p in moving]
        self._optimizer.step()
        promised = sum(torch.sum(p.grad * (old - p)).item() for p, old in zip(moving, before, strict=True))
        if abs(promised) > self._promise * loss > 0:
            for p, old in zip(moving, before, strict=True):
                p.copy_(torch.lerp(old, p, self._promise * loss / abs(promised)))

    def _skip(self, value: float) -> None:
        if self._flipper is not None:
            self._flipper.drop()
        self.losses.append(math.nan)
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row == _PATIENCE:
            self.undo()
            raise FloatingPointError(
                f"no finite loss or gradient in {_PATIENCE} steps in a row (the last loss is {value}); the "
                f"model is as it was before: check loss and data, or use a smaller lr"
            )


def _limit(value: float | None, name: str) -> float:
    """A largest value; None is none."""
    return math.inf if value is None else check.number(value, name, minimum=0, exclusive=True)
