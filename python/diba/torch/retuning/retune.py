"""Training of the diagonals of factored layers, with their bits fixed (DiBARD) or moving a little."""

from __future__ import annotations

import time
import warnings
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..._internal import check
from ..._internal.disk import PathLike
from ..._internal.machine import keeping_free_memory
from ...progress import ProgressOption, Steps, check_progress, reporting
from ..model.sizes import uncounted
from ..modules.layer import FactoredLayer
from ..modules.linear import DibaLinear
from ..modules.state import as_numpy
from .batches import differentiable, evaluating, plain_grad, repeatable
from .curvature import curvature
from .flips import Flipper, Flips
from .kept import KeptTraining
from .losses import Loss, chosen_loss
from .settings import Training, parameter_groups
from .steps import Trainer, step_count

__all__ = ["RetuneReport", "bits_checksum", "retune"]


@dataclass(frozen=True)
class RetuneReport:
    """The result of :func:`diba.torch.retune`.

    Attributes:
        training: The settings it ran with.
        steps: Optimizer steps taken, skipped ones not counted.
        skipped: Steps without a finite loss or gradient; nothing changed in them.
        losses: The loss of every step before it was taken, float64; NaN where it was skipped.
        loss_before: Mean loss of at most four batches before the first step.
        loss_after: Mean loss of the same batches after the last step.
        restored: Whether the loss rose, so that the model got its old parameters back.
        seconds: Wall-clock time of the whole call.
        trained: Number of trained parameters (entries).
        training_bytes: Bytes of gradients and of the optimizer's state, as they were.
        dense_training_bytes: The same for Adam on every parameter of the dense model: 12 bytes for each.
        evaluations: (step, result) of ``evaluate``, at the start and after each epoch.
        flips: Bits that changed, by the name of the layer; empty unless bits moved.
        flip_turns: Turns of layers in which bits changed.
        flip_turns_kept: Turns whose flips were kept.
        flip_seconds: Time of the flips, which is part of ``seconds``.
        flip_bytes: Largest memory, in bytes, of latent numbers, gradients and moments of bits.
    """

    training: Training
    steps: int
    skipped: int
    losses: NDArray[np.float64]
    loss_before: float
    loss_after: float
    restored: bool
    seconds: float
    trained: int
    training_bytes: int
    dense_training_bytes: int
    evaluations: list[tuple[int, Any]] = field(default_factory=list)
    flips: dict[str, int] = field(default_factory=dict)
    flip_turns: int = 0
    flip_turns_kept: int = 0
    flip_seconds: float = 0.0
    flip_bytes: int = 0

    def __str__(self) -> str:
        first, last = self.losses[0], np.nanmean(self.losses[-10:])
        flips = f", {sum(self.flips.values()):,} flips" if self.flips else ""
        return (
            f"{self.steps} steps in {self.seconds:.1f} s: loss {first:.4g} -> {last:.4g}, "
            f"{self.trained:,} numbers trained{flips}, {self.training_bytes / 1e6:.3g} MB of gradients and "
            f"state (dense: {self.dense_training_bytes / 1e6:.3g} MB)"
            + (", all of it undone: the loss had risen" if self.restored else "")
        )


def retune(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    teacher: nn.Module | None = None,
    training: Training | None = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    progress: ProgressOption = True,
    checkpoint: PathLike | None = None,
    every: int = 100,
    **settings: Any,
) -> RetuneReport:
    """Train the diagonals of a model's factored layers on data; their bits stay as they are.

    The model is changed in place. It runs in eval mode unless ``dropout`` is asked for. All
    ``requires_grad``, ``grad`` and training flags are as before afterwards. Interrupted (Ctrl-C) or failed in
    a callback, the exception passes through and the model keeps the parameters of its last step, which are
    finite; flips of the turn in progress stay.

    At the end, also after an exception, diagonals that 16 bits an entry held before are rounded to 16 bits
    again, so that bits per weight and files do not grow. Wider ones, and those in float64, stay as they are.

    A model does not get worse: if the mean loss of four batches (evenly spaced ones of a list, else the
    first) is larger after the last step than it was before the first, everything is put back, and a warning
    says so.

    Args:
        model: Has factored layers, from ``diba.torch.convert``.
        batches: A list or a DataLoader, gone through once an epoch; it decides about order and shuffling.
        loss: ``loss(model, batch) -> scalar``; None: distillation if there is a teacher, else the loss that
            the model returns. With a teacher as well, their sum.
        teacher: The dense model, ``copy.deepcopy(model)`` from before the conversion.
        training: All settings, a :class:`Training`; None: those of ``settings``.
        evaluate: ``evaluate(model)``, called without gradients at the start and after each epoch.
        progress: True shows a bar on stderr, False nothing; a callable gets a :class:`diba.Progress` at the
            start and after each step.
        checkpoint: A file for the state of the training. If it is there, of the same training (settings, and
            the model as it was at the start), that one goes on: with the same batches, to the same bytes as
            without a stop, on one machine with one number of threads. At the end it is deleted. Not while
            bits move.
        every: Steps between two states of ``checkpoint``.
        **settings: Fields of :class:`Training`, as ``epochs=3, lr=0.001``.

    Raises:
        TypeError, ValueError: an argument is wrong, or the loss does not depend on what is trained.
        FloatingPointError: no finite loss or gradient in 10 steps in a row; the model is as it was before.
        RuntimeError: bits changed although ``bits`` is None.

    Source:
        Ono, "DiBA", arXiv 2605.05994, section on DiBARD.
    """
    started = time.perf_counter()
    training = Training.of(training, settings)
    check.instance(model, "model", nn.Module, "convert it with diba.torch.convert first")
    check_progress(progress)
    batches = repeatable(batches)
    steps = step_count(training, batches)
    groups = parameter_groups(model, biases=training.biases, norms=training.norms, lr=training.lr)
    flipper = _flipper(model, training)
    if checkpoint is not None and flipper is not None:
        raise ValueError("checkpoint is given and bits move, whose state is not kept; leave one of them out")
    kept = None if checkpoint is None else KeptTraining(checkpoint, every)
    before = bits_checksum(model)
    second = None if flipper is None else curvature(loss, teacher, training.seed)
    trainer = Trainer(model, chosen_loss(loss, teacher), groups, training, flipper, second, kept)
    parameters = [p for group in groups for p in group["params"]]
    evaluations: list[tuple[int, Any]] = []

    def measure() -> None:
        if evaluate is not None:
            with plain_grad(False), evaluating(model):
                evaluations.append((len(trainer.losses), evaluate(model)))

    with (
        keeping_free_memory(),
        torch.random.fork_rng(),
        reporting(progress) as show,
        differentiable(
            model, parameters, dropout=training.dropout, batch_statistics=training.batch_statistics
        ),
    ):

        def after_step() -> None:
            flips = None if flipper is None else trainer.flips
            progressed.begin(len(trainer.losses) - 1)
            progressed.done(len(trainer.losses), loss=trainer.losses[-1], flips=flips)

        progressed = Steps("retune", steps, show)
        torch.manual_seed(training.seed)
        trainer.train(batches, steps, after_step, measure)
        training_bytes = trainer.training_bytes()
    if flipper is None and bits_checksum(model) != before:
        raise RuntimeError(
            "bits changed during retuning although bits is None; something else writes to them"
        )
    if trainer.restored:
        text = (
            f"the mean loss of {trainer.checked} batches rose from {trainer.loss_before:.4g} to "
            f"{trainer.loss_after:.4g}; the model is as it was before: use a smaller lr or more steps"
        )
        warnings.warn(text, UserWarning, stacklevel=2)
    return _report(
        model,
        training,
        trainer,
        flipper,
        trained=sum(p.numel() for p in parameters),
        training_bytes=training_bytes,
        evaluations=evaluations,
        seconds=time.perf_counter() - started,
    )


def _report(
    model: nn.Module, training: Training, trainer: Trainer, flipper: Flipper | None, **known: Any
) -> RetuneReport:
    flips: dict[str, Any] = {}
    if flipper is not None:
        flips = {
            "flips": {} if trainer.restored else flipper.counts,
            "flip_turns": flipper.turns,
            "flip_turns_kept": flipper.kept,
            "flip_seconds": flipper.seconds,
            "flip_bytes": flipper.peak_bytes,
        }
    return RetuneReport(
        training=training,
        steps=len(trainer.losses) - trainer.skipped,
        skipped=trainer.skipped,
        losses=np.array(trainer.losses),
        loss_before=trainer.loss_before,
        loss_after=trainer.loss_after,
        restored=trainer.restored,
        dense_training_bytes=12 * (sum(p.numel() for p in model.parameters()) + uncounted(model)),
        **flips,
        **known,
    )


def bits_checksum(model: nn.Module) -> int:
    """CRC-32 of all packed bits of a model, in module order."""
    crc = 0
    for module in model.modules():
        if isinstance(module, FactoredLayer):
            for bits in (module.b1, module.b2):
                crc = zlib.crc32(as_numpy(bits).tobytes(), crc)
    return crc


def _flipper(model: nn.Module, training: Training) -> Flipper | None:
    if not isinstance(training.bits, Flips):
        return None
    layers = {name: module for name, module in model.named_modules() if isinstance(module, DibaLinear)}
    if not layers:
        raise ValueError(
            "bits is given and model has no DibaLinear; bits must be None, only those layers flip bits"
        )
    return Flipper(layers, training.bits, torch.Generator().manual_seed(training.seed))
