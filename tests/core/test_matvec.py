"""benchmarks/matvec.py: what it says about its numbers, its contestants, and a small run."""

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


# ---------------------------------------------------------------- the bars of benchmarks/matvec.py

ONE, TWO, ALONE = "diba 1 bit, fast", "diba 2 bits, fast", "diba 1 bit, fast, 1 thread"
FLOAT, INT8 = "torch float32", "torch int8, dynamic"
T_MAC = "4096x4096, 1 bit: times torch float32, which is 2 times T-MAC W1"
I2S = "4096x4096, 2 bits: times torch float32, which is 1.4 times bitnet.cpp I2_S"
# (shape, batch, threads, cache, instruction set, name): us. Every bar is met, several to the last digit.
TIMES = {
    ((384, 384), 1, 1, "warm", "x", ONE): 8, ((384, 384), 1, 1, "warm", "x", FLOAT): 16,
    ((384, 1536), 8, 1, "warm", "x", ONE): 50, ((384, 1536), 8, 1, "warm", "x", "NumPy float32"): 50,
    ((4096, 4096), 1, 1, "warm", "x", ONE): 100, ((4096, 4096), 1, 1, "warm", "x", TWO): 200,
    ((4096, 4096), 1, 1, "warm", "x", FLOAT): 6900,
    ((4096, 4096), 1, 1, "warm", "x", "onnxruntime 4-bit"): 400,
    ((4096, 4096), 1, 1, "warm", "x", "onnxruntime 2-bit"): 400,
    ((4096, 4096), 8, 1, "warm", "x", ONE): 1000, ((4096, 4096), 8, 1, "warm", "x", FLOAT): 8000,
    ((4096, 4096), 8, 1, "warm", "x", INT8): 1700,
    ((4096, 4096), 64, 1, "warm", "x", ONE): 1000, ((4096, 4096), 64, 1, "warm", "x", FLOAT): 5000,
    ((4096, 4096), 64, 1, "warm", "x", INT8): 1500,
    ((4096, 4096), 512, 1, "warm", "x", ONE): 2000, ((4096, 4096), 512, 1, "warm", "x", FLOAT): 10000,
    ((4096, 4096), 512, 1, "warm", "x", INT8): 3000,
    ((4096, 4096), 1, 2, "warm", "x", ONE): 100, ((4096, 4096), 1, 2, "warm", "x", ALONE): 160,
    ((8192, 8192), 1, 1, "warm", "x", ONE): 160, ((8192, 8192), 1, 1, "cold", "x", ONE): 1000,
    ((4096, 4096), 1, 1, "warm", "avx2", ONE): 200, ((4096, 4096), 1, 1, "warm", "avx2", FLOAT): 7000,
}  # fmt: skip
HERE = ((4096, 4096), 1, 1, "warm", "x")


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


def not_met(found: list[dict[str, Any]]) -> list[str]:
    return [entry["name"] for entry in found if entry["met"] is not True]


def test_every_bar_can_be_met(benchmark: Callable[[str], ModuleType]) -> None:
    found = benchmark("matvec_bars").bars(made_rows(TIMES), "x")
    assert not_met(found) == []
    measured = {entry["name"]: entry["measured"] for entry in found}
    assert measured["4096x4096, 1 bit: times torch float32"] == 69
    assert measured["8192x8192, 1 bit, warm: GB/s of weights"] == 50
    assert measured["8192x8192, 1 bit, cold: share of memory bandwidth"] == 0.8
    required = {entry["name"]: entry["required"] for entry in found}
    assert required[T_MAC] == 2 * 3475 / 102
    assert required[I2S] == pytest.approx(1.4 * 3475 / 147, rel=1e-12)


@pytest.mark.parametrize(
    ("cell", "us", "missed"),
    [
        ((*HERE, FLOAT), 6750, [T_MAC]),
        ((*HERE, FLOAT), 5990, ["4096x4096, 1 bit: times torch float32",
                                T_MAC,
                                I2S]),
        ((*HERE, "onnxruntime 4-bit"), 399, ["4096x4096, 1 bit: times onnxruntime 4-bit"]),
        ((*HERE, "onnxruntime 2-bit"), 399, ["4096x4096, 2 bits: times onnxruntime 2-bit"]),
        (((8192, 8192), 1, 1, "warm", "x", ONE), 178, ["8192x8192, 1 bit, warm: GB/s of weights"]),
        (((8192, 8192), 1, 1, "cold", "x", ONE), 1001, ["8192x8192, 1 bit, cold: share of memory bandwidth"]),
        (((384, 384), 1, 1, "warm", "x", ONE), 8.1,
         ["384x384, 1 bit: us", "384x384, 1 bit: times torch float32"]),
        (((4096, 4096), 8, 1, "warm", "x", FLOAT), 7999, ["4096x4096, 1 bit, batch 8: times torch float32"]),
        (((4096, 4096), 8, 1, "warm", "x", INT8), 1699, ["4096x4096, 1 bit, batch 8: times torch int8"]),
        (((4096, 4096), 64, 1, "warm", "x", FLOAT), 4999,
         ["4096x4096, 1 bit, batch 64: times torch float32"]),
        (((4096, 4096), 512, 1, "warm", "x", INT8), 2999, ["4096x4096, 1 bit, batch 512: times torch int8"]),
        (((384, 1536), 8, 1, "warm", "x", "NumPy float32"), 49,
         ["384x1536 and up, 1 bit, any batch: times dense float32"]),
        (((4096, 4096), 1, 2, "warm", "x", ALONE), 159, ["4096x4096, 1 bit: 2 threads, times 1 thread"]),
        (((4096, 4096), 1, 1, "warm", "avx2", FLOAT), 6999,
         ["4096x4096, 1 bit, AVX2 alone: times torch float32"]),
    ],
)  # fmt: skip
def test_a_bar_is_missed(
    benchmark: Callable[[str], ModuleType], cell: tuple[Any, ...], us: float, missed: list[str]
) -> None:
    assert cell in TIMES
    found = benchmark("matvec_bars").bars(made_rows(TIMES | {cell: us}), "x")
    assert not_met(found) == missed
    assert all(entry["met"] is False for entry in found if entry["name"] in missed)


def test_accuracy_is_a_bar(benchmark: Callable[[str], ModuleType]) -> None:
    found = benchmark("matvec_bars").bars(made_rows(TIMES, snr_heavy_db=39.9), "x")
    assert not_met(found) == ["fast products, heavy-tailed activations: SNR in dB"]


def test_a_bar_may_be_unmeasured(benchmark: Callable[[str], ModuleType]) -> None:
    table, found = benchmark("matvec_table"), benchmark("matvec_bars").bars([], "x")
    assert {entry["met"] for entry in found} == {None}
    assert table.bar_cells(found[0]) == (">= 60", "-", "-")


def test_where_dense_is_faster(benchmark: Callable[[str], ModuleType]) -> None:
    bars, table = benchmark("matvec_bars"), benchmark("matvec_table")
    assert bars.dense_faster(made_rows(TIMES), "x") == []
    assert table.dense_faster_text([]) == [
        "No dense float32 product was faster than a fast one of diba: at no shape, batch or thread count."
    ]
    slower = TIMES | {((384, 1536), 8, 1, "warm", "x", ONE): 75}
    (cell,) = bars.dense_faster(made_rows(slower), "x")
    assert table.dense_faster_text([cell])[1:] == [
        "- 384x1536, batch 8, 1 thread, warm: NumPy float32 is 1.50 times as fast as diba 1 bit, fast"
    ]


def made_report(benchmark: Callable[[str], ModuleType]) -> dict[str, Any]:
    rows, bars = made_rows(TIMES), benchmark("matvec_bars")
    return {
        "machine": {"isa": "x", "cpu": "a processor"}, "cache_bytes": 10**8, "rows": rows,
        "notes": [{"name": "openvino 2-bit", "note": "refused: no"}],
        "bars": bars.bars(rows, "x"), "dense_faster": bars.dense_faster(rows, "x"),
    }  # fmt: skip


def test_the_tables(benchmark: Callable[[str], ModuleType]) -> None:
    report, table = made_report(benchmark), benchmark("matvec_table")
    text = table.markdown(report)
    assert f"| {ONE} | 1.00 | 8.0 |  | 100 | 160 | 40.0 | 40.0 |" in text
    assert f"| {ONE}, cold |  |  |  | 8.0 (80%) |" in text
    assert f"| {ONE} | 100 | 1,000 | 1,000 | 2,000 |" in text  # by batch
    assert "| 384x384, 1 bit: us | <= 8 | 8 | yes |" in text
    assert "openvino 2-bit: refused: no" in text
    printed = table.rows_text(report).splitlines()
    assert printed[1] == "384x384, batch 1, 1 thread, warm, x"
    assert printed[3].split()[-8:] == ["8", "8", "-", "8", "1e+03", "10000%", "40.0", "40.0"]
    assert table.verdict_text(report).splitlines()[-1].split()[:4] == [">=", "40", "40", "yes"]


def test_the_figure(benchmark: Callable[[str], ModuleType], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "figure.svg"
    benchmark("matvec_figure").draw(made_report(benchmark), [path])
    text = path.read_text(encoding="utf-8")
    for written in ("One vector, 1 thread, warm", "Batches, 4096x4096, 1 thread, warm", ONE, TWO, FLOAT):
        assert f"<!-- {written} -->" in text


# ---------------------------------------------------------------- its options, contestants, and a run


def test_options(benchmark: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    matvec = benchmark("matvec")
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
    matvec = benchmark("matvec")
    found = list(matvec.tasks(matvec.options(["--shapes", "8x128", "4096x4096", "--threads", "2", "1"])))
    order = [(task["threads"], task["shape"], environment) for task, environment in found]
    expected = [(threads, shape, {}) for threads in (1, 2) for shape in ("8x128", "4096x4096")]
    if "avx2" in diba.supported_isas():
        expected.append((1, "4096x4096", {"DIBA_ISA": "avx2"}))
    assert order == expected


@pytest.mark.parametrize(
    ("name", "rounding"), [("numpy", 0.0), ("torch-float32", 0.0), ("torch-bfloat16", 2.0**-8)]
)
def test_dense_contestants(benchmark: Callable[[str], ModuleType], name: str, rounding: float) -> None:
    """Products of the copy, too, lie within n eps sum |x w|, and within both roundings to bfloat16."""
    if name != "numpy":
        pytest.importorskip("torch")
    n, X = 256, timing.activations(3, 256)
    contestant = benchmark("matvec_rivals").RIVALS[name](64, n, 1)
    for one in (contestant, contestant.another()):
        exact = one.exact(X)
        W = one.exact(np.eye(n, dtype=np.float32)).T
        bound = (n * 2.0**-23 + rounding) * (np.abs(X) @ np.abs(W).T)
        assert np.all(np.abs(one.product(X) - exact) <= bound)
        for way in one.ways(X[:1]) + one.ways(X):
            found = np.asarray(way())
            found = found.T if len(found) == 64 and found.ndim == 2 else np.atleast_2d(found)
            assert np.all(np.abs(found - exact[: len(found)]) <= bound[: len(found)])


@pytest.mark.parametrize("bits", [2, 4])
def test_packed_levels(benchmark: Callable[[str], ModuleType], bits: int) -> None:
    rivals = benchmark("matvec_rivals")
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
    command = [sys.executable, source_root / "benchmarks" / "matvec.py", *options.split(), "--json", target]
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
