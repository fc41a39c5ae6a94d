"""diba.curve: its numbers against single solves, its table and its figure."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import diba

A = np.random.default_rng(0).standard_normal((60, 40)).astype(np.float32)


def made(snr: list[float], k: list[int]) -> diba.Curve:
    """SNRs of whole tens come out exactly."""
    return diba.Curve((60, 40), np.array(k), 10.0 ** (-np.array(snr) / 10), 1.0, np.zeros(len(k)))


def test_points_are_single_solves() -> None:
    options = {"method": "greedy", "alphabet": "sign", "seed": 3, "threads": 1}
    seen: list[diba.Progress] = []
    curve = diba.curve(A, bits=[3, 1, 1.0], progress=seen.append, **options)
    assert curve.shape == (60, 40)
    assert len(curve.k) == len(curve.seconds) == 2  # rising, each size once
    for bits, point in zip((1, 3), range(2), strict=True):
        f = diba.solve(A, bits_per_weight=bits, **options)
        assert curve.k[point] == f.k
        assert curve.bits_per_weight[point] == f.bits_per_weight <= bits
        assert curve.snr_db[point] == f.snr_db(A)
        assert curve.seconds[point] > 0
    assert {report.task for report in seen} == {"curve"}
    steps = [report.done for report in seen]
    assert steps == sorted(steps)
    assert {0, 1, 2} < set(steps)  # and parts of them
    assert [report.item for report in seen if report.done in (1, 2)] == [f"k = {k}" for k in curve.k]
    assert seen[-1].snr_db == curve.snr_db[-1]
    assert (seen[-1].total, seen[-1].remaining) == (2, 0)


def test_the_table_has_a_line_for_every_point() -> None:
    lines = str(made([10, math.inf], [20, 300])).splitlines()
    assert lines[0].split() == ["bits/weight", "k", "SNR", "dB", "seconds"]
    assert [line.split() for line in lines[1:]] == [
        ["1.6333", "20", "10.00", "0.00"],
        ["15.1667", "300", "inf", "0.00"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_k_for_interpolates() -> None:
    curve = made([10, 20, 40], [10, 20, 60])
    assert [curve.k_for(snr) for snr in (10, 15, 20, 20.25, 40)] == [10, 15, 20, 21, 60]
    assert made([10, math.inf], [10, 20]).k_for(15) == 20
    for outside, word in ((9.9, "smaller"), (40.1, "larger")):
        with pytest.raises(ValueError, match=f"from 10.00 to 40.00 dB: use diba.curve with {word} bits"):
            curve.k_for(outside)
    with pytest.raises(TypeError, match="snr_db"):
        curve.k_for("5")


@pytest.mark.parametrize("name", ["k", "bits_per_weight", "storage_ratio", "snr_db"])
def test_sizes_are_the_curves_own(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is given; diba.curve chooses sizes itself"):
        diba.curve(A, **{name: 1})


@pytest.mark.parametrize(
    ("bits", "kind", "message"),
    [
        ([], ValueError, "bits is empty"),
        (1, TypeError, "bits is 1"),
        ("12", TypeError, "bits is '12'"),
        ([1, "a"], TypeError, "an entry of bits"),
        ([1, -1], ValueError, "an entry of bits is -1"),
        ([0.01, 1], ValueError, "too small"),
    ],
)
def test_bits_are_checked(bits: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        diba.curve(A, bits=bits, method="greedy")


def test_plot(tmp_path: Path) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    curve = made([10, 20], [20, 60])
    path = tmp_path / "curve.svg"
    curve.plot(path)
    assert "<svg" in path.read_text()
    axes = figures.Figure().add_subplot()
    assert curve.plot(axes) is axes
    limit, points = axes.get_lines()
    bits = curve.bits_per_weight.tolist()
    assert np.allclose(limit.get_xydata(), [[0, 0], [bits[1], bits[1] * 6.0206]], atol=1e-4)
    assert points.get_xydata().tolist() == [[bits[0], 10], [bits[1], 20]]
    assert "Gaussian" in limit.get_label()
    with pytest.raises(TypeError, match="target is 3"):
        curve.plot(3)


def test_plot_into_a_new_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    axes = made([10, 20], [20, 60]).plot(None)
    assert axes.figure is pyplot.gcf()
    pyplot.close(axes.figure)


def test_weighting_multiplies_noise_and_leaves_snrs() -> None:
    curve = diba.Curve((60, 40), np.array([20, 60]), np.array([3.0, 1.0]), energy=12.0)
    weighted = curve.weighted(2.5)
    assert (weighted.noise.tolist(), weighted.energy) == ([7.5, 2.5], 30.0)
    assert np.allclose(weighted.snr_db, [10 * np.log10(4), 10 * np.log10(12)], rtol=1e-12)
    without = diba.Curve((60, 40), np.array([20, 60]), np.array([3.0, 1.0])).weighted(2.5)
    assert (without.noise.tolist(), without.energy) == ([7.5, 2.5], None)


def test_plot_without_matplotlib_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"python -m pip install 'diba\[plot\]'"):
        made([4.0], [20]).plot("curve.svg")
