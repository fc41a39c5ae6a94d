"""benchmarks/solver: each benchmark at work on small matrices."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("torch")

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    Benchmark = Callable[[str], ModuleType]


def gaussian(m: int, n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((m, n)).astype(np.float32)


@pytest.mark.parametrize("alphabet", ["binary", "sign"])
def test_the_greedy_loop_in_torch_is_the_same_algorithm(benchmark: Benchmark, alphabet: str) -> None:
    """Same start, same steps: the same factors as long as rounding flips no bit."""
    solve = benchmark("solver.solve")
    found = {name: run(gaussian(40, 56), 1.5, alphabet) for name, run in solve.RUNS.items()}
    assert len({each["k"] for each in found.values()}) == 1
    for name in ("torch", "torch, all rows"):
        assert found[name]["snr"] == pytest.approx(found["diba"]["snr"], abs=0.01)
    assert all(each["seconds"] > 0 for each in found.values())


def test_every_choice_is_there_and_is_taken_back(benchmark: Benchmark) -> None:
    choices = benchmark("solver.choices")
    before = (
        [dict(vars(module)) for module in (choices.admm, choices.sign_side, choices.methods, choices.stages)],
        choices.greedy.Greedy.__init__,
    )
    for name, (change, _) in choices.TRIALS.items():
        with choices.changed(change):
            changed = [
                dict(vars(module))
                for module in (choices.admm, choices.sign_side, choices.methods, choices.stages)
            ]
            same = (changed, choices.greedy.Greedy.__init__) == before
            assert same == (name == "as it is" or name.endswith("00 steps"))
        after = [
            dict(vars(module))
            for module in (choices.admm, choices.sign_side, choices.methods, choices.stages)
        ]
        assert (after, choices.greedy.Greedy.__init__) == before


def test_choices_are_compared_with_the_method_as_it_is(benchmark: Benchmark) -> None:
    runs = [
        {"trial": trial, "alphabet": "sign", "bits": 1.0, "snr_db": snr}
        for trial, levels in {"as it is": (4.0, 5.0), "ridge 0": (4.25, 4.5)}.items()
        for snr in levels
    ]
    machine = {"cpu": "x", "isa": "y", "diba": "1"}
    report = {"machine": machine, "steps": 300, "matrices": ["a", "b"], "runs": runs}
    text = benchmark("solver.choices").table(report)
    assert "| as it is | 4.500 dB |  |  |  |" in text
    assert "| ridge 0 | -0.125 |  |  |  |" in text


def test_covariance_is_best_on_what_it_saw(benchmark: Benchmark) -> None:
    objectives = benchmark("solver.objectives")
    inputs = np.random.default_rng(1).standard_normal((400, 40)) @ np.diag(np.linspace(0.1, 3, 40))
    S = inputs.T @ inputs / len(inputs)
    case = objectives.Case(0, "output.dense", gaussian(48, 40), S, S)
    options = Namespace(alphabet="sign", steps=20, threads=1, shrink=[0.0], iterations=3)
    rows = {row.objective: row for row in objectives.measure(case, 2.0, options)}
    assert list(rows) == ["plain", "importance", "covariance, shrink 0"]
    plain, importance, covariance = (row.calibration_db for row in rows.values())
    assert plain < importance < covariance
    assert all(row.held_out_db == row.calibration_db for row in rows.values())


def test_a_large_matrix_is_announced(
    benchmark: Benchmark, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "large.json"
    benchmark("solver.large").main(
        ["--size", "96", "--effort", "fast", "--threads", "1", "--json", str(path)]
    )
    report = benchmark("common.results").read(path)
    assert report["announced_seconds"] is not None
    assert "96 x 96 at" in capsys.readouterr().out


def test_gains_in_outputs_are_of_the_same_matrix(benchmark: Benchmark) -> None:
    rows = [
        {"model": "a", "matrix": f"to {level}", "bits": 1.0, "seed": 0, "diba": which}
        | {"held out": level, "plain": 5.0, "outputs_seconds": 1.0, "plain_seconds": 2.0}
        for level in (8.0, 10.0)
        for which in ("other", "this")
    ]
    rows[1]["held out"], rows[3]["held out"] = 8.25, 11.0
    machine = {"cpu": "x", "isa": "y", "diba": "1"}
    text = benchmark("solver.outputs").table(
        {"rows": rows, "arguments": {"effort": "fast"}, "machine": machine}
    )
    assert "| 1 | held out | 9.00 | 9.62 | +0.62 | +0.25 | 2 | 2 |" in text
    assert "| 1 | plain | 5.00 | 5.00 | +0.00 | +0.00 | 4 | 4 |" in text
    assert "2 matrices, 1 seed" in text
    assert "| other |" not in text


def test_moments_are_means_over_all_inputs(benchmark: Benchmark) -> None:
    import torch

    outputs = benchmark("solver.outputs")
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))
    source = outputs.Model(lambda: model, ["0", "1"], lambda model, batch: model(batch), dict)
    batches = [torch.randn(3, 2, 6), torch.randn(7, 6)]
    found, counts = outputs.moments(source, model, batches)
    X = torch.cat([batch.flatten(0, -2) for batch in batches]).double().numpy()
    assert counts == {"0": 13, "1": 13}
    np.testing.assert_allclose(found["0"], X.T @ X / 13, rtol=1e-5, atol=1e-6)
    assert found["1"].shape == (5, 5)
