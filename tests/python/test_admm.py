"""method="admm": its step against the formulas written densely in float64, its result against greedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import diba
from diba.solvers.admm import Admm

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALPHABETS = ("binary", "sign")


def gaussian(m: int, n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((m, n), dtype=np.float32)


def low_rank(m: int, n: int) -> NDArray[np.float32]:
    """Rank 8 and noise: closer to trained weights than noise alone."""
    return gaussian(m, 8, 1) @ gaussian(8, n, 2) + gaussian(m, n, 3)


def signed_after_a_step(
    run: Admm, A: NDArray[np.float32], rho: float, balance: float
) -> list[NDArray[np.float64]]:
    """Y + U of both sides after a step from the present state, everything dense and in float64."""
    scaled = A.astype(np.float64) / np.sqrt(np.square(A, dtype=np.float64).mean())
    k = run.left.k
    weights = np.ones(k), (-1.0) ** np.arange(k)
    sides = run.left, run.right
    real = [side.projection().astype(np.float64) / side.norms for side in sides]  # L and R
    results = []
    for side, weight, X, target in zip(sides, weights, reversed(real), (scaled, scaled.T), strict=True):
        norms = np.linalg.norm(X, axis=0)
        Z = side.projection().astype(np.float64) * norms / side.norms
        U = side.signed.astype(np.float64) * norms / side.norms - Z
        X = X / norms
        system = X.T @ X + (0.03 + rho) * np.eye(k) + balance * np.outer(weight, weight)
        results.append((target @ X + rho * (Z - U)) @ np.linalg.inv(system) + U)
    return results


@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_steps_follow_the_formulas(balance: float) -> None:
    A, steps = gaussian(30, 24), 8
    run = Admm(A, 9, seed=1, balance=balance, threads=1)
    ramp = run.iterate(steps)
    assert next(ramp) == 0
    for step in range(steps):
        rho = 0.1 + 0.9 * min(1.0, step / (steps - 3))
        expected = signed_after_a_step(run, A, rho, balance)
        assert next(ramp) == step + 1
        for side, wanted in zip((run.left, run.right), expected, strict=True):
            # float32 roundings (6e-8, sums of up to 30 terms) times the condition of the system, below 100
            assert np.abs(side.signed - wanted).max() <= 30 * 6e-8 * 100 * np.abs(wanted).max()
    assert next(ramp, None) is None


def test_projection_is_signs_times_the_rank_one_fit_of_magnitudes() -> None:
    run = Admm(low_rank(40, 30), 12, seed=0, balance=0, threads=1)
    for _ in run.iterate(30):
        pass
    side = run.left
    Z = side.projection()
    assert np.array_equal(Z > 0, side.signed > 0)
    assert np.linalg.matrix_rank(np.abs(Z), tol=1e-4 * np.abs(Z).max()) == 1
    u, s, vt = np.linalg.svd(np.abs(side.signed.astype(np.float64)))
    best = np.abs(side.signed) - s[0] * np.outer(u[:, 0], vt[0])
    # power iteration carried from step to step: nearly the best rank-one fit
    assert np.linalg.norm(np.abs(side.signed) - np.abs(Z)) <= 1.01 * np.linalg.norm(best)


@pytest.mark.parametrize("balance", [0.0, 0.1])
def test_objective_is_that_of_the_projected_iterate(balance: float) -> None:
    A = low_rank(50, 33)
    run = Admm(A, 14, seed=3, balance=balance, threads=2)
    rms = np.sqrt(np.square(A, dtype=np.float64).mean())
    for _ in run.iterate(12):
        L = run.left.projection().astype(np.float64) / run.left.norms
        R = run.right.projection().astype(np.float64) / run.right.norms
        exact = np.square(A - rms * (L @ R.T)).sum()
        # three float32 sums of about the size of |A|^2 or of |L R'|^2 cancel
        size = run.energy + rms**2 * np.square(L @ R.T).sum()
        assert run.objective == pytest.approx(exact, abs=1e-5 * size)
        assert run.best.objective <= run.objective


def test_balance_makes_signs_convertible() -> None:
    """S1 D2 S2 = 4 B1 D2 B2 holds up to rank-one terms, which the penalty makes small."""
    A = low_rank(60, 48)
    errors = []
    for balance in (0.0, 0.1):
        run = Admm(A, 24, seed=0, balance=balance, threads=1)
        for _ in run.iterate(150):
            pass
        dense = {}
        for alphabet in ALPHABETS:
            d1, b1, b2, d3 = run.factors(alphabet)
            d2 = run.left.column_norms() * run.right.column_norms()
            if alphabet == "binary":
                d2 = 4 * d2 * (-1) ** np.arange(24)
            dense[alphabet] = (d1[:, None] * b1.to_dense() * d2) @ (b2.to_dense() * d3)
        errors.append(np.linalg.norm(dense["binary"] - dense["sign"]) / np.linalg.norm(dense["sign"]))
    assert errors[1] < 0.5 < errors[0]


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("make", [gaussian, low_rank])
def test_better_than_greedy(make: object, alphabet: str) -> None:
    A = make(96, 80)
    greedy = diba.solve(A, bits_per_weight=2.5, alphabet=alphabet, method="greedy").snr(A)
    admm = diba.solve(A, bits_per_weight=2.5, alphabet=alphabet, method="admm", max_iter=200).snr(A)
    assert admm > greedy + 0.5


def test_a_longer_ramp_is_better() -> None:
    A = low_rank(96, 80)
    short, long = (
        diba.solve(A, k=40, alphabet="sign", method="admm", max_iter=steps).snr(A) for steps in (20, 400)
    )
    assert long > short + 0.2


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_reports(alphabet: str) -> None:
    A = gaussian(40, 32)
    seen: list[diba.Progress] = []
    f = diba.solve(A, k=20, alphabet=alphabet, method="admm", max_iter=25, progress=seen.append)
    assert [report.iteration for report in seen] == [*range(26), 25]  # the last one after the greedy finish
    assert {report.max_iter for report in seen} == {25}
    assert seen[-1].snr == pytest.approx(f.snr(A), abs=1e-3)  # diagonals are rounded to 16 bits after it
    assert f == diba.solve(A, k=20, alphabet=alphabet, method="admm", max_iter=25)
    assert f != diba.solve(A, k=20, alphabet=alphabet, method="admm", max_iter=25, seed=1)
    assert f.diagonal_bits == 16


def test_an_exception_of_the_callback_ends_the_run() -> None:
    def stop(progress: diba.Progress) -> None:
        if progress.iteration == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diba.solve(gaussian(40, 32), k=20, method="admm", progress=stop)


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize(
    "A",
    [
        np.zeros((5, 7)),
        np.ones((6, 4)),
        np.outer(np.arange(1.0, 10.0), [1.0, -2.0, 0.5]),
        np.pad(gaussian(5, 5), 3),
        1e-30 * gaussian(6, 6).astype(np.float64),
        1e30 * gaussian(6, 6).astype(np.float64),
        gaussian(1, 8),
        gaussian(8, 1),
        np.ones((1, 1)),
    ],
    ids=["zero", "constant", "rank one", "zero rows", "tiny", "huge", "1 x n", "n x 1", "1 x 1"],
)
def test_edges_give_finite_factors(A: NDArray[np.float64], alphabet: str) -> None:
    f = diba.solve(A, k=12, alphabet=alphabet, method="admm", max_iter=60)
    assert np.isfinite(f.to_dense()).all()
    assert f.snr(A) > 0  # better than nothing
