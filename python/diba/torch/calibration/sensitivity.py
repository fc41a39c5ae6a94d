"""How much the vectors that a layer reads, and the outputs it makes, matter to a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..modules.vectors import mark_like, sampled
from ..retuning.batches import digest, evaluating, plain_grad, token_masks
from .gradients import backward, frozen, output_gradients, row_squares

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LEAST", "Sensitivity", "measure"]

LEAST = 0.01
"""Added to the weight of every vector: what no sample of a loss reached may still matter."""


class Sensitivity:
    """Squared gradients of a loss at the outputs of a model's layers, by vector and by output.

    To second order, errors E of a layer cost ``1/2 sum_po g_po^2 (E_o x_p)^2``: vectors p, outputs o.
    With ``g_po^2`` in the form of a product, that is ``tr(O E S E' O)``: S the mean of x x' with weights of
    vectors, O a diagonal of the outputs' RMS gradients. The weights are the roots of the squares' sums, not
    the sums: gradients of one batch are a sample with long tails, and errors are not small.
    """

    def __init__(self) -> None:
        self._vectors: dict[bytes, dict[str, dict[int, Tensor]]] = {}  # batch -> layer -> call -> weights
        self._totals: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._outputs: dict[str, NDArray[np.float64]] = {}

    def add(self, batch: bytes, name: str, call: int, squares: Tensor, weights: Tensor) -> None:
        """Squared gradients of one call, shape (vectors, m), and sums of those of the vectors taken."""
        self._vectors.setdefault(batch, {}).setdefault(name, {})[call] = weights
        self._totals[name] = self._totals.get(name, 0.0) + float(weights.sum())
        self._counts[name] = self._counts.get(name, 0) + len(weights)
        sums = squares.sum(0).cpu().numpy()
        self._outputs[name] = self._outputs.get(name, 0) + sums

    def weights(self, batch: bytes, names: Sequence[str], call: int) -> Tensor | None:
        """Of the vectors that layers of one input read in a call; about 1 on average over all batches.

        Returns:
            Shape (vectors,), float32; None where the loss reaches none of the layers.

        Raises:
            ValueError: the batch is not one of those that were measured.
        """
        if batch not in self._vectors:
            raise ValueError(
                "batches are not the same when they are read again, and the weights of their vectors are "
                "unknown; they must be: use a list, or a DataLoader without shuffling and random changes"
            )
        found = [self._vectors[batch].get(name, {}).get(call) for name in names]
        known = [weights for weights in found if weights is not None]
        total = sum(self._totals.get(name, 0.0) for name in names)
        if not known or not total:
            return None
        count = max(self._counts.get(name, 0) for name in names)
        relative = torch.stack(known).sum(0) * (count / total)
        return mark_like((relative.sqrt() + LEAST).float(), known[0])

    def outputs(self, name: str) -> NDArray[np.float64] | None:
        """RMS gradients, shape (m,), up to a factor; None where the loss does not reach the layer."""
        squares = self._outputs.get(name)
        return None if squares is None or not squares.any() else np.sqrt(squares / self._counts[name])


def measure(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
) -> Sensitivity:
    """Run the model and its backward pass on all batches.

    Args:
        model: Dense; it is left as it was.
        layers: Name -> layer with input vectors.
        batches: Whose content is told apart when they are read again.
        loss: ``loss(model, batch)``.

    Raises:
        TypeError, ValueError: as :func:`diba.torch.calibrate` says of losses and gradients.
    """
    result = Sensitivity()
    batch: list[Any] = [0, b"", ()]  # number, digest, masks of the one under way

    def take(name: str, call: int, gradient: Tensor) -> None:
        number, key, masks = batch
        where = f"layer {name!r} in batch {number}"
        squares = row_squares(layers[name], gradient, masks, where)
        weights = sampled(layers[name], squares.sum(1).cpu())
        result.add(key, name, call, squares, mark_like(weights, squares))

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(plain_grad(True))
        stack.enter_context(frozen(model))
        calls = stack.enter_context(output_gradients(layers, take))
        for number, data in enumerate(batches):
            calls.clear()
            batch[:] = number, digest(data), token_masks(data)
            backward(loss(model, data), number)
    return result
