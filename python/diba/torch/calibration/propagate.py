"""Compression in execution order: each layer for the inputs that it gets from the layers compressed before.

``blocks.plan`` gives the steps. A step is either a list of groups of layers outside of blocks, for which the
whole model is run, or a sequence of blocks, for which a ``Stream`` holds the inputs of the current block.
Every step has three stages: *statistics* sums over the inputs of its layers, in the partly compressed and in
the dense model; *tasks* computes what each layer is to compute (``targets``); *solve* is done by the caller.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from ..._internal import check
from ..._internal.check import describe
from ..._internal.machine import give_back_free_memory
from ..modules.kinds import input_size, replaceable
from ..retuning.batches import MasksOf, call, digest, evaluating, repeatable, size, token_masks
from .blocks import Block, Blocks, Group, Groups, plan, together
from .dense import DenseModel
from .held import Held, Memory
from .inputs import InputSums, recorded
from .kept import known_or_measured
from .reconstruct import Reconstructing, block_fit, expected
from .sensitivity import Sensitivity, measure
from .stream import HeldItem, Stream, captured, run_block
from .targets import LayerTask, layer_tasks, plain_task, trained_task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..reconstruction.block import BlockFit
    from ..retuning.losses import Loss
    from .calibration import Calibration

__all__ = ["Solve", "run"]


_Inputs = dict[Group, list[list[Held]]]
"""Input vectors by group, batch and call."""

Solve = Callable[[Sequence[LayerTask]], object]
"""Called with tasks of layers that are compressed together; it must replace the layers."""


def run(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Any],
    solve: Solve,
    *,
    free_biases: Container[str] = (),
    calibration: Calibration | None = None,
    loss: Loss | None = None,
    reconstructing: Reconstructing | None = None,
    teacher: nn.Module | None = None,
    on_batch: Callable[[str, str], object] = lambda what, kind: None,
    on_plan: Callable[[Mapping[str, int], int], object] = lambda counts, blocks: None,
) -> None:
    """Call ``solve`` for every layer in execution order, with the moments of its inputs at that time.

    Embeddings come first, and layers that no batch reaches last. Both get their own matrix as target, and no
    moments; so do layers that batches reach only in the dense model, such as experts to which the compressed
    router sends no tokens.

    Args:
        model: Changed only by ``solve``; it runs in evaluation mode, and its modes are restored.
        names: Names of the layers to compress.
        batches: See :func:`diba.torch.calibrate`. Padding is not counted.
        solve: Called with a sequence of :class:`LayerTask`; it must replace these layers, or leave them
            dense, before it returns.
        free_biases: Names of layers whose bias is compressed with the matrix, or added: they get a target
            bias.
        calibration: Source of ``gradient_rms``.
        loss: ``loss(model, batch)``; its gradients in the dense model weight vectors and outputs, see
            :class:`~diba.torch.calibration.sensitivity.Sensitivity`.
        reconstructing: Blocks of sequences are reconstructed, see ``reconstruction.block``; None: they are
            not.
        teacher: The dense model, with the same names; None: the model with its layers as they were, so it
            must be dense at the start.
        on_batch: Called after every batch that the model or a block ran on, with a few words about what is
            done, and what it counts as: ``gradients``, ``inputs``, ``dense``, ``statistics``.
        on_plan: Called once, with how often each of these is expected, and ``steps`` of training; and with
            the number of blocks. Not where the number of batches is unknown.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A name is not that of a dense layer, or inputs are not finite.

    Notes:
        Held in a sequence, for all batches: the inputs of one block (dense and compressed), and the inputs of
        every group of layers in it, float32, or bfloat16 where that is exact; past a limit in a file, see
        ``held.Memory``. Layers outside of sequences keep only sums. Dense layers are kept while later steps
        need the dense model.
    """
    check.instance(model, "model", nn.Module, "use the torch model itself")
    if not callable(solve):
        raise TypeError(f"solve is {describe(solve)}; it must be a callable with a sequence of layers")
    layers = _layers(model, names)
    data = repeatable(batches)
    total = size(data)
    of_total = "" if total is None else f" of {total}"

    def tell(what: str, kind: str, count: int) -> None:
        on_batch(f"{what}, batch {count}{of_total}", kind)

    read = {name: layer for name, layer in layers.items() if input_size(layer) is not None}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        masks_of = stack.enter_context(token_masks(model))
        order = plan(model, read, data)
        steps = together(model, order.steps)
        weights = None
        if total is not None:
            counts = expected(model, steps, total, loss is not None and bool(read), reconstructing)
            on_plan(counts, sum(len(step) for step in steps if isinstance(step, tuple)))
        if loss is not None and read:
            dense = model if teacher is None else teacher
            blocks = [block.name for step in steps if isinstance(step, tuple) for block in step]
            theirs = {name: dense.get_submodule(name) for name in read}
            watched = blocks if reconstructing is not None else ()
            after_batch = partial(tell, "gradients of the loss", "gradients")
            weights = known_or_measured(
                dense, data, theirs, lambda: measure(dense, theirs, data, loss, watched, blocks, after_batch)
            )
        unread = [name for name in layers if name not in read]
        del layers, read  # what is replaced goes, with the dense weights that were trained in its block
        memory = stack.enter_context(Memory(None if reconstructing is None else reconstructing.memory))
        propagation = _Propagation(
            model,
            data,
            solve,
            free_biases,
            calibration,
            weights,
            masks_of,
            reconstructing,
            teacher,
            tell,
            memory,
        )
        propagation.without_inputs(unread)
        for number, step in enumerate(steps, 1):
            propagation.dense.needed = number < len(steps)
            if isinstance(step, list):
                propagation.outside_of_blocks(step)
            else:
                propagation.sequence(step)
        propagation.without_inputs(order.unreached)


def _layers(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    known = dict(model.named_modules())
    layers = {}
    for name in names:
        if name not in known or replaceable(known[name]) is None:
            found = "no module of the model" if name not in known else type(known[name]).__name__
            raise ValueError(f"names has {name!r}, {found}; it must be the name of a dense layer")
        layers[name] = known[name]
    return layers


class _Propagation:
    """A partly compressed model, beside the dense one."""

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        solve: Solve,
        free_biases: Container[str],
        calibration: Calibration | None,
        sensitivity: Sensitivity | None,
        masks_of: Callable[[Any], MasksOf],
        reconstructing: Reconstructing | None,
        teacher: nn.Module | None,
        tell: Callable[[str, str, int], object],
        memory: Memory,
    ) -> None:
        self.dense = DenseModel(model, teacher)
        self._reconstructing, self._memory = reconstructing, memory
        self._model, self._batches, self._call_solve = model, batches, solve
        self._free_biases = free_biases
        self._calibration, self._sensitivity, self._masks_of = calibration, sensitivity, masks_of
        self._tell = tell

    # ------------------------------------------------------------ steps

    def without_inputs(self, names: Iterable[str]) -> None:
        """Compress layers whose inputs are unknown; their own matrix is the target."""
        tasks = [plain_task(name, self._model.get_submodule(name)) for name in names]
        if tasks:
            self._solve(tasks)

    def outside_of_blocks(self, groups: Groups) -> None:
        """Compress layers outside of blocks, for which the whole model is run."""
        sums = [InputSums(self._input_size(group)) for group in groups]
        for number, batch in enumerate(self._batches, 1):
            masks, key = self._masks_of(batch), self._key(batch)

            def forward(batch: Any = batch) -> Any:
                return call(self._model, batch)

            now, _ = recorded(self._model, forward, groups, masks, stop=True)
            dense: Sequence[list[Tensor] | None] = [None] * len(groups)
            if self.dense.differs():
                with self.dense.there() as model:
                    dense, _ = recorded(model, partial(call, model, batch), groups, masks, stop=True)
            for group, total, seen, before in zip(groups, sums, now, dense, strict=True):
                total.add(seen, before, self._weights(group, key, seen))
            self._tell(f"inputs of {groups[0].names[0]}", "inputs", number)
        self._solve(self._tasks(groups, sums))

    def sequence(self, blocks: Blocks) -> None:
        """Compress a sequence of blocks, from the inputs of the first block on."""
        stream = self._enter(blocks[0].name)
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            dense = self._dense_inputs(block, following, stream)
            fit = self._fit(block, stream)
            for groups in together(self._model, block.groups):
                assert isinstance(groups, list)
                sums = self._statistics(block, groups, stream, dense)
                tasks = self._tasks(groups, sums)
                if fit is not None:
                    tasks = self._prepared(fit, tasks)
                began = time.perf_counter()
                self._solve(tasks)
                give_back_free_memory()
                if fit is not None:
                    fit.solving(time.perf_counter() - began)
            if fit is not None and self._reconstructing is not None:
                self._reconstructing.on_block(block.name, fit.finish())
            fit = None  # it holds the inputs and outputs of this block
            give_back_free_memory()
            for number, item in enumerate(stream.now):
                output = run_block(self._model, block.name, item.get())
                stream.now[number] = item.next(output, following, self._memory)

    # ------------------------------------------------------------ reconstruction

    def _fit(self, block: Block, stream: Stream) -> BlockFit | None:
        """The reconstruction of a block, or None; the dense model keeps copies of what it trains."""
        how, channels = self._reconstructing, None
        if how is None:
            return None
        if self._sensitivity is not None:
            channels = self._sensitivity.channels.get(block.name)
        fit = block_fit(self._model, block, stream, channels, how)
        if fit is not None:
            self.dense.remember(block.name)
        return fit

    def _prepared(self, fit: BlockFit, tasks: list[LayerTask]) -> list[LayerTask]:
        """The tasks of some groups, for the weights that correction and training of what is dense made."""
        layers = {task.name: self._model.get_submodule(task.name) for task in tasks}
        fit.correct([(layers[task.name], task.matrix, task.bias) for task in tasks])
        fit.tune()
        return [trained_task(task, layers[task.name]) for task in tasks]

    # ------------------------------------------------------------ statistics

    def _enter(self, block: str) -> Stream:
        """Run the batches up to the first block of a sequence."""
        stream = Stream()
        # A loader may shuffle, so both models are run on a batch before the next one is read.
        for number, batch in enumerate(self._batches, 1):
            masks = self._masks_of(batch)
            self._tell(f"inputs of {block}", "inputs", number)
            item = captured(self._model, block, batch)
            if item is None:
                continue
            stream.keys.append(self._key(batch))
            stream.masks.append(masks)
            stream.now.append(HeldItem.of(item, self._memory))
            other: HeldItem | None = stream.now[-1]
            if self.dense.differs():
                with self.dense.there() as model:
                    found = captured(model, block, batch)
                other = None if found is None else HeldItem.of(found, self._memory)
            stream.dense.append(other)
        self.dense.forget()
        return stream

    def _dense_inputs(self, block: Block, following: Block | None, stream: Stream) -> _Inputs:
        """Inputs of groups in the dense model; ``stream.dense`` moves on to the next block."""
        inputs: _Inputs = {group: [] for group in block.groups}
        for number, item in enumerate(stream.dense):
            groups = () if self._decides(number, stream) else block.groups
            calls: list[list[Tensor]] = [[] for _ in block.groups]
            if item is not None:
                with self.dense.there() as model:
                    run = partial(run_block, model, block.name, item.get())
                    seen, output = recorded(model, run, groups, stream.masks[number], stop=False)
                calls = seen or calls
                stream.dense[number] = item.next(output, following, self._memory)
            for group, tensors in zip(block.groups, calls, strict=True):
                inputs[group].append([self._memory.hold(tensor) for tensor in tensors])
            self._tell(block.name, "dense", number + 1)
        return inputs

    def _statistics(self, block: Block, groups: Groups, stream: Stream, dense: _Inputs) -> list[InputSums]:
        """Sums over the inputs of some groups of a block; their inputs in the dense model are freed."""
        sums = [InputSums(self._input_size(group)) for group in groups]
        before = [dense.pop(group) for group in groups]
        for number, item in enumerate(stream.now):
            if self._decides(number, stream):
                continue
            run = partial(run_block, self._model, block.name, item.get())
            now, _ = recorded(self._model, run, groups, stream.masks[number], stop=True)
            for group, total, seen, known in zip(groups, sums, now, before, strict=True):
                weights = self._weights(group, stream.keys[number], seen)
                total.add(seen, [held.get() for held in known[number]], weights)
            self._tell(f"inputs of {groups[0].names[0]}", "statistics", number + 1)
        return sums

    def _decides(self, number: int, stream: Stream) -> bool:
        """Whether a batch is held out: nothing is learned from it."""
        how = self._reconstructing
        return how is not None and how.settings.is_held_out(number, len(stream.now))

    def _key(self, batch: Any) -> bytes:
        return b"" if self._sensitivity is None else digest(batch)

    def _weights(self, group: Group, key: bytes, calls: Sequence[Tensor]) -> list[Tensor | None] | None:
        """Weights of the vectors of every call."""
        if self._sensitivity is None:
            return None
        return [self._sensitivity.weights(key, group.names, number) for number in range(len(calls))]

    # ------------------------------------------------------------ tasks

    def _tasks(self, groups: Groups, sums: Sequence[InputSums]) -> list[LayerTask]:
        return [task for pair in zip(groups, sums, strict=True) for task in self._tasks_of_group(*pair)]

    def _tasks_of_group(self, group: Group, sums: InputSums) -> Iterator[LayerTask]:
        layers = {name: self._model.get_submodule(name) for name in group.names}
        if not sums.calls or (group.together and not sums.count):  # no batch reaches it any more
            yield from (plain_task(name, layer) for name, layer in layers.items())
            return
        tried = self._reconstructing is not None
        for task in layer_tasks(layers, self._free_biases, sums, tried=tried):
            assert task.moments is not None
            rms = self._gradient_rms(task.name)
            yield task._replace(moments=replace(task.moments, gradient_rms=rms))

    def _gradient_rms(self, name: str) -> NDArray[np.float64] | None:
        """RMS gradients of a layer's outputs."""
        if self._sensitivity is not None:
            return self._sensitivity.outputs(name)
        known = self._calibration.get(name) if self._calibration is not None else None
        return None if known is None else known.gradient_rms

    def _input_size(self, group: Group) -> int:
        return input_size(self._model.get_submodule(group.names[0])) or 0

    # ------------------------------------------------------------ solve

    def _solve(self, tasks: list[LayerTask]) -> None:
        """Let the caller compress layers."""
        self.dense.replacing(lambda: self._call_solve(tasks), {task.name for task in tasks})
