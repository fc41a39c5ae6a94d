"""The search for the smallest k: against made-up solvers whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diba.solvers.size import largest_k, smallest_k

M, N = 384, 512


class Solver:
    """Counts the calls; refuses to solve for one k twice."""

    def __init__(self, snr: Callable[[int], float]) -> None:
        self.snr = snr
        self.tried: dict[int, float] = {}

    def __call__(self, k: int) -> tuple[str, float]:
        assert k not in self.tried
        assert 1 <= k <= largest_k(M, N)
        self.tried[k] = self.snr(k)
        return f"factors of {k}", self.tried[k]


CURVES: dict[str, Callable[[int], float]] = {
    "linear": lambda k: 0.02 * k,
    "steep": lambda k: 0.9 * k,
    "flat": lambda k: 0.006 * k,
    "bent up": lambda k: 1e-5 * k * k,
    "bent down": lambda k: 0.4 * k**0.6,
    "exact from 100": lambda k: math.inf if k >= 100 else 0.01 * k,
    "late": lambda k: -math.inf if k < 1000 else 100.0,
}


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("target", [0.01, 1, 7.3, 12])
@pytest.mark.parametrize("name", CURVES)
def test_finds_the_smallest(name: str, target: float, rough: bool) -> None:
    snr = CURVES[name]
    expected = next(k for k in range(1, largest_k(M, N) + 1) if snr(k) >= target)
    solver = Solver(snr)
    cheap = (lambda k: snr(k) - 0.1) if rough else None
    k, result = smallest_k(solver, M, N, target, rough=cheap)
    assert (k, result) == (expected, f"factors of {expected}")
    assert k == 1 or solver.tried[k - 1] < target
    assert len(solver.tried) <= 2 * math.log2(largest_k(M, N)) + 2


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32), st.floats(0.1, 20), st.floats(0, 0.5))
def test_what_was_tried_defines_the_result(seed: int, target: float, noise: float) -> None:
    """A solver that is neither smooth nor monotone."""
    wobble = noise * np.random.default_rng(seed).standard_normal(largest_k(M, N) + 1)
    solver = Solver(lambda k: 0.025 * k + wobble[k])
    k, result = smallest_k(solver, M, N, target, rough=lambda k: 0.024 * k)
    assert result == f"factors of {k}"
    assert solver.tried[k] >= target
    assert k == 1 or solver.tried[k - 1] < target
    if noise < 0.012:  # less than a step of k: few tries beside the right place
        assert len(solver.tried) <= 8


def test_cheap_solves_save_dear_ones() -> None:
    for bend in (0.7, 1.0, 1.3):
        solver = Solver(lambda k, bend=bend: 10 * (k / 500) ** bend)
        calls: list[int] = []

        def rough(k: int, bend: float = bend, calls: list[int] = calls) -> float:
            calls.append(k)
            return 10 * (k / 500) ** bend - 0.05

        smallest_k(solver, M, N, 10, rough=rough)
        assert len(calls) <= 5
        assert len(solver.tried) <= 4


def test_a_target_out_of_reach() -> None:
    solver = Solver(lambda k: 8.0)
    with pytest.raises(
        ValueError, match=r"snr_db is 9; even k = \d+ \(16 bits per weight\) reaches only 8\.00 dB"
    ):
        smallest_k(solver, M, N, 9)
    assert largest_k(M, N) in solver.tried


def test_time_that_runs_out() -> None:
    solver = Solver(lambda k: 0.4 * k**0.6)
    k, _ = smallest_k(
        solver, M, N, 9, expired=lambda: len(solver.tried) >= 2 and max(solver.tried.values()) >= 9
    )
    assert k == min(k for k, snr in solver.tried.items() if snr >= 9)
    with pytest.raises(
        TimeoutError, match=r"before any k reached 9 dB; the largest tried, k = \d+, gave .* time_limit"
    ):
        smallest_k(Solver(lambda k: 0.001 * k), M, N, 9, expired=lambda: True)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 9), (2, 2)])
def test_small_matrices_may_use_some_k(m: int, n: int) -> None:
    assert largest_k(m, n) >= 4
    assert smallest_k(lambda k: (k, 6.0 * k), m, n, 13) == (3, 3)
