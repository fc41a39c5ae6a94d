"""Gradients of a loss for the outputs of layers, and the weights of vectors and outputs made from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..modules.vectors import input_of, mark, mark_like, marked, output_rows, sampled
from ..retuning.batches import differentiable, digest, running_again, token_masks
from ..retuning.losses import Loss, loss_value
from .held import apart
from .trace import first_tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LEAST", "Sensitivity", "backward", "measure", "output_gradients", "row_squares"]

LEAST = 0.01
"""Added to the weight of every vector: a small gradient in one sample does not make it unimportant."""

Take = Callable[[str, int, Tensor], None]
"""Called with a layer's name, the number of its call in this run, and the gradient for its output."""


@contextmanager
def output_gradients(layers: Mapping[str, nn.Module], take: Take) -> Iterator[dict[str, int]]:
    """Call ``take`` for every output of these layers that a backward pass reaches, the last ones first.

    Yields:
        The number of calls of each layer so far; clear it before every run.
    """
    calls: dict[str, int] = defaultdict(int)

    def after(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Tensor | None:
        y = output
        replaced = not y.requires_grad
        if replaced:  # nothing before it has parameters that ask for gradients: the graph begins here
            y = y.detach().requires_grad_().clone()
        like = mark_like(torch.empty(0), input_of(args, kwargs))
        y.register_hook(partial(reached, name, calls[name], like))
        calls[name] += 1
        return y if replaced else None

    def reached(name: str, number: int, like: Tensor, gradient: Tensor) -> None:
        take(name, number, mark_like(gradient.detach(), like))

    with ExitStack() as stack:
        for name, module in layers.items():
            stack.callback(module.register_forward_hook(partial(after, name), with_kwargs=True).remove)
        yield calls


def row_squares(module: nn.Module, gradient: Tensor, masks: Sequence[Tensor], where: str) -> Tensor:
    """Squared gradients, shape (vectors, m), float64, without padding.

    Raises:
        ValueError: A gradient is not finite; ``where`` names layer and batch in the message.
    """
    rows = output_rows(module, gradient, masks)
    squares = rows.double().square()
    if not squares.sum().isfinite():
        raise ValueError(
            f"the gradients of the outputs of {where} are not finite; they must be: check the loss, or run "
            f"the model in float32"
        )
    return mark_like(squares, rows)


def backward(loss: Loss, model: nn.Module, batch: Any, number: int) -> None:
    """Run the model and the backward pass of a loss on batch ``number``.

    Raises:
        TypeError: The loss is not a scalar tensor.
        ValueError: The loss has no gradient, or is not finite.
    """
    value = loss_value(loss, model, batch)
    if not value.requires_grad:
        raise ValueError(
            "loss returned a tensor without gradient; it must return a scalar tensor that depends on the "
            "model's outputs, with no detach or no_grad between"
        )
    if not value.isfinite():
        raise ValueError(f"loss is {value.item()} in batch {number}; it must be finite: check the batch")
    value.backward()  # type: ignore[no-untyped-call]


class Sensitivity:
    """Squared gradients of a loss for the outputs of a model's layers, summed by vector and by output.

    To second order, errors E of a layer cost ``1/2 sum_po g_po^2 (E_o x_p)^2``: vectors p, outputs o.
    With ``g_po^2`` in the form of a product, that is ``tr(O E S E' O)``: S the mean of x x' with weights of
    vectors, O a diagonal of the outputs' RMS gradients. The weights are the roots of the squares' sums, not
    the sums: gradients of one batch are a sample with long tails, and errors are not small.
    """

    def __init__(self) -> None:
        self._vectors: dict[bytes, dict[tuple[str, int], Tensor]] = {}  # batch -> layer and call -> weights
        self._totals: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._outputs: dict[str, NDArray[np.float64]] = {}
        self.channels: dict[str, Tensor] = {}
        """Name of a block -> summed squared gradients of its outputs, shape (channels,), float64."""

    def add(self, batch: bytes, name: str, call: int, squares: Tensor, weights: Tensor) -> None:
        """Add the squared gradients of one call, shape (vectors, m), and the sums for each sampled vector."""
        self._vectors.setdefault(batch, {})[name, call] = mark_like(weights.float(), weights)
        self._totals[name] = self._totals.get(name, 0.0) + float(weights.sum())
        self._counts[name] = self._counts.get(name, 0) + len(weights)
        sums = squares.sum(0).cpu().numpy()
        if name in self._outputs:
            self._outputs[name] += sums
        else:
            self._outputs[name] = sums

    def state(self) -> dict[str, Any]:
        """All of it in tensors and plain values, for :meth:`of`."""
        vectors = [
            (batch.hex(), name, call, weights, marked(weights))
            for batch, known in self._vectors.items()
            for (name, call), weights in known.items()
        ]
        outputs = {name: torch.from_numpy(squares) for name, squares in self._outputs.items()}
        sums = {"totals": self._totals, "counts": self._counts, "outputs": outputs}
        return {"vectors": vectors, **sums, "channels": self.channels}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Sensitivity:
        """What :meth:`state` is of."""
        made = cls()
        for batch, name, call, weights, place in state["vectors"]:
            known = weights if place is None else mark(weights, *place)
            made._vectors.setdefault(bytes.fromhex(batch), {})[name, call] = known
        made._totals, made._counts, made.channels = state["totals"], state["counts"], state["channels"]
        made._outputs = {name: squares.numpy() for name, squares in state["outputs"].items()}
        return made

    def pack(self, batch: bytes) -> None:
        """Move the weights of a batch, which is complete, out of the way of the next one's tensors."""
        known = self._vectors.get(batch, {})
        for key, weights in zip(list(known), apart(list(known.values())), strict=True):
            known[key] = mark_like(weights, known[key])

    def weights(self, batch: bytes, names: Sequence[str], call: int) -> Tensor | None:
        """Weights of the vectors that layers of one group read in a call; about 1 on average.

        Returns:
            Shape (vectors,), float32; None if the loss reaches none of the layers.

        Raises:
            ValueError: The batch is not one of those that were measured.
        """
        if batch not in self._vectors:
            raise ValueError(
                "batches are not the same when they are read again, and the weights of their vectors are "
                "unknown; they must be: use a list, or a DataLoader without shuffling and random changes"
            )
        found = [self._vectors[batch].get((name, call)) for name in names]
        known = [weights for weights in found if weights is not None]
        total = sum(self._totals.get(name, 0.0) for name in names)
        if not known or not total:
            return None
        count = max(self._counts.get(name, 0) for name in names)
        relative = torch.stack(known).sum(0) * (count / total)
        return mark_like((relative.sqrt() + LEAST).float(), known[0])

    def outputs(self, name: str) -> NDArray[np.float64] | None:
        """RMS gradients, shape (m,), up to a common factor; None if the loss does not reach the layer."""
        squares = self._outputs.get(name)
        return None if squares is None or not squares.any() else np.sqrt(squares / self._counts[name])


def measure(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    loss: Loss,
    blocks: Iterable[str] = (),
    rerun: Iterable[str] = (),
    after_batch: Callable[[int], object] = lambda count: None,
) -> Sensitivity:
    """Measure the gradients of a loss for the outputs of layers, over all batches.

    Args:
        model: A dense model; it is not changed.
        layers: Name -> layer with input vectors.
        blocks: Names of modules for whose outputs ``Sensitivity.channels`` is summed.
        rerun: Names of modules that run once a batch, none inside another. What the backward pass needs of
            their insides is computed again then, not held: memory of one module instead of all.
        batches: The batches; they are recognised by their content when they are read again.
        loss: ``loss(model, batch)``.
        after_batch: Called after each batch with the number of batches so far.

    Raises:
        TypeError, ValueError: See :func:`diba.torch.calibrate`.
    """
    result = Sensitivity()
    batch: list[Any] = [0, b"", None]  # number, digest and masks of the current batch

    def take(name: str, call: int, gradient: Tensor) -> None:
        number, key, masks = batch
        where = f"layer {name!r} in batch {number}"
        squares = row_squares(layers[name], gradient, masks(name), where)
        weights = sampled(layers[name], squares.sum(1).cpu())
        result.add(key, name, call, squares, mark_like(weights, squares))

    with ExitStack() as stack:
        stack.enter_context(differentiable(model, ()))
        calls = stack.enter_context(output_gradients(layers, take))
        stack.enter_context(running_again(model, rerun))
        for name in blocks:
            after = partial(_watch_channels, result.channels, name)
            stack.callback(model.get_submodule(name).register_forward_hook(after).remove)
        masks_of = stack.enter_context(token_masks(model))
        for number, data in enumerate(batches):
            calls.clear()
            batch[:] = number, digest(data), masks_of(data)
            backward(loss, model, data, number)
            result.pack(batch[1])
            after_batch(number + 1)
    return result


def _watch_channels(
    channels: dict[str, Tensor], name: str, module: nn.Module, args: Any, output: Any
) -> None:
    """Add the squared gradients of a block's output to its channels, when the backward pass reaches it."""
    y = first_tensor(output)

    def add(gradient: Tensor) -> None:
        squares = gradient.detach().double().square()
        rows = squares.movedim(1, -1) if squares.ndim == 4 else squares
        found = rows.flatten(0, -2).sum(0).cpu()
        if name in channels:
            channels[name] += found
        else:
            channels[name] = found

    if y is not None and y.requires_grad:
        y.register_hook(add)
