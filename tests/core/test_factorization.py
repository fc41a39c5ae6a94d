"""Factorization: against dense float64 algebra, exact rational arithmetic and SciPy."""

from __future__ import annotations

import copy
import math
import pickle
import tracemalloc
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import diba
from diba._internal import storage
from diba._internal.snr import dense_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrays import Factors

ALPHABETS = ("binary", "sign")
SHAPES = [(1, 1, 1), (1, 3, 9), (9, 3, 1), (5, 70, 4), (67, 10, 130), (40, 64, 128)]
EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(params=ALPHABETS)
def alphabet(request: pytest.FixtureRequest) -> str:
    return request.param


def bound(f: Factors, right: np.ndarray) -> np.ndarray:
    """Of |f @ right - exact|: two chained sums, of n and k terms, and three scalings in float32.

    A float32 sum of N terms errs by at most N eps sum|terms|; signs, as 2 B x - sum(x), by three times that.
    """
    _, n = f.diba.shape
    return 3 * (n + f.diba.k + 3) * EPS * (f.magnitude() @ np.abs(right))


def test_products_of_floats(isa: str, make_factors: Callable[..., Factors], alphabet: str) -> None:
    for m, k, n in SHAPES:
        factors = make_factors(m, k, n, alphabet)
        f, dense = factors.diba, factors.dense()
        rng = np.random.default_rng(1)
        X = rng.standard_normal((n, 3)).astype(np.float32)
        Y = rng.standard_normal((m, 3)).astype(np.float32)
        limit = bound(factors, X)
        assert (np.abs(f.matmat(X) - dense @ X) <= limit).all()
        assert (np.abs(f.linear(X.T, precision="exact").T - dense @ X) <= limit).all()
        assert (np.abs(f.matvec(X[:, 0]) - dense @ X[:, 0]) <= limit[:, 0]).all()
        limit = 3 * (m + k + 3) * EPS * (factors.magnitude().T @ np.abs(Y))
        assert (np.abs(f.rmatmat(Y) - dense.T @ Y) <= limit).all()
        assert (np.abs(f.rmatvec(Y[:, 0]) - dense.T @ Y[:, 0]) <= limit[:, 0]).all()
        assert (np.abs(f.to_dense() - dense) <= bound(factors, np.eye(n))).all()


def test_products_of_integers_are_exact(
    isa: str, make_factors: Callable[..., Factors], alphabet: str
) -> None:
    for m, k, n in SHAPES:
        factors = make_factors(m, k, n, alphabet, integers=True)
        f, dense = factors.diba, factors.dense()
        X = np.random.default_rng(2).integers(-3, 4, (n, 4))
        Y = np.random.default_rng(3).integers(-3, 4, (m, 4))
        assert np.array_equal(f.to_dense(), dense)
        assert np.array_equal(f.matmat(X), dense @ X)
        assert np.array_equal(f.matvec(X[:, 0]), dense @ X[:, 0])
        assert np.array_equal(
            f.linear(X.T, X[0, 0] * dense[:, 0], precision="exact"), X.T @ dense.T + X[0, 0] * dense[:, 0]
        )
        assert np.array_equal(f.rmatmat(Y), dense.T @ Y)
        assert np.array_equal(f.rmatvec(Y[:, 1]), dense.T @ Y[:, 1])
        assert np.array_equal(f.T.matmat(Y), dense.T @ Y)
        assert np.array_equal(f.T.to_dense(), dense.T)
        assert f.snr_db(dense) == math.inf


def test_results_do_not_depend_on_threads(make_factors: Callable[..., Factors], alphabet: str) -> None:
    f = make_factors(301, 200, 277, alphabet).diba
    X = np.random.default_rng(4).standard_normal((277, 6))
    for product, operand in ((f.matmat, X), (f.matvec, X[:, 0]), (f.T.rmatmat, X), (f.T.rmatvec, X[:, 0])):
        for precision in ("fast", "exact"):
            expected = product(operand, precision=precision, threads=1).tobytes()
            assert product(operand, precision=precision, threads=2).tobytes() == expected
            assert product(operand, precision=precision, threads=7).tobytes() == expected


def test_transpose_is_made_once_and_leads_back(make_factors: Callable[..., Factors], alphabet: str) -> None:
    f = make_factors(4, 70, 6, alphabet).diba
    assert f.T is f.T
    assert f.T.T is f
    assert f.T.shape == (6, 4)
    assert diba.Factorization(f.d3, f.b2.T, f.d2, f.b1.T, f.d1) == f.T


# ---------------------------------------------------------------- dense form and SNR


def test_to_dense_in_blocks(
    make_factors: Callable[..., Factors], alphabet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    f = make_factors(50, 30, 333, alphabet).diba
    whole = f.to_dense()
    monkeypatch.setattr("diba._internal.snr._BLOCK_BYTES", 1)  # one word of columns at a time
    assert [columns.stop for columns, _ in dense_blocks(f.d1, f.b1, f.d2, f.b2, f.d3)] == [
        64,
        128,
        192,
        256,
        320,
        333,
    ]
    assert f.to_dense().tobytes() == whole.tobytes()


def test_to_dense_needs_no_large_temporaries(
    make_factors: Callable[..., Factors], alphabet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diba._internal.snr._BLOCK_BYTES", 1 << 18)
    m, k, n = 300, 700, 700  # B2 alone would take 2 MB dense
    f = make_factors(m, k, n, alphabet).diba
    tracemalloc.start()
    try:
        f.to_dense()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * m * n + 3 * 4 * 64 * (m + k)  # the result and a few blocks of 64 columns


def test_snr(make_factors: Callable[..., Factors], alphabet: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diba._internal.snr._BLOCK_BYTES", 1)
    f = make_factors(30, 7, 150, alphabet).diba
    A = np.random.default_rng(5).standard_normal((30, 150))
    error = A - f.to_dense().astype(np.float64)
    expected = 10 * np.log10(np.sum(A**2) / np.sum(error**2))
    assert f.snr_db(A) == pytest.approx(expected, rel=1e-12)
    assert f.snr_db(np.asfortranarray(A)) == f.snr_db(A) == f.snr_db(A.tolist())
    assert f.snr_db(f.to_dense()) == math.inf
    assert f.snr_db(np.zeros((30, 150))) == -math.inf
    zero = diba.Factorization(np.zeros(30), f.b1, f.d2, f.b2, f.d3)
    assert zero.snr_db(np.zeros((30, 150))) == math.inf
    assert zero.snr_db(A) == 0
    tiny = A.astype(np.float32) * np.float32(1e-38)
    assert np.isfinite(zero.snr_db(tiny))
    for wrong, message in ((A.T, r"A is \(150, 30\); it must be \(30, 150\)"), (A * np.nan, "NaN")):
        with pytest.raises(ValueError, match=message):
            f.snr_db(wrong)


# ---------------------------------------------------------------- storage figures


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_storage_figures(make_factors: Callable[..., Factors], m: int, k: int, n: int, alphabet: str) -> None:
    f = make_factors(m, k, n, alphabet).diba
    for g, q in ((f, f.diagonal_bits), (f.round_diagonals(), 16)):
        assert g.diagonal_bits == q
        assert g.bits_per_weight == (k * (m + n) + q * (m + k + n)) / (m * n)
        assert g.storage_ratio == g.bits_per_weight / 32
        in_memory = g.b1.words.nbytes + g.b2.words.nbytes + g.d1.nbytes + g.d2.nbytes + g.d3.nbytes
        assert g.nbytes == in_memory
        assert 8 * g.nbytes == k * (m + n) + 32 * (m + k + n) + g.padding_bits
        packed = g.b1.packed_rows().nbytes + g.b2.packed_rows().nbytes
        assert 8 * packed == k * (m + n) + g.file_padding_bits
    assert make_factors(67, 172, 130, alphabet).diba.diagonal_bits == 32


def fits_by_definition(d: list[float]) -> bool:
    """d * 2^-e is exactly float16 for e = floor(log2(max|d|)), in rational arithmetic."""
    exact = [Fraction(value) for value in d]
    largest = max(map(abs, exact))
    e = 0
    if largest:
        while Fraction(2) ** (e + 1) <= largest:
            e += 1
        while Fraction(2) ** e > largest:
            e -= 1
    scaled = [value / Fraction(2) ** e for value in exact]
    return all(Fraction(float(np.float16(float(value)))) == value for value in scaled)


float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
float16s = st.floats(width=16, allow_nan=False, allow_infinity=False)
diagonals = st.lists(float32s, min_size=1, max_size=5) | st.tuples(
    st.lists(float16s, min_size=1, max_size=5), st.integers(-120, 110)
).map(lambda pair: [math.ldexp(value, pair[1]) for value in pair[0]])


@settings(max_examples=200, deadline=None)
@given(diagonals)
@example([0.0, -0.0])
@example([float(np.finfo(np.float32).max), 1.0])  # must not round up to 2^128
@example([-float(np.finfo(np.float32).max)])
@example([1.9999, 3 * 2.0**-24])  # rounds up to 2, and then the small entry needs another digit
@example([2.0**-149, 2.0**-140 * 1.5])
@example([1.9999 * 2.0**-140])
def test_sixteen_bit_diagonals(values: list[float]) -> None:
    d = np.array(values, dtype=np.float32)
    assert storage.fits_16(d) == fits_by_definition(d.tolist())
    rounded = storage.round_to_16(d)
    assert rounded.dtype == np.float32
    assert fits_by_definition(rounded.tolist())
    h, e = storage.encode(rounded)
    assert (h.dtype, type(e)) == (np.float16, int)
    assert storage.EXPONENT_MIN <= e <= storage.EXPONENT_MAX
    assert np.array_equal(storage.decode(h, e), rounded)
    size, error = np.abs(d.astype(np.float64)), np.abs(rounded.astype(np.float64) - d)
    limit = np.where(size >= size.max() * 2.0**-13, size * 2.0**-11, size.max() * 2.0**-24)
    assert (error <= np.maximum(limit, 2.0**-149)).all()
    if storage.fits_16(d):
        assert rounded.tobytes() == d.tobytes()


def test_round_diagonals(make_factors: Callable[..., Factors], alphabet: str) -> None:
    f = make_factors(20, 10, 30, alphabet).diba
    g = f.round_diagonals()
    assert (f.diagonal_bits, g.diagonal_bits) == (32, 16)
    assert g.round_diagonals() is g
    assert (g.b1, g.b2) == (f.b1, f.b2)
    for before, after in ((f.d1, g.d1), (f.d2, g.d2), (f.d3, g.d3)):
        assert np.allclose(before, after, rtol=2.0**-11, atol=np.abs(before).max() * 2.0**-24)


# ---------------------------------------------------------------- object protocol


def test_is_immutable(make_factors: Callable[..., Factors], alphabet: str) -> None:
    factors = make_factors(3, 4, 5, alphabet)
    f = factors.diba
    for d in (f.d1, f.d2, f.d3):
        assert d.dtype == np.float32
        with pytest.raises(ValueError, match="read-only"):
            d[0] = 1
    with pytest.raises(AttributeError):
        f.d1 = np.ones(3)
    with pytest.raises(AttributeError):
        f.anything = 1
    before = f.d1.copy()
    factors.d1[:] = 7  # the caller's array is not ours
    assert np.array_equal(f.d1, before)


def test_equality_hash_copy_and_pickle(make_factors: Callable[..., Factors], alphabet: str) -> None:
    f = make_factors(3, 70, 5, alphabet).diba
    same = make_factors(3, 70, 5, alphabet).diba
    assert f == same
    assert hash(f) == hash(same)
    assert f != make_factors(3, 70, 5, alphabet, seed=1).diba
    assert f != diba.Factorization(f.d1 + 1, f.b1, f.d2, f.b2, f.d3)
    assert f != f.to_dense().tolist()
    assert copy.copy(f) is f
    assert copy.deepcopy(f) is f
    again = pickle.loads(pickle.dumps(f))
    assert again == f
    assert not again.d1.flags.writeable


def test_repr(make_factors: Callable[..., Factors], alphabet: str) -> None:
    f = make_factors(384, 172, 384, alphabet).diba.round_diagonals()
    assert repr(f) == f"Factorization(384x384, k=172, {alphabet}, 1.00 bits/weight)"
    html = f._repr_html_()
    for fact in ("384 &times; 384", "172", alphabet, "0.998", "589,824 dense", f"{f.nbytes:,} packed"):
        assert fact in html
    assert html.count("<tr>") == html.count("</tr>") == 6


# ---------------------------------------------------------------- bad factors


def test_bad_factors(make_factors: Callable[..., Factors], alphabet: str) -> None:
    p = make_factors(3, 4, 5, alphabet)
    f = p.diba
    make, from_factors = diba.Factorization, diba.Factorization.from_factors
    other = "sign" if alphabet == "binary" else "binary"
    cases: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: make(p.d1, p.b1, p.d2, p.b2, p.d3), TypeError, "b1 is .* it must be a BitMatrix; use Fact"),
        (lambda: make(p.d1, f.b1, p.d2, f.b1, p.d3), ValueError, "rows of b2 is 3; it must be 4, the number"),
        (lambda: make(p.d1[:2], f.b1, p.d2, f.b2, p.d3), ValueError, "d1 has 2 entries; it must have 3"),
        (lambda: make(p.d1, f.b1, p.d1, f.b2, p.d3), ValueError, "d2 has 3 entries; it must have 4"),
        (lambda: make(p.d1, f.b1, p.d2, f.b2, p.d2), ValueError, "d3 has 4 entries; it must have 5"),
        (lambda: make(np.diag(p.d1), f.b1, p.d2, f.b2, p.d3), ValueError, "d1 is 2-D.*diagonal"),
        (lambda: make(p.d1 * np.inf, f.b1, p.d2, f.b2, p.d3), ValueError, "d1 has NaN or infinite entries"),
        (lambda: make([1e39, 1, 1], f.b1, p.d2, f.b2, p.d3), ValueError, "d1 has entries beyond float32"),
        (lambda: make(p.d1 + 1j, f.b1, p.d2, f.b2, p.d3), TypeError, "d1 is complex"),
        (lambda: make("abc", f.b1, p.d2, f.b2, p.d3), TypeError, "d1 is 'abc'"),
        (
            lambda: make(p.d1, f.b1, p.d2, diba.BitMatrix(f.b2.words, 5, other), p.d3),
            ValueError,
            f"alphabet of b2 is {other}; it must be {alphabet}",
        ),
        (
            lambda: from_factors(p.d1, p.b1 * 2, p.d2, p.b2, p.d3, alphabet),
            ValueError,
            "b1 has entries other",
        ),
        (lambda: from_factors(p.d1, p.b1, p.d2, p.b2[0], p.d3, alphabet), ValueError, "b2 is 1-D"),
        (lambda: from_factors(p.d1, p.b1, p.d2, p.b2, p.d3, "Sign"), ValueError, "'Sign'; it must be one of"),
        (lambda: from_factors(p.d1, p.b1, p.d2, p.b2, p.d3, 1), TypeError, "alphabet is 1"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
