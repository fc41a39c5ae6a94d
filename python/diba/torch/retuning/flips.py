"""Flipping bits while the diagonals are retuned, in a share of the layers at a time.

The gradient for the entries of a layer's factors is dense, of m k and k n numbers, so it is formed only for
the layers whose turn it is. How, and how their latent numbers move, says ``latents``. At the end of a turn
its flips are undone, exactly, if a batch that they have not seen is better off without.

Source: Boza and Macko, "Double binary factorization", arXiv 2505.11076, for latents on rotating layers with
bounded flips; Helwegen et al., "Latent weights do not exist", arXiv 1906.02107, for what latents stand for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..._internal import check
from ..modules.layer import FactoredLayer
from ..modules.linear import DibaLinear
from ..ops.reference import unpack
from .latents import LatentSteps, sign_gradients

__all__ = ["Flipper", "Flips", "differing", "flip"]


@dataclass(frozen=True)
class Flips:
    """How bits move in ``retune(bits=Flips(...))``; ``bits="flip"`` takes these defaults.

    Attributes:
        flips: At most this share of the bits of a factor flips in a step, when the rate is largest; others
            wait. Many bits lower the same error: if all flipped that would pay alone, they would overshoot.
        reach: How far a latent number moves in a turn, in units of its start, if the gradient is always large
            enough for a flip to pay just so. Larger values flip more bits, and need more steps.
        every: Steps in a turn.
        layers: Share of the layers in each turn, at least one, in random order. Meanwhile each of them takes
            12 (m + n) k bytes.
    """

    flips: float = 8e-4
    reach: float = 1.0
    every: int = 100
    layers: float = 1.0

    def __post_init__(self) -> None:
        check.number(self.reach, "reach", minimum=0, exclusive=True)
        check.positive_int(self.every, "every")
        for name in ("flips", "layers"):
            if check.number(getattr(self, name), name, minimum=0, exclusive=True) > 1:
                raise ValueError(f"{name} is {getattr(self, name):g}; it must be at most 1, all of them")


@torch.no_grad()
def flip(bits: Tensor, entries: Tensor, columns: int) -> None:
    """Flip entries of a packed bit matrix in place; the same call again undoes it.

    Args:
        bits: uint8 of shape (rows, ceil(columns / 8)).
        entries: Different entries, int64, as ``row * columns + column``.
        columns: Columns of the matrix; bits past the last one are never touched.
    """
    row, column = entries.div(columns, rounding_mode="floor"), entries % columns
    mask = torch.zeros_like(bits).view(-1)
    value = torch.bitwise_left_shift(torch.ones_like(column), column % 8).to(torch.uint8)
    mask.index_add_(0, row * bits.shape[1] + column // 8, value)  # different bits: their sum is their union
    bits.bitwise_xor_(mask.view_as(bits))


def differing(bits: Tensor, other: Tensor) -> int:
    """Number of bits in which two packed matrices differ."""
    return int(unpack(bits ^ other, 8 * bits.shape[1], False, torch.float64).sum())


class _Latents:
    """Latent numbers of one bit matrix in a turn, and what their steps need; all of shape (rows, columns)."""

    def __init__(self, bits: Tensor, columns: int, dtype: torch.dtype) -> None:
        self.bits, self.start = bits, bits.clone()
        self.value = unpack(bits, columns, True, dtype)
        self.gradient, self.square = torch.zeros_like(self.value), torch.zeros_like(self.value)
        self._steps: LatentSteps | None = None

    @property
    def nbytes(self) -> int:
        return 3 * self.value.nbytes  # with the average of gradients, which takes the place of the squares

    def probed(self, share: float) -> None:
        """Add the squares of the gathered gradients to the second derivatives, if they are finite."""
        if self.gradient.isfinite().all():
            self.square.addcmul_(self.gradient, self.gradient, value=share)
        self.gradient.zero_()

    def ready(self, settings: Flips) -> None:
        """All second derivatives were added."""
        self._steps = LatentSteps(self.value, self.square, settings.reach, settings.flips)
        del self.square

    def step(self, rate: float, share: float) -> int:
        """Take a step and flip the bits whose latent crossed zero; returns the number of flips."""
        assert self._steps is not None, "second derivatives come first"
        crossed = self._steps.step(self.gradient, rate, share)
        self.gradient.zero_()
        if len(crossed):
            flip(self.bits, crossed, self.value.shape[1])
        return len(crossed)

    def changed(self) -> int:
        """Number of bits that differ from the start of the turn."""
        return differing(self.bits, self.start)


class _Turn:
    """One layer during its turn."""

    def __init__(self, layer: FactoredLayer) -> None:
        self.layer = layer
        _, k, n = (d.numel() for d in layer.diagonals())
        self.left, self.right = _Latents(layer.b1, k, layer.d1.dtype), _Latents(layer.b2, n, layer.d1.dtype)

    @torch.no_grad()
    def add(self, x: Tensor, g: Tensor) -> None:
        """Add a call of the layer: inputs (..., n), gradient for the outputs (..., m)."""
        layer, (d1, _, d3) = self.layer, self.layer.diagonals()
        vectors, above = x.reshape(-1, x.shape[-1]).to(d3.dtype), g.reshape(-1, g.shape[-1]).to(d1.dtype)
        bits = layer.b1, layer.b2
        left, right = sign_gradients(vectors, above, layer.diagonals(), bits, layer.sign)
        self.left.gradient += left
        self.right.gradient += right


@dataclass
class Flipper:
    """Trains the bits of a rotating subset of layers.

    Attributes:
        counts: Bits that changed from the start to the end of a turn and stayed so, by the name of the layer.
        turns: Turns that ended with other bits than they began with.
        kept: Those of them whose flips were kept.
        seconds: Time spent on all of it.
        peak_bytes: Largest memory of latents, gradients and their averages.
    """

    layers: dict[str, DibaLinear]
    settings: Flips
    generator: torch.Generator
    counts: dict[str, int] = field(init=False)
    turns: int = 0
    kept: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0

    def __post_init__(self) -> None:
        self.counts = dict.fromkeys(self.layers, 0)
        self._queue: list[str] = []
        self._turn: dict[str, _Turn] = {}
        self._steps, self._share = 0, 0.0

    @property
    def begins(self) -> bool:
        """Whether a turn begins with the next step."""
        return not self._turn

    def begin(self, probes: Iterable[Callable[[], object]], rates: float) -> None:
        """Begin a turn.

        Args:
            probes: Each runs a backward pass of a scalar whose squared gradients are second derivatives of
                the loss on average.
            rates: Sum of the rates of all steps of the turn.
        """
        start, before = time.perf_counter(), self.seconds
        self._choose()
        self._share = 1 / rates if rates > 0 else 0.0
        probes = list(probes)
        for probe in probes:
            with self.watch():
                probe()
            for latents in self._all():
                latents.probed(1 / len(probes))
        for latents in self._all():
            latents.ready(self.settings)
        self.seconds = before + time.perf_counter() - start

    def watch(self) -> ExitStack:
        """A context whose backward passes add gradients for the bits of the current layers."""
        stack = ExitStack()
        for turn in self._turn.values():
            stack.callback(turn.layer.register_forward_hook(self._hook(turn)).remove)
        return stack

    @torch.no_grad()
    def step(self, rate: float) -> int:
        """Step the current latents at a rate of at most 1; returns the number of flips."""
        start = time.perf_counter()
        self._steps += 1
        flipped = sum(latents.step(rate, rate * self._share) for latents in self._all())
        self.seconds += time.perf_counter() - start
        return flipped

    def drop(self) -> None:
        """Drop the gradients of a skipped step."""
        for latents in self._all():
            latents.gradient.zero_()

    @torch.no_grad()
    def check(self, loss: Callable[[], float], last: bool = False) -> None:
        """At the end of a turn, or of the training, keep its flips only if they lower the loss of a batch."""
        if not self._turn or (self._steps < self.settings.every and not last):
            return
        start = time.perf_counter()
        everything = self._all()
        changed = {name: turn.left.changed() + turn.right.changed() for name, turn in self._turn.items()}
        self._turn, self._steps = {}, 0
        if any(changed.values()):
            self.turns += 1
            if _are_better(everything, loss):
                self.kept += 1
                for name, count in changed.items():
                    self.counts[name] += count
        self.seconds += time.perf_counter() - start

    def _all(self) -> list[_Latents]:
        return [latents for turn in self._turn.values() for latents in (turn.left, turn.right)]

    def _choose(self) -> None:
        if not self._queue:
            names = list(self.layers)
            self._queue = [names[i] for i in torch.randperm(len(names), generator=self.generator)]
        count = max(1, round(self.settings.layers * len(self.layers)))
        chosen, self._queue = self._queue[:count], self._queue[count:]
        with torch.no_grad():
            self._turn = {name: _Turn(self.layers[name]) for name in chosen}
        used = sum(latents.nbytes for latents in self._all())
        self.peak_bytes = max(self.peak_bytes, used)

    def _hook(self, turn: _Turn) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def forward(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return
            x = inputs[0].detach()

            def backward(g: Tensor) -> None:
                start = time.perf_counter()
                turn.add(x, g.detach())
                self.seconds += time.perf_counter() - start

            output.register_hook(backward)  # type: ignore[no-untyped-call]

        return forward


def _are_better(latents: list[_Latents], loss: Callable[[], float]) -> bool:
    """Whether the flips lower the loss; if not, the bits of the start of the turn are restored."""
    now = [part.bits.clone() for part in latents]
    after = loss()
    for part in latents:
        part.bits.copy_(part.start)
    better = False
    try:
        better = after < loss()
    finally:
        if better:
            for part, bits in zip(latents, now, strict=True):
                part.bits.copy_(bits)
    return better
