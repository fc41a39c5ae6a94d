"""The inputs of the blocks of a sequence, from which each block is run without the rest of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..retuning.batches import MasksOf, call, plain_grad
from .blocks import Block
from .held import Held, Memory
from .trace import first_tensor, is_cache

__all__ = ["HeldItem", "Item", "Stop", "Stream", "captured", "run_block", "stopped"]


@dataclass(frozen=True)
class Item:
    """The input of a block: the tensor that passes from block to block, and the other arguments."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class HeldItem:
    """The input of a block for one batch, held in memory or in a file: tensors as :class:`Held`."""

    hidden: Held
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, item: Item, memory: Memory) -> HeldItem:
        """Hold an input; the other arguments are often the same for many batches, and held once."""
        return cls(memory.hold(item.hidden), _held(item.args, memory), _held(item.kwargs, memory))

    def get(self) -> Item:
        """The input itself."""
        return Item(self.hidden.get(), _given(self.args), _given(self.kwargs))

    def next(self, output: Any, block: Block | None, memory: Memory) -> HeldItem:
        """The input of the next block.

        Args:
            output: What the block gave for this input.
            block: The next block; None: there is none, and only its first argument counts.
            memory: Holds what is new.
        """
        hidden = first_tensor(output)
        assert hidden is not None, "run_block has seen to it"
        args, kwargs = list(self.args), dict(self.kwargs)
        for place, path in () if block is None else block.links:
            value = output
            for key in path:
                value = value[key]
            if isinstance(place, int):
                args[place - 1] = _held(value, memory)
            else:
                kwargs[place] = _held(value, memory)
        return HeldItem(memory.hold(hidden), tuple(args), kwargs)


@dataclass
class Stream:
    """The batches that reach a sequence of blocks, at the block that is compressed next.

    Attributes:
        keys: Digests of the batches, the keys of the weights of their vectors.
        masks: Masks of their tokens.
        now: Inputs of the block.
        dense: Inputs of the block in the dense model; None: the batch does not reach it there.
    """

    keys: list[bytes] = field(default_factory=list)
    masks: list[MasksOf] = field(default_factory=list)
    now: list[HeldItem] = field(default_factory=list)
    dense: list[HeldItem | None] = field(default_factory=list)


def _held(value: Any, memory: Memory) -> Any:
    """The value with tensors held."""
    return _mapped(value, Tensor, lambda tensor: memory.hold(tensor, shared=True))


def _given(value: Any) -> Any:
    """What was held."""
    return _mapped(value, Held, Held.get)


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The value with everything of a kind changed, also inside of tuples, lists and dicts."""
    if isinstance(value, kind):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_mapped(inner, kind, change) for inner in value)
    if type(value) is dict:
        return {key: _mapped(inner, kind, change) for key, inner in value.items()}
    return value


# ---------------------------------------------------------------- runs


class Stop(Exception):
    """Ends a run of the model after everything needed was recorded."""


@contextmanager
def stopped(*removals: Callable[[], None]) -> Iterator[None]:
    """A context without gradients that ends at :class:`Stop`, and removes hooks in any case."""
    try:
        with plain_grad(False):
            yield
    except Stop:
        pass
    finally:
        for remove in removals:
            remove()


def captured(model: nn.Module, block: str, batch: Any) -> Item | None:
    """Run the model on a batch up to a block; returns the input of the block, None if it is not called.

    Only some batches may reach a block, such as an expert.
    """
    found: list[Item] = []

    def take(module: nn.Module, args: Any, kwargs: Any) -> None:
        rest = tuple(None if is_cache(value) else value for value in args[1:])
        named = {key: None if is_cache(value) else value for key, value in kwargs.items()}
        found.append(Item(args[0], rest, named))
        raise Stop

    hook = model.get_submodule(block).register_forward_pre_hook(take, with_kwargs=True)
    with stopped(hook.remove):
        call(model, batch)
    return found[0] if found else None


def run_block(model: nn.Module, block: str, item: Item) -> Any:
    """Run a block; returns its output.

    Raises:
        TypeError: It has no tensor.
    """
    with plain_grad(False):
        output = model.get_submodule(block)(item.hidden, *item.args, **item.kwargs)
    if first_tensor(output) is None:
        raise TypeError(f"block {block!r} returned no tensor, which it did when it was first called")
    return output
