"""A linear probe: how well classes can be told apart from frozen features."""

from __future__ import annotations

import torch

__all__ = ["accuracy", "fit_probe"]


def fit_probe(features: torch.Tensor, labels: torch.Tensor, penalty: float = 1.0) -> torch.nn.Linear:
    """Logistic regression, to convergence in float64, so that the numbers of threads do not show.

    Args:
        features: Shape (count, n).
        labels: Classes from 0, shape (count,).
        penalty: The sum of the losses is lowered plus this times half the squared weights, of features scaled
            to zero mean and unit variance.

    Returns:
        The layer from features as they are, not scaled, to a logit for each class, float32.
    """
    x = features.double()
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-12)
    x = (x - mean) / deviation
    classes = int(labels.max()) + 1
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        search.zero_grad()
        fit = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels, reduction="sum")
        total = (fit + penalty / 2 * weight.square().sum()) / len(x)
        total.backward()
        return total

    with torch.enable_grad():
        search.step(loss)
    layer = torch.nn.Linear(x.shape[1], classes)
    with torch.no_grad():
        layer.weight.copy_(weight / deviation)
        layer.bias.copy_(bias - (weight / deviation) @ mean)
    return layer.eval().requires_grad_(False)


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of rows whose greatest logit is that of the label."""
    return float((logits.argmax(1) == labels).double().mean())
