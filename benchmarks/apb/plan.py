"""What the apb benchmark measures: networks, ways to few bytes, rates, seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .networks import NETWORKS

__all__ = ["ARMS", "Cell", "cells", "chosen_rate", "following"]


@dataclass(frozen=True)
class Arm:
    """A way to make a network small.

    Attributes:
        label: For people.
        forms: The sizes it is measured at.
        tried: The form by which its rate is chosen.
        rates: First learning rates to choose from.
    """

    label: str
    forms: tuple[str, ...]
    tried: str
    rates: tuple[float, ...]


MOST_SEEDS = 10
RATES = (0.0005, 0.002, 0.006)
FACTORED_RATES = (0.003, 0.02, 0.06)
WIDER = {  # by APB's exceptions: widths with which plain binary weights have as many bytes
    "mlp": {"as 0.3 %": 1.08, "as 1 %": 1.2168, "as 3 %": 1.5625},
    "cnn": {"as 0.3 %": 1.08, "as 1 %": 1.1765, "as 3 %": 1.412},
}
ARMS = {
    "float32": Arm("float32, trained on", ("32 bits",), "32 bits", RATES),
    "binary": Arm("binary", ("1 bit",), "1 bit", RATES),
    "wider": Arm("binary, wider network", tuple(WIDER["mlp"]), "as 1 %", RATES),
    "LSQ": Arm("learned step", ("2 bits", "3 bits"), "2 bits", RATES),
    "APB": Arm("APB", ("0.05 %", "0.3 %", "1 %", "3 %"), "1 %", RATES),
    "falling": Arm("APB, the share falls", ("1 %", "3 %"), "1 %", RATES),
    "DiBA": Arm("DiBA 0/1, diagonals trained", ("1 bit", "2 bits"), "1 bit", FACTORED_RATES),
    "DBF": Arm("DBF ±1, diagonals trained", ("1 bit", "2 bits"), "1 bit", FACTORED_RATES),
}


@dataclass(frozen=True)
class Cell:
    """One training, and what it came to."""

    network: str
    arm: str
    form: str
    seed: int
    rate: float

    @property
    def width(self) -> float:
        """Of the network's blocks, relative to its own."""
        return WIDER[self.network][self.form] if self.arm == "wider" else 1.0

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.network} | {self.arm} | {self.form} | {self.seed} | {self.rate:g}"


def following(done: Mapping[str, Any], wanted: Sequence[Cell]) -> Cell | None:
    """The first cell that is not done, its rate being known."""
    for cell in wanted:
        known = cell
        if cell.rate == 0:
            rate = chosen_rate(done, cell.network, cell.arm)
            if rate is None:
                continue
            known = replace(cell, rate=rate)
        if known.key not in done:
            return known
    return None


def chosen_rate(done: Mapping[str, Any], network: str, arm: str) -> float | None:
    """The rate of most validation accuracy, over the seeds that all rates were tried with."""
    cell = Cell(network, arm, ARMS[arm].tried, 0, 0.0)
    tried = {rate: found_by_seed(done, replace(cell, rate=rate)) for rate in ARMS[arm].rates}
    seeds = set.intersection(*map(set, tried.values()))
    if not seeds:
        return None
    return max(tried, key=lambda rate: sum(tried[rate][seed] for seed in seeds))


def found_by_seed(done: Mapping[str, Any], cell: Cell) -> dict[int, float]:
    """Validation accuracies of a cell with every seed."""
    cells = ((seed, done.get(replace(cell, seed=seed).key)) for seed in range(MOST_SEEDS))
    return {seed: found["validation"] for seed, found in cells if found}


def cells(networks: Sequence[str], arms: Sequence[str], seeds: int) -> Iterator[Cell]:
    """All, for each arm those that choose its rate first; a rate of 0 is one to be chosen."""
    for network in (name for name in NETWORKS if name in networks):
        for name in (name for name in ARMS if name in arms):
            arm = ARMS[name]
            for seed in range(seeds):
                yield from (Cell(network, name, arm.tried, seed, rate) for rate in arm.rates)
            for seed in range(seeds):
                yield from (Cell(network, name, form, seed, 0.0) for form in arm.forms)
