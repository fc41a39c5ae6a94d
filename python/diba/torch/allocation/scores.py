"""Retuning scores of inner components, and how many of them each layer keeps."""

from __future__ import annotations

import warnings
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..._internal import check
from ...checkpoints.entries import first_names
from ...solvers.size import uniform_k
from ..modules.layer import FactoredLayer
from ..retuning.batches import differentiable
from ..retuning.losses import model_loss

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray
    from torch import nn

    from ..retuning.losses import Loss

__all__ = ["keep_best", "scores"]


def scores(
    model: nn.Module, batches: Iterable[Any], loss: Loss | None = None
) -> dict[str, NDArray[np.float64]]:
    """Compute retuning scores: the sum over batches of ``(dE/dd2_i * d2_i)^2`` for every inner component i.

    Component i is column i of B1 with row i of B2. Removing it sets d2_i to 0, which to first order changes
    the loss E by ``-dE/dd2_i * d2_i``. So the components with the largest scores are the ones to keep when
    layers of one shape share a number of components.

    Args:
        model: Runs in evaluation mode; it is not changed.
        batches: Any iterable of batches, read once.
        loss: ``loss(model, batch)``; None: the loss that the model returns for batches with labels.

    Returns:
        Name of the layer -> scores, shape (k,), in module order. A layer that no loss reached has zeros, and
        a warning names it; :func:`keep_best` gives it the smallest size.

    Raises:
        ValueError: The model has no factored layer, there are no batches, or a loss is not finite.

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
        text = (
            f"no loss reached {len(missed)} of {len(totals)} layers, {first_names(missed)}; their scores are "
            "0, and keep_best gives them the smallest size"
        )
        warnings.warn(text, UserWarning, stacklevel=2)
    return {name: total.numpy() for name, total in totals.items()}


def keep_best(
    model: nn.Module, scores: Mapping[str, NDArray[np.float64]], bits_per_weight: float
) -> dict[str, int]:
    """Choose k for every layer by keeping the inner components with the best scores.

    Layers of one shape share their components. Convert and score the model with more bits than wanted, for
    example 1.5 times as many; call this function to get k for each layer; then convert the dense model again.

    Args:
        model: Has the factored layers that were scored.
        scores: Result of :func:`diba.torch.scores`.
        bits_per_weight: Stored bits per weight over each group of layers of one shape, diagonals counted.

    Returns:
        Name -> k. Each layer keeps at least a quarter of an even share.

    Raises:
        TypeError: A name is not that of a factored layer.
        ValueError: The numbers of components and of scores of a layer differ, or a group has fewer components
            than it should keep.

    Source:
        Boza and Macko, "Double binary factorization", arXiv 2505.11076, section 3.5.
    """
    asked = check.number(bits_per_weight, "bits_per_weight", minimum=0, exclusive=True)
    layers = dict(model.named_modules())
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name, values in scores.items():
        layer = layers.get(name)
        if not isinstance(layer, FactoredLayer):
            raise TypeError(
                f"scores has {name!r}, a {type(layer).__name__}; it must name a factored layer of model"
            )
        check.equal(len(values), f"the number of scores of {name!r}", layer.k, "k of the layer")
        groups[layer.d1.numel(), layer.d3.numel()].append(name)
    kept: dict[str, int] = {}
    for (m, n), names in groups.items():
        even = uniform_k(m, n, asked)
        found = sum(len(scores[name]) for name in names)
        if found < even * len(names):
            raise ValueError(
                f"the {len(names)} layers of {m} x {n} have {found} components, fewer than the "
                f"{even * len(names)} of {asked:g} bits per weight; score a model with more bits"
            )
        kept |= _best_of_group({name: scores[name] for name in names}, even)
    return {name: kept[name] for name in scores}


def _best_of_group(scores: dict[str, NDArray[np.float64]], even: int) -> dict[str, int]:
    """How many components of each layer are among the best; ``even`` per layer on average."""
    counts = {name: min(len(values), max(1, even // 4)) for name, values in scores.items()}
    ranked = {name: np.sort(values)[::-1] for name, values in scores.items()}
    rest = sorted(
        ((value, name) for name, values in ranked.items() for value in values[counts[name] :]), reverse=True
    )
    for _, name in rest[: even * len(scores) - sum(counts.values())]:
        counts[name] += 1
    return counts
