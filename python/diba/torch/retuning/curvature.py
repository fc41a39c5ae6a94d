"""Second derivatives of losses: scalars whose squared gradients are, on average over draws, their diagonal.

The loss is seen as a function of a model's answers, whose own second derivatives are known: those of a
Kullback-Leibler divergence or a cross entropy are the covariance of the labels that the answers stand for,
those of squared errors are constant. A gradient for answers that is drawn with this covariance goes back
through the model; the square of what arrives is the diagonal of the Gauss-Newton matrix on average.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..._internal import check
from .batches import call
from .logits import drawn, surprise
from .losses import Distillation, Forward, Loss, distillation
from .outputs import answers, choices, positions

__all__ = ["curvature", "fisher"]


def fisher(*, seed: int = 0, features: bool = False, forward: Forward = call) -> Loss:
    """A loss for :func:`calibrate` that needs neither labels nor a teacher.

    Distillation is of no use there: the distance of the dense model from itself has no gradient. Here the
    labels are drawn from the model's own answers, so the mean of the squared gradients is the diagonal of
    the Fisher information: to second order, what an error costs in nats of
    ``KL(dense model | compressed model)``. Outputs that are no logits are multiplied by random signs and
    summed: squared gradients are then, on average, what an error changes in ``|output|^2``. What counts as
    the output of a model, and as logits, is what :func:`distillation` compares.

    Args:
        seed: Seed of the draws; the same batches in the same order give the same gradients.
        features: Take the first output that is not a loss or logits even where there are logits, as in
            :func:`distillation`.
        forward: ``forward(model, batch)``, as in :func:`distillation`.

    Returns:
        A callable ``loss(model, batch)``, a sum over the positions that count (see :func:`distillation`).

    Raises:
        ValueError: the seed is negative; later, an output with neither logits nor features.

    Source:
        Martens, "New insights and perspectives on the natural gradient method", arXiv 1412.1193, section 5.

    Example:
        >>> import torch
        >>> import diba.torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
        >>> batches = [torch.randn(8, 64) for _ in range(4)]
        >>> moments = diba.torch.calibrate(model, batches, loss=diba.torch.fisher())
        >>> moments["0"].gradient_rms.shape
        (32,)
    """
    generator = torch.Generator().manual_seed(check.seed(seed))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        total = torch.zeros(())
        for kind, values in _answers(model, batch, features, forward):
            total = total + _drawn_error(kind, values, generator)
        return total

    return loss


def curvature(loss: Loss | None, teacher: nn.Module | None, seed: int = 0) -> Loss:
    """The scalar whose squared gradients are the second derivatives of what ``retune`` lowers.

    A loss that is no :func:`distillation` is taken for a mean over positions of the cross entropy of logits
    with labels, or of the squared errors of other answers, in what the model gives when the loss calls it.

    Args:
        loss: As ``retune`` gets it; None: the model's own, unless there is a teacher.
        teacher: As ``retune`` gets it.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(check.seed(seed))
    parts: list[Loss | None] = [] if teacher is None else [distillation(teacher)]
    if loss is not None or teacher is None:
        parts.append(loss)

    def total(model: nn.Module, batch: Any) -> Tensor:
        return torch.stack([_error_of(part, model, batch, generator) for part in parts]).sum()

    return total


def _error_of(loss: Loss | None, model: nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
    """The drawn error of the answers, in the scale of a loss."""
    terms = []
    if isinstance(loss, Distillation):
        t = loss.temperature
        for kind, student, teacher in loss.compared(model, batch):
            scale = 2 / float(teacher.square().sum()) if kind == "features" else t * t / _rows(student)
            softened = student if kind == "features" else student / t
            terms.append(_drawn_error(kind, softened, generator) * math.sqrt(scale))
    else:
        for kind, values in _answers(model, batch, False, partial(_output_seen, loss or call)):
            scale = 2 / values.numel() if kind == "features" else 1 / _rows(values)
            terms.append(_drawn_error(kind, values, generator) * math.sqrt(scale))
    return torch.stack(terms).sum()


def _output_seen(run: Forward, model: nn.Module, batch: Any) -> Any:
    """The model's output when it is called by a loss, the last one."""
    seen: list[Any] = []
    hook = model.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        run(model, batch)
    finally:
        hook.remove()
    if not seen:
        raise ValueError(
            "the loss does not call the model itself, and bits move only by what the model gives; it must "
            "call it, or bits must be None"
        )
    return seen[-1]


def _answers(model: nn.Module, batch: Any, features: bool, forward: Forward) -> list[tuple[str, Tensor]]:
    """Kind and numbers of every answer, at the positions that count."""
    found: list[tuple[str, Tensor]] = []
    for answer in answers(forward(model, batch), model, features):
        values = choices(answer)
        found.append((answer.kind, values[positions(batch, values, model)].float()))
    return found


def _rows(logits: Tensor) -> int:
    return max(1, logits[..., 0].numel())


def _drawn_error(kind: str, values: Tensor, generator: torch.Generator) -> Tensor:
    """A scalar whose gradients for answers have the covariance of their labels; for features, 1."""
    if kind == "features":
        signs = torch.randint(0, 2, values.shape, generator=generator).to(values) * 2 - 1
        return (values * signs).sum()
    rows = values.reshape(-1, values.shape[-1])
    return surprise(rows, drawn(rows.detach(), generator))
