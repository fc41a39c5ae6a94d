"""Batches of every form, and steps whose loss or gradient is of no use: what retuning makes of them."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import diba.torch
from diba.torch.allocation.scores import scores
from diba.torch.retuning.batches import digest, repeatable, some
from diba.torch.retuning.losses import model_loss
from diba.torch.retuning.retune import retune
from small_models import regression, same, state

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Batches that can be read any number of times and have no length; after ``times`` readings, none."""

    def __init__(self, batches: list[Any], times: int = 1000) -> None:
        super().__init__()
        self.batches, self.left = batches, times

    def __iter__(self) -> Iterator[Any]:
        self.left -= 1
        return iter(self.batches if self.left >= 0 else [])


# ---------------------------------------------------------------- forms of batches


def test_batches_without_a_length_need_a_number_of_steps(model: nn.Sequential, batches: list[Any]) -> None:
    listed = copy.deepcopy(model)
    for endless in (Stream(batches), DataLoader(Stream(batches), batch_size=None)):
        with pytest.raises(TypeError, match=r"which has no length.*or max_steps must be given"):
            retune(model, endless, regression, progress=False)
    retune(listed, batches, regression, max_steps=20, progress=False)
    retune(model, Stream(batches), regression, max_steps=20, progress=False)
    assert same(state(listed), state(model)) == set()


@pytest.mark.parametrize("times", [0, 1])
def test_batches_that_run_out_are_an_error(model: nn.Sequential, batches: list[Any], times: int) -> None:
    """Whether the first reading finds none, that of the sample, or the next."""
    with pytest.raises(ValueError, match="at least one batch each time that it is read"):
        retune(model, Stream(batches, times), regression, max_steps=4, progress=False)


def test_some_of_the_batches() -> None:
    assert some(list(range(10)), 3) == [0, 3, 6]
    assert some((0, 1), 3) == [0, 1]
    assert some(Stream(list(range(10))), 3) == [0, 1, 2]


def test_generators_are_held_whatever_is_in_them() -> None:
    """Only tensors count: here twice 24 bytes."""
    made = [{"x": torch.zeros(3), "names": ["a", "b"]}, (torch.zeros(3), 5, None)]
    for limit, fits in ((24, True), (23, False)):
        if fits:
            assert repeatable(iter(made), limit=limit) == made
        else:
            with pytest.raises(ValueError, match="first 2 batches take"):
                repeatable(iter(made), limit=limit)


def test_digests_tell_batches_apart() -> None:
    x = torch.arange(6.0)
    parts: list[Any] = [
        x,
        x.view(2, 3),
        x.double(),
        x + 1,
        [x, "a"],
        [x, "b"],
        {"x": x, "n": 1},
        {"x": x, "n": 2},
    ]
    assert len({digest(part) for part in parts}) == len(parts)
    assert digest((x, "a")) == digest([x.clone(), "a"])


# ---------------------------------------------------------------- losses


class Labelled(nn.Module):
    """A model that returns its loss where it gets labels, as those of transformers do."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        y = self.inside(x)
        return SimpleNamespace(loss=None if labels is None else nn.functional.mse_loss(y, labels))


def test_without_a_loss_it_is_that_of_the_model(model: nn.Sequential, batches: list[Any]) -> None:
    named = [{"x": x, "labels": y} for x, y in batches]
    given, own = model, Labelled(copy.deepcopy(model))
    assert torch.equal(model_loss(own, named[0]), regression(given, batches[0]))
    retune(given, batches, regression, progress=False)
    retune(own, named, progress=False)
    assert same(state(given), state(own.inside)) == set()
    with pytest.raises(ValueError, match="returns no loss for this batch"):
        scores(own, [{"x": batches[0][0]}])


def test_scores_need_batches_and_finite_losses(model: nn.Sequential, batches: list[Any]) -> None:
    with pytest.raises(ValueError, match="batches is empty"):
        scores(model, [], regression)
    with pytest.raises(ValueError, match="the loss of batch 1 is inf; it must be finite"):
        scores(model, [batches[0], (batches[1][0], batches[1][1] + torch.inf)], regression)


# ---------------------------------------------------------------- steps that are skipped


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("bits", [None, "flip"])
def test_a_skipped_step_leaves_no_trace(
    model: nn.Sequential, batches: list[Any], what: str, bits: Any
) -> None:
    """Diagonals, bits, the optimizer's moments and the gradients of bits: as if there were no such batch.

    It comes after the eight batches that second derivatives are taken from, and is none of those checked.
    """
    without, bad = copy.deepcopy(model), batches[5]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        value = regression(model, batch)
        if not torch.is_grad_enabled() or batch is not bad:
            return value
        return value * torch.nan if what == "loss" else value + (0 * model(batch[0]).sum()).sqrt()

    options: dict[str, Any] = {"bits": bits, "lr_scheduler": "constant", "progress": False, "lr": 1e-3}
    first = [batches[i % 5] for i in range(8)]
    broken = retune(model, [*first, bad, batches[0]], loss, **options)
    whole = retune(without, [*first, batches[0]], regression, **options)
    assert (broken.steps, broken.skipped, whole.skipped) == (9, 1, 0)
    assert [x for x in broken.losses.tolist() if x == x] == whole.losses.tolist()
    assert same(state(model), state(without)) == set()


def test_layers_that_a_loss_does_not_reach_stay(model: nn.Sequential, batches: list[Any]) -> None:
    before = state(model)

    def loss(model: Any, batch: Any) -> Tensor:
        return 1e3 * model[0](batch[0]).square().mean()

    retune(model, batches, loss, max_grad_norm=1e-3, progress=False)
    assert {name.partition(".")[0] for name in same(before, state(model))} == {"0"}


def test_calls_without_gradients_flip_no_bits(model: nn.Sequential, batches: list[Any]) -> None:
    """A loss may call the model once more, for numbers that are constants to it."""

    def twice(model: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            model(batch[0])
        return regression(model, batch)

    once = copy.deepcopy(model)
    for each, loss in ((model, twice), (once, regression)):
        retune(each, batches[:4], loss, bits="flip", progress=False)
    assert same(state(model), state(once)) == set()


def test_nothing_selected_is_an_error() -> None:
    with pytest.raises(ValueError, match="config selects no layer of the model"):
        diba.torch.allocate(
            nn.Sequential(nn.Linear(8, 8)), 2, config=diba.torch.Config(k=2, skip=["0"]), progress=False
        )
