"""Training of the diagonals of factored layers, with their bits fixed (DiBARD) or moving a little."""

from __future__ import annotations

import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..._internal import check
from ..modules.kinds import dense_numbers_more
from ..modules.layer import FactoredLayer, as_numpy
from ..modules.linear import DibaLinear
from .batches import evaluating, plain_grad, repeatable, size
from .course import Course, Schedule, run_course
from .flips import Flipper, Flips
from .groups import parameter_groups, trainable
from .losses import Loss, differentiable, distillation, model_loss
from .steps import CLIP, PROMISE, OptimizerFactory, Run

__all__ = ["RetuneReport", "bits_checksum", "retune", "trainable"]

_RISEN = (
    "the mean loss of {} batches rose from {:.4g} to {:.4g}; the model is as it was before: use a "
    "smaller lr or more steps"
)


@dataclass(frozen=True)
class RetuneReport:
    """What ``retune`` did.

    Attributes:
        steps: Optimizer steps taken, skipped ones not counted.
        skipped: Steps without a finite loss or gradient; nothing changed in them.
        losses: The loss of every step before it was taken, float64; NaN where it was skipped.
        checked: Mean loss of some batches (4 at most) before the first step and after the last one.
        restored: Whether the second was larger, so that the model got its old parameters back.
        seconds: Wall-clock time of everything, and of the flips alone ...
        flip_seconds: ... which is part of it.
        trained: Numbers that trained.
        training_bytes: Gradients and state of the optimizer, as they were.
        dense_bytes: The same for Adam on every parameter of the dense model: 12 bytes for each.
        flips: Bits that changed, by the name of the layer; empty unless bits moved.
        flip_turns: Turns of layers that changed bits, and how many of them were kept: (turns, kept).
        flip_bytes: Peak of latents, gradients and moments of bits.
        evaluations: (step, result) of ``evaluate``, at the start and after each epoch.
    """

    steps: int
    skipped: int
    losses: NDArray[np.float64]
    checked: tuple[float, float]
    restored: bool
    seconds: float
    flip_seconds: float
    trained: int
    training_bytes: int
    dense_bytes: int
    flips: dict[str, int] = field(default_factory=dict)
    flip_turns: tuple[int, int] = (0, 0)
    flip_bytes: int = 0
    evaluations: list[tuple[int, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        first, last = self.losses[0], np.nanmean(self.losses[-10:])
        flips = f", {sum(self.flips.values()):,} flips" if self.flips else ""
        return (
            f"{self.steps} steps in {self.seconds:.1f} s: loss {first:.4g} -> {last:.4g}, "
            f"{self.trained:,} numbers trained{flips}, {self.training_bytes / 1e6:.3g} MB of gradients and "
            f"state (dense: {self.dense_bytes / 1e6:.3g} MB)"
            + (", all of it undone: the loss had risen" if self.restored else "")
        )


def retune(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    teacher: nn.Module | None = None,
    epochs: int = 1,
    steps: int | None = None,
    lr: float = 0.002,
    schedule: Schedule = "cosine",
    warmup: float = 0.05,
    clip: float | None = CLIP,
    promise: float | None = PROMISE,
    biases: bool = True,
    norms: bool = False,
    bits: Literal["flip"] | Flips | None = None,
    optimizer: OptimizerFactory | None = None,
    accumulate: int = 1,
    dropout: bool = False,
    statistics: bool = False,
    seed: int = 0,
    evaluate: Callable[[nn.Module], Any] | None = None,
    progress: bool = True,
) -> RetuneReport:
    """Train the diagonals of a model's factored layers on data; their bits stay as they are.

    The model is changed in place. It runs in eval mode unless ``dropout`` is asked for. All
    ``requires_grad``, ``grad`` and training flags are as before afterwards. Interrupted (Ctrl-C) or failed in
    a callback, the exception passes through and the model keeps the parameters of its last step, which are
    finite; flips of the turn in progress stay.

    A model does not get worse: if the mean loss of four batches (evenly spaced ones of a list, else the
    first) is larger after the last step than it was before the first, everything is put back, and a warning
    says so.

    Args:
        model: Has factored layers, from ``diba.torch.convert``.
        batches: A list or a DataLoader, gone through once an epoch; it decides about order and shuffling.
        loss: ``loss(model, batch) -> scalar``; None: distillation if there is a teacher, else the loss that
            the model returns. With a teacher as well, their sum.
        teacher: The dense model, ``copy.deepcopy(model)`` from before the conversion.
        epochs: Passes over the batches.
        steps: Optimizer steps; goes through the batches as often as needed, whatever ``epochs`` says.
        lr: Learning rate relative to the median entry of each diagonal, see ``trainable``.
        schedule: What the rate does after the warm-up: falls to zero as a cosine or a line, or nothing.
        warmup: Share of the steps in which it rises from zero.
        clip: Largest norm of the gradient for relative changes of the parameters (gradient times the median
            entry), which does not depend on how a layer's scale is split over its diagonals; None: no limit.
        promise: Largest share of the loss that a step may remove, or add, by the gradient's account; a longer
            step is shortened. Bounds the first steps, for losses whose smallest value is 0 (distances from a
            teacher, cross entropy): steps at a loss below 0 are not bounded. None: no limit.
        biases: Train the biases of factored layers too.
        norms: Train weights and biases of LayerNorm, RMSNorm, GroupNorm and batch normalisation too.
        bits: ``"flip"``, or a ``Flips``: bits of the linear layers move too.
        optimizer: Called with the groups of ``trainable``, as ``torch.optim.SGD`` can be; None: AdamW without
            decay.
        accumulate: Batches for each step; their gradients are averaged.
        dropout: Run in training mode, batch normalisation excepted.
        statistics: Let batch normalisation use and update batch statistics.
        seed: Of the random numbers of shuffling, dropout and turns of layers; torch's own are left as they
            were.
        evaluate: ``evaluate(model)``, called without gradients at the start and after each epoch.
        progress: Show a bar on a terminal (needs tqdm).

    Raises:
        TypeError, ValueError: an argument is wrong, or the loss does not depend on what is trained.
        FloatingPointError: no finite loss or gradient in 10 steps in a row; the model is as it was before.
        RuntimeError: bits changed although ``bits`` is None.

    Source:
        Ono, "DiBA", arXiv 2605.05994, section on DiBARD.
    """
    started = time.perf_counter()
    chosen = _chosen_loss(loss, teacher, model)
    batches = repeatable(batches)
    course = _course(batches, epochs, steps, schedule, warmup, accumulate)
    groups = parameter_groups(model, biases=biases, norms=norms, lr=lr)
    flipper = _flipper(model, bits, check.seed(seed))
    before = bits_checksum(model)
    run = Run(model, chosen, groups, optimizer, flipper, clip, promise)
    parameters = [p for group in groups for p in group["params"]]
    evaluations: list[tuple[int, Any]] = []

    def measure() -> None:
        if evaluate is not None:
            with plain_grad(False), evaluating(model):
                evaluations.append((len(run.losses), evaluate(model)))

    with (
        torch.random.fork_rng(),
        _bar(progress, course.steps) as show,
        differentiable(model, parameters, dropout=dropout, statistics=statistics),
    ):
        torch.manual_seed(seed)
        outcome = run_course(run, batches, course, show, measure)
        training_bytes = run.training_bytes()
    if bits is None and bits_checksum(model) != before:
        raise RuntimeError(
            "bits changed during retuning although bits is None; something else writes to them"
        )
    if outcome.restored:
        risen = _RISEN.format(outcome.batches, outcome.before, outcome.after)
        warnings.warn(risen, UserWarning, stacklevel=2)
    return RetuneReport(
        steps=course.steps - run.skipped,
        skipped=run.skipped,
        losses=np.array(run.losses),
        checked=(outcome.before, outcome.after),
        restored=outcome.restored,
        seconds=time.perf_counter() - started,
        trained=sum(p.numel() for p in parameters),
        training_bytes=training_bytes,
        dense_bytes=12 * (sum(p.numel() for p in model.parameters()) + dense_numbers_more(model)),
        evaluations=evaluations,
        flip_seconds=flipper.seconds if flipper else 0.0,
        flips=flipper.counts if flipper and not outcome.restored else {},
        flip_turns=(flipper.turns, flipper.kept) if flipper else (0, 0),
        flip_bytes=flipper.peak_bytes if flipper else 0,
    )


def bits_checksum(model: nn.Module) -> int:
    """CRC-32 of all packed bits of a model, in module order."""
    crc = 0
    for module in model.modules():
        if isinstance(module, FactoredLayer):
            for bits in (module.b1, module.b2):
                crc = zlib.crc32(as_numpy(bits).tobytes(), crc)
    return crc


def _chosen_loss(loss: Loss | None, teacher: nn.Module | None, model: nn.Module) -> Loss:
    check.instance(model, "model", nn.Module, "convert it with diba.torch.convert first")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss is {check.describe(loss)}; it must be None or a callable loss(model, batch)")
    if teacher is None:
        return model_loss if loss is None else loss
    imitate, task = distillation(teacher), loss
    return imitate if task is None else lambda model, batch: imitate(model, batch) + task(model, batch)


def _flipper(model: nn.Module, bits: Any, seed: int) -> Flipper | None:
    if bits is None:
        return None
    if not isinstance(bits, Flips):
        check.one_of(bits, "bits", ("flip",))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, DibaLinear)}
    if not layers:
        raise ValueError(
            "bits is given and model has no DibaLinear; bits must be None, only those layers flip bits"
        )
    return Flipper(layers, bits if isinstance(bits, Flips) else Flips(), torch.Generator().manual_seed(seed))


def _course(
    batches: Iterable[Any], epochs: int, steps: int | None, schedule: Schedule, warmup: float, accumulate: int
) -> Course:
    epochs, accumulate = check.positive_int(epochs, "epochs"), check.positive_int(accumulate, "accumulate")
    check.one_of(schedule, "schedule", ("cosine", "linear", "constant"))
    count = size(batches)
    if steps is not None:
        steps = check.positive_int(steps, "steps")
    elif count is not None:
        steps = epochs * -(-count // accumulate)
    else:
        raise TypeError(
            f"batches is {type(batches).__name__}, which has no length; it must be a list or a DataLoader "
            f"of a sized dataset, or steps must be given"
        )
    return Course(steps, schedule, warmup, accumulate)


@contextmanager
def _bar(progress: bool, total: int) -> Iterator[Callable[[float], None]]:
    """What to call with the loss after every step: a tqdm bar on a terminal where tqdm is installed."""
    if progress and sys.stderr.isatty():
        with suppress(ImportError):
            from tqdm import tqdm

            with tqdm(total=total, desc="retune", unit="step", leave=False) as bar:

                def show(loss: float) -> None:
                    bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
                    bar.update()

                yield show
            return
    yield lambda loss: None
