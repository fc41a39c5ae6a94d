"""Layers compressed in execution order, each for the inputs that the layers compressed before it leave.

What is minimised for each of them: ``correction``. How the inputs are come by: ``blocks``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from ..._internal import check
from ..._internal.check import describe
from ...solvers.objective import missing_power, shrinkage
from ..model.swap import put
from ..modules.kinds import dense_matrix, input_size, replaceable
from ..retuning.batches import call, digest, evaluating, repeatable, token_masks
from .blocks import Block, Group, Item, captured, collect, plan, run_block
from .correction import InputSums, correction
from .moments import Calibration, Moments
from .sensitivity import Sensitivity, measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..retuning.losses import Loss

__all__ = ["Factor", "Wanted", "run"]

_TOGETHER = 2**30  # bytes of sums of layers that are compressed together


class Wanted(NamedTuple):
    """A layer to compress: its name, target matrix (m, n) and moments of its inputs, if they are known."""

    name: str
    matrix: NDArray[np.float32]
    moments: Moments | None


Factor = Callable[[Sequence[Wanted]], object]
"""Called with layers that read the same input; it puts the compressed ones in place."""


def run(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Any],
    factor: Factor,
    *,
    strength: float = 1.0,
    shrink: float | None = None,
    calibration: Calibration | None = None,
    loss: Loss | None = None,
    blocks: bool = True,
) -> None:
    """Call ``factor`` for every layer in execution order, with moments of the inputs the layer has by then.

    Args:
        model: Changed by ``factor`` alone; it runs in evaluation mode and gets its modes back.
        names: Layers to compress. Embeddings come first and layers that no batch reaches last, both with
            their own matrix and without moments; so do layers that no batch reaches any more when it is their
            turn, as experts to which the compressed router sends nothing.
        batches: See :func:`diba.torch.calibrate`. Padding is not counted.
        factor: Called with the layers of one input, a sequence of :class:`Wanted`; it must put compressed
            layers in the place of the dense ones, or leave them dense, before it returns.
        strength: How far the target goes from A (0) to A' (1), which makes up for errors of earlier layers;
            at 0 the dense model is not run at all.
        shrink: Share of the diagonal in S~; None: that of the solver, by the number of vectors.
        calibration: Where ``gradient_rms`` is taken from.
        loss: ``loss(model, batch)``: the dense model's gradients weigh vectors and outputs, see
            :class:`diba.torch.sensitivity.Sensitivity`.
        blocks: Run sequences of blocks block by block, where the model has them; False runs the whole model
            for every group, which gives the same up to rounding.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a name is no dense layer, a number out of range, or inputs are not finite.

    Notes:
        Memory in a sequence: for all batches, the inputs of one block twice (dense, compressed) and, unless
        strength is 0, the inputs of every group of layers in it, float32. Layers outside of sequences keep
        nothing but sums. Dense layers are kept while later steps need the dense model.
    """
    check.instance(model, "model", nn.Module, "use the torch model itself")
    strength = _share(strength, "strength")
    shrink = None if shrink is None else _share(shrink, "shrink")
    if not callable(factor):
        raise TypeError(f"factor is {describe(factor)}; it must be a callable with a sequence of layers")
    layers = _layers(model, names)
    data = repeatable(batches)
    read = {name: layer for name, layer in layers.items() if input_size(layer) is not None}
    with evaluating(model):
        steps = plan(model, read, data)
        order = _stages(model, _plain(steps.steps) if not blocks else steps.steps)
        state = _Run(model, data, factor, strength, shrink, calibration)
        if loss is not None and read:
            state.sensitivity = measure(model, read, data, loss)
        state.unread([name for name in layers if name not in read])
        for number, step in enumerate(order):
            state.keep = strength > 0 and number + 1 < len(order)
            if isinstance(step, list):
                state.stage(step)
            else:
                state.sequence(step)
        state.unread(steps.unreached)


def _share(value: Any, name: str) -> float:
    number = check.number(value, name, minimum=0)
    if number > 1:
        raise ValueError(f"{name} is {number:g}; it must be from 0 to 1")
    return number


def _layers(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    known = dict(model.named_modules())
    layers = {}
    for name in names:
        if name not in known or replaceable(known[name]) is None:
            found = "no module of the model" if name not in known else type(known[name]).__name__
            raise ValueError(f"names has {name!r}, {found}; it must be the name of a dense layer")
        layers[name] = known[name]
    return layers


def _plain(steps: Sequence[Group | tuple[Block, ...]]) -> list[Group]:
    """The same layers, no blocks."""
    groups: list[Group] = []
    for step in steps:
        groups += [step] if isinstance(step, Group) else [group for block in step for group in block.groups]
    return groups


def _stages(
    model: nn.Module, steps: Iterable[Group | tuple[Block, ...]]
) -> list[list[Group] | tuple[Block, ...]]:
    """Groups that are compressed together as one list, as far as their sums take little memory."""
    found: list[list[Group] | tuple[Block, ...]] = []
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


class _Run:
    """The model between two steps, and the dense layers it had."""

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        factor: Factor,
        strength: float,
        shrink: float | None,
        calibration: Calibration | None,
    ) -> None:
        self.keep = strength > 0  # dense layers, for steps to come
        self._model, self._batches, self._factor = model, batches, factor
        self._strength, self._shrink, self._calibration = strength, shrink, calibration
        self._replaced: dict[str, nn.Module] = {}
        self.sensitivity: Sensitivity | None = None

    def unread(self, names: Iterable[str]) -> None:
        """Factor layers without inputs to be seen."""
        layers = [(name, dense_matrix(self._model.get_submodule(name))) for name in names]
        if layers:
            self._call_factor([Wanted(name, matrix.astype(np.float32), None) for name, matrix in layers])

    def stage(self, groups: list[Group]) -> None:
        """Factor layers outside of blocks: the model is run up to them."""
        sums = [InputSums(self._size(group)) for group in groups]
        for batch in self._batches:
            masks = token_masks(batch)

            def forward(batch: Any = batch) -> Any:
                return call(self._model, batch)

            now, _ = collect(self._model, forward, groups, masks, stop=True)
            before: Sequence[list[Tensor] | None] = [None] * len(groups)
            if self._strength and self._replaced:
                with self._dense():
                    before, _ = collect(self._model, forward, groups, masks, stop=True)
            for group, total, seen, dense in zip(groups, sums, now, before, strict=True):
                total.add(seen, dense, self._weights(group, self._key(batch), seen))
        self._solve(groups, sums)

    def sequence(self, blocks: tuple[Block, ...]) -> None:
        """Factor the layers of blocks that follow each other, from the inputs of the first block on."""
        keys, masks, now, dense = self._captured(blocks[0].name)
        for block in blocks:
            wanted: list[list[list[Tensor]]] = []  # inputs in the dense model, by batch, group and call
            for number, item in enumerate(dense):
                if item is None:
                    wanted.append([[] for _ in block.groups])
                    continue
                with self._dense():
                    inputs, dense[number] = self._through(block.name, item, block.groups, masks[number])
                wanted.append(inputs)
            for groups in _stages(self._model, block.groups):
                assert isinstance(groups, list)
                places = [block.groups.index(group) for group in groups]
                sums = [InputSums(self._size(group)) for group in groups]
                for number, item in enumerate(now):
                    found, _ = self._through(block.name, item, groups, masks[number], stop=True)
                    for place, group, total, seen in zip(places, groups, sums, found, strict=True):
                        weights = self._weights(group, keys[number], seen)
                        total.add(seen, wanted[number][place] if wanted else None, weights)
                self._solve(groups, sums)
                for inputs in wanted:
                    for place in places:
                        inputs[place] = []
            now = [run_block(self._model, block.name, item) for item in now]

    def _captured(self, block: str) -> tuple[list[bytes], list[list[Tensor]], list[Item], list[Item | None]]:
        """Keys, masks, and what the block is called with, now and in the dense model, by batch.

        Batches that do not reach it now are left out; None: this one does not in the dense model.
        """
        keys: list[bytes] = []
        masks: list[list[Tensor]] = []
        now: list[Item] = []
        dense: list[Item | None] = []
        # A loader may shuffle: both models are run on a batch before the next is read.
        for batch in self._batches:
            item = captured(self._model, block, batch)
            if item is None:
                continue
            keys.append(self._key(batch))
            masks.append(token_masks(batch))
            now.append(item)
            if self._strength and self._replaced:
                with self._dense():
                    dense.append(captured(self._model, block, batch))
            elif self._strength:
                dense.append(now[-1])
        if not self.keep:
            self._replaced.clear()
        return keys, masks, now, dense

    def _key(self, batch: Any) -> bytes:
        return b"" if self.sensitivity is None else digest(batch)

    def _weights(self, group: Group, key: bytes, calls: Sequence[Tensor]) -> list[Tensor | None] | None:
        """Of the vectors of every call."""
        if self.sensitivity is None:
            return None
        return [self.sensitivity.weights(key, group.names, number) for number in range(len(calls))]

    def _through(
        self, block: str, item: Item, groups: Sequence[Group], masks: list[Tensor], *, stop: bool = False
    ) -> tuple[list[list[Tensor]], Any]:
        return collect(self._model, lambda: run_block(self._model, block, item), groups, masks, stop=stop)

    def _size(self, group: Group) -> int:
        return input_size(self._model.get_submodule(group.names[0])) or 0

    def _solve(self, groups: Sequence[Group], sums: Sequence[InputSums]) -> None:
        found = [self._wanted(group, total) for group, total in zip(groups, sums, strict=True)]
        self._call_factor([wanted for group in found for wanted in group])

    def _wanted(self, group: Group, sums: InputSums) -> list[Wanted]:
        layers = {name: self._model.get_submodule(name) for name in group.names}
        matrices = {name: dense_matrix(layer).astype(np.float64) for name, layer in layers.items()}
        if not sums.calls or (group.together and not sums.count):  # no batch reaches it by now
            return [Wanted(name, matrix.astype(np.float32), None) for name, matrix in matrices.items()]
        second = sums.second(group.names[0])
        cross = sums.cross()
        shrink = shrinkage(len(second), sums.count) if self._shrink is None else self._shrink
        extra = np.diag(missing_power(second))
        change = None
        if cross is not None:
            change = self._strength * correction(cross + extra, second + extra, shrink)
        wanted = []
        for name, matrix in matrices.items():
            if change is not None:
                matrix += matrix @ change
            moments = Moments(second, sums.count, self._gradients(name))
            wanted.append(Wanted(name, matrix.astype(np.float32), moments))
        return wanted

    def _gradients(self, name: str) -> NDArray[np.float64] | None:
        """RMS gradients of a layer's outputs."""
        if self.sensitivity is not None:
            return self.sensitivity.outputs(name)
        known = self._calibration.get(name) if self._calibration is not None else None
        return None if known is None else known.gradient_rms

    def _call_factor(self, wanted: list[Wanted]) -> None:
        names = {layer.name for layer in wanted}
        before = dict(self._model.named_modules(remove_duplicate=False)) if self._strength else {}
        self._factor(wanted)
        after = dict(self._model.named_modules(remove_duplicate=False))
        for other, module in before.items():  # also other names of the layer, and layers tied to it
            if after.get(other) is not module and (self.keep or other not in names):
                self._replaced[other] = module

    @contextmanager
    def _dense(self) -> Iterator[None]:
        """The model with its dense layers back for a while."""
        current = {name: put(self._model, name, layer) for name, layer in self._replaced.items()}
        try:
            yield
        finally:
            for name, layer in reversed(current.items()):  # of two names of one place the first knows it
                put(self._model, name, layer)
