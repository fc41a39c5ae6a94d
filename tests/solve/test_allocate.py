"""diba.allocate on matrices and models: the budget is kept and goes where it pays; shares by scores."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import diba
import diba.torch
from diba.allocation.curves import joined
from diba.allocation.sizes import grown
from diba.allocation.waterfill import waterfill
from diba.progress import Steps
from diba.solvers.size import stored_bits
from diba.torch.allocation.scores import keep_best

RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.standard_normal((48, 64))


def uniform_bits(shape: tuple[int, int], bits: float) -> int:
    k = diba.solve(np.ones(shape), bits_per_weight=bits, max_iter=0, method="greedy").k
    return stored_bits(*shape, k)


def noise(matrices: dict[str, np.ndarray], k: dict[str, int]) -> float:
    solved = {name: diba.solve(A, k[name], effort="fast") for name, A in matrices.items()}
    return sum(float(np.square(A - solved[name].to_dense()).sum()) for name, A in matrices.items())


def test_bits_go_where_they_remove_most_noise() -> None:
    matrices = {
        "loud": 4 * NORMAL,
        "quiet": RANDOM.standard_normal((48, 64)),
        "wide": RANDOM.standard_normal((16, 96)),
    }
    found = diba.allocate(matrices, 1.5)
    budget = sum(uniform_bits(A.shape, 1.5) for A in matrices.values())
    assert found.total_bits == sum(stored_bits(*matrices[name].shape, k) for name, k in found.k.items())
    assert budget - (16 + 16 + 96 + 48) < found.total_bits <= budget
    even = {
        name: diba.solve(A, bits_per_weight=1.5, max_iter=0, method="greedy").k
        for name, A in matrices.items()
    }
    assert found.k["loud"] > even["loud"]
    assert found.k["quiet"] < even["quiet"]
    assert noise(matrices, found.k) < noise(matrices, even)


def test_equal_matrices_share_evenly_and_weights_count() -> None:
    same = {"a": NORMAL, "b": NORMAL}
    k = diba.allocate(same, 1.5).k
    assert abs(k["a"] - k["b"]) <= 1
    weighted = diba.allocate(same, 1.5, weights={"b": 16.0}).k
    assert weighted["b"] > weighted["a"]


def test_larger_sizes_are_measured_only_where_bits_go() -> None:
    """Noise falls ever more slowly, so a straight line beyond what is measured promises too much."""
    shape, first, end = (64, 64), [16, 32], 72
    heavy = {"a": 1e4, "b": 1.0, "c": 1.0, "d": 1.0}

    def noise(name: str, k: int) -> float:
        return heavy[name] * 10 ** (-0.1 * k**0.9)

    def curve(name: str, sizes: list[int]) -> diba.Curve:
        return diba.Curve(shape, np.array(sizes), np.array([noise(name, k) for k in sizes]))

    known = {name: curve(name, first) for name in heavy}
    asked: list[tuple[str, int]] = []
    states: list[diba.Progress] = []

    def measure(name: str, k: int, done: float, until: float) -> None:
        assert known[name].k[-1] < k <= end
        assert 2 <= done < until < 4
        asked.append((name, k))
        known[name] = joined(known[name], curve(name, [k]))

    fill = partial(waterfill, total_bits=4 * stored_bits(*shape, 32))
    steps = Steps("allocate", 4, states.append)
    found = grown(lambda: dict(known), measure, dict.fromkeys(heavy, end), fill, steps, 2)
    assert {name for name, _ in asked} == {"a"}
    assert states[-1].done == 4
    assert all(k <= 1.2 * known[name].k[-1] for name, k in found.k.items())
    whole = fill({name: curve(name, list(range(16, end + 1))) for name in heavy})
    # Which of the light ones gets the last bits is open.
    assert sum(noise(name, k) for name, k in found.k.items()) == pytest.approx(whole.noise, rel=0.02)
    assert sum(noise(name, 32) for name in heavy) > 2 * whole.noise


def test_progress_and_options_reach_the_solver() -> None:
    seen: list[diba.Progress] = []
    diba.allocate({"a": NORMAL, "b": 2 * NORMAL}, 2, alphabet="sign", progress=seen.append)
    assert {(state.task, state.total) for state in seen} == {("allocate", 2)}
    steps = [state.done for state in seen]
    assert steps == sorted(steps)
    assert {0, 0.5, 1, 2} < set(steps)  # and parts of them; larger sizes may follow the first ones
    assert [state.item for state in seen if state.done in (0.5, 1)] == ["a", "b"]
    net_seen: list[diba.Progress] = []
    diba.allocate(nn.Sequential(nn.Linear(64, 64)), 2, progress=net_seen.append)
    assert [(state.done, state.total) for state in net_seen] == [(0, 1), (0.5, 1), (1, 1)]
    with pytest.raises(ValueError, match="alphabet is 'ternary'"):
        diba.allocate({"a": NORMAL}, 2, alphabet="ternary")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((NORMAL, 2), {}, TypeError, "it must be a dict of names to matrices, or a torch module"),
        (({}, 2), {}, ValueError, "source is empty"),
        (({"a": NORMAL}, 0), {}, ValueError, "bits_per_weight"),
        (({"a": NORMAL}, 2), {"k": 5}, (TypeError, ValueError), "k"),
        (({"a": NORMAL}, 2), {"weights": {"b": 1.0}}, ValueError, "weights has the key 'b'"),
        (({"a": NORMAL}, 2), {"weights": {"a": -1.0}}, ValueError, "weight"),
        (({"a": NORMAL}, 2), {"sizes": (1.5, 2)}, ValueError, "sizes is"),
        (({"a": NORMAL.astype(complex)}, 2), {}, TypeError, r"source\['a'\]"),
        ((nn.Linear(4, 4), 2), {"weights": {"a": 1.0}}, TypeError, "calibration="),
        ((nn.ReLU(), 2), {}, ValueError, "no layer to compress"),
    ],
)
def test_bad_input(arguments: tuple, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        diba.allocate(*arguments, **options)


# ---------------------------------------------------------------- models


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 48))


def test_a_model_without_data_counts_relative_noise() -> None:
    net = model()
    with torch.no_grad():
        net[0].weight.mul_(100)  # louder, not more important
    found = diba.allocate(net, 2)
    assert list(found.k) == ["0", "2", "4"]
    assert max(found.k.values()) - min(found.k.values()) <= 4
    layers = {name: {"k": k} for name, k in found.k.items()}
    report = diba.torch.report(diba.torch.convert(net, bits_per_weight=2, layers=layers, progress=False))
    assert [layer.k for layer in report.layers] == list(found.k.values())


def test_calibration_says_which_layer_matters() -> None:
    net = model()
    with torch.no_grad():
        net[2].weight.mul_(0.01)  # hardly reaches the output: its noise neither
    x = torch.randn(256, 40, generator=torch.Generator().manual_seed(1))
    moments = diba.torch.calibrate(
        net, [(x,)], loss=lambda m, batch: m(*batch).square().mean(), progress=False
    )
    k = diba.torch.allocate(net, 2, calibration=moments).k
    assert k["4"] > k["2"]


def test_scores_share_out_components() -> None:
    net = model()
    diba.torch.convert(net, bits_per_weight=3, effort="fast", progress=False)
    first, last = net[0].k, net[4].k
    scores = {"0": np.arange(first) + 1000.0, "2": np.ones(net[2].k), "4": np.arange(last) * 1.0}
    k = keep_best(net, scores, 2)
    even = diba.solve(np.ones((48, 40)), bits_per_weight=2, max_iter=0, method="greedy").k
    assert k["0"] + k["4"] == 2 * even  # of one shape: they share
    assert k["0"] == min(first, 2 * even - even // 4)
    assert k["2"] == diba.solve(np.ones((40, 48)), bits_per_weight=2, max_iter=0, method="greedy").k


def test_bad_scores() -> None:
    net = model()
    diba.torch.convert(net, bits_per_weight=2, effort="fast", progress=False)
    with pytest.raises(TypeError, match="must name a factored layer"):
        keep_best(net, {"1": np.ones(3)}, 2)
    with pytest.raises(ValueError, match="the number of scores of '0'"):
        keep_best(net, {"0": np.ones(3)}, 2)
    with pytest.raises(ValueError, match="score a model with more bits"):
        keep_best(net, {"0": np.ones(net[0].k)}, 3)
