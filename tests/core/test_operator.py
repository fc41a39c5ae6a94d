"""Products of every packed matrix: which are fast, what each takes, and what SciPy makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import diba
from arrays import random_factors, vectors

M, N = 5, 9
MATRICES: dict[str, Callable[[], Any]] = {
    "binary": lambda: random_factors(M, 70, N, "binary").diba,
    "sign": lambda: random_factors(M, 70, N, "sign").diba,
    "bits": lambda: random_factors(M, N, N, "sign").diba.b1,
    "onebit": lambda: diba.onebit(vectors(M, N)),
}


@pytest.fixture(params=MATRICES)
def matrix(request: pytest.FixtureRequest) -> Any:
    return MATRICES[request.param]()


def scale(matrix: Any) -> float:
    """Of rounding: what is added up in a product with operands of about 1, in units of 2^-24."""
    return 1e3 * float(np.abs(matrix.to_dense()).max())


def test_products_and_their_usual_precision(matrix: Any) -> None:
    """``@`` and ``linear`` are fast, the names that SciPy calls exact; without tables all are exact."""
    X, Y, bias = vectors(4, N), vectors(4, M), np.arange(M)
    dense = matrix.to_dense().astype(np.float64)
    exact, fast = {}, {}
    for precision, found in (("exact", exact), ("fast", fast)):
        found["X"] = matrix.matmat(X.T, precision=precision)
        found["Y"] = matrix.rmatmat(Y.T, precision=precision)
        found["x"] = matrix.matvec(X[1], precision=precision)
        found["y"] = matrix.rmatvec(Y[1], precision=precision)
        found["bias"] = matrix.linear(X, bias, precision=precision)
        assert np.array_equal(matrix.matvec(X[1][:, None], precision=precision)[:, 0], found["x"])
        assert np.array_equal(matrix.rmatvec(Y[1][:, None], precision=precision)[:, 0], found["y"])
        assert np.array_equal(matrix.linear(X, precision=precision), found["X"].T)
        assert np.array_equal(found["bias"], found["X"].T + bias.astype(np.float32))
    products = {"X": dense @ X.T, "Y": dense.T @ Y.T, "x": dense @ X[1], "y": dense.T @ Y[1]}
    for name, product in products.items():  # accuracy is tested with each kind of matrix
        assert np.allclose(exact[name], product, rtol=0, atol=1e-5 * np.abs(dense).sum() * np.abs(X).max())
    for default, expected in (
        (matrix.matmat(X.T), exact["X"]),
        (matrix.rmatmat(Y.T), exact["Y"]),
        (matrix.matvec(X[1]), exact["x"]),
        (matrix.rmatvec(Y[1]), exact["y"]),
        (matrix @ X.T, fast["X"]),
        (matrix @ X[1], fast["x"]),
        (Y @ matrix, fast["Y"].T),
        (Y[1] @ matrix, fast["y"]),
        (Y.reshape(2, 2, 1, M) @ matrix, fast["Y"].T.reshape(2, 2, 1, N)),
        (matrix.linear(X, bias), fast["bias"]),
    ):
        assert (default.shape, default.dtype) == (expected.shape, np.float32)
        assert np.array_equal(default, expected)
    two = isinstance(matrix, diba.Factorization)
    assert all(np.array_equal(exact[name], fast[name]) != two for name in exact)


@pytest.mark.parametrize("prepared", [False, True])
def test_every_product_checks_its_operands(matrix: Any, prepared: bool) -> None:
    """The rules themselves are tested in test_check."""
    if prepared and isinstance(matrix, diba.Factorization):
        matrix.prepare(), matrix.T.prepare()
    right, left = np.ones((N, 3), np.float32), np.ones((M, 3), np.float32)
    products: list[tuple[Callable[..., Any], np.ndarray, str]] = [
        (matrix.matvec, right[:, 0], "x"),
        (matrix.rmatvec, left[:, 0], "x"),
        (matrix.matmat, right, "X"),
        (matrix.rmatmat, left, "X"),
        (matrix.linear, right.T, "X"),
        (lambda X: matrix @ X, right, "the right operand"),
        (lambda X: X @ matrix, left.T, "the left operand"),
    ]
    for product, operand, name in products:
        axis = -1 if operand.shape[0] == 3 else 0
        for wrong, error, message in (
            (
                np.delete(operand, 0, axis),
                ValueError,
                r"has shape .*; it must be .* as many entries as there are",
            ),
            (np.float32(1), ValueError, "is 0-D"),
            (operand * 1j, TypeError, "is complex"),
            (np.where(operand > 0, None, 0), TypeError, "object"),
        ):
            with pytest.raises(error, match=f"^{name} {message}" if error is ValueError else message):
                product(wrong)
        if name in ("x", "X"):
            with pytest.raises(ValueError, match=r"^threads is 0"):
                product(operand, threads=0)
            for wrong, error in (("Fast", ValueError), ("float32", ValueError), (None, TypeError)):
                with pytest.raises(error, match=r"^precision is .*must be one of 'fast', 'exact'"):
                    product(operand, precision=wrong)
    for product, operand in ((matrix.matvec, right), (matrix.matmat, right[:, 0]), (matrix.rmatvec, left)):
        with pytest.raises(ValueError, match=r"^x is 2-D|^X is 1-D"):
            product(operand)
    for bias, error in (
        (np.ones(M + 1), ValueError),
        (np.ones((1, M)), ValueError),
        (1j * np.ones(M), TypeError),
    ):
        with pytest.raises(error, match=r"^bias "):
            matrix.linear(right.T, bias)
    with pytest.raises(ValueError, match="the right operand is 3-D"):
        matrix @ np.ones((2, N, 3), np.float32)
    with pytest.raises(TypeError):
        np.ones((M, N)) * matrix  # no silent elementwise loop of NumPy's


@pytest.mark.parametrize("precision", ["fast", "exact"])
def test_operands_of_any_layout_and_leading_shape(matrix: Any, precision: Any) -> None:
    X, bias = vectors(24, N), np.arange(M, dtype=np.float32)
    rows = matrix.linear(X, precision=precision)
    for other in (
        X.astype(">f4"),
        np.asfortranarray(X),
        np.repeat(X, 2, 1)[:, ::2],
        X.astype("f8"),
        X.tolist(),
    ):
        assert np.array_equal(matrix.linear(other, precision=precision), rows)
    for shape in ((24,), (2, 12), (2, 3, 4), (1, 24, 1), (4, 1, 6, 1)):
        for shift in (None, bias, bias.tolist(), bias.astype(np.float64), np.repeat(bias, 2)[::2]):
            found = matrix.linear(X.reshape(*shape, N), shift, precision=precision)
            assert (found.shape, found.dtype) == ((*shape, M), np.float32)
            assert found.flags.c_contiguous
            assert np.array_equal(found.reshape(24, M), rows if shift is None else rows + bias)
    alone = matrix.matvec(X[1], precision=precision)  # exact sums of one vector have their own order
    assert np.array_equal(matrix.linear(X[1], bias, precision=precision), alone + bias)
    for shape in ((0,), (0, 3), (3, 0)):
        for shift in (None, bias):
            empty = matrix.linear(np.ones((*shape, N), np.float32), shift, precision=precision)
            assert (empty.shape, empty.dtype) == ((*shape, M), np.float32)
    assert matrix.matmat(np.ones((N, 0)), precision=precision).shape == (M, 0)
    assert matrix.rmatmat(np.ones((M, 0)), precision=precision).shape == (N, 0)


def test_results_belong_to_the_caller(matrix: Any) -> None:
    X = vectors(3, N)
    before = X.copy()
    for precision in ("fast", "exact"):
        for product, operand in (
            (matrix.linear, X),
            (matrix.matvec, X[0]),
            (matrix.matmat, X.T),
            (matrix.rmatmat, X[:, :M].T),
        ):
            first, second = (product(operand, precision=precision) for _ in range(2))
            expected = first.copy()
            assert first.flags.writeable
            assert not np.shares_memory(first, X)
            assert not np.shares_memory(first, second)
            first[:] = 7
            assert np.array_equal(second, expected)
            assert np.array_equal(product(operand, precision=precision), expected)
    assert np.array_equal(X, before)


def test_numpy_arrays_of_it(matrix: Any) -> None:
    dense = matrix.to_dense()
    assert np.asarray(matrix).dtype == np.float32
    assert np.array_equal(np.asarray(matrix), dense)
    assert np.asarray(matrix, dtype=np.float64).dtype == np.float64
    assert np.array_equal(matrix.__array__(np.int64), dense.astype(np.int64))
    assert np.array_equal(matrix.matmat(matrix.T), matrix.matmat(matrix.T.to_dense()))
    with pytest.raises(ValueError, match="copy=None"):
        matrix.__array__(copy=False)


# ---------------------------------------------------------------- SciPy


def test_scipy_takes_the_exact_products(matrix: Any) -> None:
    """Byte for byte, and solvers converge with them."""
    linalg = pytest.importorskip("scipy.sparse.linalg")
    operator = linalg.aslinearoperator(matrix)
    assert isinstance(operator, linalg.LinearOperator)
    assert (operator.shape, operator.dtype) == ((M, N), np.float32)
    X, Y = vectors(4, N).T, vectors(4, M).T
    columns = np.stack([matrix.matvec(x) for x in X.T], 1), np.stack([matrix.rmatvec(y) for y in Y.T], 1)
    for found, expected in (
        (operator.matvec(X[:, 1]), columns[0][:, 1]),
        (operator.matvec(X[:, 1:2]), columns[0][:, 1:2]),
        (operator.rmatvec(Y[:, 1]), columns[1][:, 1]),
        (operator.rmatvec(Y[:, 1:2]), columns[1][:, 1:2]),
        (operator.H @ Y[:, 1], columns[1][:, 1]),
        (operator.matmat(X), columns[0]),
        (operator.rmatmat(Y), matrix.rmatmat(Y)),
    ):
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("alphabet", ["binary", "sign"])
def test_solvers_of_scipy_converge(alphabet: str) -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    factors = random_factors(33, 31, 65, alphabet)
    operator, dense = linalg.aslinearoperator(factors.diba), factors.dense()
    singular = np.linalg.svd(dense, compute_uv=False)
    start = np.ones(33, np.float32)
    largest = np.sort(linalg.svds(operator, k=3, v0=start, return_singular_vectors=False))[::-1]
    assert np.allclose(largest, singular[:3], rtol=1e-4)
    assert np.array_equal(
        np.sort(linalg.svds(factors.diba, k=3, v0=start, return_singular_vectors=False))[::-1], largest
    )
    rhs = dense @ np.ones(65)
    solution = linalg.lsqr(operator, rhs, atol=1e-6, btol=1e-6, iter_lim=2000)[0]
    assert np.linalg.norm(dense @ solution - rhs) <= 1e-4 * np.linalg.norm(rhs)
