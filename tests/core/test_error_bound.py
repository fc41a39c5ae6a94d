"""How far fast products are from exact ones: in decibels, and within what error_bound returns.

Exact means the dense product of the factors in float64, by NumPy alone.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import diba
from arrays import Factors, random_factors

if TYPE_CHECKING:
    from collections.abc import Callable

ALPHABETS = ("binary", "sign")
RANDOM_SHAPES = [  # (m, k, n): tiny, odd, wide, square, tall
    (1, 1, 1), (3, 4, 5), (31, 20, 33), (65, 63, 64), (100, 90, 700), (384, 172, 384), (1536, 290, 384),
]  # fmt: skip
SOLVED_SHAPES = [(31, 33), (96, 130), (384, 384)]  # (m, n) of random matrices


def solved_factors(m: int, n: int, alphabet: str) -> Factors:
    """What a solver makes of a random matrix."""
    A = np.random.default_rng([m, n]).standard_normal((m, n))
    f = diba.solve(A, bits_per_weight=1.5, alphabet=alphabet, effort="fast", max_iter=10)
    return Factors(f.d1, f.b1.to_dense(np.float64), f.d2, f.b2.to_dense(np.float64), f.d3, alphabet)


@cache
def with_dense(
    make: Callable[..., Factors], arguments: tuple[int | str, ...]
) -> tuple[diba.Factorization, np.ndarray]:
    """A factorization and the float64 matrix that it stands for."""
    factors = make(*arguments)
    return factors.diba, factors.dense()


def matrices() -> list[pytest.ParameterSet]:
    made = [(random_factors, shape) for shape in RANDOM_SHAPES]
    made += [(solved_factors, shape) for shape in SOLVED_SHAPES]
    return [
        pytest.param(make, (*shape, alphabet), id=f"{make.__name__}-{shape}-{alphabet}")
        for make, shape in made
        for alphabet in ALPHABETS
    ]


def larger(X: np.ndarray, factor: float, count: int) -> np.ndarray:
    """A few entries of each row are larger."""
    rng = np.random.default_rng(1)
    for row in X:
        row[rng.choice(row.size, min(count, row.size), replace=False)] *= factor
    return X


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # from Gaussian ones
    "Gaussian": lambda X: X,
    "a few 50 times larger": lambda X: larger(X, 50, 5),
    "a few 1000 times larger": lambda X: larger(X, 1000, 3),
    "one 1e6 times larger": lambda X: larger(X, 1e6, 1),
    "around 30": lambda X: X + 30,
    "positive": np.abs,
    "after ReLU": lambda X: np.maximum(X, 0),
    "tiny": lambda X: X * 1e-30,
    "huge": lambda X: X * 1e30,
    "all scales": lambda X: X * np.exp(4 * X[:, ::-1]),
}


def snr_db(exact: np.ndarray, found: np.ndarray) -> float:
    """Of the mean energies; in float64, where squares of 1e32 and of 1e-32 are no problem."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum()))


@pytest.mark.parametrize(("make", "arguments"), matrices())
def test_fast_products_are_40_db_from_exact_and_within_the_bound(
    make: Callable[..., Factors], arguments: tuple[int | str, ...]
) -> None:
    """40 dB holds for the mean energy over many vectors: a single product of few terms may cancel to nothing.

    What cancels does so in the result alone, never in its error; then the bound still holds.
    """
    f, dense = with_dense(make, arguments)
    n = dense.shape[1]
    count = 64 if n >= 64 else 600
    for activations, change in ACTIVATIONS.items():
        X = change(np.random.default_rng(n).standard_normal((count, n))).astype(np.float32)
        exact, found = X.astype(np.float64) @ dense.T, f.linear(X)
        if dense.any():
            assert snr_db(exact, found) >= 40, activations
        else:  # 1 x 1 without its bit
            assert not found.any()
        for x, y, z in zip(X[:8], found, exact, strict=False):
            assert (np.abs(y - z) <= f.error_bound(x)).all(), activations


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_a_product_that_cancels_keeps_the_bound(alphabet: str) -> None:
    """The exact result is zero, so there are no decibels to speak of, but terms of its size are known."""
    factors = random_factors(100, 90, 100, alphabet)
    b2, d3 = factors.b2.copy(), factors.d3.copy()
    b2[:, 1::2], d3[1::2] = b2[:, ::2], d3[::2]  # every second column is the one before
    twins = Factors(factors.d1, factors.b1, factors.d2, b2, d3, alphabet)
    x = np.repeat(np.random.default_rng(0).standard_normal(50), 2).astype(np.float32)
    x[1::2] *= -1
    f, dense = twins.diba, twins.dense()
    assert not (dense @ x).any()
    assert (np.abs(f @ x) <= f.error_bound(x)).all()
    uncancelled = np.abs(x)
    assert np.linalg.norm(f @ x) <= 0.01 * np.linalg.norm(dense @ uncancelled)  # which is 40 dB


@pytest.mark.parametrize(("make", "arguments"), matrices()[4:])
def test_the_bound_is_of_the_size_of_a_product(
    make: Callable[..., Factors], arguments: tuple[int, ...]
) -> None:
    """It adds up the worst cases of all terms, and stays a statement about the product nevertheless."""
    f, dense = with_dense(make, arguments)
    X = np.random.default_rng(0).standard_normal((20, dense.shape[1])).astype(np.float32)
    bounds = np.stack([f.error_bound(x) for x in X])
    assert np.isfinite(bounds).all()
    assert np.linalg.norm(bounds) < 20 * np.linalg.norm(X @ dense.T)


@pytest.mark.parametrize("shape", [(40, 4, 4), (40, 3, 2)])
@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_the_bound_is_nearly_reached_where_few_terms_meet(shape: tuple[int, int, int], alphabet: str) -> None:
    factors = random_factors(*shape, alphabet)
    f, dense = factors.diba, factors.dense()
    X = np.random.default_rng(0).standard_normal((300, shape[2])).astype(np.float32)
    errors = np.abs(f.linear(X) - X @ dense.T)
    bounds = np.stack([f.error_bound(x) for x in X])
    assert 0.5 < (errors / bounds).max() <= 1


# ---------------------------------------------------------------- any input

SCALES = (0.0, -0.0, 1.0, -1.0, 0.5, -3.25, 1e-3, 700.0)  # of a diagonal
VALUES = (0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40, 1e-38, 1e-20, 3e19, 1e38, -3.4e38)


@st.composite
def products(draw: st.DrawFn) -> tuple[Factors, np.ndarray]:
    """Factors and a float32 vector, of any finite values."""
    m, k, n = (draw(st.integers(1, 12) | st.sampled_from((31, 32, 33, 70))) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    alphabet = draw(st.sampled_from(ALPHABETS))
    share, zero = draw(st.sampled_from((0.0, 0.1, 0.5, 1.0))), 0 if alphabet == "binary" else -1
    b1, b2 = (np.where(rng.random(shape) < share, 1, zero) for shape in ((m, k), (k, n)))
    d1, d2, d3 = (
        draw(arrays.arrays(np.float32, size, elements=st.sampled_from(SCALES))) for size in (m, k, n)
    )
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    of_any_size = finite | st.sampled_from(np.float32(VALUES).tolist()) | st.floats(-4, 4, width=32)
    return Factors(d1, b1, d2, b2, d3, alphabet), draw(arrays.arrays(np.float32, n, elements=of_any_size))


def factors_of_ones(d1: float, d2: float, d3: float, n: int = 8, alphabet: str = "binary") -> Factors:
    ones = (np.full((2, 2), 1), np.full((2, n), 1))
    d1, d2, d3 = (np.full(size, d, np.float32) for size, d in ((2, d1), (2, d2), (n, d3)))
    return Factors(d1, ones[0], d2, ones[1], d3, alphabet)


@settings(max_examples=200, deadline=None)
@given(products())
@example((factors_of_ones(1, 1, 1), np.full(8, 1.6e38, np.float32)))  # the middle overflows
@example((factors_of_ones(1e30, 1, 1), np.full(8, 1e30, np.float32)))  # the result overflows
@example((factors_of_ones(1, 1e30, 1), np.full(8, 1e30, np.float32)))
@example((factors_of_ones(1, 1, 1e30), np.full(8, 1e30, np.float32)))
@example((factors_of_ones(1e30, 1e30, 1e-30), np.ones(8, np.float32)))  # only B1's part does
@example((factors_of_ones(1e-20, 1, 1), np.full(8, 1e-26, np.float32)))  # a subnormal result
@example((factors_of_ones(1e-30, 1e-15, 1), np.full(8, 1e30, np.float32)))  # a subnormal part
@example((factors_of_ones(1e38, 1, 1, alphabet="sign"), np.full(8, 1e-45, np.float32)))
def test_the_bound_holds_for_every_finite_input(product: tuple[Factors, np.ndarray]) -> None:
    factors, x = product
    f = factors.diba
    with np.errstate(over="ignore", invalid="ignore"):
        found, bound = (f @ x).astype(np.float64), f.error_bound(x)
    exact = factors.dense() @ x.astype(np.float64)
    stated = ~np.isnan(bound)
    assert np.isfinite(found[stated]).all()
    assert (np.abs(found - exact)[stated] <= bound[stated]).all()
    # Nothing is stated only where something is near the end of float32's range, 2^128.
    absolute = np.abs(x.astype(np.float64)) * np.abs(factors.d3)
    middle = np.abs(factors.d2.astype(np.float64)).sum() * (1 + absolute.sum())
    if 8 * max(1.0, float(np.abs(factors.d1).max())) * max(middle, absolute.sum()) < 2.0**126:
        assert stated.all()


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_nothing_is_known_of_an_infinite_input(isa: str, alphabet: str, value: float, scale: float) -> None:
    """Neither of the product nor of its error; other vectors are not touched."""
    factors = random_factors(40, 33, 70, alphabet)
    d3 = factors.d3.copy()
    d3[41] = scale
    f = Factors(factors.d1, factors.b1, factors.d2, factors.b2, d3, alphabet).diba
    X = np.random.default_rng(0).standard_normal((6, 70)).astype(np.float32)
    expected = f.linear(X)
    X[2, 41] = value
    found = f.linear(X)
    assert np.isnan(found[2]).all()
    assert np.isnan(f @ X[2]).all()
    assert np.isnan(f.error_bound(X[2])).all()
    others = [0, 1, 3, 4, 5]
    assert found[others].tobytes() == expected[others].tobytes()


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("power", [-60, -1, 1, 90])
def test_powers_of_two_change_nothing_but_the_scale(isa: str, alphabet: str, power: int) -> None:
    f = random_factors(40, 33, 70, alphabet).diba
    x = np.random.default_rng(0).standard_normal(70).astype(np.float32)
    scaled = np.ldexp(x, power)
    assert np.array_equal(f @ scaled, np.ldexp(f @ x, power))
    assert np.array_equal(f.error_bound(scaled), np.ldexp(f.error_bound(x), power))


def test_operands_of_the_bound() -> None:
    f = random_factors(3, 4, 5, "sign").diba
    x = [1, 2, 3, 4, 5]
    bound = f.error_bound(x)
    assert (bound.shape, bound.dtype) == ((3,), np.float64)
    assert np.array_equal(bound, f.error_bound(np.array(x, np.float64)))
    for wrong, error, message in (
        (np.ones(4), ValueError, "x has shape|x has 4"),
        (np.ones((5, 1)), ValueError, "x is 2-D"),
        (np.ones(5, complex), TypeError, "x is complex"),
    ):
        with pytest.raises(error, match=message):
            f.error_bound(wrong)
