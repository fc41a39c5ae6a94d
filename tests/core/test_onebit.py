"""diba.onebit: the fit against an SVD in float64, the products and facts of its result."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import diba

RNG = np.random.default_rng(0)
A = (np.exp(0.5 * RNG.standard_normal((70, 1))) * RNG.standard_normal((70, 130))).astype(np.float32)


def test_the_fit_is_the_best_for_these_signs() -> None:
    """No diagonals do better than the leading singular pair of |A|."""
    for matrix in (A, A.T, A.astype(np.float64), A[:1], A[:, :1], np.round(4 * A).astype(np.int8)):
        f = diba.onebit(matrix)
        exact = matrix.astype(np.float64)
        assert np.array_equal(f.signs.to_dense(), np.where(exact < 0, -1, 1))
        values = np.linalg.svd(np.abs(exact), compute_uv=False)
        least = np.square(values[1:]).sum()
        found = np.square(exact - f.to_dense()).sum()
        # both diagonals move by up to 2^-11 of themselves when they are rounded to 16 bits, and the fit is
        # at its minimum; the power iteration stops within 1e-9 of |A|^2 a step
        assert (
            least * (1 - 1e-12)
            <= found
            <= least + 4 * 2.0**-22 * 1.01 * values[0] ** 2 + 1e-6 * values @ values
        )
        assert f.snr_db(matrix) == pytest.approx(10 * np.log10(values @ values / found), abs=1e-9)


def test_rank_one_magnitudes_are_met() -> None:
    signs = np.where(RNG.random((9, 7)) < 0.5, -1, 1)
    exact = np.outer(2.0 ** np.arange(9), 0.5 ** np.arange(7)) * signs
    assert diba.onebit(exact).snr_db(exact) > 60  # 16-bit diagonals


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30, 1e37])
def test_scale_does_not_matter(scale: float) -> None:
    exact = A.astype(np.float64) * scale
    assert diba.onebit(exact).snr_db(exact) == pytest.approx(diba.onebit(A).snr_db(A), abs=1e-3)


def test_zeros() -> None:
    f = diba.onebit(np.zeros((3, 5)))
    assert not f.to_dense().any()
    assert f.snr_db(np.zeros((3, 5))) == np.inf
    padded = np.pad(A[:4, :5], 2)
    dense = diba.onebit(padded).to_dense()
    assert not dense[:2].any()
    assert not dense[:, -2:].any()
    assert np.isfinite(diba.onebit(np.eye(6)).to_dense()).all()  # all singular values equal


def test_products(isa: str) -> None:
    f = diba.onebit(A)
    dense = f.to_dense().astype(np.float64)
    m, n = f.shape
    for threads in (1, 3):
        for product, operator, length in ((f.matvec, dense, n), (f.rmatvec, dense.T, m)):
            x = RNG.standard_normal(length).astype(np.float32)
            bound = (length + 4) * 2.0**-23 * (np.abs(operator) @ np.abs(x))
            assert (np.abs(product(x, threads=threads) - operator @ x) <= bound).all()
    X = RNG.standard_normal((n, 6)).astype(np.float32)
    bound = (n + 4) * 2.0**-23 * (np.abs(dense) @ np.abs(X))
    assert (np.abs(f @ X - dense @ X) <= bound).all()
    assert np.array_equal(X.T @ f.T, (f @ X).T)
    assert np.array_equal(f @ X[:, 0], f.matvec(X[:, 0]))


def test_facts() -> None:
    f = diba.onebit(A)
    m, n = A.shape
    assert f.shape == (m, n)
    assert f.diagonal_bits == 16
    assert f.bits_per_weight == (m * n + 16 * (m + n)) / (m * n)
    assert f.storage_ratio == f.bits_per_weight / 32
    assert 8 * f.nbytes == m * n + 32 * (m + n) + f.padding_bits
    assert repr(f) == "OneBit(70x130, 1.35 bits/weight)"
    assert f.to_dense(np.float64).dtype == np.float64
    assert np.array_equal(np.asarray(f), f.to_dense())
    assert np.array_equal(f.T.to_dense(), f.to_dense().T)
    assert not f.a.flags.writeable
    wide = diba.OneBit(f.a * np.float32(1 / 3), f.signs, f.b)
    assert wide.diagonal_bits == 32
    assert wide.bits_per_weight == (m * n + 32 * (m + n)) / (m * n)


def test_equal_copies() -> None:
    f = diba.onebit(A)
    assert f == diba.onebit(A, threads=2) == pickle.loads(pickle.dumps(f)) == copy.deepcopy(f) == f.T.T
    assert hash(f) == hash(diba.onebit(A))
    assert f != diba.onebit(-A)
    assert f != "f"


@pytest.mark.parametrize(
    ("matrix", "kind", "message"),
    [
        (np.ones(3), ValueError, "must be a matrix"),
        (np.ones((0, 3)), ValueError, "empty"),
        ([[1.0, np.nan]], ValueError, "NaN"),
        ([[1j]], TypeError, "complex"),
        ("A", TypeError, "array of real numbers"),
    ],
)
def test_bad_matrices(matrix: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        diba.onebit(matrix)


def test_bad_parts() -> None:
    f = diba.onebit(A[:3, :4])
    with pytest.raises(TypeError, match="signs is"):
        diba.OneBit(f.a, f.signs.to_dense(), f.b)
    with pytest.raises(ValueError, match="alphabet of signs"):
        diba.OneBit(f.a, diba.BitMatrix(f.signs.words, 4, "binary"), f.b)
    with pytest.raises(ValueError, match="a has 4 entries; it must have 3"):
        diba.OneBit(f.b, f.signs, f.b)
    with pytest.raises(ValueError, match="shape of A"):
        f.snr_db(A)
    with pytest.raises(ValueError, match="threads"):
        diba.onebit(A, threads=0)
