"""How blocks are reconstructed, and what it brought: the settings and the report of one block."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..._internal import check
from ...checkpoints.blocks import BlockRecipe
from ...layers.config import known_keys

__all__ = ["BlockRecipe", "Reconstruction"]


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How :func:`diba.torch.convert` reconstructs blocks; ``reconstruct=True`` takes these defaults.

    Attributes:
        steps: Steps of the joint training of a block's bits, diagonals, norms and biases, after all of its
            layers are factored; each takes one batch. 0: none.
        tune_steps: Steps in which what is still dense in a block is trained, before each group of layers is
            factored. 0: none.
        correct: Whether the target of a group is corrected in closed form for the errors of the layers before
            it, where this lowers the held-out loss.
        reach: How far a latent number moves in all steps, in units of its start, if the gradient is always
            large enough for a flip to pay just so. Larger values flip more bits, and need more steps.
        flips: At most this share of the bits of a matrix flips in a step, when the rate is largest; others
            wait. Many bits lower the same error: if all flipped that would pay alone, they would overshoot.
            Of a layer with b > 1 bits per weight, diagonals not counted, ``1 / b**2`` of this share: its
            error is smaller, and so fewer bits are wrong.
        lr: Learning rate of diagonals, norms and biases, relative to their median entries.
        tune_lr: Learning rate of dense weights, relative to their median entries.
        held_out: Share of the batches that decides, and from which nothing is learned; at least one batch.
        memory: Bytes of memory for activations of all batches: inputs of a block, what the dense block gave,
            and inputs of its layers. What is more lies in a temporary file without a name, in the folder that
            the environment variable ``TMPDIR`` names. None: 256 MiB, or half of the memory that is available
            at the start where the file has no room. The results are the same bytes.
        seed: Seed of the order of the batches.

    Raises:
        TypeError: A value is of the wrong kind.
        ValueError: A value is out of range.
    """

    steps: int = 128
    tune_steps: int = 32
    correct: bool = True
    reach: float = 1.0
    flips: float = 8e-4
    lr: float = 0.004
    tune_lr: float = 0.01
    held_out: float = 0.125
    memory: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "tune_steps"):
            check.integer(getattr(self, name), name, minimum=0, maximum=2**31)
        for name in ("reach", "flips", "lr", "tune_lr", "held_out"):
            check.number(getattr(self, name), name, minimum=0, exclusive=True)
        if self.flips > 1:
            raise ValueError(f"flips is {self.flips:g}; it must be at most 1, all bits")
        if self.held_out > 0.5:
            raise ValueError(f"held_out is {self.held_out:g}; it must be at most 0.5, half of the batches")
        if self.memory is not None:
            check.integer(self.memory, "memory", minimum=0, maximum=2**62)
        check.instance(self.correct, "correct", bool, "use True or False")
        check.seed(self.seed)

    @classmethod
    def of(cls, value: Any) -> Reconstruction | None:
        """The settings of an argument ``reconstruct``: True, False, None, a dict, or a Reconstruction.

        Raises:
            TypeError: It is none of these.
            ValueError: A setting is unknown or out of range.
        """
        if value is None or value is False:
            return None
        if value is True:
            return cls()
        if isinstance(value, Mapping):
            known_keys(value, [field.name for field in dataclasses.fields(cls)], "reconstruct")
            return cls(**value)
        check.instance(value, "reconstruct", cls, "use True, or diba.torch.Reconstruction(steps=128)")
        return value  # type: ignore[no-any-return]

    def is_held_out(self, number: int, count: int) -> bool:
        """Whether batch ``number`` of ``count`` is held out: evenly spaced ones, the last of each stretch."""
        wanted = max(1, round(self.held_out * count))
        return (number + 1) * wanted // count > number * wanted // count

    def to_dict(self) -> dict[str, Any]:
        """What the results depend on, as plain values for JSON; :meth:`of` takes them back."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "memory"}
