"""benchmarks/products, matvec: what it says about its numbers, its contestants, and a small run."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import diba
from diba._internal import timing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType


# ---------------------------------------------------------------- tables and figure

ONE, TWO, ALONE = "diba 1 bit, fast", "diba 2 bits, fast", "diba 1 bit, fast, 1 thread"
FLOAT = "torch float32"
# (shape, batch, threads, cache, instruction set, name): us
TIMES = {
    ((384, 384), 1, 1, "warm", "x", ONE): 8, ((384, 384), 1, 1, "warm", "x", FLOAT): 16,
    ((384, 1536), 8, 1, "warm", "x", ONE): 50, ((384, 1536), 8, 1, "warm", "x", "NumPy float32"): 50,
    ((4096, 4096), 1, 1, "warm", "x", ONE): 100, ((4096, 4096), 1, 1, "warm", "x", TWO): 200,
    ((4096, 4096), 1, 1, "warm", "x", FLOAT): 6900,
    ((4096, 4096), 8, 1, "warm", "x", ONE): 1000, ((4096, 4096), 64, 1, "warm", "x", ONE): 1000,
    ((4096, 4096), 512, 1, "warm", "x", ONE): 2000,
    ((4096, 4096), 1, 2, "warm", "x", ONE): 100, ((4096, 4096), 1, 2, "warm", "x", ALONE): 160,
    ((8192, 8192), 1, 1, "warm", "x", ONE): 160, ((8192, 8192), 1, 1, "cold", "x", ONE): 1000,
    ((4096, 4096), 1, 1, "warm", "avx2", ONE): 200, ((4096, 4096), 1, 1, "warm", "avx2", FLOAT): 7000,
}  # fmt: skip


def made_rows(times: dict[tuple[Any, ...], float], **changed: float) -> list[dict[str, Any]]:
    """Rows of 8192 x 8192 read 8 MB, at 10 GB/s from memory; others do not matter to the bars."""
    columns = {"snr_db": 40.0, "snr_heavy_db": 40.0, "read_gb_per_s": 10.0} | changed
    return [
        {
            "shape": list(shape), "batch": batch, "threads": threads, "cache": cache, "isa": isa,
            "name": name, "us": us, "us_quartile_1": us, "us_quartile_3": us, "bits_per_weight": 1.0,
            "gb_per_s": 8e3 / us, "read_share": 8e3 / us / columns["read_gb_per_s"], **columns,
        }
        for (shape, batch, threads, cache, isa, name), us in times.items()
    ]  # fmt: skip


def test_where_dense_is_faster(benchmark: Callable[[str], ModuleType]) -> None:
    rows, table = benchmark("products.rows"), benchmark("products.table")
    assert rows.dense_faster(made_rows(TIMES), "x") == []
    assert table.dense_text([]) == ["No dense float32 product was faster than a fast one of diba."]
    slower = TIMES | {((384, 1536), 8, 1, "warm", "x", ONE): 75}
    (cell,) = rows.dense_faster(made_rows(slower), "x")
    assert table.dense_text([cell])[2:] == [
        "- 384x1536, batch 8, 1 thread, warm: NumPy float32 is 1.50 times as fast as diba 1 bit, fast"
    ]


def made_report() -> dict[str, Any]:
    machine = {"isa": "x", "cpu": "a processor", "diba": "1"}
    notes = [{"name": "openvino 2-bit", "note": "refused: no"}]
    return {"machine": machine, "cache_bytes": 10**8, "rows": made_rows(TIMES), "notes": notes}


def test_the_tables(benchmark: Callable[[str], ModuleType]) -> None:
    report, table = made_report(), benchmark("products.table")
    text = table.table(report)
    assert f"| {ONE} | 1.00 | 8.0 |  | 100 | 160 | 40.0 | 40.0 |" in text
    assert f"| {ONE}, cold |  |  |  | 8.0 (80%) |" in text
    assert f"| {ONE} | 100 | 1,000 | 1,000 | 2,000 |" in text  # by batch
    assert "two threads take 100 us, 1.60 times as fast as one" in text
    assert "no more than AVX2 used by diba: 200 us, 35 times as fast as torch float32" in text
    assert "openvino 2-bit: refused: no" in text
    printed = table.rows_text(report).splitlines()
    assert printed[1] == "384x384, batch 1, 1 thread, warm, x"
    assert printed[3].split()[-8:] == ["8", "8", "-", "8", "1e+03", "10000%", "40.0", "40.0"]


def test_the_figure(benchmark: Callable[[str], ModuleType], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "figure.svg"
    benchmark("products.figure").draw(made_report(), [path])
    text = path.read_text(encoding="utf-8")
    for written in ("One vector, 1 thread, warm", "Batches, 4096x4096, 1 thread, warm", ONE, TWO, FLOAT):
        assert f"<!-- {written} -->" in text


# ---------------------------------------------------------------- its options, contestants, and a run


def test_options(benchmark: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    matvec = benchmark("products.matvec")
    usual = matvec.options([])
    assert (usual.shapes, usual.bits, usual.batches, usual.threads) == (
        list(matvec.SHAPES), [1.0, 1.5, 2.0], [1, 8, 64, 512], [1, 2],
    )  # fmt: skip
    quick = matvec.options(["--quick", "--batches", "4", "--shapes=8x128"])
    assert (quick.shapes, quick.bits, quick.batches, quick.repeats) == (["8x128"], [1.0], [4], 3)
    for wrong in (["--shapes", "4x"], ["--batches", "0"], ["--rivals", "nobody"]):
        with pytest.raises(SystemExit):
            matvec.options(wrong)
    assert "'4x' is no shape; it must be like 4096x1024" in capsys.readouterr().err


def test_the_tasks(benchmark: Callable[[str], ModuleType]) -> None:
    matvec = benchmark("products.matvec")
    found = list(matvec.tasks(matvec.options(["--shapes", "8x128", "4096x4096", "--threads", "2", "1"])))
    order = [(task["threads"], task["shape"], environment) for task, environment in found]
    expected = [(threads, shape, {}) for threads in (1, 2) for shape in ("8x128", "4096x4096")]
    if "avx2" in diba.supported_isas() and diba.isa() != "avx2":
        expected.append((1, "4096x4096", {"DIBA_ISA": "avx2"}))
    assert order == expected


def test_signs_and_exceptions(benchmark: Callable[[str], ModuleType]) -> None:
    for library in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(library)
    apb = benchmark("products.apb")
    row = apb.row("128x256", 2, 1, 0.05, 1)
    assert set(row["seconds"]) == {"APB", "layer", "signs alone", *apb.OTHERS}
    row["seconds"] = dict.fromkeys(row["seconds"], 2e-6) | {"APB": 1e-6}
    machine = {"isa": "x", "cpu": "a processor", "diba": "1"}
    text = apb.table({"machine": machine, "arguments": {"exceptions": 0.05}, "rows": [row]})
    bits = f"{row['bits_per_weight']:.2f}"
    assert f"| 128x256 | 2 | {bits} | 1 | 2 | 2 | 2 (2.0x) | 2 (2.0x) |" in text
    assert "Exceptions: 5.00%. Measured with diba 1 on a processor (x)." in text


@pytest.mark.parametrize(
    ("name", "rounding"), [("numpy", 0.0), ("torch-float32", 0.0), ("torch-bfloat16", 2.0**-8)]
)
def test_dense_contestants(benchmark: Callable[[str], ModuleType], name: str, rounding: float) -> None:
    """Products of the copy, too, lie within n eps sum |x w|, and within both roundings to bfloat16."""
    if name != "numpy":
        pytest.importorskip("torch")
    n, X = 256, timing.activations(3, 256)
    contestant = benchmark("products.rivals").RIVALS[name](64, n, 1)
    for one in (contestant, contestant.another()):
        exact = one.exact(X)
        W = one.exact(np.eye(n, dtype=np.float32)).T
        bound = (n * 2.0**-23 + rounding) * (np.abs(X) @ np.abs(W).T)
        assert np.all(np.abs(one.product(X) - exact) <= bound)
        for way in one.ways(X[:1]) + one.ways(X):
            found = np.asarray(way())
            found = found.T if len(found) == 64 and found.ndim == 2 else np.atleast_2d(found)
            assert np.all(np.abs(found - exact[: len(found)]) <= bound[: len(found)])


def test_int8_weights_are_within_half_a_step(benchmark: Callable[[str], ModuleType]) -> None:
    rivals = benchmark("products.rivals")
    contestant = rivals.RIVALS["onnxruntime-8"](48, 64, 1)
    dense, held = rivals.dense_weights(48, 64), contestant.exact(np.eye(64, dtype=np.float32)).T
    step = np.abs(dense).max(1, keepdims=True) / 127
    assert np.all(np.abs(held - dense) <= step * (0.5 + 2.0**-14))
    assert contestant.product(np.zeros((3, 64), np.float32)).tolist() == np.zeros((3, 48)).tolist()


@pytest.mark.parametrize("bits", [2, 4])
def test_packed_levels(benchmark: Callable[[str], ModuleType], bits: int) -> None:
    rivals = benchmark("products.rivals")
    packed = rivals.codes(3, 128, bits)
    W = np.zeros((3, 128))
    for i, j in np.ndindex(3, 128):
        byte, place = divmod(j * bits, 8)
        W[i, j] = (int(packed[i, byte]) >> place) % 2**bits - 2 ** (bits - 1)
    assert np.array_equal(rivals.exact_codes(packed, bits, np.eye(128, dtype=np.float32)), W.T * rivals.SCALE)
    with pytest.raises(ValueError, match="100 columns are no multiple of 128"):
        rivals.codes(3, 100, bits)


def test_a_run(source_root: Path, tmp_path: Path) -> None:
    target = tmp_path / "matvec.json"
    options = "--shapes 48x64 --bits 1 --batches 1 2 --threads 1 2 --rivals numpy --repeats 2 --seconds 0.002"
    command = [sys.executable, source_root / "benchmarks", "matvec", *options.split(), "--json", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(target.read_text(encoding="utf-8"))
    found = {(row["threads"], row["batch"], row["name"]) for row in report["rows"]}
    names = ("diba 1 bit, fast", "diba 1 bit, exact", "NumPy float32")
    expected = {(threads, batch, name) for threads in (1, 2) for batch in (1, 2) for name in names}
    assert found == expected | {(2, batch, ALONE) for batch in (1, 2)}
    for row in report["rows"]:
        assert row["gb_per_s"] == pytest.approx(row["weight_bytes"] / row["us"] / 1e3, rel=1e-9)
        assert row["us_quartile_1"] <= row["us"] <= row["us_quartile_3"]
    assert {note["name"] for note in report["notes"]} == {"diba 1 bit, fast"}  # too small to be cold
    assert "48x64, batch 2, 2 threads, warm" in done.stdout
    assert "no cold row" in done.stdout


def test_heads_multiply_the_weights_that_they_say(benchmark: Callable[[str], Any]) -> None:
    """8-bit activations keep 40 dB, those of diba's layers more; every product is of its own weights."""
    pytest.importorskip("onnxruntime")
    heads, results = benchmark("products.heads"), benchmark("common.results")
    row = heads.measure(300, 64, 3, 3)
    found = {name: product["snr_db"] for name, product in row["products"].items()}
    assert list(found) == [
        "torch float32",
        "diba 8 bits",
        "MatMulNBits 8 bits",
        "diba 4 bits",
        "MatMulNBits 4 bits",
    ]
    assert all(snr > 30 for snr in found.values())
    assert min(found["diba 8 bits"], found["diba 4 bits"]) > 60
    report = {"machine": results.machine(), "versions": {"onnxruntime": "1"}, "rounds": 3, "rows": [row]}
    assert "300 x 64" in heads.table(report)
