"""Compression in execution order: each layer for the inputs that it gets from the layers compressed before.

``blocks.plan`` gives the steps. A step is either a list of groups of layers outside of blocks, for which the
whole model is run, or a sequence of blocks, for which a ``Stream`` holds the inputs of the current block.
Every step has three stages: *statistics* sums over the inputs of its layers, in the partly compressed and in
the dense model; *tasks* computes target matrix and moments of each layer (``inputs.correction``); *solve* is
done by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from ..._internal import check
from ..._internal.check import describe
from ...solvers.second_moments import missing_power, shrinkage
from ..model.swap import put
from ..modules.kinds import dense_matrix, input_size, replaceable
from ..retuning.batches import MasksOf, call, digest, evaluating, repeatable, token_masks
from .blocks import Block, Blocks, Group, Groups, plan, together
from .inputs import InputSums, Item, Stream, captured, correction, recorded, run_block
from .moments import Calibration, Moments
from .sensitivity import Sensitivity, measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..retuning.losses import Loss

__all__ = ["LayerTask", "Solve", "run"]


class LayerTask(NamedTuple):
    """A layer to compress: its name, target matrix (m, n), and moments of its inputs if they are known."""

    name: str
    matrix: NDArray[np.float32]
    moments: Moments | None


Solve = Callable[[Sequence[LayerTask]], object]
"""Called with tasks of layers that are compressed together; it must replace the layers."""


def run(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Any],
    solve: Solve,
    *,
    calibration: Calibration | None = None,
    loss: Loss | None = None,
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
        calibration: Source of ``gradient_rms``.
        loss: ``loss(model, batch)``; its gradients in the dense model weight vectors and outputs, see
            :class:`~diba.torch.calibration.sensitivity.Sensitivity`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A name is not that of a dense layer, or inputs are not finite.

    Notes:
        Memory in a sequence, for all batches: the inputs of one block (dense and compressed), and the inputs
        of every group of layers in it, float32. Layers outside of sequences keep only sums. Dense layers are
        kept while later steps need the dense model.
    """
    check.instance(model, "model", nn.Module, "use the torch model itself")
    if not callable(solve):
        raise TypeError(f"solve is {describe(solve)}; it must be a callable with a sequence of layers")
    layers = _layers(model, names)
    data = repeatable(batches)
    read = {name: layer for name, layer in layers.items() if input_size(layer) is not None}
    with evaluating(model), token_masks(model) as masks_of:
        order = plan(model, read, data)
        steps = together(model, order.steps)
        weights = measure(model, read, data, loss) if loss is not None and read else None
        propagation = _Propagation(model, data, solve, calibration, weights, masks_of)
        propagation.without_inputs([name for name in layers if name not in read])
        for number, step in enumerate(steps, 1):
            propagation.keep_dense = number < len(steps)
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
    """A partly compressed model, with the dense layers that were replaced."""

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        solve: Solve,
        calibration: Calibration | None,
        sensitivity: Sensitivity | None,
        masks_of: Callable[[Any], MasksOf],
    ) -> None:
        self.keep_dense = True  # whether later steps need the dense layers
        self._model, self._batches, self._call_solve = model, batches, solve
        self._calibration, self._sensitivity, self._masks_of = calibration, sensitivity, masks_of
        self._replaced: dict[str, nn.Module] = {}

    # ------------------------------------------------------------ steps

    def without_inputs(self, names: Iterable[str]) -> None:
        """Compress layers whose inputs are unknown; their own matrix is the target."""
        tasks = [_plain_task(name, self._matrix(name)) for name in names]
        if tasks:
            self._solve(tasks)

    def outside_of_blocks(self, groups: Groups) -> None:
        """Compress layers outside of blocks, for which the whole model is run."""
        sums = [InputSums(self._input_size(group)) for group in groups]
        for batch in self._batches:
            masks, key = self._masks_of(batch), self._key(batch)

            def forward(batch: Any = batch) -> Any:
                return call(self._model, batch)

            now, _ = recorded(self._model, forward, groups, masks, stop=True)
            dense: Sequence[list[Tensor] | None] = [None] * len(groups)
            if self._replaced:
                with self._dense():
                    dense, _ = recorded(self._model, forward, groups, masks, stop=True)
            for group, total, seen, before in zip(groups, sums, now, dense, strict=True):
                total.add(seen, before, self._weights(group, key, seen))
        self._solve(self._tasks(groups, sums))

    def sequence(self, blocks: Blocks) -> None:
        """Compress a sequence of blocks, from the inputs of the first block on."""
        stream = self._enter(blocks[0].name)
        for block in blocks:
            dense = self._dense_inputs(block, stream)
            for groups in together(self._model, block.groups):
                assert isinstance(groups, list)
                sums = self._statistics(block, groups, stream, dense)
                self._solve(self._tasks(groups, sums))
            stream.now = [run_block(self._model, block.name, item) for item in stream.now]

    # ------------------------------------------------------------ statistics

    def _enter(self, block: str) -> Stream:
        """Run the batches up to the first block of a sequence."""
        stream = Stream()
        # A loader may shuffle, so both models are run on a batch before the next one is read.
        for batch in self._batches:
            masks = self._masks_of(batch)
            item = captured(self._model, block, batch)
            if item is None:
                continue
            stream.keys.append(self._key(batch))
            stream.masks.append(masks)
            stream.now.append(item)
            if self._replaced:
                with self._dense():
                    stream.dense.append(captured(self._model, block, batch))
            else:
                stream.dense.append(item)
        if not self.keep_dense:
            self._replaced.clear()
        return stream

    def _dense_inputs(self, block: Block, stream: Stream) -> dict[Group, list[list[Tensor]]]:
        """Inputs in the dense model by group, batch and call; ``stream.dense`` moves on to the next block."""
        inputs: dict[Group, list[list[Tensor]]] = {group: [] for group in block.groups}
        for number, item in enumerate(stream.dense):
            calls: list[list[Tensor]] = [[] for _ in block.groups]
            if item is not None:
                masks = stream.masks[number]
                with self._dense():
                    calls, stream.dense[number] = self._through(block, item, block.groups, masks)
            for group, seen in zip(block.groups, calls, strict=True):
                inputs[group].append(seen)
        return inputs

    def _statistics(
        self, block: Block, groups: Groups, stream: Stream, dense: dict[Group, list[list[Tensor]]]
    ) -> list[InputSums]:
        """Sums over the inputs of some groups of a block; their inputs in the dense model are freed."""
        sums = [InputSums(self._input_size(group)) for group in groups]
        before = [dense.pop(group) for group in groups]
        for number, item in enumerate(stream.now):
            now, _ = self._through(block, item, groups, stream.masks[number], stop=True)
            for group, total, seen, known in zip(groups, sums, now, before, strict=True):
                total.add(seen, known[number], self._weights(group, stream.keys[number], seen))
        return sums

    def _through(
        self, block: Block, item: Item, groups: Sequence[Group], masks: MasksOf, *, stop: bool = False
    ) -> tuple[list[list[Tensor]], Any]:
        def forward() -> Item:
            return run_block(self._model, block.name, item)

        return recorded(self._model, forward, groups, masks, stop=stop)

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
        matrices = {name: self._matrix(name) for name in group.names}
        if not sums.calls or (group.together and not sums.count):  # no batch reaches it any more
            yield from (_plain_task(name, matrix) for name, matrix in matrices.items())
            return
        second, cross = sums.second(group.names[0]), sums.cross()
        change = None
        if cross is not None:
            extra = np.diag(missing_power(second))
            change = correction(cross + extra, second + extra, shrinkage(len(second), sums.count))
        for name, matrix in matrices.items():
            target = matrix if change is None else matrix + matrix @ change
            moments = Moments(second, sums.count, self._gradient_rms(name))
            yield LayerTask(name, target.astype(np.float32), moments)

    def _gradient_rms(self, name: str) -> NDArray[np.float64] | None:
        """RMS gradients of a layer's outputs."""
        if self._sensitivity is not None:
            return self._sensitivity.outputs(name)
        known = self._calibration.get(name) if self._calibration is not None else None
        return None if known is None else known.gradient_rms

    def _matrix(self, name: str) -> NDArray[np.float64]:
        return dense_matrix(self._model.get_submodule(name)).astype(np.float64)

    def _input_size(self, group: Group) -> int:
        return input_size(self._model.get_submodule(group.names[0])) or 0

    # ------------------------------------------------------------ solve

    def _solve(self, tasks: list[LayerTask]) -> None:
        """Let the caller compress layers, and keep the dense ones while they are needed."""
        names = {task.name for task in tasks}
        before = dict(self._model.named_modules(remove_duplicate=False))
        self._call_solve(tasks)
        after = dict(self._model.named_modules(remove_duplicate=False))
        for other, module in before.items():  # also other names of the layer, and layers tied to it
            if after.get(other) is not module and (self.keep_dense or other not in names):
                self._replaced[other] = module

    @contextmanager
    def _dense(self) -> Iterator[None]:
        """A context in which the model has its dense layers again."""
        current = {name: put(self._model, name, layer) for name, layer in self._replaced.items()}
        try:
            yield
        finally:
            for name, layer in reversed(
                current.items()
            ):  # if a place has two names, the first one holds the old layer
                put(self._model, name, layer)


def _plain_task(name: str, matrix: NDArray[np.float64]) -> LayerTask:
    return LayerTask(name, matrix.astype(np.float32), None)
