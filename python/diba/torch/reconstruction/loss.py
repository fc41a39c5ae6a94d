"""The loss of one block: what its output lacks of the dense block's, and the batches that it is taken over.

    sum_p t_p sum_c w_c (y_pc - y*_pc)^2 / sum_p t*_p sum_c w_c y*_pc^2

over positions p and channels c of the output y and the dense block's output y*: w_c the mean squared gradient
of the model's loss for channel c (1 without a loss), and ``t_p = min(1, median power / power)`` with the
larger of the powers of y and y* (t* by y* alone). So the few positions with outputs ten thousand times larger
than all others (Sun et al., "Massive activations in large language models", arXiv 2402.17762) do not rule,
nor those where the compressed model makes such outputs and the dense one does not: one of them would outweigh
all else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["BlockLoss", "Sample", "mean", "positions_first"]

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


class BlockLoss:
    """The loss of outputs of a block.

    Args:
        learned: The batches that are learned from; the median power and the energy are theirs.
        samples: All batches.
        channels: Mean squared gradients of the outputs, shape (channels,); None: all alike.

    Attributes:
        median: Median power of the dense block's outputs over the positions.
        energy: What the squares are divided by.
    """

    def __init__(self, learned: Sequence[Sample], samples: Sequence[Sample], channels: Tensor | None) -> None:
        self._channels = _relative(channels)
        self.median = _median([self._power(sample.target) for sample in learned])
        self._trusts = {sample: self._trust(sample, sample.target) for sample in samples}
        self.energy = mean(learned, lambda sample: self._error(sample, None))

    def __call__(self, sample: Sample, output: Tensor) -> Tensor:
        """The loss of the output that a block gives for a batch."""
        return self._error(sample, output) / self.energy

    def roots(self, sample: Sample, output: Tensor) -> Tensor:
        """Square roots of ``t*_p w_c``, shape (positions, channels)."""
        return self._trusts[sample].sqrt()[:, None] * self._weights(output).sqrt()

    def _error(self, sample: Sample, output: Tensor | None) -> Tensor:
        """Weighted squares of what an output lacks, a mean over positions; None: of the target itself."""
        target = sample.target.float()
        squares = (target if output is None else output.float() - target).square()
        rows = positions_first(squares) @ self._weights(squares)
        trust = self._trusts[sample]
        if output is not None:
            trust = trust.minimum(self._trust(sample, output.detach()))
        return (rows * trust).mean()

    def _trust(self, sample: Sample, output: Tensor) -> Tensor:
        """t_p of every position by the power of an output, 0 for padding."""
        trust = (self.median / self._power(output)).clamp(max=1).nan_to_num(1.0)
        return trust * sample.counts.flatten()

    def _power(self, output: Tensor) -> Tensor:
        """Weighted power of an output at every position."""
        squares = output.float().square()
        return positions_first(squares) @ self._weights(squares)

    def _weights(self, like: Tensor) -> Tensor:
        count = like.shape[1 if like.ndim == 4 else -1]
        if self._channels is None or len(self._channels) != count:
            return like.new_ones(count)
        return self._channels.to(like)


def mean(samples: Iterable[Sample], value: Callable[[Sample], Tensor]) -> float:
    """The mean of a value over batches."""
    found = [float(value(sample)) for sample in samples]
    return sum(found) / len(found)


def positions_first(values: Tensor) -> Tensor:
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
