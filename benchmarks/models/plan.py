"""What the models benchmark measures: which models, at which sizes, in which ways."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["PLAN", "Cell", "Plan", "cells", "units"]

Pair = tuple[float, str]  # bits per weight, alphabet


def pairs(bits: Iterable[float], alphabets: Iterable[str] = ("sign", "binary")) -> tuple[Pair, ...]:
    return tuple(itertools.product(bits, alphabets))


@dataclass(frozen=True)
class Plan:
    """How much of everything one task gets.

    Attributes:
        task: Its name.
        steps: Of every retuning.
        calibration: Batches that conversion sees.
        pairs: Sizes and alphabets, in the order in which they are run: calibrated, and retuned.
        seeds: Sizes that are measured with seeds 0, 1 and 2: of solver, random bits and retuning.
        flips: Sizes at which bits move too.
        plain: Sizes at which the factors that know no data are measured.
        random: Sizes of the control.
        unweighted: Sizes at which all inputs count alike in calibration.
        shared: Where bits are shared out between layers, by noise, by loss and by scores.
        rounded: Bits of round-to-nearest.
    """

    task: str
    steps: int
    calibration: int
    pairs: tuple[Pair, ...]
    seeds: tuple[float, ...] = ()
    flips: tuple[float, ...] = (2.0,)
    plain: tuple[float, ...] = (1.0, 2.0, 3.0)
    random: tuple[float, ...] = (2.0,)
    unweighted: tuple[float, ...] = (2.0,)
    shared: tuple[Pair, ...] = ()
    rounded: tuple[int, ...] = (2, 3, 4)


@dataclass(frozen=True)
class Cell:
    """One model to measure."""

    task: str
    arm: str
    bits: float = 32.0
    alphabet: str = ""
    seed: int = 0

    @property
    def key(self) -> str:
        """Its name in the results."""
        return " | ".join((self.task, self.arm, f"{self.bits:g}", self.alphabet or "-", str(self.seed)))

    @property
    def place(self) -> tuple[str, float, str, int]:
        """Everything but what is done there."""
        return self.task, self.bits, self.alphabet, self.seed


# The longest first: where several cells are worked on at once, the short ones fill up the end.
PLAN = {
    plan.task: plan
    for plan in (
        Plan(
            "smollm2",
            steps=128,
            calibration=24,
            pairs=((2.0, "sign"), (3.0, "sign")),
            flips=(),
            plain=(2.0,),
            unweighted=(),
            rounded=(2,),
        ),
        Plan(
            "whisper",
            steps=64,
            calibration=40,
            pairs=((2.0, "sign"),),
            flips=(),
            plain=(2.0,),
            unweighted=(),
            rounded=(2,),
        ),
        Plan(
            "minilm",
            steps=80,
            calibration=40,
            pairs=((2.0, "sign"), (1.0, "sign")),
            flips=(),
            unweighted=(),
            rounded=(2,),
        ),
        Plan(
            "efficientnet",
            steps=80,
            calibration=32,
            pairs=((2.0, "sign"), (2.0, "binary"), (1.0, "sign")),
            flips=(),  # only linear layers flip bits
            unweighted=(),
            shared=((1.0, "sign"),),
            rounded=(2,),
        ),
        Plan(
            "mlp",
            steps=200,
            calibration=20,
            pairs=pairs((2.0, 1.0, 3.0, 0.5, 0.25)),
            seeds=(0.25, 0.5, 2.0),
            flips=(0.25, 0.5, 1.0, 2.0),
            plain=(0.25, 0.5, 1.0, 2.0, 3.0),
            random=(0.25, 0.5, 1.0, 2.0, 3.0),
            shared=((0.25, "sign"),),
        ),
    )
}


def cells(plan: Plan, quick: bool) -> Iterator[Cell]:
    """All of a plan; those that share a conversion follow each other."""
    yield Cell(plan.task, "dense")
    for bits, alphabet in plan.pairs:
        for seed in range(3 if bits in plan.seeds and not quick else 1):
            for arm in arms(plan, bits, alphabet):
                yield Cell(plan.task, arm, bits, alphabet, seed)
    for rounded in plan.rounded:
        yield Cell(plan.task, "rounded", float(rounded))
        yield Cell(plan.task, "rounded, retuned", float(rounded))


def arms(plan: Plan, bits: float, alphabet: str) -> Iterator[str]:
    """What is measured at one size."""
    if bits in plan.plain:
        yield "replaced"
    if bits in plan.unweighted:
        yield "unweighted"
    yield "calibrated"
    yield "dibard"
    if bits in plan.flips:
        yield "flips"
    if bits in plan.random:
        yield "random"
    if (bits, alphabet) in plan.shared:
        for way in ("allocated", "by loss", "scored"):
            yield way
            yield f"{way}, retuned"


def units(chosen: Iterable[Cell]) -> Iterator[list[Cell]]:
    """Cells that share a conversion, to be run by one process."""
    for _, group in itertools.groupby(chosen, key=lambda cell: cell.place):
        yield list(group)
