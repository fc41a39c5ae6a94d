"""``diba bench``, and what it and benchmarks/matvec.py measure with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import diba
from diba import _core, cli
from diba._internal import timing, tuning
from diba._internal.storage import bits_per_weight
from diba.cli import bench
from run_python import python

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


# ---------------------------------------------------------------- how products are timed


class Clock:
    """Stands for the time module: time passes only in calls."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def call(self, name: str, seconds: float, log: list[str]) -> Callable[[], None]:
        def run() -> None:
            log.append(name)
            self.now += seconds

        return run


def test_calls_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(), []
    monkeypatch.setattr(timing, "time", clock)
    calls = {"quick": clock.call("quick", 0.25, log), "slow": clock.call("slow", 8.0, log)}
    samples = timing.interleaved(calls, rounds=4, seconds=4.0, rest=0.5)  # which no sample contains
    assert samples == {"quick": [0.25] * 4, "slow": [8.0] * 3}  # the slow one needs more than its 4 s
    one_round = ["quick"] * 5 + ["slow"]  # one call to warm up, and four in a sample of a second
    assert log[-(3 * len(one_round) + 5) :] == one_round * 3 + ["quick"] * 5


def test_the_fastest_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(), []
    monkeypatch.setattr(timing, "time", clock)
    ways = [clock.call(str(seconds), seconds, log) for seconds in (3.0, 1.0, 2.0)]
    assert timing.fastest(*ways) is ways[1]
    assert timing.fastest(ways[2]) is ways[2]


@pytest.mark.parametrize("threads", [1, 3])
def test_read_bandwidth_is_that_of_all_threads(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(_core, "read_seconds", lambda words: words.nbytes / 5e9)
    assert timing.read_bandwidth(2**20, threads, seconds=0) == pytest.approx(threads * 5e9, rel=1e-12)


def test_bandwidth_is_measured() -> None:
    assert 1e6 < timing.read_bandwidth(2**22, seconds=0) < 1e13


@pytest.mark.parametrize(("m", "n", "bits"), [(65, 130, 1.0), (64, 200, 2.0)])
def test_the_exact_product(m: int, n: int, bits: float) -> None:
    f = timing.random_factorization(m, n, bits)
    assert f.shape == (m, n)
    assert f.bits_per_weight <= bits < bits_per_weight(m, n, f.k + 1, 16)
    X = timing.activations(3, n)
    b1, b2 = f.b1.to_dense(np.float64), f.b2.to_dense(np.float64)
    assert 0.45 < b1.mean() < 0.55
    inner = (b2 @ (f.d3[:, None].astype(np.float64) * X.T)) * f.d2[:, None]
    expected = ((b1 @ inner) * f.d1[:, None]).T
    magnitude = np.abs(f.d1) * (b1 @ (np.abs(f.d2)[:, None] * (b2 @ np.abs(f.d3[:, None] * X.T)))).T
    assert np.all(np.abs(timing.exact_product(f, X) - expected) <= 2 * (n + f.k) * 2.0**-52 * magnitude)


def test_autotune_takes_what_is_fastest_and_nothing_after_an_interrupt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A table below 256 KB makes products slow, a second thread costs 100 ms and halves the rest.

    So does memory that is fetched at other places than 2 KB ahead.
    """
    clock, before = Clock(), diba.tuning()

    def product(side: int, count: int) -> Callable[[int], None]:
        def run(threads: int) -> None:
            small = diba.tuning().table_bytes < 1 << 18
            late = (side, count) == (timing._STREAMED_SIDE, 1) and diba.tuning().fetch_bytes != 2048
            clock.now += (1 + small + late) * side * side * 1e-6 / threads + 0.1 * (threads - 1)

        return run

    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(timing, "_product", product)
    try:
        found = diba.autotune(threads=2)
        # 1.1 (side^2 / 2 + 1e5) is less than side^2 from side 495 on, and 512 is the next that is tried
        assert found == diba.tuning() == diba.Tuning(1 << 18, 512 * 512 // 2, 2048)
        alone = diba.autotune(threads=1)
        assert alone.bits_per_thread > 1 << 60
        monkeypatch.setattr(timing, "_least_bits", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            diba.autotune(threads=2)
        assert diba.tuning() == alone
    finally:
        diba.set_tuning(before)
    for wrong, error in ((0, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="seconds is"):
            diba.autotune(seconds=wrong)


def test_heavy_activations() -> None:
    plain, heavy = timing.activations(5, 300), timing.activations(5, 300, heavy=True)
    changed = plain != heavy
    assert np.array_equal(changed.sum(axis=1), [4] * 5)
    assert np.array_equal(heavy[changed], 50 * plain[changed])


def test_threads_that_never_pay_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where they always pay, they are used for the smallest product that is tried."""
    before = diba.tuning()
    try:
        for speedup, least in ((1.0, tuning.NEVER), (2.0, min(timing._SIDES) ** 2 // 2)):
            clock = Clock()

            def product(side: int, count: int, clock: Clock = clock, speedup: float = speedup) -> Any:
                return lambda threads: clock.call("", 1.0 if threads == 1 else 1 / speedup, [])()

            monkeypatch.setattr(timing, "time", clock)
            monkeypatch.setattr(timing, "_product", product)
            assert timing._least_bits(1.0) == least
    finally:
        diba.set_tuning(before)


def test_the_product_that_is_timed() -> None:
    f = timing.random_factorization(48, 48, 1.0)
    assert np.array_equal(
        timing._product(48, 3)(threads=1), f.linear(timing.activations(3, 48), precision="fast")
    )


# ---------------------------------------------------------------- diba bench

NO_SHAPE = "is not a shape; it must be like 4096x1024; see 'diba bench --help'"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = cli.main(["bench", *arguments])
    except SystemExit as error:
        code = int(error.code or 0)
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_bench_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--shape", "64x96", "--bits", "2", "--batch", "3", "--threads", "2", "--json"]
    code, out, err = run(capsys, *options)
    assert (code, err, out.count("\n")) == (0, "", 1)
    report = json.loads(out)
    assert {key: report[key] for key in ("shape", "batch", "threads", "isa", "diba")} == {
        "shape": [64, 96], "batch": 3, "threads": 2, "isa": diba.isa(), "diba": diba.__version__,
    }  # fmt: skip
    assert report["bits_per_weight"] == bits_per_weight(64, 96, report["k"], 16)
    rows = {row["name"]: row for row in report["results"]}
    assert {"diba, fast", "diba, exact", "NumPy float32"} <= rows.keys()
    for name, row in rows.items():
        packed = name.startswith("diba")
        assert row["weight_bytes"] == (-(-report["k"] * (64 + 96) // 8) if packed else 4 * 64 * 96)
        assert row["gb_per_s"] == pytest.approx(row["weight_bytes"] / row["us"] / 1e3, rel=1e-9)
        assert row["read_share"] == pytest.approx(row["gb_per_s"] / row["read_gb_per_s"], rel=1e-9)
        # n eps sum |x|, over at most 96 + k terms, leaves far more than 60 dB to float32
        assert name == "diba, fast" or min(row["snr_db"], row["snr_heavy_db"]) > 60
    dense = {name: row["us"] for name, row in rows.items() if not name.startswith("diba")}
    assert report["fastest_dense"] == min(dense, key=dense.__getitem__)
    assert report["speedup"] == pytest.approx(min(dense.values()) / rows["diba, fast"]["us"], rel=1e-9)


@pytest.mark.parametrize(("batch", "torch"), [(1, True), (3, False)])
def test_what_is_measured(batch: int, torch: bool) -> None:
    """In a process of its own, as the measurement sets the threads of whatever it times."""
    hide = "" if torch else "sys.modules['torch'] = None"
    code = f"""
import json, sys
{hide}
from diba.cli.bench import measure
print(json.dumps(measure(24, 40, 2, {batch}, 1, 1e-5)))
"""
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["shape"], report["batch"], report["threads"]) == ([24, 40], batch, 1)
    rows = {row["name"]: row for row in report["results"]}
    assert rows.keys() == {bench.FAST, bench.EXACT, bench.NUMPY} | ({bench.TORCH} if torch else set())
    assert all(row["us"] > 0 and row["read_gb_per_s"] > 0 for row in rows.values())
    # n eps sum |x|, over at most 40 + k terms, leaves far more than 60 dB to float32; 8 bits leave 20
    assert all(row["snr_db"] > (20 if name == "diba, fast" else 60) for name, row in rows.items())
    dense = {name: row["us"] for name, row in rows.items() if not name.startswith("diba")}
    assert report["speedup"] == pytest.approx(min(dense.values()) / rows["diba, fast"]["us"], rel=1e-9)


@pytest.mark.parametrize("as_json", [False, True])
def test_autotune_prints_and_saves_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    monkeypatch.setattr(bench, "autotune", lambda threads: diba.Tuning(1 << 20, 4096 * threads, 0))
    path = tmp_path / "tuning.json"
    options = ["--threads", "2", *(["--json"] if as_json else [])]
    code, out, err = run(capsys, *options, "--autotune", str(path))
    assert (code, err) == (0, "")
    saved = {"table_bytes": 1 << 20, "bits_per_thread": 8192, "fetch_bytes": 0}
    assert json.loads(path.read_text()) == saved
    if as_json:
        assert json.loads(out) == saved
        return
    assert [line.split()[:2] for line in out.splitlines()[:3]] == [
        ["table_bytes", "1,048,576"],
        ["bits_per_thread", "8,192"],
        ["fetch_bytes", "0"],
    ]
    assert out.endswith(f"DIBA_TUNING={path}\n")
    assert "DIBA_TUNING" not in run(capsys, *options, "--autotune")[1]  # nothing was written


@pytest.mark.parametrize(
    ("speedup", "sentence"),
    [(1.25, "diba is 1.25 times as fast as NumPy float32."),
     (0.5, "Dense is faster here: NumPy float32 takes 50% of diba's time.")],
)  # fmt: skip
def test_bench_says_which_is_faster(speedup: float, sentence: str) -> None:
    row = {"name": "diba, fast", "us": 12.34, "gb_per_s": 56.7, "read_share": 0.61, "snr_db": 42.1}
    report = {
        "shape": [384, 1536], "bits_per_weight": 0.997, "k": 288, "batch": 1, "threads": 1, "isa": "avx2",
        "cpu": "a processor", "results": [row | {"snr_heavy_db": None}], "fastest_dense": "NumPy float32",
        "speedup": speedup,
    }  # fmt: skip
    lines = bench.table(report).splitlines()
    assert lines[0] == "384 x 1536 at 0.997 bits per weight, k = 288, batch 1, 1 thread, avx2, a processor"
    assert lines[2].split() == ["diba,", "fast", "12.34", "56.7", "61%", "42.1", "exact"]
    assert lines[-1] == sentence


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--shape", "384"], f"argument --shape: '384' {NO_SHAPE}"),
     (["--shape", "0x4"], f"argument --shape: '0x4' {NO_SHAPE}"),
     (["--bits", "0"], "--bits is 0; it must be a finite number above 0"),
     (["--batch", "0"], "--batch is 0; it must be an integer of at least 1"),
     (["--threads", "0"], "threads is 0; it must be an integer of at least 1")],
)  # fmt: skip
def test_bench_refuses(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert run(capsys, *arguments) == (2, "", f"diba: error: {message}\n")


def test_bench_refuses_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--shape", "9999999x9999999")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "a dense 9999999 x 9999999 matrix to compare with needs about" in err
    assert err.endswith("use a smaller --shape or --batch\n")


def test_bench_passes_on_what_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIBA_ISA", "nonsense")
    code, out, err = run(capsys, "--shape", "64x64")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("diba: error: the measurement failed: DIBA_ISA is 'nonsense', must be one of")
