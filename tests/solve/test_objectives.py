"""importance=, covariance= and snr_db= of diba.solve: what is minimised, reported and refused."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import diba

if TYPE_CHECKING:
    from numpy.typing import NDArray


def gaussian(m: int, n: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((m, n))


def moments(n: int, seed: int = 1) -> NDArray[np.float64]:
    """Second moments of correlated inputs of very different size."""
    X = gaussian(4 * n, n, seed) * np.linspace(0.2, 3, n)
    X[:, 1::2] += 0.8 * X[:, ::2][:, : n // 2]
    return X.T @ X / len(X)


def weighted_error(A: NDArray[np.float64], F: NDArray[np.float64], o: Any, i: Any) -> float:
    return float(np.square(np.asarray(o)[:, None] * (A - F) * np.asarray(i)).sum())


def output_error(A: NDArray[np.float64], F: NDArray[np.float64], S: NDArray[np.float64]) -> float:
    return float(np.trace((A - F) @ S @ (A - F).T))


@pytest.mark.parametrize("alphabet", ["binary", "sign"])
@pytest.mark.parametrize("method", ["auto", "admm", "greedy"])
def test_importance_is_what_is_minimised_and_reported(alphabet: str, method: str) -> None:
    A, o, i = gaussian(40, 56), np.geomspace(0.1, 10, 40), np.geomspace(5, 0.05, 56)
    reports: list[diba.Progress] = []
    options: dict[str, Any] = {"k": 30, "alphabet": alphabet, "method": method, "max_iter": 60}
    plain = diba.solve(A, **options)
    f = diba.solve(A, **options, importance=(o, i), progress=reports.append)
    error = weighted_error(A, f.to_dense(), o, i)
    assert error < 0.9 * weighted_error(A, plain.to_dense(), o, i)
    assert reports[-1].objective == pytest.approx(error, rel=1e-5)  # float32 entries of to_dense
    energy = weighted_error(A, np.zeros_like(A), o, i)
    assert reports[-1].snr_db == pytest.approx(10 * np.log10(energy / error), abs=1e-4)
    assert f.diagonal_bits == 16


@pytest.mark.parametrize("alphabet", ["binary", "sign"])
def test_covariance_is_what_is_minimised_and_reported(alphabet: str) -> None:
    A, S = gaussian(40, 48), moments(48)
    reports: list[diba.Progress] = []
    options: dict[str, Any] = {"k": 30, "alphabet": alphabet, "max_iter": 100}
    f = diba.solve(A, **options, covariance=(S, 0.0), progress=reports.append)
    error = output_error(A, f.to_dense(), S)
    weighted = diba.solve(A, **options, importance=(None, np.sqrt(S.diagonal())))
    assert error < output_error(A, weighted.to_dense(), S)
    assert reports[-1].objective == pytest.approx(error, rel=1e-4)
    energy = output_error(A, np.zeros_like(A), S)
    assert reports[-1].snr_db == pytest.approx(10 * np.log10(energy / error), abs=1e-3)
    assert [r.done for r in reports] == sorted(r.done for r in reports)


def test_shrinkage_moves_the_objective_towards_the_diagonal() -> None:
    A, S = gaussian(30, 32), moments(32)
    whole, none = (diba.solve(A, k=20, covariance=(S, share), max_iter=80) for share in (0.0, 1.0))
    diagonal = np.diag(S.diagonal())
    assert output_error(A, whole.to_dense(), S) < output_error(A, none.to_dense(), S)
    assert output_error(A, none.to_dense(), diagonal) < output_error(A, whole.to_dense(), diagonal)


def best_of_all(A: NDArray[np.float64]) -> float:
    """Least ``|A - D1 B1 D2 B2 D3|^2`` for k = 1, 0/1, over all bits: rank-one fits of submatrices."""
    m, n = A.shape
    least = float(np.square(A).sum())
    for rows in itertools.product([False, True], repeat=m):
        for cols in itertools.product([False, True], repeat=n):
            if any(rows) and any(cols):
                part = A[np.ix_(rows, cols)]
                least = min(least, float(np.square(A).sum() - np.linalg.norm(part, 2) ** 2))
    return least


@pytest.mark.parametrize("seed", range(4))
def test_importance_against_brute_force(seed: int) -> None:
    A, o, i = gaussian(4, 3, seed), np.array([3.0, 1, 0.2, 1]), np.array([1.0, 0.1, 4])
    f = diba.solve(A, k=1, importance=(o, i))
    least = best_of_all(o[:, None] * A * i)
    # the whole matrix holds the best rank-one fit of every part; 2^-11 of rounding in three diagonals
    assert least * (1 - 1e-6) <= weighted_error(A, f.to_dense(), o, i) <= 1.01 * least


def test_covariance_against_brute_force() -> None:
    """k = 1: F is a rank-one matrix, and the best one is known from the singular values of A S^(1/2)."""
    A, S = gaussian(5, 4), moments(4)
    root = np.linalg.cholesky(S)
    singular = np.linalg.svd(A @ root, compute_uv=False)
    f = diba.solve(A, k=1, covariance=(S, 0.0), alphabet="sign")
    assert output_error(A, f.to_dense(), S) == pytest.approx(np.square(singular[1:]).sum(), rel=0.01)


@pytest.mark.parametrize("effort", ["fast", "normal"])
def test_the_smallest_k_that_reaches_an_snr(effort: str) -> None:
    A = gaussian(48, 40)
    f = diba.solve(A, snr_db=6, effort=effort)
    assert f.snr_db(A) >= 6 > diba.solve(A, f.k - 1, effort=effort).snr_db(A)


@pytest.mark.parametrize("snr", [5, 6, 7])
def test_the_last_state_of_a_search_is_of_the_factors_that_it_returns(snr: float) -> None:
    """For 5 and 6 dB, k - 1 is tried after k."""
    A = gaussian(48, 40)
    reports: list[diba.Progress] = []
    f = diba.solve(A, snr_db=snr, effort="fast", progress=reports.append)
    assert reports[-1].snr_db == pytest.approx(f.snr_db(A), abs=1e-4)
    assert reports[-1].objective == pytest.approx(np.square(A - f.to_dense()).sum(), rel=1e-4)


def test_an_snr_of_the_weighted_objective() -> None:
    A, i = gaussian(32, 40), np.geomspace(3, 0.1, 40)
    f = diba.solve(A, snr_db=7, importance=(None, i), effort="fast")
    ones = np.ones(32)
    energy = weighted_error(A, np.zeros_like(A), ones, i)
    assert 10 * np.log10(energy / weighted_error(A, f.to_dense(), ones, i)) >= 7 - 1e-4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"importance": np.ones(6)}, TypeError, r"importance is .*; it must be a pair \(rows, cols\)"),
        ({"importance": (np.ones(5), None)}, ValueError, r"importance\[0\].*rows of A"),
        (
            {"importance": (None, np.zeros(4))},
            ValueError,
            r"importance\[1\] has entries that are not positive",
        ),
        ({"covariance": np.ones((3, 3))}, ValueError, r"covariance has shape \(3, 3\); it must be \(4, 4\)"),
        ({"covariance": -np.eye(4)}, ValueError, "not positive semidefinite"),
        ({"covariance": (np.eye(4), 2)}, ValueError, "shrinkage .* must be from 0 to 1"),
        (
            {"covariance": np.eye(4), "importance": (None, np.ones(4))},
            ValueError,
            "both given; give only one",
        ),
        ({"snr_db": 5, "k": 3}, ValueError, "give exactly one of k"),
        ({"snr_db": -1, "k": None}, ValueError, "snr_db is -1"),
        ({"snr_db": 300, "k": None, "effort": "fast"}, ValueError, "snr_db is 300; even k = "),
    ],
)
def test_refusals(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        diba.solve(gaussian(6, 4), **({"k": 2} | arguments))
