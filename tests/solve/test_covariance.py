"""Covariance and importance: descent, scaling and arguments, against dense computations in float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import diba
from diba import reference
from diba._internal.snr import output_energy_and_error
from diba.solvers.covariance import Correlated, descend
from diba.solvers.greedy import Greedy
from diba.solvers.objective import Objective, normalised, objective_for
from diba.solvers.schedule import NEVER, Deadline, Schedule
from diba.solvers.second_moments import checked, input_scales, shrunk

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALPHABETS = ("binary", "sign")


def matrix(m: int, n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, (m, n)).astype(np.float32)


def second_moments(n: int, kind: str = "correlated", seed: int = 1) -> NDArray[np.float32]:
    """Of entries up to about 1."""
    rng = np.random.default_rng(seed)
    if kind == "identity":
        return np.eye(n, dtype=np.float32)
    if kind == "diagonal":
        return np.diag(rng.uniform(0.1, 1, n)).astype(np.float32)
    X = rng.standard_normal((2 * n, n)) @ rng.standard_normal((n, n)) * rng.uniform(0.3, 1, n)
    return (X.T @ X / (X.T @ X).max()).astype(np.float32)


def started(m: int, n: int, k: int, alphabet: str, S: NDArray[np.float32], seed: int = 0) -> Correlated:
    rng = np.random.default_rng([seed, 7])
    low = 0 if alphabet == "binary" else -1
    b1, b2 = (np.where(rng.random(shape) < 0.5, 1, low) for shape in ((m, k), (k, n)))
    d1, d3 = (rng.uniform(0.5, 1, size).astype(np.float32) for size in (m, n))
    packed = (diba.BitMatrix.from_dense(b, alphabet) for b in (b1, b2))
    return Correlated(matrix(m, n, seed), S, *packed, d1, d3, 1)


def dense(run: Greedy) -> reference.Factors:
    b1, b2 = run.bits()
    return tuple(
        np.asarray(x, dtype=np.float64)
        for x in (run.left.scale, b1.to_dense(), run.d2, b2.to_dense(), run.right.scale)
    )


def error(A: NDArray[Any], factors: reference.Factors, S: NDArray[Any]) -> float:
    """tr((A - F) S (A - F)') in float64."""
    R = A - reference.reconstruct(*factors)
    return float(np.trace(R @ S.astype(np.float64) @ R.T))


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("kind", ["identity", "diagonal", "correlated"])
def test_every_step_lowers_the_true_objective_and_reports_it(kind: str, alphabet: str) -> None:
    m, n, k = 24, 70, 17  # n: two blocks of columns and a part
    A, S = matrix(m, n), second_moments(n, kind)
    run = started(m, n, k, alphabet, S)
    energy = float(np.trace(A.astype(np.float64) @ S @ A.T))
    rounding = 1e-5 * energy  # float32 sums of terms of about this size cancel
    assert run.energy == pytest.approx(energy, abs=rounding)
    before = error(A, dense(run), S)
    for _ in range(4):
        for step in run.steps():
            step()
            after = error(A, dense(run), S)
            assert run.objective == pytest.approx(after, abs=rounding)
            assert after <= before + rounding
            before = after
    assert before < 0.7 * energy


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize(
    ("m", "n", "k", "kind"), [(3, 3, 2, "correlated"), (3, 3, 2, "identity"), (12, 40, 9, "correlated")]
)
def test_ends_where_no_single_flip_helps(m: int, n: int, k: int, kind: str, alphabet: str) -> None:
    """Every bit of both sides is flipped, one at a time."""
    for seed in range(5):
        S = second_moments(n, kind, seed)
        run = started(m, n, k, alphabet, S, seed)
        for _ in range(60):
            run.flips, before = 0, run.objective
            for step in run.steps():
                step()
            if not run.flips and before - run.objective <= 1e-6 * run.energy:
                break
        assert not run.flips
        A, factors = matrix(m, n, seed), dense(run)
        best = error(A, factors, S)
        for number in (1, 3):
            for index in np.ndindex(factors[number].shape):
                changed = [x.copy() for x in factors]
                entry = changed[number][index]
                changed[number][index] = 1 - entry if alphabet == "binary" else -entry
                # the kernel's threshold for a flip, and rounding of float32 as above
                assert error(A, tuple(changed), S) >= best - 1e-5 * run.energy


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_columns_in_blocks_are_columns_one_by_one(alphabet: str) -> None:
    """Against a loop that computes everything anew for every column."""
    m, n, k = 20, 70, 11
    A, S = matrix(m, n), second_moments(n)
    run = started(m, n, k, alphabet, S)
    run.flip_rows()
    d1, B1, d2, B2, d3 = dense(run)
    run.flip_columns()
    L = d1[:, None] * B1 * d2
    G, step = L.T @ L, 1 if alphabet == "binary" else 2
    for q in range(n):
        g = (L.T @ (A - L @ (B2 * d3)) @ S)[:, q] / S[q, q]
        curve = G @ B2[:, q]
        square = B2[:, q] @ curve
        moved = B2[:, q] @ g / square if square > 0 else 0.0
        d3[q] += moved
        B2[:, q] = reference.best_flips(G, (g - moved * curve)[None], d3[q : q + 1], B2[None, :, q], step)[0][
            0
        ]
    assert np.array_equal(run.bits()[1].to_dense(), B2)
    assert np.allclose(run.right.scale, d3, rtol=0, atol=1e-4 * np.abs(d3).max())


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_a_diagonal_covariance_is_importance_of_columns(alphabet: str) -> None:
    m, n, k = 30, 40, 12
    A, i = matrix(m, n), 2.0 ** np.random.default_rng(3).integers(-2, 1, n).astype(np.float32)  # exact
    run = started(m, n, k, alphabet, np.diag(i * i))
    b1, b2 = run.bits()
    plain = Greedy(A * i, b1, b2, 1, d1=run.left.scale.copy(), d3=run.right.scale * i)
    for name in ("fit_rows", "flip_rows", "fit_columns", "flip_columns", "fit_inner"):
        for other in (run, plain):
            getattr(other, name)()
        if name != "fit_columns":  # which Correlated leaves to flip_columns
            assert run.bits() == plain.bits()
            assert run.objective == pytest.approx(plain.objective, rel=1e-4)


# ---------------------------------------------------------------- descend


def start_for(A: NDArray[Any], S: NDArray[Any], k: int, alphabet: str) -> diba.Factorization:
    return weighted_factors(
        Objective(cols=input_scales(S)), A, k=k, alphabet=alphabet, method="greedy", max_iter=20
    )


def weighted_factors(objective: Objective, A: NDArray[Any], **options: Any) -> diba.Factorization:
    W, exponent = objective.normalised(A)
    return objective.denormalised(diba.solve(W, **options), exponent)


def output_error(A: NDArray[Any], f: diba.Factorization, S: NDArray[Any]) -> float:
    return output_energy_and_error(A, f, S)[1]


def descended(
    A: NDArray[Any], start: diba.Factorization, S: NDArray[Any], report: Any = None, **options: Any
) -> diba.Factorization:
    """The best of what the descent gives."""
    given: dict[str, Any] = {"threads": 1, "deadline": NEVER} | options
    found = descend(A, start, np.asarray(S, np.float64), schedule=Schedule(report), **given)
    return min(found, key=lambda f: output_error(A, f, S))


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize(("scale", "power"), [(1.0, 1.0), (1e30, 1e-20), (1e-30, 1e20)])
def test_descend_improves_and_reports(alphabet: str, scale: float, power: float) -> None:
    A, S = matrix(40, 50).astype(np.float64) * scale, second_moments(50).astype(np.float64) * power
    start = start_for(A, S, 25, alphabet)
    seen: list[diba.Progress] = []
    f = descended(A, start, S, seen.append)
    assert output_error(A, f, S) < 0.8 * output_error(A, start, S)
    R = A - f.to_dense()
    assert output_error(A, f, S) == pytest.approx(np.trace(R @ S @ R.T), rel=1e-9)
    assert seen[-1].objective == pytest.approx(output_error(A, f, S), rel=1e-4)  # d1, d2, d3 rounded since
    decibels = 10 * math.log10(np.trace(A @ S @ A.T) / output_error(A, f, S))
    assert seen[-1].snr_db == pytest.approx(decibels, abs=1e-3)
    assert [report.done for report in seen] == list(range(len(seen)))
    assert f.diagonal_bits == 16
    assert f == descended(A, start, S)


def test_descend_returns_the_start_rather_than_something_worse() -> None:
    A, S = matrix(20, 16), second_moments(16)
    best = descended(A, start_for(A, S, 10, "sign"), S, tol=0, iterations=100)
    again = descended(A, best, S, tol=0, iterations=0)
    assert output_error(A, again, S) <= output_error(A, best, S)
    assert descended(A, best, S, deadline=Deadline(0.0)) == best  # no step at all


def test_descend_ends_with_an_exception_of_the_callback() -> None:
    def stop(progress: diba.Progress) -> None:
        if progress.done == 1:
            raise KeyboardInterrupt

    A, S = matrix(20, 16), second_moments(16)
    with pytest.raises(KeyboardInterrupt):
        descended(A, start_for(A, S, 10, "sign"), S, stop)


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize(
    ("A", "S"),
    [
        (np.zeros((4, 5)), np.eye(5)),
        (matrix(4, 5), np.ones((5, 5))),
        (matrix(4, 5), np.diag([1.0, 0, 0, 2, 0])),
        (np.pad(matrix(3, 3), 1), np.eye(5)),
        (matrix(1, 1), np.ones((1, 1))),
    ],
    ids=["zero", "rank one", "dead inputs", "zero rows", "1 x 1"],
)
def test_edges(A: NDArray[Any], S: NDArray[Any], alphabet: str) -> None:
    start = start_for(A, S, 3, alphabet)
    f = descended(A, start, S)
    assert np.isfinite(f.to_dense()).all()
    assert output_error(A, f, S) <= output_error(A, start, S)


def test_shrinking_keeps_the_diagonal() -> None:
    S = second_moments(6).astype(np.float64)
    S[0, 1] += 1e-7  # not quite symmetric
    result = shrunk(S, 0.25)
    assert np.array_equal(result, result.T)
    assert np.allclose(result, 0.75 * (S + S.T) / 2 + 0.25 * np.diag(S.diagonal()), rtol=1e-14)
    assert np.array_equal(result.diagonal(), S.diagonal())
    assert np.array_equal(shrunk(S, 1), np.diag(S.diagonal()))


def test_input_scales_are_positive() -> None:
    scales = input_scales(np.diag([4.0, 0, 1]))
    assert scales[[0, 2]].tolist() == [2, 1]
    assert scales[1] > 0


# ---------------------------------------------------------------- importance


def spread(size: int, seed: int) -> NDArray[np.float64]:
    return np.exp(np.random.default_rng(seed).standard_normal(size))


@pytest.mark.parametrize("unit", [1.0, 1e-30, 1e30])
def test_importance_weighs_the_normalised_matrix_and_leaves_its_factors(unit: float) -> None:
    A, o, i = matrix(30, 20), unit * spread(30, 0), unit * spread(20, 1)
    objective = Objective(o, i)
    W, exponent = objective.normalised(A)
    units = -exponent - objective.exponent
    assert W.dtype == np.float32
    assert 0.5 <= np.abs(W).max() <= 1
    assert np.allclose(W, np.ldexp(o[:, None] * A.astype(np.float64) * i, units), rtol=2.0**-24, atol=0)
    f = diba.solve(W, k=12, method="greedy")
    g = objective.denormalised(f, exponent)
    back = np.ldexp(o[:, None] * g.to_dense().astype(np.float64) * i, units)
    rounding = 2 * 2.0**-11 + 8 * 2.0**-23  # d1 and d3 to 16 bits; products in float32
    parts = (abs(f.d1), f.b1.to_dense(), abs(f.d2), f.b2.to_dense(), abs(f.d3))
    assert (np.abs(back - f.to_dense()) <= 1.01 * rounding * reference.reconstruct(*parts)).all()
    again = objective.normalised_factors(g, exponent)
    assert np.allclose(again.to_dense(), back, rtol=1e-5, atol=1e-5)
    direct = float(np.square(o[:, None] * (A - g.to_dense().astype(np.float64)) * i).sum())
    assert objective.measured(A, g).error == pytest.approx(direct, rel=1e-9)
    assert g.diagonal_bits == 16


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-40, 1e-3, 1.0, 3e38])
def test_the_normalised_matrix_is_a_power_of_two_away(size: float, dtype: type) -> None:
    A = (matrix(700, 1600) * np.float64(size)).astype(dtype)  # several blocks of rows
    before = A.copy()
    W, exponent = normalised(A)
    assert (W.dtype, W.flags.c_contiguous) == (np.float32, True)
    assert 0.5 <= np.abs(W).max() <= 1
    assert np.array_equal(W, np.ldexp(A.astype(np.float64), -exponent).astype(np.float32))
    assert np.array_equal(A, before)


def test_importance_lowers_the_weighted_error() -> None:
    A, o, i = matrix(48, 40), spread(48, 0), spread(40, 1)
    for rows, cols in ((o, i), (o, None), (None, i)):
        objective = Objective(rows, cols)
        weighted = weighted_factors(objective, A, k=20, method="greedy")
        plain = diba.solve(A, k=20, method="greedy")
        assert objective.measured(A, weighted).error < 0.95 * objective.measured(A, plain).error


# ---------------------------------------------------------------- arguments


def test_accepted_arguments() -> None:
    W, exponent = objective_for([np.array([1, 2]), None], None, 2, 3).normalised(np.ones((2, 3)))
    assert np.ldexp(W, exponent).tolist() == [[0.25] * 3, [0.5] * 3]  # weights 1 and 2, over 2^2
    for given, shrink in (
        (np.eye(2), 0.5),
        ((np.eye(2), 0), 0),
        (((2, 1), (1, 2)), 0.5),
        (np.ones((2, 2)), 0.5),
    ):
        S, share = checked(given, 2, 0.5)
        assert S.shape == (2, 2)
        assert share == shrink
    X = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
    checked(X.T @ X, 40, 0.1)  # of rank 5: zero eigenvalues rounded to below 0


IMPORTANCES: dict[str, tuple[Any, type[Exception], str]] = {
    "one vector": (np.ones(2), TypeError, "must be a pair"),
    "a number": (3, TypeError, "must be a pair"),
    "length": ((np.ones(3), None), ValueError, r"importance\[0\] has 3 entries.* must have 2"),
    "text": ((None, "abc"), TypeError, r"importance\[1\]"),
    "zero": ((None, [1, 0, 1]), ValueError, r"importance\[1\]\[1\] is 0"),
    "negative": (([-1, 1], None), ValueError, "above 0"),
    "nan": (([np.nan, 1], None), ValueError, "NaN"),
    "tiny": (([1e-60, 1], None), ValueError, "positive in float32"),
}
COVARIANCES: dict[str, tuple[Any, type[Exception], str]] = {
    "shape": (np.eye(2), ValueError, r"shape \(2, 2\); it must be \(3, 3\)"),
    "vector": (np.ones(3), ValueError, "must be a matrix"),
    "asymmetric": (np.triu(np.ones((3, 3))), ValueError, "not symmetric"),
    "zero": (np.zeros((3, 3)), ValueError, "covariance is zero"),
    "indefinite": (np.ones((3, 3)) - 2 * np.eye(3), ValueError, "not positive semidefinite"),
    "infinite": (np.full((3, 3), np.inf), ValueError, "finite"),
    "text": ("S", TypeError, "covariance"),
    "shrink above 1": ((np.eye(3), 1.5), ValueError, "from 0 to 1"),
    "shrink below 0": ((np.eye(3), -0.5), ValueError, "at least 0"),
    "shrink as text": ((np.eye(3), "a"), TypeError, "shrinkage"),
}


@pytest.mark.parametrize("name", IMPORTANCES)
def test_refused_importance(name: str) -> None:
    value, kind, message = IMPORTANCES[name]
    with pytest.raises(kind, match=message):
        objective_for(value, None, 2, 3)


@pytest.mark.parametrize("name", COVARIANCES)
def test_refused_covariance(name: str) -> None:
    value, kind, message = COVARIANCES[name]
    with pytest.raises(kind, match=message):
        checked(value, 3, 0.1)
