"""Batches of data: running a model on them, reading them repeatedly, and the modes of the model.

A batch is what the model takes: a mapping of keyword arguments, a tuple or list of positional ones, or one
tensor. Nothing is moved between devices.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..._internal.check import describe

__all__ = [
    "HELD_BYTES",
    "MasksOf",
    "batch_norms",
    "call",
    "differentiable",
    "digest",
    "evaluating",
    "plain_grad",
    "repeatable",
    "running_again",
    "size",
    "some",
    "token_masks",
]

HELD_BYTES = 2**30
"""A generator is read once only, so its batches are held in memory, up to this many bytes of tensors."""

_MASKS = ("attention_mask", "decoder_attention_mask")


def call(model: nn.Module, batch: Any) -> Any:
    """The model's output: ``model(**batch)``, ``model(*batch)`` or ``model(batch)``.

    A model whose ``forward`` has an argument ``use_cache`` is told False, unless the batch says otherwise:
    a cache of keys and values is not needed here and takes memory.

    Args:
        model: Any module.
        batch: A mapping of keyword arguments, a tuple or list of positional arguments, or one tensor.

    Raises:
        TypeError: the batch is none of these.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(batch, Mapping):
        kwargs = {str(key): value for key, value in batch.items()}
    elif isinstance(batch, (tuple, list)):
        args = tuple(batch)
    elif isinstance(batch, Tensor):
        args = (batch,)
    else:
        raise TypeError(
            f"a batch is {describe(batch)}; it must be a mapping (called as model(**batch)), a tuple or list "
            f"(model(*batch)) or a tensor (model(batch)): change what the data loader returns"
        )
    parameters = inspect.signature(model.forward).parameters
    if "use_cache" in parameters and len(args) <= list(parameters).index("use_cache"):
        kwargs.setdefault("use_cache", False)
    return model(*args, **kwargs)


@contextlib.contextmanager
def running_again(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Run some modules again when the backward pass reaches them: memory of one of them instead of all.

    Only their inputs are held. Gradients are the same, to the last bit.

    Args:
        model: The model.
        names: Names of modules that run once a batch, none inside another.
    """
    kept: list[tuple[nn.Module, Any]] = []
    try:
        for name in names:
            module = model.get_submodule(name)
            kept.append((module, module.__dict__.get("forward")))
            again = functools.partial(checkpoint, module.forward, use_reentrant=False)
            module.__dict__["forward"] = again
        yield
    finally:
        for module, own in kept:
            if own is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = own


def repeatable(batches: Any, name: str = "batches", *, limit: int = HELD_BYTES) -> Iterable[Any]:
    """Return an iterable of the same batches that can be read any number of times.

    Args:
        batches: A list or tuple of batches, a ``DataLoader`` or another iterable that starts afresh whenever
            it is read, or a generator, which is read now and held in memory.
        name: The argument's name, for messages.
        limit: Bytes of tensors at which holding a generator's batches is refused.

    Raises:
        TypeError: not an iterable of batches: one tensor, one mapping.
        ValueError: no batches, or a generator of more than ``limit`` bytes.
    """
    if isinstance(batches, (Tensor, Mapping, str, bytes)) or not isinstance(batches, Iterable):
        mend = f"; use [{name}] for a single batch" if isinstance(batches, (Tensor, Mapping)) else ""
        raise TypeError(
            f"{name} is {describe(batches)}; it must be a list, a DataLoader or another iterable of "
            f"batches{mend}"
        )
    held = batches if not isinstance(batches, Iterator) else _held(batches, name, limit)
    if size(held) == 0:
        raise ValueError(f"{name} is empty; it must have at least one batch")
    return held


def some(batches: Iterable[Any], count: int) -> list[Any]:
    """``count`` batches or fewer: evenly spaced ones of a sequence, the first ones of anything else."""
    if isinstance(batches, Sequence):
        return list(batches[:: max(1, len(batches) // count)][:count])
    return list(islice(batches, count))


def _held(batches: Iterator[Any], name: str, limit: int) -> list[Any]:
    result: list[Any] = []
    used = 0
    for batch in batches:
        used += _bytes(batch)
        if used > limit:
            raise ValueError(
                f"{name} is a generator, which can be read once only, and its first {len(result) + 1} "
                f"batches take {used / 1e9:.3g} GB, more than the {limit / 1e9:.3g} GB held in memory; "
                f"use a list, or a torch.utils.data.DataLoader, which can be read again"
            )
        result.append(batch)
    return result


def _bytes(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return batch.numel() * batch.element_size()
    if isinstance(batch, Mapping):
        batch = batch.values()
    elif not isinstance(batch, (tuple, list)):
        return 0
    return sum(map(_bytes, batch))


def size(batches: Iterable[Any]) -> int | None:
    """The number of batches; None if it is unknown before they are read."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:  # also a DataLoader of an iterable dataset
        return None


MasksOf = Callable[[str], Sequence[Tensor]]
"""Name of a layer -> masks, shape (batch, tokens), True where a token is no padding; none if nothing is."""


@contextlib.contextmanager
def token_masks(model: nn.Module) -> Iterator[Callable[[Any], MasksOf]]:
    """Yield a function that returns the masks of a batch; call it before the model runs on the batch.

    A mask applies to layers whose input has its shape. A model of text and images may have as many patches as
    tokens, so there is an exception: no mask applies inside a module whose first input is another
    floating-point tensor of the batch and which does not get the mask.
    """
    tensors: dict[str, Tensor] = {}  # of the current batch
    shapes: set[torch.Size] = set()  # shapes of its masks
    others: set[str] = set()  # modules that read no tokens

    def before(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = [*args, *kwargs.values()]
        x = given[0] if given else None
        if shapes and isinstance(x, Tensor) and x.is_floating_point() and x.shape[:2] not in shapes:
            masks = [tensors[key] for key in _MASKS if key in tensors]
            if any(x is v for v in tensors.values()) and not any(v is m for v in given for m in masks):
                others.add(name)

    def read(batch: Any) -> MasksOf:
        tensors.clear()
        if isinstance(batch, Mapping):
            tensors.update({str(key): v for key, v in batch.items() if isinstance(v, Tensor)})
        found = [tensors[name] != 0 for name in _MASKS if name in tensors and tensors[name].ndim == 2]
        padded = [mask for mask in found if not bool(mask.all())]
        shapes.clear()
        shapes.update(mask.shape for mask in padded)
        return lambda layer: () if any(f"{layer}.".startswith(f"{name}.") for name in others) else padded

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if name and next(module.children(), None) is not None:
                hook = module.register_forward_pre_hook(functools.partial(before, name), with_kwargs=True)
                stack.callback(hook.remove)
        yield read


def digest(batch: Any) -> bytes:
    """A digest of the content of a batch, for use as a key."""
    state = hashlib.blake2b(digest_size=16)
    for part in (
        batch.values()
        if isinstance(batch, Mapping)
        else batch
        if isinstance(batch, (tuple, list))
        else [batch]
    ):
        if isinstance(part, Tensor):
            state.update(repr((part.shape, part.dtype)).encode())
            state.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            state.update(repr(part).encode())
    return state.digest()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context with the model in evaluation mode; all modes are restored at the end, also after an error."""
    modes = weakref.WeakKeyDictionary({module: module.training for module in model.modules()})
    model.eval()  # modules that are replaced meanwhile go
    try:
        yield
    finally:
        for module in model.modules():  # new modules get the mode of the model
            module.training = modes.get(module, modes[model])


@contextlib.contextmanager
def plain_grad(enabled: bool) -> Iterator[None]:
    """Turn gradients on or off, and inference mode off, in which tensors have no version counters."""
    with torch.inference_mode(False), torch.set_grad_enabled(enabled):
        yield


@contextlib.contextmanager
def differentiable(
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    *,
    dropout: bool = False,
    batch_statistics: bool = False,
) -> Iterator[None]:
    """A context in which only these parameters get gradients; everything is restored at the end.

    Args:
        model: Runs in eval mode, so the loss is the one that will be measured.
        parameters: Get gradients; the ``grad`` and ``requires_grad`` of all parameters are restored.
        dropout: Run in training mode (dropout, layer drop), except for the batch statistics.
        batch_statistics: Let batch normalisation use and update its running statistics.
    """
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter in parameters:
            parameter.requires_grad_(True)
        for module, _ in modes:
            module.training = dropout
        for module in batch_norms(model):
            module.training = batch_statistics
        with plain_grad(True):
            yield
    finally:
        for parameter, wanted, gradient in before:
            parameter.requires_grad_(wanted)
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The batch normalisation modules of a model."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
