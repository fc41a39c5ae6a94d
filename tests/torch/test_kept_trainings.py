"""Trainings of blocks that are kept: a conversion that was stopped in one goes on to the same bytes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import diba.torch
from diba.torch.conversion.kept import kept_in
from diba.torch.conversion.run import Conversion
from diba.torch.reconstruction.kept import kept_trainings, trainings_kept_in

if TYPE_CHECKING:
    from pathlib import Path

N = 16
ALL = 2 * (2 * 3 + 6)  # steps: of two blocks with two groups of layers each


class Stopped(Exception):
    """A conversion ended after so many steps of training."""


class Block(nn.Module):
    """A residual block with a norm, whose two layers are compressed one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(N), nn.Linear(N, 2 * N), nn.Linear(2 * N, N)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


@pytest.fixture(scope="module")
def dense() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block()).eval()


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 6, N, generator=generator) for _ in range(6)]


@pytest.fixture(scope="module")
def whole(dense: nn.Module, batches: list[Tensor]) -> nn.Module:
    return converted(dense, batches)


def converted(dense: nn.Module, batches: list[Tensor], **changes: Any) -> nn.Module:
    # every step moves much, so that stages are kept and the trainings of bits matter
    how = {"steps": 6, "tune_steps": 3, "lr": 0.02, "reach": 4.0, "flips": 0.05, **changes}
    settings = {"bits_per_weight": 4, "max_iter": 12, "threads": 1, "progress": False}
    return diba.torch.convert(copy.deepcopy(dense), batches=batches, reconstruct=how, **settings)


def stopped_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    seen, original = 0, Conversion.busy

    def busy(self: Conversion, what: str, kind: str) -> None:
        nonlocal seen
        original(self, what, kind)
        seen += kind == "steps"
        if seen == steps:
            raise Stopped

    patch.setattr(Conversion, "busy", busy)


def steps_of(patch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every step that is computed."""
    seen: list[int] = []
    original = torch.optim.Adam.step

    def step(self: torch.optim.Adam, *args: Any) -> Any:
        seen.append(1)
        return original(self, *args)

    patch.setattr(torch.optim.Adam, "step", step)
    return seen


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stop(dense: nn.Module, batches: list[Tensor], folder: Path, steps: int) -> None:
    """Run a conversion until it has done so many steps."""
    with pytest.MonkeyPatch.context() as patch, kept_in(folder / "layers"):
        stopped_after(steps, patch)
        with trainings_kept_in(folder / "block", 0.0), pytest.raises(Stopped):
            converted(dense, batches)


def go_on(dense: nn.Module, batches: list[Tensor], folder: Path, **changes: Any) -> tuple[nn.Module, int]:
    """The model at the end, and how many steps were computed."""
    with pytest.MonkeyPatch.context() as patch, kept_in(folder / "layers"):
        seen = steps_of(patch)
        with trainings_kept_in(folder / "block", 0.0):
            model = converted(dense, batches, **changes)
    return model, len(seen)


# at the first step, in the middle and at the end of what trains dense layers, and in what trains bits
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 7, 10, 11])
def test_it_goes_on_in_the_middle_of_a_training(
    steps: int, dense: nn.Module, batches: list[Tensor], whole: nn.Module, tmp_path: Path
) -> None:
    stop(dense, batches, tmp_path, steps)
    model, computed = go_on(dense, batches, tmp_path)
    assert same(model, whole)
    assert computed == ALL - steps + _repeated(model)


def _repeated(model: nn.Module) -> int:
    """Steps of blocks whose bits were trained in vain, and then the rest without them."""
    recipes = diba.torch.report(model).blocks.values()
    return 6 * sum(not recipe.flips for recipe in recipes)


def test_again_and_again(dense: nn.Module, batches: list[Tensor], whole: nn.Module, tmp_path: Path) -> None:
    """Stopped after each step of the first block: what is computed is one step more each time."""
    for steps in range(1, 11):
        stop(dense, batches, tmp_path, steps)
        assert len(list((tmp_path / "block").iterdir())) == 1 + (steps > 3) + (steps > 6)
    model, computed = go_on(dense, batches, tmp_path)
    assert same(model, whole)
    assert computed == ALL - 10 + _repeated(model)


def test_what_is_damaged_or_of_something_else_is_trained_anew(
    dense: nn.Module, batches: list[Tensor], whole: nn.Module, tmp_path: Path
) -> None:
    stop(dense, batches, tmp_path, 8)
    for number, path in enumerate(sorted((tmp_path / "block").iterdir())):
        content = path.read_bytes()
        path.write_bytes((content[:40], b"", content[:-1] + bytes([content[-1] ^ 1]))[number])
    model, computed = go_on(dense, batches, tmp_path)
    assert same(model, whole)
    assert computed == ALL + _repeated(model)
    stop(dense, batches, tmp_path, 8)
    other, computed = go_on(dense, batches, tmp_path, seed=5)
    assert computed == ALL + _repeated(other)
    assert same(other, converted(dense, batches, seed=5))
    stop(dense, batches, tmp_path, 8)
    other, computed = go_on(dense, batches[1:], tmp_path)
    assert computed == ALL + _repeated(other)
    assert same(other, converted(dense, batches[1:]))


def test_states_are_written_now_and_then(
    dense: nn.Module, batches: list[Tensor], whole: nn.Module, tmp_path: Path
) -> None:
    with trainings_kept_in(tmp_path / "block", 1e6):
        assert same(converted(dense, batches), whole)
    assert kept_trainings.get() is None
    assert not list((tmp_path / "block").iterdir())
