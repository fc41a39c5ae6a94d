"""One block of a sequence while it is compressed: its data, and the stages that fit it to the dense block.

The block reads what the compressed blocks before it give, and should give what the dense block gave for what
it read in the dense model. The loss is

    sum_p t_p sum_c w_c (y_pc - y*_pc)^2 / sum_p t*_p sum_c w_c y*_pc^2

over positions p and channels c: w_c the mean squared gradient of the model's loss for channel c (1 without a
loss), and ``t_p = min(1, median power / power)`` with the larger of the powers of y and y* (t* by y* alone).
So the few positions with outputs ten thousand times larger than all others (Sun et al., "Massive activations
in large language models", arXiv 2402.17762) do not rule, nor those where the compressed model makes such
outputs and the dense one does not: one of them would outweigh all else. Some batches are held out: nothing is
learned from them, and every stage is undone unless it lowers their loss.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import diba

from ..modules.kinds import input_size, replaceable
from ..modules.layer import FactoredLayer, factored_layers
from ..retuning.batches import differentiable, plain_grad
from ..retuning.kept import identity_of
from ..retuning.settings import grouped, norms_sized, parameter_groups, typical_size
from .kept import kept_trainings
from .settings import BlockRecipe, Reconstruction
from .straight import Straight, movable, stand_ins
from .training import train

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..retuning.settings import Group
    from .kept import KeptTraining

__all__ = ["BlockFit", "Sample"]

_PROBES = 8  # batches for second derivatives
_LEAST_WEIGHT = 1e-4  # of a channel, relative to the mean: no channel is free
Run = Callable[[nn.Module], Tensor]


class Sample:
    """One batch of a block: how to run the block on it, and what the dense block gave.

    Args:
        run: Runs a block on the input that it gets from the compressed blocks before it.
        target: Output of the dense block, (batch, positions, channels), or (batch, channels, *positions) with
            two axes of positions; or what returns it whenever it is needed.
        masks: True where a token counts, shape (batch, positions) each; those that fit apply.
    """

    def __init__(self, run: Run, target: Tensor | Callable[[], Tensor], masks: Sequence[Tensor] = ()) -> None:
        self.run, self._target = run, target
        target = self.target
        rows = target.shape[:1] + target.shape[2:] if target.ndim == 4 else target.shape[:-1]
        fitting = [mask.to(target.device) for mask in masks if mask.shape == rows]
        self.counts = torch.stack(fitting).any(0) if fitting else target.new_ones(rows, dtype=torch.bool)

    @property
    def target(self) -> Tensor:
        """Output of the dense block."""
        return self._target if isinstance(self._target, Tensor) else self._target()


class BlockFit:
    """Fits one block to the dense block while its layers are compressed, group by group.

    Args:
        model: The model; only modules of the block are changed.
        name: Name of the block.
        samples: Its batches; at least one that is held out and one that is not.
        held_out: For each of them, whether it is held out.
        channels: Mean squared gradients of the outputs, shape (channels,); None: all alike.
        settings: What is done.
        on_step: Called after every step of training.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        samples: Sequence[Sample],
        held_out: Sequence[bool],
        channels: Tensor | None,
        settings: Reconstruction,
        on_step: Callable[[], object] = lambda: None,
    ) -> None:
        self.module = model.get_submodule(name)
        self._name, self._settings, self._on_step = name, settings, on_step
        self._kept, self._trainings = kept_trainings.get(), 0
        self._learned = [s for s, out in zip(samples, held_out, strict=True) if not out]
        self._held_out = [s for s, out in zip(samples, held_out, strict=True) if out]
        self._channels = _relative(channels)
        inside = {id(t) for t in _tensors(self.module)}
        others = [m for m in model.modules() if m not in set(self.module.modules())]
        self._elsewhere = {id(t) for m in others for t in _tensors(m, recurse=False)} & inside
        self._median = _median([self._power(sample.target) for sample in self._learned])
        self._trusts = {sample: self._trust(sample, sample.target) for sample in samples}
        self._energy = self._mean(self._learned, lambda sample: self._error(sample, None))
        self._generator = torch.Generator().manual_seed(zlib.crc32(f"{settings.seed} {name}".encode()))
        self._began, self._outside = time.perf_counter(), 0.0
        self.loss_before = self.loss = self.held_out_loss()
        self.groups = self.corrected = self.tuned = 0

    # ------------------------------------------------------------ the loss

    def held_out_loss(self) -> float:
        """The loss of the batches that are held out."""
        with plain_grad(False):
            return self._mean(self._held_out, self._loss)

    def _mean(self, samples: Iterable[Sample], value: Callable[[Sample], Tensor]) -> float:
        found = [float(value(sample)) for sample in samples]
        return sum(found) / len(found)

    def _loss(self, sample: Sample) -> Tensor:
        return self._error(sample, sample.run(self.module)) / self._energy

    def _error(self, sample: Sample, output: Tensor | None) -> Tensor:
        """Weighted squares of what an output lacks, a mean over positions; None: of the target itself."""
        target = sample.target.float()
        squares = (target if output is None else output.float() - target).square()
        rows = _positions_first(squares) @ self._weights(squares)
        trust = self._trusts[sample]
        if output is not None:
            trust = trust.minimum(self._trust(sample, output.detach()))
        return (rows * trust).mean()

    def _trust(self, sample: Sample, output: Tensor) -> Tensor:
        """t_p of every position by the power of an output, 0 for padding."""
        trust = (self._median / self._power(output)).clamp(max=1).nan_to_num(1.0)
        return trust * sample.counts.flatten()

    def _power(self, output: Tensor) -> Tensor:
        """Weighted power of an output at every position."""
        squares = output.float().square()
        return _positions_first(squares) @ self._weights(squares)

    def _weights(self, like: Tensor) -> Tensor:
        count = like.shape[1 if like.ndim == 4 else -1]
        if self._channels is None or len(self._channels) != count:
            return like.new_ones(count)
        return self._channels.to(like)

    # ------------------------------------------------------------ stages

    def correct(self, targets: Iterable[tuple[nn.Module, NDArray[Any], NDArray[Any] | None]]) -> None:
        """Give dense layers other matrices (m, n) and biases (m,), if that lowers the held-out loss.

        A bias of None, or of a layer without one, changes nothing.
        """
        self.groups += 1
        if self.groups > 1:
            self.loss = self.held_out_loss()  # the group before was factored
        if not self._settings.correct:
            return
        pairs = [pair for target in targets for pair in _changes(*target)]
        with self._undone_unless_better([view for view, _ in pairs]) as outcome, torch.no_grad():
            for view, values in pairs:
                view.copy_(torch.from_numpy(values))
        self.corrected += outcome.kept

    def tune(self) -> None:
        """Train what is still dense in the block, and norms and biases."""
        if not self._settings.tune_steps:
            return
        dense = [(p, typical_size(p)) for layer in self._dense_layers() for p in (layer.weight, layer.bias)]
        groups = grouped(dense, self._settings.tune_lr)
        groups = self._own([*groups, *grouped(norms_sized(self.module), self._settings.lr)])
        parameters = [p for group in groups for p in group["params"]]
        if not parameters:
            return
        with self._undone_unless_better(parameters) as outcome:
            self._train(groups, self._settings.tune_steps)
        self.tuned += outcome.kept

    def finish(self) -> BlockRecipe:
        """Train bits, diagonals, norms and biases together; returns what became of the block."""
        factored = self.loss = self.held_out_loss()
        layers = movable(self.module, self._elsewhere)
        share, kept = 0.0, False
        if self._settings.steps and factored_layers(self.module):
            share, kept = self._train_factors(layers) if layers else (0.0, False)
            if not kept:  # the first block of a model may be better off with its bits as they are
                share, kept = self._train_factors({})
        return BlockRecipe(
            loss_before=self.loss_before,
            loss_factored=factored,
            loss=self.loss,
            corrected=self.corrected,
            tuned=self.tuned,
            groups=self.groups,
            flips=share,
            kept=kept,
            seconds=time.perf_counter() - self._began - self._outside,
        )

    def solving(self, seconds: float) -> None:
        """Count time that was not spent here."""
        self._outside += seconds

    def _train_factors(self, layers: dict[str, FactoredLayer]) -> tuple[float, bool]:
        """Train diagonals, norms, biases and the bits of these layers; the share of flips, and if kept."""
        groups = self._own(parameter_groups(self.module, biases=True, norms=True, lr=self._settings.lr))
        changing = [p for group in groups for p in group["params"]]
        changing += [packed for layer in layers.values() for packed in (layer.b1, layer.b2)]
        flips = bits = 0
        with self._undone_unless_better(changing, layers.values()) as outcome:
            with stand_ins(self.module, layers) as standing:
                self._train(groups, self._settings.steps, standing)
                for stand_in in standing:
                    counts = stand_in.harden()
                    flips, bits = flips + counts[0], bits + counts[1]
            for layer in factored_layers(self.module):
                layer.round_diagonals()  # as solved factors have them, so that it stays within its bits
        return (flips / bits if outcome.kept and bits else 0.0), outcome.kept

    def _train(self, groups: list[Group], steps: int, standing: Sequence[Straight] = ()) -> None:
        latents = [latent for stand_in in standing for latent in stand_in.latents]
        caps = [self._most_flips(stand_in) for stand_in in standing for _ in stand_in.latents]
        groups = [group for group in groups if group["params"]]
        kept = self._kept_training(f"{steps} {[(group['lr'], len(group['params'])) for group in groups]}")
        with differentiable(self.module, [*latents, *(p for group in groups for p in group["params"])]):
            train(
                groups,
                steps,
                latents,
                caps=caps,
                squares=lambda: self._second_derivatives(latents),
                loss_of=lambda number: self._loss(self._learned[number]),
                batches=len(self._learned),
                generator=self._generator,
                reach=self._settings.reach,
                on_step=self._on_step,
                kept=kept,
            )

    def _most_flips(self, stand_in: Straight) -> float:
        """The share of a layer's bits that may flip in a step."""
        return self._settings.flips / max(1.0, stand_in.bits_per_weight) ** 2

    def _kept_training(self, what: str) -> KeptTraining | None:
        """Where the next training is kept; what it begins with is in its key."""
        self._trainings += 1
        if self._kept is None:
            return None
        numbers = self._trainings, self._energy, self._median, self.loss_before, self.loss
        settings = f"{diba.__version__} {self._name} {numbers} {self._settings.to_dict()} {what}"
        key = identity_of(settings, [*_tensors(self.module), self._generator.get_state()])
        return self._kept.training(self._trainings, key)

    def _second_derivatives(self, latents: Sequence[nn.Parameter]) -> list[Tensor]:
        """Estimates of the loss's second derivatives: squared gradients of outputs times random signs."""
        found = [torch.zeros_like(latent) for latent in latents]
        samples = self._learned[:_PROBES] if latents else []
        for sample in samples:
            output = sample.run(self.module)
            signs = torch.randint(0, 2, output.shape, generator=self._generator).to(output) * 2 - 1
            roots = self._trusts[sample].sqrt()[:, None] * self._weights(output).sqrt()
            total = (_positions_first(output * signs) * roots).sum()
            for square, gradient in zip(found, torch.autograd.grad(total, latents), strict=True):
                square += gradient.square() * (2 / (len(samples) * len(roots) * self._energy))
        return found

    # ------------------------------------------------------------ what is trained

    def _dense_layers(self) -> list[Any]:
        return [m for m in self.module.modules() if replaceable(m) is not None and input_size(m) is not None]

    def _own(self, groups: Iterable[Group]) -> list[Group]:
        """The groups without parameters that other modules use too."""
        return [
            group | {"params": [p for p in group["params"] if id(p) not in self._elsewhere]}
            for group in groups
        ]

    @contextmanager
    def _undone_unless_better(
        self, tensors: Sequence[Tensor], layers: Iterable[FactoredLayer] = ()
    ) -> Iterator[_Outcome]:
        """A stage that may change these tensors; undone after an error, and if the held-out loss rises."""
        before = [t.detach().clone() for t in tensors]
        outcome = _Outcome()
        try:
            yield outcome
            after = self.held_out_loss()
            outcome.kept = after < self.loss
            if outcome.kept:
                self.loss = after
        finally:
            if not outcome.kept:
                with torch.no_grad():
                    for tensor, old in zip(tensors, before, strict=True):
                        tensor.copy_(old)
                for layer in layers:
                    layer.bits_changed()


class _Outcome:
    """Whether a stage was kept."""

    kept = False


# ---------------------------------------------------------------- details


def _changes(
    layer: Any, matrix: NDArray[Any], bias: NDArray[Any] | None
) -> Iterator[tuple[Tensor, NDArray[Any]]]:
    """Tensors of a dense layer, views, and the values that they are to have."""
    kind = replaceable(layer)
    assert kind is not None, "it is about to be factored"
    yield kind.matrix(layer).detach(), matrix
    if bias is not None and layer.bias is not None:
        yield layer.bias.detach(), bias


def _tensors(module: nn.Module, recurse: bool = True) -> Iterator[Tensor]:
    yield from module.parameters(recurse)
    yield from module.buffers(recurse)


def _positions_first(values: Tensor) -> Tensor:
    """Shape (positions, channels)."""
    return (values.movedim(1, -1) if values.ndim == 4 else values).flatten(0, -2)


def _relative(channels: Tensor | None) -> Tensor | None:
    """Weights of channels with mean 1; None if nothing is known."""
    if channels is None or not channels.isfinite().all() or not channels.any():
        return None
    return (channels / channels.mean()).clamp_min(_LEAST_WEIGHT).float()


def _median(values: Sequence[Tensor]) -> float:
    found = torch.cat([v.flatten() for v in values])
    found = found[found > 0]
    return float(found.median()) if len(found) else 1.0
