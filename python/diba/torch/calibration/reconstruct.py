"""Which blocks are reconstructed while a model is compressed in execution order, and on which data."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from ..modules.layer import factored_layers
from ..reconstruction.block import BlockFit
from ..reconstruction.loss import Sample
from ..reconstruction.settings import BlockRecipe, Reconstruction
from .blocks import Block, Blocks, Groups, together
from .trace import first_tensor

if TYPE_CHECKING:
    from torch import nn

    from .stream import HeldItem, Stream

__all__ = ["Reconstructing", "block_fit", "expected"]


@dataclass(frozen=True)
class Reconstructing:
    """That blocks of sequences are reconstructed, and who is told.

    Attributes:
        settings: What is done.
        on_step: Called with the name of the block after every step of training.
        on_block: Called with the name and the recipe of every block that is done.
        done: Names of blocks that are done already, and only run.
    """

    settings: Reconstruction
    on_step: Callable[[str], object]
    on_block: Callable[[str, BlockRecipe], object]
    done: Container[str] = ()

    @property
    def memory(self) -> int | None:
        """Bytes of memory for activations; None: by what is available."""
        return self.settings.memory


def expected(
    model: nn.Module,
    steps: Sequence[Groups | Blocks],
    total: int,
    gradients: bool,
    how: Reconstructing | None,
) -> dict[str, int]:
    """How often ``propagate.run`` is expected to tell of its batches, by kind; and steps of training.

    Args:
        model: The model.
        steps: What is done of it, in this order.
        total: Number of batches.
        gradients: Whether gradients of a loss are measured.
        how: How blocks are reconstructed; None: they are not.
    """
    blocks = [block for step in steps if isinstance(step, tuple) for block in step]
    parts = {block.name: len(together(model, block.groups)) for block in blocks}
    learned, trained = total, 0
    if how is not None:
        learned -= sum(how.settings.is_held_out(number, total) for number in range(total))
        fitted = [block.name for block in blocks if _is_fitted(model, block, how)]
        trained = sum(how.settings.steps + parts[name] * how.settings.tune_steps for name in fitted)
    return {
        "gradients": total if gradients else 0,
        "inputs": total * len(steps),
        "dense": total * len(parts),
        "statistics": learned * sum(parts.values()),
        "steps": trained,
    }


def block_fit(
    model: nn.Module, block: Block, stream: Stream, channels: Tensor | None, how: Reconstructing
) -> BlockFit | None:
    """The reconstruction of a block: it reads ``stream.now`` and should give ``stream.dense``.

    Args:
        model: The model, of which only the block is changed.
        block: The block.
        stream: Inputs of the block in the compressed model, and of the next block in the dense model.
        channels: Mean squared gradients of its outputs; None: unknown.
        how: What is done.

    Returns:
        None if the block is done already or is a single layer, if nothing in it is compressed, or if no batch
        is held out or none is not.
    """
    if not _is_fitted(model, block, how):
        return None
    samples, held_out = [], []
    for number, (item, target) in enumerate(zip(stream.now, stream.dense, strict=True)):
        if target is not None:
            masks = stream.masks[number](block.name)
            samples.append(Sample(partial(_output, item), target.hidden.get, masks))
            held_out.append(how.settings.is_held_out(number, len(stream.now)))
    if all(held_out) or not any(held_out):
        return None
    on_step = partial(how.on_step, block.name)
    return BlockFit(model, block.name, samples, held_out, channels, how.settings, on_step)


def _is_fitted(model: nn.Module, block: Block, how: Reconstructing) -> bool:
    """Whether a block is not done already, is no single layer, and something in it is compressed."""
    module = model.get_submodule(block.name)
    compressed = block.groups or factored_layers(module)
    return block.name not in how.done and bool(compressed) and next(module.children(), None) is not None


def _output(held: HeldItem, block: nn.Module) -> Tensor:
    """The output of a block for an input, with gradients where they are on."""
    item = held.get()
    output = first_tensor(block(item.hidden, *item.args, **item.kwargs))
    assert isinstance(output, Tensor), "as when it was first called"
    return output
