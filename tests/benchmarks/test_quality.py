"""benchmarks/quality: reference and baselines against plain oracles, cells, and the table."""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType


# ---- truncated SVD


@pytest.mark.parametrize("bits", [0.9, 2.0])
def test_truncated_svd_is_the_best_of_its_rank(benchmark: Callable[[str], ModuleType], bits: float) -> None:
    A = np.random.default_rng(0).standard_normal((60, 85)).astype(np.float32)
    found = benchmark("quality.baselines").truncated_svd(A, bits)
    one = 16 * (60 + 85) / (60 * 85)  # bits per weight of rank one
    rank = int(bits / one)
    assert found.bits_per_weight == pytest.approx(rank * one, rel=1e-12)
    u, s, vt = np.linalg.svd(A.astype(np.float64))
    least = np.sqrt(np.square(s[rank:]).sum())
    # Rounding both factors moves every product by at most this share; its sum over the rank is the bound.
    absolute = (np.abs(u[:, :rank]) * s[:rank]) @ np.abs(vt[:rank])
    rounding = (2 * 2**-11 + 2**-22) * np.linalg.norm(absolute)
    assert least - 1e-9 <= np.linalg.norm(A - found.dense) <= least + rounding


def test_truncated_svd_needs_rank_one(benchmark: Callable[[str], ModuleType]) -> None:
    with pytest.raises(ValueError, match="too few for rank one of a 8 x 8 matrix"):
        benchmark("quality.baselines").truncated_svd(np.eye(8, dtype=np.float32), 1.0)


# ---- round to nearest


@pytest.mark.parametrize(
    ("levels", "note", "extra"),
    [((-1.5, -0.5, 0.5, 1.5), "halves", 0), ((-2, -1, 0, 1), "integers", 0), ((-1, 0, 1, 2), "integers", 0),
     ((0, 1, 2, 3), "zero points", 2)],
)  # fmt: skip
def test_a_matrix_on_a_grid_is_exact(
    benchmark: Callable[[str], ModuleType], levels: tuple[float, ...], note: str, extra: int
) -> None:
    """Scales of a few bits, every level in every group: nothing is rounded."""
    random = np.random.default_rng(1)
    groups = np.stack([random.permutation(np.repeat(levels, 2)) for _ in range(12)])
    scales = 2.0 ** random.integers(-6, 6, 12) * random.integers(1, 9, 12)
    A = (groups * scales[:, None]).reshape(4, 24)
    found = benchmark("quality.baselines").round_to_nearest(A, 2, 8)
    assert np.array_equal(found.dense, A)
    assert found.note == note
    assert found.bits_per_weight == 2 + (16 + extra) / 8


def nearest(group: np.ndarray, levels: list[float], full: float, shares: np.ndarray) -> float:
    """Least squared error of a group over the scales tried, each entry at the nearest level."""
    errors = []
    for share in shares:
        scale = float(np.float16(share * full))
        errors.append(sum(min((x - scale * level) ** 2 for level in levels) for x in group))
    return min(errors)


@pytest.mark.parametrize("width", [None, 4])
def test_the_clipping_search_finds_the_best_scale(
    benchmark: Callable[[str], ModuleType], width: int | None
) -> None:
    """Against loops over single entries; the last group of a row is shorter."""
    baselines = benchmark("quality.baselines")
    A = np.random.default_rng(2).standard_t(3, size=(5, 10))
    found = baselines.round_to_nearest(A, 2, width)
    step = width or 10
    groups = [row[first : first + step] for row in A for first in range(0, 10, step)]
    halves = integers = zeros = 0.0
    for group in groups:
        reach, low, high = np.abs(group).max(), min(group.min(), 0), max(group.max(), 0)
        halves += nearest(group, [-1.5, -0.5, 0.5, 1.5], reach / 1.5, baselines.CLIPS)
        sign = -1 if group.max() > -group.min() else 1
        integers += nearest(group, [-2, -1, 0, 1], sign * reach / 2, baselines.CLIPS)
        zero = np.rint(-low / ((high - low) / 3))
        zeros += nearest(group, list(np.arange(4) - zero), (high - low) / 3, baselines.CLIPS)
    size = {"halves": 2 + 16 * len(groups) / 50, "zero points": 2 + 18 * len(groups) / 50}
    size["integers"] = size["halves"]
    error = {"halves": halves, "integers": integers, "zero points": zeros}
    worth = {name: -10 * np.log10(error[name]) - baselines.DECIBELS_PER_BIT * size[name] for name in size}
    best = max(worth, key=worth.__getitem__)
    assert found.note == best
    assert found.bits_per_weight == pytest.approx(size[best], rel=1e-12)
    assert np.square(A - found.dense).sum() == pytest.approx(error[best], rel=1e-12)


# ---- double binary factorization


def dbf_oracle(W: np.ndarray, left: np.ndarray, right: np.ndarray, outer: int, inner: int) -> np.ndarray:
    """The published steps, word for word: (X of the left side) times (Z of the right side)'."""

    def project(M: np.ndarray) -> np.ndarray:
        v = np.ones(M.shape[1])
        for _ in range(5):
            u = np.abs(M) @ v
            u /= np.linalg.norm(u)
            v = np.abs(M).T @ u
        return np.where(M < 0, -1, 1) * np.outer(u, v)

    def fit(W: np.ndarray, X: np.ndarray, Z: np.ndarray, U: np.ndarray, penalty: float) -> Any:
        X = X / np.linalg.norm(X, axis=0)
        gram = X.T @ X
        gram += 0.03 * np.diag(gram).mean() * np.eye(len(gram))
        for step in range(inner):
            rho = 1.0 if step else penalty
            Y = (W @ X + rho * (Z - U)) @ np.linalg.inv(gram + rho * np.eye(len(gram)))
            Z = project(Y + U)
            U = U + Y - Z
        return Z, U

    scale = W.std(ddof=1)
    W = W / scale
    left_dual, right_dual = np.zeros_like(left), np.zeros_like(right)
    for step in range(outer):
        penalty = min(1.0, step / (outer - 3)) ** 3
        left, left_dual = fit(W, right, left, left_dual, penalty)
        right, right_dual = fit(W.T, left, right, right_dual, penalty)
    return scale * (left / np.linalg.norm(left, axis=0)) @ right.T


@pytest.mark.parametrize("k", [5, 30])  # solved through inverses, and through triangular solves
def test_dbf_follows_the_published_steps(benchmark: Callable[[str], ModuleType], k: int) -> None:
    """In float64, where rounding flips no sign in a few steps."""
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        random = torch.Generator().manual_seed(3)
        starts = [torch.randn(rows, k, generator=random).numpy() for rows in (18, 29)]
        A = np.random.default_rng(0).standard_normal((18, 29))
        f = benchmark("quality.torch_dbf").solve(torch.from_numpy(A), k, seed=3, outer=8)
    finally:
        torch.set_default_dtype(before)
    d1, S1, d2, S2, d3 = (part.numpy() for part in (f.d1, f.S1, f.d2, f.S2, f.d3))
    assert set(np.unique(S1)) == set(np.unique(S2)) == {-1, 1}
    dense = (d1[:, None] * S1 * d2) @ (S2 * d3)
    np.testing.assert_allclose(dense, dbf_oracle(A, *starts, 8, 3), rtol=0, atol=1e-9 * np.abs(A).max())


def test_dbf_of_the_transpose(benchmark: Callable[[str], ModuleType]) -> None:
    torch = pytest.importorskip("torch")
    A = torch.from_numpy(np.random.default_rng(1).standard_normal((20, 33)).astype(np.float32))
    wide, tall = (benchmark("quality.torch_dbf").solve(matrix, 7, outer=6) for matrix in (A, A.T))
    for one, other in (("d1", "d3"), ("d2", "d2"), ("d3", "d1")):
        assert torch.equal(getattr(wide, one), getattr(tall, other))
    assert torch.equal(wide.S1, tall.S2.T)
    assert torch.equal(wide.S2, tall.S1.T)


# ---- reading weights


def ctranslate2_file(version: int, tensors: dict[str, tuple[int, np.ndarray]]) -> bytes:
    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    parts = [struct.pack("<I", version), string("Spec"), struct.pack("<II", 3, len(tensors))]
    for name, (number, array) in tensors.items():
        parts += [string(name), struct.pack("<B", array.ndim), struct.pack(f"<{array.ndim}I", *array.shape)]
        parts += [struct.pack("<BI", number, array.nbytes), array.tobytes()]
    return b"".join(parts)


def test_ctranslate2_files_are_read(benchmark: Callable[[str], ModuleType]) -> None:
    numbers = np.arange(6)
    tensors = {
        "a/weight": (4, numbers.reshape(2, 3).astype("<f2")),
        "scalar": (1, np.array(-3, dtype="<i1")),
        "b": (0, numbers.astype("<f4")),
    }
    found = benchmark("common.weights").ctranslate2_tensors(ctranslate2_file(6, tensors))
    assert found.keys() == tensors.keys()
    for name, (_, array) in tensors.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    with pytest.raises(ValueError, match="format version 5, it must be 6"):
        benchmark("common.weights").ctranslate2_tensors(ctranslate2_file(5, tensors))


# ---- cells, their file and the table


def test_runs_of_one_matrix_stand_together(benchmark: Callable[[str], ModuleType]) -> None:
    cells = benchmark("quality.cells")
    planned = cells.plan(25, [f"m{place}" for place in range(25)], cells.BITS, list(cells.METHODS))
    groups = [key for key, _ in itertools.groupby((place, cell.bits) for place, cell in planned)]
    assert len(groups) == len(set(groups))
    assert {place for place, cell in planned if cell.bits == 0.5} == {0, 22}
    with_reference = {place for place, cell in planned if cell.method == "dbf"}
    assert len(with_reference) == 10
    assert {place for place, _ in planned[: len(planned) // 3]} <= with_reference  # they come first
    at_one_bit = {cell.method for place, cell in planned if place == 22 and cell.bits == 1}
    assert at_one_bit == {name for name in cells.METHODS if not name.startswith("rtn")}


def test_a_stopped_benchmark_goes_on(benchmark: Callable[[str], ModuleType], tmp_path: Path) -> None:
    quality, results, path = benchmark("quality.quality"), benchmark("common.results"), tmp_path / "q.json"
    RealMatrix = benchmark("common.weights").RealMatrix
    pool = [RealMatrix("s", f"m{i}", "kind", np.zeros((64, 64), np.float32)) for i in range(2)]
    options = quality.parse(["--json", str(path), "--bits", "1", "--methods", "greedy", "sign-fast"])
    report = quality.empty(options)
    assert len(quality.remaining(pool, report, options)) == 4
    report["cells"].append({"matrix": "s/m0", "method": "greedy", "bits": 1.0, "seconds": 2.0})
    results.write(path, report)
    again = results.go_on(path, quality.empty(options), ("machine", "threads"))
    left = [(cell.matrix, cell.method) for _, cell in quality.remaining(pool, again, options)]
    assert left == [("s/m0", "sign-fast"), ("s/m1", "greedy"), ("s/m1", "sign-fast")]


def test_the_table_pairs_matrices(benchmark: Callable[[str], ModuleType]) -> None:
    """SNR and seconds of x, y, z; z has no reference."""
    table = benchmark("quality.table")
    measured = {
        "dbf": {"x": (5.0, 4.0), "y": (6.0, 8.0)},
        "sign-normal": {"x": (5.5, 2.0), "y": (5.75, 1.0), "z": (9.0, 7.0)},
        "greedy": {"x": (4.0, 0.5), "y": (5.0, 0.5), "z": (9.5, 0.5)},
    }
    cells = [
        {
            "matrix": matrix,
            "method": name,
            "bits": 1.0,
            "bits_per_weight": 1.0,
            "snr_db": snr,
            "seconds": seconds,
        }
        for name, runs in measured.items()
        for matrix, (snr, seconds) in runs.items()
    ]
    rows = {row.method: row for row in table.sizes(table.by_cell({"cells": cells}), 1.0)}
    ours = rows["sign-normal"]
    assert (ours.matrices, ours.snr, ours.seconds) == (2, 5.625, 1.5)
    assert (ours.to_dbf, ours.worst_to_dbf, ours.worst_matrix) == (0.125, -0.25, "y")
    assert (ours.over_dbf, ours.over_greedy) == ((1, 2), (2, 3))
    assert ours.time_ratio == 3 / 12


@pytest.mark.parametrize(
    "name", ["dbf", "sign-fast", "binary-fast", "greedy", "onebit", "svd16", "rtn-row", "rtn-64"]
)
def test_every_method_keeps_to_its_size(benchmark: Callable[[str], ModuleType], name: str) -> None:
    pytest.importorskip("torch")
    cells = benchmark("quality.cells")
    bits = cells.METHODS[name].bits[-1]
    A = np.random.default_rng(0).standard_normal((96, 80)).astype(np.float32)
    found = cells.run(cells.Cell("m", name, bits), A, 1)
    assert found["snr_db"] > 0
    scales = {"onebit": 16 * (96 + 80), "rtn-row": 16 * 96 + 3 * 96, "rtn-64": 2 * (16 + 3) * 96}
    assert 0 < found["bits_per_weight"] <= bits + scales.get(name, 0) / A.size + 1e-5  # five digits are kept
    assert (found["matrix"], found["method"], found["bits"]) == ("m", name, bits)
