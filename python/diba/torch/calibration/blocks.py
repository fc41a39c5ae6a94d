"""The order in which a model calls its dense layers, and its sequences of blocks.

They are found by running the model on one batch, or on more until all layers are reached. Layers that read
the same tensor form a group. The elements of an ``nn.ModuleList`` or ``nn.Sequential`` form a sequence if
each is called once, on the output of the one before; its other arguments are those of the one before, or come
from that one's output, too. A sequence can be run block by block from its own inputs, without the rest of the
model (see ``stream``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from ..model.fused import Parallel
from ..modules.kinds import input_layout, input_size
from ..modules.state import CompressedLayer
from .trace import Call, Seen, Tensors, Trace, first_tensor, path_to, same, traced

__all__ = ["Block", "Blocks", "Group", "Groups", "Links", "Plan", "in_sequence", "plan", "together"]

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


Links = tuple[tuple[int | str, tuple[Any, ...]], ...]
"""(argument of a block, path to its value in the output of the block before) for values that are passed on
beside the first tensor, such as the position bias of T5, which its first block computes."""


@dataclass(frozen=True)
class Block:
    """One element of a sequence, the groups of layers inside it, and what is passed on to it."""

    name: str
    groups: tuple[Group, ...]
    links: Links = ()


Groups = list[Group]
Blocks = tuple[Block, ...]


@dataclass(frozen=True)
class Plan:
    """Groups outside of blocks, and sequences of blocks, in execution order; layers that no run reached."""

    steps: tuple[Group | Blocks, ...]
    unreached: tuple[str, ...]


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
    trace, missing, tensors = None, list(layers), Tensors()
    for batch in batches:
        run = traced(model, {**modules, **layers}, batch, tensors)
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
        if any(_is_within(container, taken) for taken in inside):
            continue
        links = _links(names, layers, trace)
        if links is not None:
            blocks = tuple(
                Block(name, _groups(_within(name, layers), trace, model), read)
                for name, read in zip(names, links, strict=True)
            )
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


def in_sequence(model: nn.Module, batches: Iterable[Any]) -> list[str]:
    """Names of the blocks of a dense model that run one after another, once a batch."""
    layers = {name: module for name, module in model.named_modules() if input_size(module) is not None}
    steps = plan(model, layers, batches).steps
    return [block.name for step in steps if not isinstance(step, Group) for block in step]


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


def _containers(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Name of a container -> names of its elements, outer containers first; at least two must hold matrices.

    Those that are compressed already or stay dense count too: of a model compressed in part, only one block
    may be left.
    """
    found = {}
    matrices = [
        name
        for name, module in model.named_modules()
        if isinstance(module, CompressedLayer) or input_size(module) is not None
    ]
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and not isinstance(module, Parallel):
            elements = [f"{name}.{key}" if name else key for key in module._modules]
            left = any(_within(element, layers) for element in elements)
            if left and sum(any(_is_within(each, element) for each in matrices) for element in elements) >= 2:
                found[name] = elements
    return found


def _is_within(name: str, block: str) -> bool:
    return name == block or name.startswith(f"{block}.")


def _within(block: str, layers: Mapping[str, nn.Module]) -> list[str]:
    return [name for name in layers if _is_within(name, block)]


def _links(names: list[str], layers: Mapping[str, nn.Module], trace: Trace) -> list[Links] | None:
    """For each element, what it reads of the output of the one before; None: they are no sequence."""
    inner = [layer for name in names for layer in _within(name, layers) if layer in trace.calls]
    if any(len(trace.calls.get(name, [])) != 1 for name in [*names, *inner]):
        return None
    blocks = [trace.calls[name][0] for name in names]
    if any(block.changed or not block.args or not isinstance(block.args[0], Seen) for block in blocks):
        return None
    found = [(), *(_links_of(a, b) for a, b in pairwise(blocks))]
    return None if None in found else [links for links in found if links is not None]


def _links_of(before: Call, block: Call) -> Links | None:
    """What a block reads of the output of the one before; None: it reads something else that is new."""
    if block.args[0] != first_tensor(before.output):
        return None
    if len(block.args) != len(before.args) or block.kwargs.keys() != before.kwargs.keys():
        return None
    links: list[tuple[int | str, tuple[Any, ...]]] = []
    places: list[int | str] = [*range(1, len(block.args)), *block.kwargs]
    for place in places:
        old, new = (
            made.args[place] if isinstance(place, int) else made.kwargs[place] for made in (before, block)
        )
        if not same(old, new):
            path = path_to(new, before.output)
            if path is None:
                return None
            links.append((place, path))
    return tuple(links)


def _groups(names: Sequence[str], trace: Trace, model: nn.Module) -> tuple[Group, ...]:
    """Group the called layers by the tensor they read, in the order of first calls.

    Groups of one list are moved next to the first of them, since they do not depend on those between.
    """
    called = sorted(
        (name for name in names if name in trace.calls), key=lambda name: trace.calls[name][0].number
    )
    found: dict[object, list[str]] = {}
    for name in called:
        inputs = tuple(made.input for made in trace.calls[name])
        found.setdefault((inputs, input_layout(model.get_submodule(name))), []).append(name)
    groups = [
        Group(tuple(names), len(trace.calls[names[0]]), _list(names[0], model)) for names in found.values()
    ]
    lists = [group.together or group.names[0] for group in groups]
    order = sorted(range(len(groups)), key=lambda i: lists.index(lists[i]))
    return tuple(groups[i] for i in order)


def _list(name: str, model: nn.Module) -> str | None:
    parent = name.rpartition(".")[0]
    return parent if isinstance(model.get_submodule(parent), Parallel) else None
