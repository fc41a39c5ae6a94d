"""The decode benchmark: its table on made-up times, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

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


def test_folders_are_looked_at_first(benchmark: Benchmark, tmp_path: Path) -> None:
    decode = benchmark("models.decode")
    error = benchmark("common").BenchmarkError
    with pytest.raises(error, match=r"holds no genai_config\.json"):
        list(decode.contestants(decode.options([str(tmp_path)])))
    (tmp_path / "genai_config.json").write_text("{}")
    (tmp_path / "model.onnx.data").write_bytes(bytes(1000))
    found = list(decode.contestants(decode.options([str(tmp_path), "--types"])))
    path = str(tmp_path.resolve())
    assert found == [{"contestant": tmp_path.name, "runtime": "genai", "path": path, "bytes": 1002}]
