"""One block of a sequence while it is compressed: its data, and the stages that fit it to the dense block.

The block reads what the compressed blocks before it give, and should give what the dense block gave for what
it read in the dense model; ``loss.py`` says what counts. Some batches are held out: nothing is learned from
them, and every stage is undone unless it lowers their loss.
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
from .loss import BlockLoss, Sample, mean, positions_first
from .settings import BlockRecipe, Reconstruction
from .straight import Straight, movable, stand_ins
from .training import train

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..retuning.settings import Group
    from .kept import KeptTraining

__all__ = ["BlockFit"]

_PROBES = 8  # batches for second derivatives


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
        inside = {id(t) for t in _tensors(self.module)}
        others = [m for m in model.modules() if m not in set(self.module.modules())]
        self._elsewhere = {id(t) for m in others for t in _tensors(m, recurse=False)} & inside
        self._loss_of = BlockLoss(self._learned, samples, channels)
        self._generator = torch.Generator().manual_seed(zlib.crc32(f"{settings.seed} {name}".encode()))
        self._began, self._outside = time.perf_counter(), 0.0
        self.loss_before = self.loss = self.held_out_loss()
        self.groups = self.corrected = self.tuned = 0

    # ------------------------------------------------------------ the loss

    def held_out_loss(self) -> float:
        """The loss of the batches that are held out."""
        with plain_grad(False):
            return mean(self._held_out, self._loss)

    def _loss(self, sample: Sample) -> Tensor:
        return self._loss_of(sample, sample.run(self.module))

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
        weights = stand_in.d1.numel() * stand_in.d3.numel()
        bits = sum(latent.numel() for latent in stand_in.latents) / weights  # diagonals do not flip
        return self._settings.flips / max(1.0, bits) ** 2

    def _kept_training(self, what: str) -> KeptTraining | None:
        """Where the next training is kept; what it begins with is in its key."""
        self._trainings += 1
        if self._kept is None:
            return None
        numbers = self._trainings, self._loss_of.energy, self._loss_of.median, self.loss_before, self.loss
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
            roots = self._loss_of.roots(sample, output)
            total = (positions_first(output * signs) * roots).sum()
            for square, gradient in zip(found, torch.autograd.grad(total, latents), strict=True):
                square += gradient.square() * (2 / (len(samples) * len(roots) * self._loss_of.energy))
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
