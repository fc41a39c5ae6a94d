"""Settings of retuning: how they are given, printed and checked; rates of parameters and steps."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diba.torch import Flips, Training, retune, trainable
from small_models import factored, regression, same, state

FREE = {f"{layer}.{name}" for layer in (0, 2) for name in ("d1", "d2", "d3", "bias")}


def test_settings_are_printed_and_come_back_from_json() -> None:
    training = Training(max_steps=500, max_grad_norm=None, bits=Flips(every=7))
    text = str(training)
    for field in dataclasses.fields(Training):
        assert f"{field.name}={getattr(training, field.name)!r}" in text
    stored = json.loads(json.dumps(dataclasses.asdict(training)))
    assert Training(**stored) == training
    assert Training(bits="flip").bits == Flips()


def test_settings_can_be_given_whole(dense: nn.Sequential, batches: list[Any]) -> None:
    models = [factored(dense) for _ in range(2)]
    settings: dict[str, Any] = {"lr": 0.01, "epochs": 2, "bits": "flip"}
    one = retune(models[0], batches, regression, progress=False, **settings)
    two = retune(models[1], batches, regression, progress=False, training=Training(**settings))
    assert same(state(models[0]), state(models[1])) == set()
    assert one.training == two.training == Training(**settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"lr": 0}, ValueError, "lr is 0; it must be a finite number above 0"),
        ({"epochs": 0}, ValueError, "epochs is 0"),
        ({"max_steps": 2.5}, TypeError, "max_steps is .*2.5"),
        ({"gradient_accumulation_steps": 0}, ValueError, "gradient_accumulation_steps is 0"),
        ({"lr_scheduler": "step"}, ValueError, "lr_scheduler is 'step'; it must be one of 'cosine'"),
        ({"warmup_ratio": 2}, ValueError, "warmup_ratio is 2; it must be at most 1"),
        ({"max_grad_norm": 0}, ValueError, "max_grad_norm is 0"),
        ({"max_loss_change": 0}, ValueError, "max_loss_change is 0"),
        ({"norms": 1}, TypeError, "norms is .*1.*use True or False"),
        ({"optimizer": "sgd"}, TypeError, "optimizer is .*torch.optim.SGD"),
        ({"bits": "flops"}, ValueError, "bits is 'flops'; it must be one of 'flip'"),
        ({"seed": -1}, ValueError, "seed is -1"),
    ],
)
def test_settings_check_themselves(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Training(**settings)


# ---------------------------------------------------------------- rates


class Recorder(torch.optim.SGD):
    """Plain gradient descent that remembers its rates."""

    rates: list[float]

    def __init__(self, groups: Any) -> None:
        super().__init__(groups)
        Recorder.rates = []

    def step(self, closure: Any = None) -> Any:
        group = self.param_groups[0]
        Recorder.rates.append(group["lr"] / group["scale"])
        return super().step(closure)


@pytest.mark.parametrize(
    ("lr_scheduler", "expected"),
    [
        ("constant", [0.5, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.5]),
        ("cosine", [0.5, 1, 1, 0.5]),
    ],
)
def test_rates_follow_the_schedule(
    model: nn.Sequential, batches: list[Any], lr_scheduler: Any, expected: list[float]
) -> None:
    options: dict[str, Any] = {"lr": 0.1, "warmup_ratio": 0.5, "progress": False}
    retune(model, batches[:4], regression, optimizer=Recorder, lr_scheduler=lr_scheduler, **options)
    assert Recorder.rates == pytest.approx([0.1 * rate for rate in expected], rel=1e-12)


def test_trainable_serves_any_optimizer(model: nn.Sequential, batches: list[Any]) -> None:
    groups = trainable(model, biases=False, lr=0.02)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name in FREE if not name.endswith("bias")
    }
    for group in groups:  # within a factor of sqrt(2) of the median size, rounded to a power of two
        for p in group["params"]:
            typical = float(p.detach().abs().median()) / 2  # for the bits are 0/1
            assert 2**-0.5 <= group["scale"] / typical <= 2**0.5
            assert group["lr"] == 0.02 * group["scale"]
    optimizer = torch.optim.RMSprop(groups)
    first = None
    for batch in batches * 3:
        optimizer.zero_grad()
        loss = regression(model, batch)
        first = first or loss.item()
        loss.backward()
        optimizer.step()
    assert loss.item() < first


def test_layers_that_share_a_parameter_train_it_once(model: nn.Sequential) -> None:
    twin = copy.deepcopy(model[0])
    twin.d2 = model[0].d2
    both = nn.ModuleList([model[0], twin, model[0]])
    parameters = [p for group in trainable(both) for p in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters}) == 7  # not 8, not 12


def test_0_1_trains_more_slowly_than_signs(dense: nn.Sequential) -> None:
    """Half of the rate, relative to the median entry."""
    rates = {}
    for alphabet in ("binary", "sign"):
        layer = factored(dense, alphabet)[0]
        (group,) = [g for g in trainable(layer) if any(p is layer.d2 for p in g["params"])]
        rates[alphabet] = group["lr"] / 2.0 ** round(np.log2(float(layer.d2.detach().abs().median())))
    assert rates["sign"] == 2 * rates["binary"] == 0.002


# ---------------------------------------------------------------- a training that was stopped


class Stopped(Exception):
    """Ends a training."""


def stop_at(steps: int) -> Any:
    def progress(state: Any) -> None:
        if state.done >= steps:
            raise Stopped

    return progress


@pytest.mark.parametrize("stop", [3, 4, 11, 13])
def test_a_stopped_training_goes_on_to_the_same_bytes(
    dense: nn.Sequential, batches: list[Any], stop: int, tmp_path: Path
) -> None:
    """Kept every third step, in the first epoch and in the second, of 8 steps each."""
    settings: dict[str, Any] = {"max_steps": 14, "gradient_accumulation_steps": 2}
    kept: dict[str, Any] = {"checkpoint": tmp_path / "state", "every": 3}
    whole, stopped, model = (factored(dense) for _ in range(3))
    expected = retune(whole, batches, regression, progress=False, **settings)
    with pytest.raises(Stopped):
        retune(stopped, batches, regression, progress=stop_at(stop), **settings, **kept)
    taken: list[float] = []
    evaluated: list[int] = []

    def evaluate(model: nn.Module) -> None:
        evaluated.append(len(taken))

    report = retune(
        model,
        batches,
        regression,
        progress=lambda state: taken.append(state.done),
        evaluate=evaluate,
        **settings,
        **kept,
    )
    first = stop // 3 * 3 + 1
    assert taken == [0, *range(first, 15)]  # the steps before were not taken again
    assert len(evaluated) == (
        3 if first <= 8 else 2
    )  # at the start, and after each epoch that was gone on with
    assert not same(state(model), state(whole))
    assert np.array_equal(report.losses, expected.losses)
    assert (report.loss_before, report.loss_after) == (expected.loss_before, expected.loss_after)
    assert not (tmp_path / "state").exists()


def test_the_state_of_another_training_is_refused(
    dense: nn.Sequential, batches: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "state"
    kept: dict[str, Any] = {"checkpoint": path, "every": 2, "progress": False}
    with pytest.raises(Stopped):
        retune(factored(dense), batches, regression, **{**kept, "progress": stop_at(5)})
    content = path.read_bytes()
    other = factored(dense)
    with torch.no_grad():
        next(iter(other.parameters())).mul_(1.5)
    for model, settings in (
        (other, {}),
        (factored(dense), {"lr": 0.01}),
        (factored(dense), {"max_steps": 40}),
    ):
        before = state(model)
        with pytest.raises(ValueError, match="is of another training"):
            retune(model, batches, regression, **kept, **settings)
        assert not same(state(model), before)
        assert path.read_bytes() == content
    path.write_bytes(content[:-20])
    with pytest.raises(ValueError, match="cannot be read as the state of a training"):
        retune(factored(dense), batches, regression, **kept)
    with pytest.raises(ValueError, match="checkpoint is given and bits move"):
        retune(factored(dense), batches, regression, bits="flip", **kept)
    with pytest.raises(FileNotFoundError):
        retune(factored(dense), batches, regression, **{**kept, "checkpoint": tmp_path / "no" / "state"})
    with pytest.raises(ValueError, match="every is 0"):
        retune(factored(dense), batches, regression, **{**kept, "every": 0})
