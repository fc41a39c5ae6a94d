"""Numbers near the ends of what floats hold, sizes larger than useful, no time at all."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import diba
import diba.torch
from arrays import random_factors
from diba.allocation.waterfill import waterfill
from diba.solvers.size import largest_k, sizes_to_try, useful_k

LARGEST = float(np.finfo(np.float32).max)
ALPHABETS = ("binary", "sign")
METHODS = (
    *((method, alphabet) for method in ("auto", "admm", "greedy") for alphabet in ALPHABETS),
    ("dbf", "sign"),
)
LIMITS: dict[str, dict[str, Any]] = {
    "no iteration": {"max_iter": 0},
    "one": {"max_iter": 1},
    "some": {"max_iter": 12},
    "no time": {"time_limit": 1e-6},
}
M, N = 9, 12


def gaussian(m: int = M, n: int = N, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, n))


def one_entry(value: float) -> np.ndarray:
    A = np.zeros((M, N))
    A[3, 4] = value
    return A


G = gaussian()
MATRICES = {
    "the largest numbers": np.full((M, N), LARGEST, np.float32),
    "the largest numbers, both signs": np.sign(G) * LARGEST,
    "up to the largest": G / np.abs(G).max() * LARGEST,
    "rows of all sizes": G * np.logspace(-38, 37, M)[:, None],
    "columns of all sizes": G * np.logspace(-38, 37, N),
    "subnormal": (G * 1e-41).astype(np.float32),
    "below float32": G * 1e-200,
    "subnormal in float64": G * 1e-310,
    "zero": np.zeros((M, N)),
    "one entry": one_entry(LARGEST),
    "one large entry": G + one_entry(LARGEST),
    "one smallest entry": one_entry(1e-45),
    "rank one": np.outer(G[:, 0], G[0]) * 1e36,
    "one row": gaussian(1, 30) * 1e38 / 4,
    "one column": gaussian(30, 1) * 1e-39,
    "one number": np.array([[-LARGEST]]),
}


def moments(scale: float = 1.0, spread: float = 0.0) -> np.ndarray:
    """Of inputs of which the first is always zero, fewer samples than inputs."""
    X = gaussian(N // 2, N, 1) * np.logspace(-spread, spread, N)
    X[:, 0] = 0
    return X.T @ X * scale


OBJECTIVES: dict[str, dict[str, Any]] = {
    "plain": {},
    "large importance": {"importance": (np.full(M, 3e38), np.full(N, 3e38))},
    "small importance": {"importance": (np.full(M, 1e-44), np.full(N, 1e-44))},
    "importance of all sizes": {"importance": (np.logspace(-44, 38, M), np.logspace(38, -44, N))},
    "covariance": {"covariance": moments()},
    "large covariance": {"covariance": moments(1e36)},
    "small covariance": {"covariance": moments(1e-43)},
    "covariance of all sizes": {"covariance": (moments(spread=17), 0.0)},
    "covariance of rank one": {"covariance": (np.ones((N, N)), 0.0)},
}


def objective(error: np.ndarray, importance: Any = None, covariance: Any = None) -> float:
    """In float64, from the definition; S is shrunk as the documentation says."""
    if importance is not None:
        error = importance[0][:, None] * error * importance[1]
    if covariance is None:
        return float(np.square(error).sum())
    S, share = covariance if isinstance(covariance, tuple) else (covariance, 0.2)
    S = (1 - share) * S + share * np.diag(np.diag(S))
    return float(np.vdot(error @ S, error))


def check(f: diba.Factorization, A: np.ndarray, **weights: Any) -> None:
    """Finite throughout, and no worse than the zero matrix; what is zero in float32 counts as zero."""
    dense = f.to_dense().astype(np.float64)
    assert all(np.isfinite(part).all() for part in (f.d1, f.d2, f.d3, dense))
    if np.abs(A).max() < 1e-46:
        assert not dense.any()
        return
    energy = objective(A.astype(np.float64), **weights)
    assert objective(A - dense, **weights) <= energy * (1 + 1e-12)
    x = np.random.default_rng(2).standard_normal(f.shape[1]).astype(np.float32)
    for precision in ("fast", "exact"):
        assert np.isfinite(f.matvec(x, precision=precision)).all()


# ---------------------------------------------------------------- solvers


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", MATRICES)
def test_no_matrix_leads_out_of_range_or_below_zero(name: str, limit: str) -> None:
    A = MATRICES[name]
    for method, alphabet in METHODS:
        reports: list[diba.Progress] = []
        f = diba.solve(A, 4, method=method, alphabet=alphabet, progress=reports.append, **LIMITS[limit])
        check(f, A)
        assert f.snr_db(A) >= 0
        assert all(np.isfinite(report.objective) and not np.isnan(report.snr_db) for report in reports)


@pytest.mark.parametrize("weights", OBJECTIVES)
def test_no_objective_leads_out_of_range_or_below_zero(weights: str) -> None:
    for number, (name, A) in enumerate(MATRICES.items()):
        if A.shape != (M, N):
            continue
        method, alphabet = METHODS[number % len(METHODS)]
        for limit in LIMITS.values():
            f = diba.solve(A, 3, method=method, alphabet=alphabet, **limit, **OBJECTIVES[weights])
            check(f, A, **OBJECTIVES[weights])
            again = diba.solve(A, init=f, alphabet=alphabet, max_iter=1, **OBJECTIVES[weights])
            check(again, A, **OBJECTIVES[weights])
            assert name


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("scale", [1e-38, 1.0, 1e38])
def test_a_start_of_any_size_is_no_worse_than_zero(alphabet: str, scale: float) -> None:
    factors, own = random_factors(M, 4, N, alphabet), (G[:, 0], G[0, :4], G[0])
    for sizes in ((scale, scale, scale), (1e38, 1e-38, scale), (scale, 1e38, 1e38)):
        d1, d2, d3 = (np.clip(d * s, -LARGEST, LARGEST) for d, s in zip(own, sizes, strict=True))
        start = diba.Factorization.from_factors(d1, factors.b1, d2, factors.b2, d3, alphabet)
        for max_iter in (0, 3):
            check(diba.solve(G, init=start, alphabet=alphabet, max_iter=max_iter), G)


def test_dbf_without_iterations_is_no_worse_than_zero() -> None:
    A = gaussian(20, 24)
    E = A - diba.solve(A, 8, method="dbf", alphabet="sign", max_iter=0).to_dense()
    assert np.square(E).sum() <= np.square(A).sum()


@pytest.mark.parametrize("name", MATRICES)
def test_onebit_and_curve(name: str) -> None:
    A = MATRICES[name]
    q = diba.onebit(A)
    assert np.isfinite(q.to_dense()).all()
    assert q.snr_db(A) >= 0
    assert np.isfinite(q @ np.ones(A.shape[1])).all()
    sizes = diba.curve(A, bits=(60, 90), max_iter=1, effort="fast", alphabet="sign")
    assert (sizes.snr_db >= 0).all()


def test_ordinary_results_scale_with_the_matrix() -> None:
    """A power of two changes the diagonals and nothing else."""
    f = diba.solve(G, 6, max_iter=20)
    for exponent in (-90, 3, 100):
        g = diba.solve(np.ldexp(G, exponent), 6, max_iter=20)
        assert (g.b1, g.b2) == (f.b1, f.b2)
        assert np.array_equal(g.to_dense(), np.ldexp(f.to_dense(), exponent))


# ---------------------------------------------------------------- larger than useful


@pytest.mark.parametrize(("method", "alphabet"), METHODS)
def test_more_components_are_never_worse(method: str, alphabet: str) -> None:
    A = gaussian(6, 8)
    useful = useful_k(6, 8)
    options: dict[str, Any] = {"method": method, "alphabet": alphabet, "max_iter": 60}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sizes = (useful, 2 * useful, 8 * useful, 100 * useful, 10**5)
        found = [diba.solve(A, k, **options) for k in sizes]
    assert [f.k for f in found] == list(sizes)
    errors = [float(np.square(A - f.to_dense()).sum()) for f in found]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == errors[-2] == errors[-3]
    x = np.arange(8, dtype=np.float32)
    assert np.allclose(found[-1].matvec(x), found[-1].to_dense() @ x, rtol=1e-5, atol=1e-5)


def test_sizes_that_are_tried() -> None:
    for m, n in ((1, 1), (1, 50), (20, 24), (64, 4096)):
        useful, largest = useful_k(m, n), largest_k(m, n)
        assert useful >= min(2 * min(m, n), largest) - 1
        assert sizes_to_try(m, n, useful, limited=True) == [useful]
        for k in (useful + 1, largest, 10 * largest):
            for limited in (False, True):
                sizes = sizes_to_try(m, n, k, limited=limited)
                assert sizes == sorted(set(sizes))
                assert sizes[-1] == min(k, max(largest, useful))
                assert 1 <= sizes[0] <= useful


def test_a_k_beyond_what_pays_warns_and_names_one_that_is_enough() -> None:
    A = gaussian(6, 8)
    with pytest.warns(UserWarning, match=r"k is 50, larger than useful for a 6 x 8 matrix.* k = 13 "):
        diba.solve(A, 50, max_iter=1)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        diba.solve(A, 13, max_iter=1)
        diba.allocate({"a": A, "b": 2 * A}, 7)  # measures sizes that nobody asked for
    assert not heard


def test_the_warning_never_costs_the_factors(caplog: pytest.LogCaptureFixture) -> None:
    """Where a filter makes warnings errors, it is logged."""
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="diba"):
        warnings.simplefilter("error")
        assert diba.solve(gaussian(6, 8), 50, max_iter=1).k == 50
    assert "larger than useful" in caplog.text


@pytest.mark.parametrize(("method", "alphabet"), METHODS)
def test_time_that_is_up_ends_a_run_of_a_huge_k(method: str, alphabet: str) -> None:
    """Without the limit it would take minutes."""
    A = gaussian(200, 220)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        f = diba.solve(A, 10**4, method=method, alphabet=alphabet, effort="best", tol=0, time_limit=0.3)
    check(f, A)
    assert f.k == 10**4


# ---------------------------------------------------------------- products


def exact_product(f: Any, parts: tuple[np.ndarray, ...], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M x clipped to float32's range, sum of |terms|) in float64, whose range is enough."""
    d1, b1, d2, b2, d3 = (np.asarray(part, np.float64) for part in parts)
    y = d1 * (b1 @ (d2 * (b2 @ (d3 * x))))
    size = np.abs(d1) * (np.abs(b1) @ (np.abs(d2) * (np.abs(b2) @ np.abs(d3 * x))))
    return np.clip(y, -LARGEST, LARGEST), size


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize(
    "sizes", [(1e-30, 1e38, 1, 1e8), (1e-38, 1e30, 1e30, 1e15), (1e38, 1, 1, 3e38), (1e38, 1e-38, 3e38, 3e38)]
)
def test_products_of_finite_numbers_are_finite(
    isa: str, alphabet: str, sizes: tuple[float, float, float, float]
) -> None:
    """What overflows on the way does not in the result; what is beyond the range is its largest number."""
    m, k, n = 37, 41, 70
    factors = random_factors(m, k, n, alphabet)
    rng = np.random.default_rng(0)
    d1, d2, d3, x = (
        (rng.uniform(0.5, 1, size) * scale).astype(np.float32)
        for size, scale in zip((m, k, n, n), sizes, strict=True)
    )
    x[::2] *= -1
    parts = d1, factors.b1, d2, factors.b2, d3
    f = diba.Factorization.from_factors(*parts, alphabet)
    exact, size = exact_product(f, parts, x)
    steps = (n + k + 8) * 2.0**-23
    for y in (
        f.matvec(x),
        f.linear(x, precision="exact"),
        f.T.rmatvec(x),
        f.matmat(np.stack([x, 0 * x], 1))[:, 0],
    ):
        assert (np.abs(y - exact) <= np.minimum(steps * size, 2 * LARGEST)).all()
    fast = f @ x
    assert (np.abs(fast - exact) <= 2.0**-23 * size).all()  # these are all made in float64
    assert f.linear(np.stack([0 * x, x])).tobytes() == np.stack([f @ (0 * x), fast]).tobytes()
    assert f.linear(np.tile(x, (40, 1)), threads=3).tobytes() == np.tile(fast, (40, 1)).tobytes()
    bias = np.full(m, LARGEST, np.float32)
    for precision in ("fast", "exact"):
        assert np.isfinite(f.linear(x, bias, precision=precision)).all()
    x[3] = np.inf
    assert np.isnan(f @ x).all()


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_products_with_bits_and_onebit_are_finite(alphabet: str) -> None:
    factors = random_factors(20, 9, 33, alphabet)
    b = diba.BitMatrix.from_dense(factors.b1, alphabet)
    x = np.where(np.arange(9) % 3 == 0, -LARGEST, LARGEST)
    expected = np.clip(factors.b1.astype(np.float64) @ x, -LARGEST, LARGEST)
    assert np.allclose(b @ x.astype(np.float32), expected, rtol=1e-6, atol=1e-5 * LARGEST)
    X = np.stack([x, np.ones(9)], 1)
    assert np.array_equal((b @ X)[:, 1], factors.b1.sum(axis=1))
    q = diba.OneBit(np.full(20, 1e30), diba.BitMatrix.from_dense(np.ones((20, 9)), "sign"), np.full(9, 1e30))
    assert (q.to_dense() == np.float32(LARGEST)).all()
    assert (q @ np.full(9, 1e-35) == np.float32(9e25)).all() or np.allclose(q @ np.full(9, 1e-35), 9e25)


def test_dense_forms_of_any_diagonals() -> None:
    ones = np.ones((2, 3)), np.ones((3, 4))
    for d1, d2, d3 in ((1e-30, 1e30, 1e30), (1e30, 1e-30, 1e-30), (1e38, 1e38, 1e38), (1e-38, 1e-38, 1e38)):
        f = diba.Factorization.from_factors(np.full(2, d1), ones[0], np.full(3, d2), ones[1], np.full(4, d3))
        assert np.allclose(f.to_dense(), min(3 * d1 * d2 * d3, LARGEST), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "multiply",
    [
        lambda f, x: f @ x,
        lambda f, x: f.matmat(x[:, None], precision="fast"),
        lambda f, x: f.linear(x),
        lambda f, x: f.matvec(x),
    ],
)
def test_operands_beyond_float32_are_refused(multiply: Any) -> None:
    f = random_factors(5, 4, 6, "sign").diba
    x = np.ones(6)
    x[2] = 1e300
    with pytest.raises(ValueError, match=r"beyond float32's range \(1 of 6, the first is 1e\+300 at .*\[2"):
        multiply(f, x)
    x[2] = np.inf  # is what it says
    assert not np.isfinite(multiply(f, x)).all()


def test_snr_of_tiny_numbers() -> None:
    """Their squares vanish in float64; the ratio does not."""
    zero = diba.Factorization.from_factors([0, 0], np.ones((2, 1)), [0], np.ones((1, 2)), [0, 0])
    assert zero.snr_db(np.full((2, 2), 1e-200)) == 0
    assert zero.snr_db(np.zeros((2, 2))) == np.inf


# ---------------------------------------------------------------- layers, shares of bits


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float32, LARGEST), (torch.float16, 65504.0), (torch.float32, 1e-44)]
)
@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_layers_of_extreme_weights(dtype: torch.dtype, value: float, alphabet: str) -> None:
    model, embedding = nn.Sequential(nn.Linear(24, 16, bias=False)), nn.Embedding(20, 16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in (*model.parameters(), *embedding.parameters()):
            p.copy_((torch.rand(p.shape, generator=generator) * 2 - 1) * value)
            p[0], p[1] = value, 0
    model.to(dtype)
    diba.torch.convert(model, bits_per_weight=4, alphabet=alphabet, effort="fast", progress=False)
    rows = diba.torch.DibaEmbedding.from_dense(embedding.to(dtype), k=8, alphabet=alphabet, effort="fast")
    for layer in (model[0], rows):
        assert isinstance(layer, diba.torch.FactoredLayer)
        assert torch.isfinite(layer.dense_weight()).all()
        assert torch.isfinite(layer.to_dense_module().weight).all()
    assert torch.isfinite(rows(torch.arange(20))).all()
    assert torch.isfinite(model[0](torch.full((3, 24), 1e-3, dtype=dtype))).all()


def test_shares_of_bits_of_any_noise() -> None:
    matrices = {"a": MATRICES["up to the largest"], "b": 1e-30 * G, "c": np.zeros((M, N))}
    found = diba.allocate(matrices, 6, max_iter=2)
    assert np.isfinite(found.noise)
    assert found.k["a"] > found.k["b"] >= 1
    curves = {
        name: diba.Curve((20, 20), np.array([1, 5, 9]), np.array([1.7e308, high, 5e-324]))
        for name, high in (("a", 1e308), ("b", 1e9))
    }
    assert np.isfinite(waterfill(curves, bits_per_weight=2).noise)
    with pytest.raises(ValueError, match=r"weights\['a'\] \|A\|\^2 is inf"):
        diba.allocate(matrices, 6, max_iter=0, weights={"a": 1e300})
