"""Fast products: equal bytes whatever computes them, transposed ones, and every form of operand."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import diba
from arrays import random_factors, vectors
from diba import _core

if TYPE_CHECKING:
    from collections.abc import Callable

ALPHABETS = ("binary", "sign")
SHAPES = [(1, 1, 1), (3, 4, 5), (33, 31, 65), (100, 290, 129), (260, 130, 700)]  # (m, k, n)
BATCHES = (1, 2, 3, 4, 5, 8, 17, 64, 200)


@pytest.fixture(params=ALPHABETS)
def alphabet(request: pytest.FixtureRequest) -> str:
    return request.param


@cache
def one_by_one(m: int, k: int, n: int, alphabet: str) -> np.ndarray:
    """Products of all vectors, one at a time, by the scalar kernels on one thread."""
    before = _core.isa()
    _core.select_isa("scalar")
    try:
        f = random_factors(m, k, n, alphabet).diba
        return np.stack([f.linear(x, threads=1) for x in vectors(max(BATCHES), n)])
    finally:
        _core.select_isa(before)


# ---------------------------------------------------------------- what does not fit


def test_more_columns_than_its_sums_can_hold_are_left_to_exact_products() -> None:
    n = 2**20 + 1
    f = diba.Factorization.from_factors([2.0], [[1]], [1.0], np.ones((1, n)), np.ones(n))
    x = np.ones(n, np.float32)
    with pytest.raises(ValueError, match=rf"has {n} columns; it must have at most 2\^20.*precision='exact'"):
        f.linear(x)
    assert f.linear(x, precision="exact").tolist() == [2.0 * n]


# ---------------------------------------------------------------- equal bytes


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bytes_for_every_processor_thread_and_batch(
    isa: str, cut: None, alphabet: str, shape: tuple[int, int, int]
) -> None:
    f, expected = random_factors(*shape, alphabet).diba, one_by_one(*shape, alphabet)
    X = vectors(max(BATCHES), shape[2])
    for threads in (1, 2, 5):
        for count in BATCHES:
            assert f.linear(X[:count], threads=threads).tobytes() == expected[:count].tobytes()
            columns = f.matmat(X[:count].T, precision="fast", threads=threads)
            assert columns.shape == (shape[0], count)
            assert columns.T.tobytes() == expected[:count].tobytes()
        assert f.matvec(X[7], precision="fast", threads=threads).tobytes() == expected[7].tobytes()
    assert (f @ X[8]).tobytes() == expected[8].tobytes()
    assert (f @ X[:9].T).T.tobytes() == expected[:9].tobytes()
    assert (X[:9] @ f.T).tobytes() == expected[:9].tobytes()
    assert (X[8] @ f.T).tobytes() == expected[8].tobytes()


def misaligned(X: np.ndarray) -> np.ndarray:
    memory = np.zeros(X.nbytes + 1, np.uint8)[1:]
    memory[:] = np.frombuffer(X.tobytes(), np.uint8)
    return memory.view(np.float32).reshape(X.shape)


def from_torch(X: np.ndarray) -> Any:
    return pytest.importorskip("torch").from_numpy(X.copy())


def frozen(X: np.ndarray) -> np.ndarray:
    X = X.copy()
    X.flags.writeable = False
    return X


LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "strided": lambda X: np.repeat(X, 2, axis=-1)[..., ::2],
    "rows apart": lambda X: np.repeat(X, 3, axis=0)[::3],
    "backwards": lambda X: X[::-1].copy()[::-1],
    "by columns": np.asfortranarray,
    "float64": lambda X: X.astype(np.float64),
    "big-endian": lambda X: X.astype(">f4"),
    "misaligned": misaligned,
    "read-only": frozen,
    "list": lambda X: X.tolist(),
    "torch": from_torch,
}


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_bytes_for_every_layout_of_the_input(layout: str, prepared: bool, alphabet: str) -> None:
    m, k, n = 33, 31, 65
    f, expected = random_factors(m, k, n, alphabet).diba, one_by_one(m, k, n, alphabet)
    if prepared:  # a first product goes another way than the later ones
        f.prepare()
    X = vectors(max(BATCHES), n)
    change = LAYOUTS[layout]
    assert f.linear(change(X)).tobytes() == expected.tobytes()
    assert f.matvec(change(X[8]), precision="fast").tobytes() == expected[8].tobytes()
    assert (f @ change(X[8])).tobytes() == expected[8].tobytes()
    assert f.matmat(change(X.T), precision="fast").T.tobytes() == expected.tobytes()
    assert (f @ change(X.T)).T.tobytes() == expected.tobytes()
    assert (change(X) @ f.T).tobytes() == expected.tobytes()


def test_products_are_not_affected_by_what_else_is_in_the_batch(alphabet: str) -> None:
    """Every vector has tables of its own scale: a huge neighbour costs no precision."""
    f = random_factors(33, 31, 65, alphabet).diba
    X = vectors(5, 65)
    expected = f.linear(X)
    for value in (1e30, np.nan):
        changed = X.copy()
        changed[3] = value
        found = f.linear(changed)
        assert np.delete(found, 3, 0).tobytes() == np.delete(expected, 3, 0).tobytes()


# ---------------------------------------------------------------- transposed products


@pytest.mark.parametrize("shape", SHAPES)
def test_transposed_products_are_products_of_the_transpose(
    isa: str, alphabet: str, shape: tuple[int, int, int]
) -> None:
    m, k, n = shape
    f = random_factors(m, k, n, alphabet).diba
    other = diba.Factorization(f.d3, f.b2.T, f.d2, f.b1.T, f.d1)  # knows nothing of f
    Y = vectors(6, m)
    expected = np.stack([other.linear(y, threads=1) for y in Y])
    assert f.rmatvec(Y[1], precision="fast").tobytes() == expected[1].tobytes()
    assert f.rmatvec(Y[1][:, None], precision="fast").tobytes() == expected[1].tobytes()
    assert np.array_equal(f.rmatmat(Y.T, precision="fast", threads=2), expected.T)
    assert (f.T @ Y[1]).tobytes() == expected[1].tobytes()
    assert (Y[1] @ f).tobytes() == expected[1].tobytes()
    assert (Y @ f).tobytes() == expected.tobytes()
    assert f.T.linear(Y).tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_transpose_is_the_adjoint(alphabet: str, shape: tuple[int, int, int]) -> None:
    """<f x, y> = <x, f' y>, but for what both bounds allow."""
    f = random_factors(*shape, alphabet).diba
    for x, y in zip(vectors(5, shape[2]), vectors(5, shape[0], seed=1), strict=True):
        left, right = (f @ x).astype(np.float64) @ y, x.astype(np.float64) @ (y @ f)
        allowed = f.error_bound(x) @ np.abs(y) + np.abs(x) @ f.T.error_bound(y)
        assert abs(left - right) <= allowed


# ---------------------------------------------------------------- dense layers


@pytest.mark.parametrize("precision", ["fast", "exact"])
def test_linear_takes_any_leading_shape(alphabet: str, precision: Any) -> None:
    f = random_factors(5, 70, 9, alphabet).diba
    bias = np.arange(5, dtype=np.float32)
    X = vectors(24, 9)
    rows = f.matmat(X.T, precision=precision).T
    for shape in ((24,), (2, 12), (2, 3, 4), (1, 24, 1), (4, 1, 6, 1)):
        for shift in (None, bias, bias.tolist(), bias.astype(np.float64), np.repeat(bias, 2)[::2]):
            found = f.linear(X.reshape(*shape, 9), shift, precision=precision)
            assert (found.shape, found.dtype) == ((*shape, 5), np.float32)
            assert found.flags.c_contiguous
            assert np.array_equal(found.reshape(24, 5), rows if shift is None else rows + bias)
    vector = f.linear(X[1], bias, precision=precision)
    assert vector.shape == (5,)
    alone = f.matvec(X[1], precision=precision)
    assert np.array_equal(vector, alone + bias)
    assert precision == "exact" or np.array_equal(
        alone, rows[1]
    )  # exact sums of one vector have their own order
    for shape in ((0,), (0, 3), (3, 0)):
        for shift in (None, bias):
            empty = f.linear(np.ones((*shape, 9), np.float32), shift, precision=precision)
            assert (empty.shape, empty.dtype) == ((*shape, 5), np.float32)
    assert f.matmat(np.ones((9, 0)), precision=precision).shape == (5, 0)
