"""The training loop: learning rates, limited and skipped steps, and undoing a training that made it worse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..modules.layer import FactoredLayer, factored_layers
from .batches import batch_norms, evaluating, plain_grad, size, some
from .flips import Flipper
from .kept import KeptTraining, identity_of
from .losses import Loss, loss_value
from .settings import Group, Training

__all__ = ["Trainer", "step_count"]

_EMPTY = "batches is empty; it must have at least one batch each time that it is read"
_CHECKED = 4  # batches whose loss must not rise
_PROBES = 8  # batches for second derivatives
_PATIENCE = 10  # steps in a row without a finite loss or gradient


def step_count(training: Training, batches: Iterable[Any]) -> int:
    """The number of optimizer steps of a training.

    Raises:
        TypeError: The batches have no length, and ``max_steps`` is None.
    """
    if training.max_steps is not None:
        return training.max_steps
    count = size(batches)
    if count is None:
        raise TypeError(
            f"batches is {type(batches).__name__}, which has no length; it must be a list or a DataLoader "
            f"of a sized dataset, or max_steps must be given"
        )
    return training.epochs * -(-count // training.gradient_accumulation_steps)


class Trainer:
    """Trains groups of parameters, and bits if there is a flipper.

    Args:
        model: The model, in the context ``batches.differentiable``.
        loss: ``loss(model, batch)``.
        groups: Groups of parameters, see ``training.grouped``.
        training: The settings.
        flipper: Flips bits; None: no bit changes.
        curvature: A scalar whose squared gradients are second derivatives of the loss on average; a flipper
            needs it.
        kept: Where the state is kept, and where it may be found; not with a flipper.

    Attributes:
        losses: The loss of every step before it was taken; NaN where it was skipped.
        skipped: Steps without a finite loss or gradient; nothing changed in them.
        flips: Number of bits that the last step changed.
        checked: Number of batches in the mean losses before and after.
        loss_before: Mean loss of these batches before the first step.
        loss_after: Mean loss of these batches after the last step.
        restored: Whether the loss rose, so that everything was undone.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        groups: list[Group],
        training: Training,
        flipper: Flipper | None = None,
        curvature: Loss | None = None,
        kept: KeptTraining | None = None,
    ) -> None:
        self.losses: list[float] = []
        self.skipped = self.flips = self.checked = 0
        self.loss_before = self.loss_after = math.nan
        self.restored = False
        self._model, self._loss, self._groups, self._flipper = model, loss, groups, flipper
        self._curvature, self._kept = curvature, kept
        self._position = 0  # steps that were gone through, those of an earlier run included
        self._probed: list[Any] = []
        self._training = training
        self._rates = [group["lr"] for group in groups]
        copies = [dict(group) for group in groups]
        make = training.optimizer
        self._optimizer = torch.optim.AdamW(copies, weight_decay=0) if make is None else make(copies)
        self._in_a_row = 0
        self._narrow = [layer for layer in factored_layers(model) if _is_narrow(layer)]
        changing: list[Tensor] = [p for group in groups for p in group["params"]]
        changing += [buffer for norm in batch_norms(model) for buffer in norm.buffers(recurse=False)]
        if flipper is not None:
            changing += [bits for layer in flipper.layers.values() for bits in (layer.b1, layer.b2)]
        self._before = [(tensor, tensor.detach().clone()) for tensor in changing]

    def train(
        self,
        batches: Iterable[Any],
        steps: int,
        after_step: Callable[[], object] = lambda: None,
        around_epochs: Callable[[], object] = lambda: None,
    ) -> None:
        """Take all steps; undo them if the mean loss of some batches is larger at the end.

        At the end, also after an exception, diagonals that 16 bits held at the start are rounded to 16 bits.

        Args:
            batches: Can be read any number of times.
            steps: Optimizer steps.
            after_step: Called after each of them.
            around_epochs: Called at the start and after each pass over the batches.

        Raises:
            ValueError: no batches, or a loss that does not depend on the parameters.
            FloatingPointError: no finite loss or gradient in ten steps in a row; everything is put back.
        """
        sample = some(batches, _CHECKED)
        self._probed = some(batches, _PROBES) if self._flipper is not None else []
        if not sample:
            raise ValueError(_EMPTY)
        around_epochs()
        self.checked, self.loss_before = len(sample), self._mean_loss(sample)
        self._go_on(steps)
        known = len(self.losses)
        try:
            while self._position < steps:
                self._epoch(batches, steps, after_step)
                if self._position >= steps:
                    self._settle(sample[0])
                if self._position > known:  # an earlier run did it for the epochs before
                    around_epochs()
        finally:
            self._round()
        self.loss_after = self._mean_loss(sample)
        if self._kept is not None:
            self._kept.remove()
        if math.isfinite(self.loss_before) and not self.loss_after <= self.loss_before:
            self._undo()
            self.restored = True

    def _epoch(self, batches: Iterable[Any], steps: int, after_step: Callable[[], object]) -> None:
        """Go through the batches once, for as many of all steps as are left."""
        before = self._position
        for chunk in _chunks(batches, self._training.gradient_accumulation_steps, steps - before):
            self._position += 1
            if self._position <= len(self.losses):
                continue  # an earlier run took this step
            self._step(chunk, len(self.losses), steps)
            if self._kept is not None and len(self.losses) % self._kept.every == 0:
                self._keep()
            after_step()
        if self._position == before:
            raise ValueError(_EMPTY)

    def _go_on(self, steps: int) -> None:
        """Take the state of an earlier run, if one was kept."""
        if self._kept is None:
            return
        identity = identity_of(f"{self._training} {steps}", (tensor for tensor, _ in self._before))
        state = self._kept.read(identity)
        if state is not None:
            with torch.no_grad():
                for (tensor, _), value in zip(self._before, state["tensors"], strict=True):
                    tensor.copy_(value)
            self._optimizer.load_state_dict(state["optimizer"])
            self.losses, self.skipped, self._in_a_row = state["losses"], state["skipped"], state["in_a_row"]
            torch.set_rng_state(state["random"])

    def _keep(self) -> None:
        assert self._kept is not None, "asked for"
        self._kept.write(
            tensors=[tensor.detach() for tensor, _ in self._before],
            optimizer=self._optimizer.state_dict(),
            losses=self.losses,
            skipped=self.skipped,
            in_a_row=self._in_a_row,
            random=torch.get_rng_state(),
        )

    def _settle(self, batch: Any) -> None:
        """After the last step: end the flips, and make the diagonals what is kept of them."""
        if self._flipper is not None:
            self._flipper.check(lambda: float(self._loss(self._model, batch)), last=True)
        self._round()

    def _round(self) -> None:
        for layer in self._narrow:
            layer.round_diagonals()

    def training_bytes(self) -> int:
        """Bytes of gradients and of the optimizer's state."""
        state = [
            t for entry in self._optimizer.state.values() for t in entry.values() if isinstance(t, Tensor)
        ]
        gradients: int = sum(p.nbytes for group in self._groups for p in group["params"])
        return gradients + sum(int(t.nbytes) for t in state)

    def _step(self, chunk: list[Any], step: int, steps: int) -> None:
        """Step number ``step`` of all steps, on some batches."""
        rate = self._training.lr_factor(step, steps)
        self.flips = 0
        if self._flipper is not None:
            self._flipper.check(lambda: float(self._loss(self._model, chunk[0])))
            if self._flipper.begins:
                turn = range(step, min(step + self._flipper.settings.every, steps))
                rates = sum(self._training.lr_factor(i, steps) for i in turn)
                self._flipper.begin([partial(self._probe, batch) for batch in self._probed], rates)
        for group, lr in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = lr * rate
        self._optimizer.zero_grad(set_to_none=True)
        with nullcontext() if self._flipper is None else self._flipper.watch():
            value = self._gradients(chunk)
        if math.isfinite(value) and self._clip_gradients():
            self._move(value)
            self._in_a_row = 0
            self.losses.append(value)
            if self._flipper is not None:
                self.flips = self._flipper.step(rate)
        else:
            self._skip(value)

    def _mean_loss(self, batches: list[Any]) -> float:
        """The mean loss of the model as it is."""
        with plain_grad(False), evaluating(self._model):
            return sum(loss_value(self._loss, self._model, batch).item() for batch in batches) / len(batches)

    def _probe(self, batch: Any) -> None:
        """Gradients whose squares are second derivatives."""
        assert self._curvature is not None, "a flipper needs it"
        loss_value(self._curvature, self._model, batch).backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _undo(self) -> None:
        """Restore everything that steps may have changed."""
        for tensor, saved in self._before:
            tensor.copy_(saved)

    def _gradients(self, chunk: list[Any]) -> float:
        """Compute the gradients of the mean loss of some batches; returns that loss."""
        value = 0.0
        for batch in chunk:
            loss = loss_value(self._loss, self._model, batch)
            if not loss.requires_grad:
                raise ValueError(
                    "the loss does not depend on the diagonals; it must be computed from the model's "
                    "outputs, without torch.no_grad() and detach()"
                )
            (loss / len(chunk)).backward()  # type: ignore[no-untyped-call]
            value += loss.item() / len(chunk)
        return value

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
        largest = self._training.max_grad_norm
        if largest is not None and norm > largest:
            for group in self._groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.mul_(largest / norm)
        return True

    @torch.no_grad()
    def _move(self, loss: float) -> None:
        """Take a step of the optimizer, and shorten it if to first order it changes the loss too much.

        Adam's first steps move every entry by the full learning rate. Thousands of entries then correct the
        same error at once, and together overshoot. (Stochastic Polyak step size: Loizou, Vaswani,
        Laradji and Lacoste-Julien, AISTATS 2021, equation 3.)
        """
        moving = [p for group in self._groups for p in group["params"] if p.grad is not None]
        before = [p.clone() for p in moving]
        self._optimizer.step()
        share = self._training.max_loss_change
        if share is None:
            return
        change = abs(sum(torch.sum(p.grad * (old - p)).item() for p, old in zip(moving, before, strict=True)))
        if change > share * loss > 0:
            for p, old in zip(moving, before, strict=True):
                p.copy_(torch.lerp(old, p, share * loss / change))

    def _skip(self, value: float) -> None:
        """Count a step without a finite loss or gradient; too many in a row stop the training."""
        if self._flipper is not None:
            self._flipper.drop()
        self.losses.append(math.nan)
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row == _PATIENCE:
            self._undo()
            raise FloatingPointError(
                f"no finite loss or gradient in {_PATIENCE} steps in a row (the last loss is {value}); the "
                f"model is as it was before: check loss and data, or use a smaller lr"
            )


def _is_narrow(layer: FactoredLayer) -> bool:
    """Whether 16 bits hold its diagonals; float64 is for checks, and stays."""
    return layer.d1.dtype == torch.float32 and layer.diagonal_bits == 16


def _chunks(batches: Iterable[Any], length: int, count: int) -> Iterator[list[Any]]:
    """At most ``count`` lists of ``length`` batches (the last of an epoch may be shorter)."""
    batches = iter(batches)
    for _ in range(count):
        chunk = list(islice(batches, length))
        if not chunk:
            return
        yield chunk
