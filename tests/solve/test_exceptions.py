"""diba.apb against a search of all choices of exceptions, and what must hold of any choice."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import diba

RNG = np.random.default_rng(3)
A = RNG.standard_t(4, (60, 90))
ROUNDING = (
    2.0**-22
)  # alpha and the exceptions move by up to 2^-11 of themselves when they are rounded to 16 bits


def error(A: np.ndarray, f: diba.APB) -> float:
    return float(np.square(A - f.to_dense(np.float64)).sum())


def least_error(A: np.ndarray, count: int) -> float:
    """Of all sets of so many exceptions, each with the alpha that is best for it."""
    magnitudes = np.abs(A).ravel()
    sets = itertools.combinations(magnitudes, magnitudes.size - count)
    return min(float(np.var(kept) * len(kept)) for kept in sets)


@pytest.mark.parametrize("count", range(10))
def test_no_other_choice_is_better(count: int) -> None:
    for matrix in (RNG.standard_normal((3, 3)), RNG.standard_t(2, (3, 3)), RNG.integers(-2, 3, (3, 3)) * 1.0):
        f = diba.apb(matrix, exceptions=count / 9)
        least = least_error(matrix, min(count, 8))
        assert f.values.size <= count
        assert error(matrix, f) <= least * (1 + 1e-9) + ROUNDING * np.square(matrix).sum()


def test_an_exception_of_one_row() -> None:
    f = diba.apb([[1.0, -1.0, 1.0, 9.0], [-1.0, 1.0, -1.0, -1.0]], exceptions=0.125)
    assert f.alpha.tolist() == [1]
    assert (f.starts.tolist(), f.columns.tolist(), f.values.tolist()) == ([0, 1, 1], [3], [8])


def test_more_exceptions_never_have_more_error() -> None:
    for options in ({}, {"scales": "rows"}, {"importance": (None, RNG.random(90) + 0.1)}):
        weight = options.get("importance", (None, 1.0))[1]
        errors = []
        for share in np.linspace(0, 1, 21):
            difference = A - diba.apb(A, exceptions=share, **options).to_dense(np.float64)  # type: ignore[arg-type]
            errors.append(np.square(difference * weight).sum())
        assert (np.diff(errors) <= 0).all()
        assert errors[-1] <= ROUNDING * np.square(A * weight).sum()


@pytest.mark.parametrize("scales", ["layer", "rows"])
@pytest.mark.parametrize("weighted", [False, True])
def test_neither_alpha_nor_an_exchange_lowers_the_error(scales: Any, weighted: bool) -> None:
    o, i = (RNG.random(60) + 0.1, RNG.random(90) + 0.1) if weighted else (np.ones(60), np.ones(90))
    f = diba.apb(A, exceptions=0.05, scales=scales, importance=(o, i) if weighted else None)
    weights = np.square(np.outer(o, i))
    rows = np.repeat(np.arange(60), np.diff(f.starts.astype(int)))
    chosen = np.zeros(A.shape, bool)
    chosen[rows, f.columns] = True
    assert chosen.sum() == round(0.05 * A.size)
    alpha = np.broadcast_to(f.alpha[:, None].astype(np.float64), (60, 1))
    errors = weights * np.square(np.abs(A) - alpha)
    assert errors[chosen].min() >= errors[~chosen].max()
    kept = weights * ~chosen
    axis = 1 if scales == "rows" else None
    mean = (kept * np.abs(A)).sum(axis=axis, keepdims=True) / kept.sum(axis=axis, keepdims=True)
    # the repetition ends when the error falls by less than 1e-6 of it, which alpha's rounding may undo
    settled = np.square(mean - alpha) * kept.sum(axis=1, keepdims=True)
    assert settled.sum() <= 3e-6 * errors[~chosen].sum()


def test_importance_of_rows_and_scale_do_not_matter_to_rows_of_their_own() -> None:
    f = diba.apb(A, exceptions=0, scales="rows", importance=(RNG.random(60) + 0.1, None))
    assert f == diba.apb(A, exceptions=0, scales="rows")
    assert diba.apb(A * 2.0**60, exceptions=0.1).snr_db(A * 2.0**60) == diba.apb(A, exceptions=0.1).snr_db(A)


@pytest.mark.parametrize("bits", [1.1, 1.5, 4, 30])
@pytest.mark.parametrize("scales", ["layer", "rows"])
def test_bits_are_used_and_kept_to(bits: float, scales: Any) -> None:
    wide = RNG.standard_normal((20, 1000))
    if scales == "rows" and bits == 1.1:
        bits = 1.2
    f = diba.apb(wide, bits_per_weight=bits, scales=scales)
    assert f.bits_per_weight <= bits
    assert f.bits_per_weight > bits - 33 / wide.size


def test_exceptions_that_change_nothing_are_left_out() -> None:
    f = diba.apb(np.where(A < 0, -3.0, 3.0), exceptions=0.5)
    assert f.values.size == 0
    assert f.snr_db(np.where(A < 0, -3.0, 3.0)) == np.inf
    assert not diba.apb(np.zeros((3, 4)), exceptions=0.5).to_dense().any()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, ValueError, "neither is given; give one"),
        ({"exceptions": 0.1, "bits_per_weight": 2}, ValueError, "both are given; give one"),
        ({"exceptions": 1.5}, ValueError, "at most 1"),
        ({"exceptions": -1}, ValueError, "at least 0"),
        ({"exceptions": "1"}, TypeError, "exceptions is '1'"),
        ({"bits_per_weight": 0.5}, ValueError, "takes at least 1.18"),
        ({"exceptions": 0.1, "scales": "columns"}, ValueError, "'layer', 'rows'"),
        ({"exceptions": 0.1, "importance": (np.ones(3), None)}, ValueError, "it must have 60"),
        ({"exceptions": 0.1, "importance": 1}, TypeError, "pair"),
        ({"exceptions": 0.1, "threads": 0}, ValueError, "threads"),
    ],
)
def test_bad_options(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        diba.apb(A, **options)


def test_bad_matrices() -> None:
    with pytest.raises(ValueError, match="NaN"):
        diba.apb([[np.nan]], exceptions=0)
    with pytest.raises(ValueError, match="matrix"):
        diba.apb([1.0], exceptions=0)
