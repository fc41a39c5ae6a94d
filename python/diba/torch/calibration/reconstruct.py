"""Which blocks are reconstructed while a model is compressed in execution order, and on which data."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..modules.layer import factored_layers
from ..reconstruction.block import BlockFit, Sample
from ..reconstruction.settings import BlockRecipe, Reconstruction
from .blocks import first_tensor

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .blocks import Block
    from .inputs import Item, Stream

__all__ = ["Reconstructing", "block_fit"]


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
        None if the block is done already, if nothing in it is compressed, or if no batch is held out or none
        is not.
    """
    if block.name in how.done or not (block.groups or factored_layers(model.get_submodule(block.name))):
        return None
    samples, held_out = [], []
    for number, (item, target) in enumerate(zip(stream.now, stream.dense, strict=True)):
        if target is not None:
            samples.append(Sample(partial(_output, item), target.hidden, stream.masks[number](block.name)))
            held_out.append(how.settings.is_held_out(number, len(stream.now)))
    if all(held_out) or not any(held_out):
        return None
    on_step = partial(how.on_step, block.name)
    return BlockFit(model, block.name, samples, held_out, channels, how.settings, on_step)


def _output(item: Item, block: nn.Module) -> Tensor:
    """The output of a block for an input, with gradients where they are on."""
    output = first_tensor(block(item.hidden, *item.args, **item.kwargs))
    assert output is not None, "as when it was first called"
    return output
