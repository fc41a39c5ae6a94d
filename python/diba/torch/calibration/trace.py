"""What modules read and give while a model runs: which calls got the same tensors, without keeping them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..modules.vectors import input_of
from ..retuning.batches import call, plain_grad

__all__ = ["Call", "Seen", "Tensors", "Trace", "first_tensor", "is_cache", "path_to", "same", "traced"]


class Seen(NamedTuple):
    """A tensor at some time: its number, and how often it had been written to."""

    number: int
    version: int | None


class Tensors:
    """Gives every tensor object a number; the tensors are not kept."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._count = 0

    def seen(self, value: Any) -> Any:
        """The value with :class:`Seen` in place of tensors, also inside of tuples, lists and mappings."""
        if isinstance(value, Tensor):
            known = self._known.get(id(value))
            if known is None or known[0]() is not value:  # the id of a freed tensor may be used again
                known = self._known[id(value)] = weakref.ref(value), self._count
                self._count += 1
            return Seen(known[1], None if value.is_inference() else value._version)
        if isinstance(value, (tuple, list)):
            return tuple(map(self.seen, value))
        if isinstance(value, Mapping):
            return {key: self.seen(inner) for key, inner in value.items()}
        return value


@dataclass
class Call:
    """One call of a module: its number among all calls, and tensors as :class:`Seen`.

    Attributes:
        input: The tensor that a layer reads.
        args: Positional arguments.
        kwargs: The others.
        output: What it gave.
        changed: Whether it wrote to one of its arguments.
    """

    number: float
    input: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    changed: bool = False


@dataclass
class Trace:
    """All calls of some modules during one run."""

    tensors: Tensors
    calls: dict[str, list[Call]] = field(default_factory=dict)
    count: int = 0

    def before(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A module is called."""
        read = input_of(args, kwargs) if args or kwargs else None
        made = Call(self.count, *map(self.tensors.seen, (read, args, kwargs)))
        self.calls.setdefault(name, []).append(made)
        self.count += 1

    def after(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """A module returns."""
        made = self.calls[name][-1]
        made.output = self.tensors.seen(output)
        now = self.tensors.seen(args), self.tensors.seen(kwargs)
        made.changed = not same(now, (made.args, made.kwargs))

    def extend(self, later: Trace, names: Sequence[str]) -> None:
        """Add calls of layers that only a later run reached, each after the known call that preceded it."""
        known = {name: calls[0].number for name, calls in self.calls.items()}
        step, place = 1 / (later.count + 1), -1.0
        for name, made in sorted(later.each(), key=lambda entry: entry[1].number):
            if name in known:
                place = known[name]
            elif name in names:
                place += step
                made.number = place
                self.calls.setdefault(name, []).append(made)

    def each(self) -> Iterator[tuple[str, Call]]:
        """Every call with the name of its module."""
        return ((name, made) for name, calls in self.calls.items() for made in calls)


def traced(model: nn.Module, modules: Mapping[str, nn.Module], batch: Any, tensors: Tensors) -> Trace:
    """All calls of these modules while the model runs on a batch."""
    trace = Trace(tensors)
    with ExitStack() as stack, plain_grad(False):
        for name, module in modules.items():
            before, after = partial(trace.before, name), partial(trace.after, name)
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        call(model, batch)
    return trace


def first_tensor(output: Any) -> Any:
    """The output of a block (a tensor or :class:`Seen`), or its first element; None if it is neither."""
    if isinstance(output, (tuple, list)) and not isinstance(output, Seen) and output:
        output = output[0]
    return output if isinstance(output, (Tensor, Seen)) else None


def is_cache(value: Any) -> bool:
    """Whether a value is a key-value cache of transformers, recognised by its methods without an import."""
    return hasattr(value, "get_seq_length") and hasattr(value, "update")


def same(a: Any, b: Any) -> bool:
    """Whether two arguments are alike: the same tensors, not written to, and equal values; caches ignored."""
    if isinstance(a, Seen) or isinstance(b, Seen):
        return isinstance(a, Seen) and isinstance(b, Seen) and a == b
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a is b or (is_cache(a) and is_cache(b)) or (isinstance(a, (bool, int, float, str)) and a == b)


def path_to(value: Any, output: Any) -> tuple[Any, ...] | None:
    """The indices and keys that lead to a tensor in an output; None if it is not there."""
    if isinstance(output, Seen):
        return () if isinstance(value, Seen) and value == output else None
    inner: Any = ()
    if isinstance(output, (tuple, list)):
        inner = enumerate(output)
    elif isinstance(output, Mapping):
        inner = output.items()
    for key, part in inner:
        path = path_to(value, part)
        if path is not None:
            return key, *path
    return None
