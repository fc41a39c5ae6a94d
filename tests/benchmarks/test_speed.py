"""benchmarks/models, speed: the parts that need no pretrained model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import diba.torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    Benchmark = Callable[[str], ModuleType]


@pytest.mark.parametrize("alphabet", ["binary", "sign"])
def test_random_layers_are_as_large_as_solved_ones_and_multiply_alike(
    benchmark: Benchmark, alphabet: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(300, 64), nn.Linear(64, 128), nn.Linear(128, 300, bias=False))
    model[2] = nn.Linear(64, 300, bias=False)
    model[2].weight = model[0].weight
    x, dense = torch.randn(500, 64), [layer.weight.detach().clone() for layer in model]
    config = diba.torch.Config(bits_per_weight=1.5, tied=True, alphabet=alphabet)
    found = benchmark("models.speed_work").randomize(model, config)
    assert [type(layer) for layer in model] == [
        diba.torch.DibaEmbedding,
        diba.torch.DibaLinear,
        diba.torch.DibaLinear,
    ]
    assert model[0].b1 is model[2].b1
    assert set(found) == {"1", "2"}  # a tied pair goes by its linear layer
    assert all(1.2 < bits <= 1.5 for bits in found.values())
    for layer, weight in ((model[1], dense[1]), (model[2], dense[2])):
        without_bias = layer.dense_weight().detach()
        ratio = float((x @ without_bias.T).norm() / (x @ weight.T).norm())
        assert 0.5 < ratio < 2


def test_random_layers_need_bits_per_weight(benchmark: Benchmark) -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    with pytest.raises(ValueError, match="must have bits_per_weight"):
        benchmark("models.speed_work").randomize(model, diba.torch.Config(k=8))


def test_table_and_work_know_the_same_contestants_and_models(benchmark: Benchmark) -> None:
    table, work = benchmark("models.speed_table"), benchmark("models.speed_work")
    assert list(table.CONTESTANTS) == list(work.CONTESTANTS)
    assert set(table.JOBS) == set(work.JOBS)


def row(job: str, contestant: str, threads: int, *seconds: float, **others: Any) -> dict[str, Any]:
    figures = {"smollm2": ("token", "prompt"), "whisper": ("audio", "features", "encoder", "decoder")}[job]
    samples = [dict.fromkeys(figures, s) for s in seconds]
    facts = {"seconds": {"warm": 3.0}, "memory": {"loaded": 2_000_000, "working": 3_000_000, "peak": None}}
    return {"job": job, "contestant": contestant, "threads": threads, "samples": samples, **facts, **others}


def test_ratios_are_of_medians_within_one_number_of_threads(benchmark: Benchmark) -> None:
    times = benchmark("models.speed_table").times
    rows = [
        row("smollm2", "float32", 1, 0.3, 9.0, 0.3),
        row("smollm2", "diba 1 bit", 1, 0.09),
        row("smollm2", "float32", 2, 0.1),
        row("whisper", "diba 1 bit", 1),
    ]
    assert times(rows, "smollm2", 1, "float32", "diba 1 bit", "token") == pytest.approx(0.3 / 0.09)
    assert times(rows, "smollm2", 2, "float32", "diba 1 bit", "token") is None
    assert times(rows, "whisper", 1, "float32", "diba 1 bit", "audio") is None


def test_markdown_has_rates_ranges_memory_and_errors(benchmark: Benchmark) -> None:
    table = benchmark("models.speed_table")
    rows = [
        row("smollm2", "float32", 1, 0.25, 0.5, 0.2),
        row("smollm2", "diba 1 bit", 1, 0.1),
        {"job": "smollm2", "contestant": "float32, compiled", "threads": 1, "samples": [], "error": "no C++"},
    ]
    text = table.table({"rows": rows, "machine": {"cpu": "A  CPU", "isa": "x", "diba": "1"}})
    assert "| float32 | 4 (2-5) | 1.00 | 0.25 (0.2-0.5) | 2 | 3 |  | 3 |" in text
    assert "| diba 1 bit | 10 (10-10) | 2.50 |" in text
    assert "smollm2, 1, float32, compiled: no C++" in text
    assert "Measured with diba 1 on A CPU (x)" in text


CONTESTANT = """
import json, sys
print(json.dumps({"ready": {"load": 1, "warm": 2}, "memory": {"empty": 3, "loaded": 4}}), flush=True)
sys.stdin.readline()
print(json.dumps({"sample": {"token": 0.5}, "memory": {"resident": 5, "peak": 6}}), flush=True)
sys.stdin.readline()
sys.exit("no more memory")
"""


def test_a_contestant_is_asked_sample_by_sample_and_may_fail(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    turns = benchmark("common.turns")
    script = tmp_path / "contestant.py"
    script.write_text(CONTESTANT)
    monkeypatch.setattr(turns, "command", lambda *_: [sys.executable, str(script)])
    runner = turns.Runner("speed", {"threads": 1})
    try:
        assert runner.error is None
        for _ in range(3):
            runner.sample()
    finally:
        runner.close()
    assert runner.samples == [{"token": 0.5}]
    assert runner.error == "ended with 1: no more memory"
    assert runner.facts["memory"] == {"empty": 3, "loaded": 4, "working": 5, "peak": 6}
