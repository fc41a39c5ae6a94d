"""Gradients at the outputs of layers, none of a parameter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..._internal.check_arrays import describe
from ..modules.vectors import input_of, mark_like, output_rows

__all__ = ["backward", "check_loss", "frozen", "output_gradients", "row_squares"]

Take = Callable[[str, int, Tensor], None]
"""Called with the layer's name, the number of its call in this run, and the gradient at its output."""


@contextmanager
def output_gradients(layers: Mapping[str, nn.Module], take: Take) -> Iterator[dict[str, int]]:
    """Call ``take`` for every output of these layers that a backward pass reaches, the last ones first.

    Yields:
        Calls of each layer so far: clear it before every run.
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
    """Squared gradients, shape (vectors, m), float64, padding left out.

    Raises:
        ValueError: one is not finite; ``where`` names layer and batch.
    """
    rows = output_rows(module, gradient, masks)
    squares = rows.double().square()
    if not squares.isfinite().all():
        raise ValueError(
            f"the gradients of the outputs of {where} are not finite; they must be: check the loss, or run "
            f"the model in float32"
        )
    return mark_like(squares, rows)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for gradients; what each asked for is restored at the end."""
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in asked:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, wish in asked:
            parameter.requires_grad_(wish)


def check_loss(loss: Any) -> None:
    """Refuse what is neither None nor callable."""
    if loss is not None and not callable(loss):
        raise TypeError(f"loss is {describe(loss)}; it must be None or a callable (model, batch) -> scalar")


def backward(value: Any, batch: int) -> None:
    """Run the backward pass of a loss.

    Raises:
        TypeError: it is no scalar tensor.
        ValueError: it has no gradient, or is not finite.
    """
    wanted = "it must return a scalar tensor that depends on the model's outputs"
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise TypeError(f"loss returned {describe(value)}; {wanted}")
    if not value.requires_grad:
        raise ValueError(
            f"loss returned a tensor without gradient; {wanted}, with no detach or no_grad between"
        )
    if not value.isfinite():
        raise ValueError(f"loss is {value.item()} in batch {batch}; it must be finite: check the batch")
    value.backward()  # type: ignore[no-untyped-call]
