"""What all methods of diba.solve share: determinism, effort, time limits, starts; and what auto takes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import diba
from diba import _core
from diba.solvers import EFFORTS, METHODS
from run_python import python

ALPHABETS = ("binary", "sign")
COMBINATIONS = [(m, a) for m in METHODS for a in ALPHABETS if (m, a) != ("dbf", "binary")]
EXACT = 60.0  # dB: roundings of three diagonals to 16 bits, 2^-12 each, leave 62.7 dB where they agree


def gaussian(m: int, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, n), dtype=np.float32)


def low_rank(m: int, n: int) -> np.ndarray:
    """Rank 8 and noise: closer to trained weights than noise alone."""
    return gaussian(m, 8, 1) @ gaussian(8, n, 2) + gaussian(m, n, 3)


# ---------------------------------------------------------------- one seed, one result


@pytest.mark.parametrize(("method", "alphabet"), COMBINATIONS)
def test_the_same_factors_on_every_instruction_set_and_for_any_threads(method: str, alphabet: str) -> None:
    A, given = low_rank(70, 45), {"k": 33, "method": method, "alphabet": alphabet, "max_iter": 30, "seed": 7}
    before = _core.isa()
    expected = diba.solve(A, threads=1, **given)
    try:
        for isa in _core.supported_isas():
            _core.select_isa(isa)
            for threads in (1, 2, 3):
                assert diba.solve(A, threads=threads, **given) == expected, (isa, threads)
    finally:
        _core.select_isa(before)
    assert diba.solve(A, **(given | {"seed": 8})) != expected


@pytest.mark.slow
@pytest.mark.parametrize(("method", "alphabet"), [("admm", "binary"), ("dbf", "sign")])
def test_threads_that_have_enough_to_do(method: str, alphabet: str) -> None:
    A, given = low_rank(520, 500), {"k": 300, "method": method, "alphabet": alphabet, "max_iter": 2}
    alone, together = (diba.solve(A, threads=threads, effort="fast", **given) for threads in (1, 3))
    assert alone == together


def test_the_same_factors_whatever_processor_numpy_sees() -> None:
    """OpenBLAS adds in an order of the processor's own, which must not reach the factors."""
    code = """
import hashlib
import numpy as np
import diba
rng = np.random.default_rng(0)
A = rng.standard_normal((70, 5)) @ rng.standard_normal((5, 45)) + rng.standard_normal((70, 45))
for method in ("auto", "dbf", "greedy"):
    f = diba.solve(A, k=33, method=method, alphabet="sign", max_iter=30, threads=1)
    parts = (f.d1, f.b1.words, f.d2, f.b2.words, f.d3)
    print(method, hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest())
"""
    done = [python(code, OPENBLAS_CORETYPE=core) for core in ("", "Prescott", "Nehalem")]
    assert all(run.stderr == "" and run.stdout.count("\n") == 3 for run in done)
    assert len({run.stdout for run in done}) == 1


# ---------------------------------------------------------------- effort


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_effort_orders_budgets(alphabet: str) -> None:
    A = low_rank(40, 33)
    seen: dict[str, list[diba.Progress]] = {effort: [] for effort in EFFORTS}
    snr = {
        effort: diba.solve(A, k=33, alphabet=alphabet, effort=effort, progress=seen[effort].append).snr_db(A)
        for effort in EFFORTS
    }
    assert list(EFFORTS) == ["fast", "normal", "best"]
    most = [reports[0].total for reports in seen.values()]
    assert most[0] < most[1] < most[2]
    assert all(reports[-1].done <= reports[0].total for reports in seen.values())
    assert snr["best"] > snr["fast"]
    default: list[diba.Progress] = []
    assert diba.solve(A, k=33, alphabet=alphabet, progress=default.append).snr_db(A) == snr["normal"]
    assert default[0].total == seen["normal"][0].total


# ---------------------------------------------------------------- time limits


@pytest.mark.parametrize(("method", "alphabet"), COMBINATIONS)
def test_a_time_limit_ends_a_run_with_useful_factors(method: str, alphabet: str) -> None:
    """Without it this would take days."""
    A = low_rank(96, 80)
    reports: list[diba.Progress] = []
    begin = time.monotonic()
    f = diba.solve(
        A,
        k=40,
        method=method,
        alphabet=alphabet,
        max_iter=10**8,
        tol=0,
        time_limit=0.3,
        progress=reports.append,
    )
    assert time.monotonic() - begin < 60
    assert f.snr_db(A) > 5  # greedy reaches 8, and ADMM 9
    assert reports[-1].snr_db == pytest.approx(f.snr_db(A), abs=1e-4)
    assert all(report.remaining is None or 0 <= report.remaining <= 0.3 for report in reports)


@pytest.mark.parametrize(("method", "alphabet"), COMBINATIONS)
def test_no_time_at_all_still_gives_factors(method: str, alphabet: str) -> None:
    A = low_rank(40, 30)
    f = diba.solve(A, k=20, method=method, alphabet=alphabet, time_limit=0)
    assert (f.shape, f.k, f.alphabet, f.diagonal_bits) == ((40, 30), 20, alphabet, 16)
    assert np.isfinite(f.to_dense()).all()


def test_a_limit_that_is_not_reached_changes_nothing_but_the_ramps_pace() -> None:
    A = low_rank(40, 30)
    given: dict[str, Any] = {"k": 20, "method": "greedy"}
    assert diba.solve(A, time_limit=1e9, **given) == diba.solve(A, **given)
    given["method"] = "admm"
    assert diba.solve(A, time_limit=1e9, effort="fast", **given) == diba.solve(A, effort="fast", **given)


@pytest.mark.parametrize(("limit", "kind"), [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError)])
def test_time_limits_are_checked(limit: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="time_limit"):
        diba.solve(low_rank(4, 3), k=1, time_limit=limit)


# ---------------------------------------------------------------- starts


@pytest.mark.parametrize(("method", "alphabet"), COMBINATIONS)
def test_a_start_is_improved(method: str, alphabet: str) -> None:
    A = low_rank(60, 50)
    first = diba.solve(A, k=30, method="greedy", alphabet=alphabet, max_iter=1)
    reports: list[diba.Progress] = []
    better = diba.solve(A, method=method, alphabet=alphabet, init=first, progress=reports.append)
    assert better.k == 30
    assert better.snr_db(A) > first.snr_db(A) + 0.1
    assert reports[0].snr_db == pytest.approx(first.snr_db(A), abs=1e-3)
    assert reports[-1].snr_db == pytest.approx(better.snr_db(A), abs=1e-4)
    assert better == diba.solve(A, k=30, method=method, alphabet=alphabet, init=first)


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_a_start_that_cannot_be_improved_is_returned_as_it_is(alphabet: str) -> None:
    A = low_rank(30, 20)
    f = diba.solve(A, k=12, alphabet=alphabet)
    for _ in range(50):
        g = diba.solve(A, alphabet=alphabet, init=f, tol=0)
        if g is f:
            break
        assert g.snr_db(A) > f.snr_db(A)
        f = g
    assert diba.solve(A, alphabet=alphabet, init=f, tol=0) is f
    assert diba.solve(A, alphabet=alphabet, init=f, max_iter=0) is f
    assert diba.solve(A, alphabet=alphabet, init=f, time_limit=0) is f


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_a_start_is_taken_at_any_scale(alphabet: str) -> None:
    A = low_rank(30, 20)
    first = diba.solve(A, k=12, alphabet=alphabet, method="greedy", max_iter=1)
    start = diba.Factorization(
        np.ldexp(first.d1, -10), first.b1, np.ldexp(first.d2, 60), first.b2, np.ldexp(first.d3, -10)
    )
    large = np.ldexp(A, 40)
    f = diba.solve(large, alphabet=alphabet, init=start)
    assert start.snr_db(large) == pytest.approx(first.snr_db(A))
    assert f.snr_db(large) == pytest.approx(diba.solve(A, alphabet=alphabet, init=first).snr_db(A), abs=1e-3)


def test_starts_are_checked() -> None:
    A = low_rank(12, 10)
    f = diba.solve(A, k=4)
    for wrong, kind, message in (
        ({"A": A.T}, ValueError, r"shape of init is \(12, 10\).*\(10, 12\)"),
        ({"alphabet": "sign"}, ValueError, "alphabet of init is binary; it must be sign"),
        ({"k": 5}, ValueError, "inner dimension of init is 4.*5"),
        ({"bits_per_weight": 9}, ValueError, "inner dimension of init is 4"),
        ({"snr_db": 20}, ValueError, "snr_db and init are both given; give only one"),
        ({"init": f.to_dense()}, TypeError, "init .*Factorization"),
    ):
        given = {"A": A, "init": f, "alphabet": "binary"} | wrong
        with pytest.raises(kind, match=message):
            diba.solve(**given)


# ---------------------------------------------------------------- dbf and auto


def test_dbf_knows_signs_only() -> None:
    for given in ({}, {"alphabet": "binary"}):
        with pytest.raises(ValueError, match=r"alphabet is 'binary'.*must be 'sign'.*dbf"):
            diba.solve(low_rank(5, 4), k=2, method="dbf", **given)


def one_entry(m: int, n: int, value: float) -> np.ndarray:
    A = np.zeros((m, n))
    A[m // 2, n // 2] = value
    return A


CASES: dict[str, tuple[np.ndarray, int]] = {
    "zero": (np.zeros((5, 4)), 3),
    "1 x 1": (np.array([[-2.5]]), 1),
    "1 x 1, k 12": (np.ones((1, 1)), 12),
    "k 1": (gaussian(40, 30), 1),
    "k 1, large": (gaussian(100, 90), 1),
    "k 2": (gaussian(100, 90), 2),
    "rank one": (np.outer(gaussian(1, 40)[0], gaussian(1, 35, 1)[0]), 40),
    "constant": (np.full((12, 10), -3.5), 8),
    "constant, large": (np.full((40, 40), 2.0), 40),
    "1 x n": (gaussian(1, 30), 10),
    "n x 1": (gaussian(30, 1), 10),
    "1 x many": (gaussian(1, 500), 40),
    "many x 1": (gaussian(500, 1), 40),
    "equal rows": (np.repeat(gaussian(10, 40), 6, axis=0), 40),
    "equal columns": (np.tile(gaussian(50, 5), (1, 10)), 36),
    "one row": (one_entry(9, 1, 1.0) * np.arange(1.0, 8.0), 8),
    "one column": (np.arange(1.0, 8.0)[:, None] * one_entry(1, 9, 1.0), 8),
    "one entry": (one_entry(5, 6, 1.0), 8),
    "identity": (np.eye(40), 40),
    "zeros around": (np.pad(gaussian(5, 5), 3), 12),
    "k above m and n": (gaussian(5, 7), 60),
    "many bits": (gaussian(40, 40), 200),
    "tiny": (1e-30 * gaussian(6, 6).astype(np.float64), 12),
    "scales": (gaussian(40, 36) * np.logspace(-6, 6, 36), 34),
    "gaussian": (gaussian(48, 40), 40),
}


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("name", CASES)
def test_auto_is_never_worse_than_greedy(name: str, alphabet: str) -> None:
    """Up to what 16-bit diagonals leave of an exact fit."""
    A, k = CASES[name]
    auto, greedy = (
        diba.solve(A, k=k, method=method, alphabet=alphabet, effort="fast").snr_db(A)
        for method in ("auto", "greedy")
    )
    assert auto >= min(greedy, EXACT)


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize("stage", ["start", "ramp", "polish"])
@pytest.mark.parametrize(("method", "alphabet"), COMBINATIONS)
def test_ctrl_c_in_the_callback_ends_the_run(method: str, alphabet: str, stage: str) -> None:
    A, seen = low_rank(40, 33), []
    given: dict[str, Any] = {"k": 33, "method": method, "alphabet": alphabet, "max_iter": 20, "tol": 0}
    expected = diba.solve(A, **given)
    at = {"start": 0, "ramp": 3, "polish": {"greedy": 5, "dbf": 20}.get(method, 21)}[stage]

    def stop(progress: diba.Progress) -> None:
        seen.append(progress.done)
        if progress.done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diba.solve(A, progress=stop, **given)
    assert seen == list(range(at + 1))
    assert diba.solve(A, **given) == expected
