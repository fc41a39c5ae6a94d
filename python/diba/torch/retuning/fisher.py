"""A loss without labels, whose squared gradients say how much a model's answers change."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._internal import check
from .batches import call
from .losses import Forward, Loss
from .outputs import answers, choices, positions

__all__ = ["fisher"]


def fisher(*, seed: int = 0, features: bool = False, forward: Forward = call) -> Loss:
    """A loss for :func:`calibrate` that needs neither labels nor a teacher.

    Distillation is of no use there: the distance of the dense model from itself has no gradient. Here the
    labels are drawn from the model's own answers, so the mean of the squared gradients is the diagonal of
    the Fisher information: to second order, what an error costs in nats of
    ``KL(dense model | compressed model)``. Outputs that are no logits are multiplied by random signs and
    summed: squared gradients are then, on average, what an error changes in ``|output|^2``. What counts as
    the output of a model, and as logits, is what :func:`distillation` compares.

    Args:
        seed: Of the draws; the same batches in the same order give the same gradients.
        features: Take the first output that is not a loss or logits even where there are logits, as in
            :func:`distillation`.
        forward: ``forward(model, batch)``, as in :func:`distillation`.

    Returns:
        ``loss(model, batch)``: a sum over the positions that count, see :func:`distillation`.

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
        for answer in answers(forward(model, batch), model, features):
            values = choices(answer)
            chosen = values[positions(batch, values, model)].float()
            if answer.kind == "features":
                signs = torch.randint(0, 2, chosen.shape, generator=generator).to(chosen) * 2 - 1
                total = total + (chosen * signs).sum()
            else:
                rows = chosen.reshape(-1, chosen.shape[-1])
                shares = rows.detach().softmax(-1).cpu()
                drawn = torch.multinomial(shares, 1, generator=generator)[:, 0].to(rows.device)
                total = total + F.cross_entropy(rows, drawn, reduction="sum")
        return total

    return loss
