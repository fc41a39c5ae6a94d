"""How much each inner component of a factored layer matters to a loss."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..model.accounts import some
from ..modules.layer import FactoredLayer
from ..retuning.batches import differentiable
from ..retuning.losses import Loss, model_loss

__all__ = ["scores"]


def scores(
    model: nn.Module, batches: Iterable[Any], loss: Loss | None = None
) -> dict[str, NDArray[np.float64]]:
    """Retuning scores: the sum over batches of ``(dE/dd2_i * d2_i)^2`` for every inner component i.

    Component i is column i of B1 with row i of B2; without it, d2_i would be 0, and to first order the loss
    would change by ``-dE/dd2_i * d2_i``. So the largest scores are the ones to keep when a number of
    components has to be shared out between layers of one shape.

    Args:
        model: Runs in eval mode; nothing in it is changed.
        batches: Any iterable; one pass.
        loss: ``loss(model, batch)``; None is the model's own, of batches with labels.

    Returns:
        By the module's name, in module order, an array of shape (k,); zeros for a layer that no loss reached,
        which a warning names: :func:`keep_best` leaves it the least.

    Raises:
        ValueError: the model has no factored layer, there are no batches, or a loss is not finite.

    Source:
        Boza and Macko, "Double binary factorization", arXiv 2505.11076, section 3.5.
    """
    loss = loss or model_loss
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FactoredLayer)}
    if not layers:
        raise ValueError(
            "model has no factored layer; it must have some: call diba.torch.convert(model) first"
        )
    totals = {name: torch.zeros(layer.k, dtype=torch.float64) for name, layer in layers.items()}
    inner = [layer.d2 for layer in layers.values()]
    count = 0
    with differentiable(model, inner):
        for count, batch in enumerate(batches, 1):
            value = loss(model, batch)
            if not torch.isfinite(value):
                raise ValueError(f"the loss of batch {count - 1} is {value.item()}; it must be finite")
            gradients = torch.autograd.grad(value, inner, allow_unused=True)
            for total, d2, gradient in zip(totals.values(), inner, gradients, strict=True):
                if gradient is not None:
                    total += (gradient.double() * d2.detach().double()).square().cpu()
    if count == 0:
        raise ValueError("batches is empty; it must give at least one batch")
    missed = [name for name, total in totals.items() if not total.any()]
    if missed:
        text = f"no loss reached {len(missed)} of {len(totals)} layers, {some(missed)}; their scores are 0"
        warnings.warn(f"{text}, and keep_best leaves them the least", UserWarning, stacklevel=2)
    return {name: total.numpy() for name, total in totals.items()}
