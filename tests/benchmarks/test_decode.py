"""The decode benchmark: its table on made-up times, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

Benchmark = Callable[[str], ModuleType]


def row(name: str, threads: int, token: float, prompt: float, **facts: Any) -> dict[str, Any]:
    samples = [{"token": token * x, "prompt": prompt * x} for x in (2, 1, 0.5)]
    memory = {"empty": 1, "loaded": 2, "working": 150_400_000}
    return {
        "contestant": name, "threads": threads, "bytes": 58_490_000, "memory": memory,
        "seconds": {"load": 0.126, "warm": 1}, "samples": samples, **facts,
    }  # fmt: skip


def test_the_table_compares_with_the_fastest_of_llama_cpp(benchmark: Benchmark) -> None:
    table = benchmark("models.decode_table").table
    machine = {"diba": "1", "cpu": "a cpu", "isa": "avx2"}
    rows = [
        row("two", 1, 0.004, 0.128),
        row("llama.cpp Q4_0", 1, 0.010, 0.256),
        row("llama.cpp Q2_K", 1, 0.008, 0.512),
        row("two", 2, 0.002, 0.064),
    ]
    about = {"machine": machine, "versions": {"onnxruntime_genai": "0.18.0"}}
    text = table({**about, "rows": rows})
    assert "(avx2), onnxruntime-genai 0.18.0. Medians" in text
    lines = [line for line in text.splitlines() if line.startswith("| two")]
    assert lines[0] == ("| two | 58.5 | 250 (125-500) | 2.00 | 1,000 (500-2,000) | 2.00 | 150 | 0.13 |")
    assert lines[1] == "| two | 58.5 | 500 (250-1,000) | 2,000 (1,000-4,000) | 150 | 0.13 |"
    failed = {**row("two", 1, 1, 1, error="no memory"), "samples": []}
    text = table({**about, "rows": [*rows[1:3], failed]})
    assert "| two | 58.5 |  |  |  |  |  |  |" in text
    assert "two, 1: no memory" in text


def test_random_weights_are_compared_with_reading_memory(benchmark: Benchmark) -> None:
    table = benchmark("models.decode_table").table
    reads = [9e9, 10e9, 12e9]
    rows = [row("two", 1, 0.004, 0.128, read=20_000_000, core_reads=reads), row("llama.cpp Q4_0", 1, 1, 1)]
    about = {"machine": {"diba": "1", "cpu": "a cpu", "isa": "avx2"}, "versions": {}}
    text = table({**about, "rows": rows})
    assert "| two | 58.5 | 250 (125-500) | 5.0 | 0.50 | 250.00 | 1,000 (500-2,000) |" in text
    assert "| llama.cpp Q4_0 | 58.5 | 1 (0-2) |  |  | 1.00 |" in text
    assert "Weights are random" in text


def test_both_sides_of_a_shape_have_the_same_layers(
    benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf

    shapes = benchmark("models.shapes")
    monkeypatch.setenv("DIBA_DATA", str(tmp_path))
    shape = shapes.Shape(64, 96, 2, 4, 2, 300, tied=False)
    monkeypatch.setitem(shapes.SHAPES, "tiny", shape)
    keys = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    keys |= {"attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
    keys |= {"ffn_down": "mlp.down_proj"}
    found = {x.name: x.shape[::-1].tolist() for x in gguf.GGUFReader(shapes.gguf_file("tiny")).tensors}
    model = shapes.random_model(shape, 2)
    for number in range(2):
        for name, other in keys.items():
            layer = model.get_submodule(f"model.layers.{number}.{other}")
            assert found.pop(f"blk.{number}.{name}.weight") == list(layer.weight_shape)
    assert found.pop("output.weight") == found.pop("token_embd.weight") == [300, 64]
    assert all(name.endswith("norm.weight") and size == [64] for name, size in found.items())
    layers = [x for x in model.modules() if hasattr(x, "weight_shape")]
    bits = sum(x.k * sum(x.weight_shape) for x in layers)
    assert abs(shapes.step_bytes(shape, 2) - bits / 8) < len(layers)
    with torch.no_grad():
        scores = model(torch.arange(12)[None]).logits
    assert 0.05 < scores.std() < 20
    folder = shapes.folder("tiny", 2)
    assert {"genai_config.json", "model.onnx"} < {path.name for path in folder.iterdir()}


def test_folders_are_looked_at_first(benchmark: Benchmark, tmp_path: Path) -> None:
    decode = benchmark("models.decode")
    error = benchmark("common").BenchmarkError
    with pytest.raises(error, match=r"holds no genai_config\.json"):
        list(decode.contestants(decode.options([str(tmp_path)])))
    (tmp_path / "genai_config.json").write_text("{}")
    (tmp_path / "model.onnx.data").write_bytes(bytes(1000))
    with pytest.raises(SystemExit):
        decode.options([str(tmp_path), "--shapes", "1b"])
    found = list(decode.contestants(decode.options([str(tmp_path), "--types"])))
    path = str(tmp_path.resolve())
    assert found == [{"contestant": tmp_path.name, "runtime": "genai", "path": path, "bytes": 1002}]
