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
        [dict(vars(module)) for module in (choices.admm, choices.methods, choices.stages)],
        choices.greedy.Greedy.__init__,
    )
    for name, (change, _) in choices.TRIALS.items():
        with choices.changed(change):
            changed = [dict(vars(module)) for module in (choices.admm, choices.methods, choices.stages)]
            same = (changed, choices.greedy.Greedy.__init__) == before
            assert same == (name == "as it is" or name.endswith("00 steps"))
        after = [dict(vars(module)) for module in (choices.admm, choices.methods, choices.stages)]
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
