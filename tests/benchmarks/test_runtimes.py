"""benchmarks/models, runtimes: the parts that need no pretrained model."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch

import diba.onnx

Benchmark = Callable[[str], ModuleType]


def row(contestant: str, one: list[float], many: list[float], **more: Any) -> dict[str, Any]:
    samples = [{"one": a, "many": b} for a, b in zip(one, many, strict=True)]
    facts = {"part": "minilm", "threads": 1, "bytes": 2_000_000, "starts": [0.3, 0.1, 0.2]}
    memory = {"memory": {"empty": 50_000_000, "working": 70_000_000}}
    return {**facts, **memory, "contestant": contestant, "samples": samples, **more}


def test_shares_are_those_of_the_fastest_int8(benchmark: Benchmark) -> None:
    rows = [
        row("int8, dynamic", [0.004, 0.006, 0.004], [0.2, 0.2, 0.2]),
        row("int8, dynamic, fewer fusions", [0.008, 0.008, 0.008], [0.1, 0.1, 0.1]),
        row("diba 1 bit", [0.002, 0.003, 0.001], [0.05, 0.05, 0.05]),
        {
            "part": "minilm",
            "threads": 1,
            "contestant": "diba 2 bits",
            "bytes": 1,
            "samples": [],
            "error": "no",
        },
    ]
    machine = {"diba": "1", "torch": "2", "cpu": "x", "isa": "y"}
    report = {"machine": machine, "onnxruntime": "1", "rows": rows}
    text = benchmark("models.runtimes_table").table(report)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "| " in line]
    assert cells[2][1:] == ["2.0", "4 (4-6)", "1.00", "200 (200-200)", "2.00", "200", "20"]
    assert cells[4][1:] == ["2.0", "2 (1-3)", "0.50", "50 (50-50)", "0.50", "200", "20"]
    assert "minilm, diba 2 bits, 1: no" in text


class Session:
    """Answers with arrays, and keeps what it was given."""

    def __init__(self, *answers: np.ndarray) -> None:
        self.answers, self.given = answers, []

    def run(self, names: None, feed: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        self.given.append(feed)
        return self.answers


def test_a_sample_runs_every_batch(benchmark: Benchmark) -> None:
    session = Session(np.zeros(1))
    inputs = {
        "one.x": np.zeros((1, 3)),
        "one.y": np.zeros(1),
        "many.x": np.zeros((8, 3)),
        "many.y": np.zeros(8),
    }
    found = benchmark("models.runtimes").batches([session], inputs)()
    assert set(found) == {"one", "many"}
    assert [len(feed["x"]) for feed in session.given] == [1] * 10 + [8]


def test_the_decoder_gets_its_own_tokens(benchmark: Benchmark) -> None:
    runtimes = benchmark("models.runtimes")
    encoder, decoder = Session(np.ones(2), np.ones(3)), Session(np.array([0.0, 1, 7, 2]), np.ones(5))
    inputs = {"features": np.zeros(1), "past": np.zeros(0), "token": np.array([[9]])}
    found = runtimes.speech([encoder, decoder], inputs)()
    assert found["whole"] >= found["encoder"] + found["decoder"]
    assert [feed["token"].item() for feed in decoder.given] == [9] + [2] * (runtimes.TOKENS - 1)
    assert [feed["position"].item() for feed in decoder.given] == list(range(runtimes.TOKENS))
    assert [len(feed["past"]) for feed in decoder.given[:2]] == [0, 5]
    assert {"heard.0", "heard.1"} <= set(decoder.given[0])


def test_a_renamed_model_finds_its_tensors(benchmark: Benchmark, tmp_path: Any) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(40, 30)
    diba.onnx.export(layer, torch.zeros(2, 40), tmp_path / "a.onnx", progress=False)
    benchmark("models.runtimes_models").rename(tmp_path / "a.onnx", "b.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"b.onnx", "b.onnx.data"}
    x = torch.randn(3, 40)
    [y] = diba.onnx.session(tmp_path / "b.onnx").run(None, {"input": x.numpy()})
    np.testing.assert_allclose(y, layer(x).detach().numpy(), atol=1e-5)
    assert onnx.load(tmp_path / "b.onnx").graph.initializer[0].name
