"""The order in which a model calls its dense layers, and its sequences of blocks.

They are found by running the model on one batch, or on more until all layers are reached. Layers that read
the same tensor form a group. The elements of an ``nn.ModuleList`` or ``nn.Sequential`` form a sequence if
each is called once, on the output of the one before, with the same other arguments. A sequence can be run
block by block from its own inputs, without the rest of the model (see ``inputs``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from ..model.fused import Parallel
from ..modules.kinds import input_layout, input_size
from ..modules.vectors import input_of
from ..retuning.batches import call, plain_grad

__all__ = ["Block", "Blocks", "Group", "Groups", "Plan", "first_tensor", "is_cache", "plan", "together"]

_TOGETHER = 2**30  # most bytes of the sums of layers that are compressed together


@dataclass(frozen=True)
class Group:
    """Layers that read the same tensor.

    Attributes:
        names: Their names, in the order of their calls.
        calls: How often each is called in a run.
        together: Name of the list (``fused.Parallel``) that holds the layers, or None. Layers of one list do
            not read each other's outputs, so its groups can be compressed together.
    """

    names: tuple[str, ...]
    calls: int = 1
    together: str | None = None


@dataclass(frozen=True)
class Block:
    """One element of a sequence, and the groups of layers inside it."""

    name: str
    groups: tuple[Group, ...]


Groups = list[Group]
Blocks = tuple[Block, ...]


@dataclass(frozen=True)
class Plan:
    """Groups outside of blocks, and sequences of blocks, in execution order; layers that no run reached."""

    steps: tuple[Group | Blocks, ...]
    unreached: tuple[str, ...]


@dataclass
class _Call:
    """One call of a module: its number among all calls, its arguments and its output."""

    number: float
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    version: int | None = None
    output: Tensor | None = None
    output_version: int | None = None
    changed: bool = False


@dataclass
class _Trace:
    """All calls of some modules during one run."""

    calls: dict[str, list[_Call]] = field(default_factory=dict)
    count: int = 0

    def before(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        made = _Call(self.count, args, kwargs, _version(args))
        self.calls.setdefault(name, []).append(made)
        self.count += 1

    def after(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        made = self.calls[name][-1]
        made.output = first_tensor(output)
        made.output_version = _version((made.output,))
        made.changed = _version(args) != made.version

    def extend(self, later: _Trace, names: Sequence[str]) -> None:
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

    def each(self) -> Iterator[tuple[str, _Call]]:
        """Every call with the name of its module."""
        return ((name, made) for name, calls in self.calls.items() for made in calls)


def plan(model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any]) -> Plan:
    """Run the model to find the order in which its layers are to be compressed.

    Args:
        model: In evaluation mode.
        layers: Name -> dense layer.
        batches: See :func:`diba.torch.batches.call`; batches are read until every layer was reached.

    Raises:
        ValueError: There is no batch.
    """
    candidates = _containers(model, layers)
    modules = {name: model.get_submodule(name) for blocks in candidates.values() for name in blocks}
    trace, missing = None, list(layers)
    for batch in batches:
        run = _traced(model, {**modules, **layers}, batch)
        if trace is None:
            trace = run
        else:
            trace.extend(run, missing)
        missing = [name for name in missing if name not in trace.calls]
        if not missing:
            break
    if trace is None:
        raise ValueError("batches is empty; it must have at least one batch")
    steps: list[tuple[float, Group | Blocks]] = []
    inside: set[str] = set()
    for container, names in candidates.items():
        if not any(container.startswith(f"{taken}.") for taken in inside) and _is_sequence(
            names, layers, trace
        ):
            blocks = tuple(Block(name, _groups(_within(name, layers), trace, model)) for name in names)
            steps.append((trace.calls[names[0]][0].number, blocks))
            inside.update(names)
    outside = [name for name in layers if not any(_is_within(name, block) for block in inside)]
    groups = _groups(outside, trace, model)
    begin = {group.together: trace.calls[group.names[0]][0].number for group in reversed(groups)}
    for group in groups:
        first = trace.calls[group.names[0]][0].number
        steps.append((begin[group.together] if group.together else first, group))
    steps.sort(key=lambda step: step[0])
    return Plan(tuple(step for _, step in steps), tuple(missing))


def together(model: nn.Module, steps: Iterable[Group | Blocks]) -> list[Groups | Blocks]:
    """Join groups that can be compressed together, as long as the memory of their sums is limited."""
    found: list[Groups | Blocks] = []
    used = 0
    for step in steps:
        if not isinstance(step, Group):
            found.append(step)
            continue
        size = 16 * (input_size(model.get_submodule(step.names[0])) or 0) ** 2
        last = found[-1] if found else ()
        fits = isinstance(last, list) and step.together and last[0].together == step.together
        if isinstance(last, list) and fits and used + size <= _TOGETHER:
            last.append(step)
        else:
            found.append([step])
            used = 0
        used += size
    return found


def _traced(model: nn.Module, modules: Mapping[str, nn.Module], batch: Any) -> _Trace:
    """All calls of these modules while the model runs on a batch."""
    trace = _Trace()
    with ExitStack() as stack, plain_grad(False):
        for name, module in modules.items():
            before, after = partial(trace.before, name), partial(trace.after, name)
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        call(model, batch)
    return trace


def _containers(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Name of a container -> names of its elements, outer containers first; at least two must hold layers."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and not isinstance(module, Parallel):
            elements = [f"{name}.{key}" if name else key for key in module._modules]
            if sum(bool(_within(element, layers)) for element in elements) >= 2:
                found[name] = elements
    return found


def _is_within(name: str, block: str) -> bool:
    return name == block or name.startswith(f"{block}.")


def _within(block: str, layers: Mapping[str, nn.Module]) -> list[str]:
    return [name for name in layers if _is_within(name, block)]


def _is_sequence(names: list[str], layers: Mapping[str, nn.Module], trace: _Trace) -> bool:
    """Whether the model only runs the elements in turn, each on the output of the one before."""
    inner = [layer for name in names for layer in _within(name, layers) if layer in trace.calls]
    if any(len(trace.calls.get(name, [])) != 1 for name in [*names, *inner]):
        return False
    blocks = [trace.calls[name][0] for name in names]
    if any(block.changed or not block.args or not isinstance(block.args[0], Tensor) for block in blocks):
        return False
    chained = all(b.args[0] is a.output and b.version == a.output_version for a, b in pairwise(blocks))
    rest = [(block.args[1:], block.kwargs) for block in blocks]
    return chained and all(_same(rest[0], other) for other in rest)


def _groups(names: Sequence[str], trace: _Trace, model: nn.Module) -> tuple[Group, ...]:
    """Group the called layers by the tensor they read, in the order of first calls.

    Groups of one list are moved next to the first of them, since they do not depend on those between.
    """
    called = sorted(
        (name for name in names if name in trace.calls), key=lambda name: trace.calls[name][0].number
    )
    found: dict[object, list[str]] = {}
    for name in called:
        inputs = [input_of(made.args, made.kwargs) for made in trace.calls[name]]
        versions = [made.version for made in trace.calls[name]]
        layer = model.get_submodule(name)
        found.setdefault((tuple(map(id, inputs)), tuple(versions), input_layout(layer)), []).append(name)
    groups = [
        Group(tuple(names), len(trace.calls[names[0]]), _list(names[0], model)) for names in found.values()
    ]
    lists = [group.together or group.names[0] for group in groups]
    order = sorted(range(len(groups)), key=lambda i: lists.index(lists[i]))
    return tuple(groups[i] for i in order)


def _list(name: str, model: nn.Module) -> str | None:
    parent = name.rpartition(".")[0]
    return parent if isinstance(model.get_submodule(parent), Parallel) else None


def _version(args: tuple[Any, ...]) -> int | None:
    x = args[0] if args else None
    return x._version if isinstance(x, Tensor) and not x.is_inference() else None


def first_tensor(output: Any) -> Tensor | None:
    """The output of a block, or its first element; None if that is not a tensor."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def is_cache(value: Any) -> bool:
    """Whether a value is a key-value cache of transformers, recognised by its methods without an import."""
    return hasattr(value, "get_seq_length") and hasattr(value, "update")


def _same(a: Any, b: Any) -> bool:
    """Whether two blocks got the same arguments: the same tensors and equal values, caches ignored."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return a is b or (is_cache(a) and is_cache(b)) or (isinstance(a, (bool, int, float, str)) and a == b)
