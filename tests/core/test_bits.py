"""BitMatrix: layout against numpy.packbits, products against dense float64 algebra."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diba

ALPHABETS = ("binary", "sign")
# every kind of row end: below, at and past bytes and words; several words
SIZES = [(1, 1), (3, 7), (2, 8), (5, 9), (4, 63), (3, 64), (2, 65), (9, 127), (6, 130), (70, 3), (33, 500)]
EPS = float(np.finfo(np.float32).eps)


def random_entries(rows: int, cols: int, alphabet: str, seed: int = 0) -> np.ndarray:
    zero = 0 if alphabet == "binary" else -1
    return np.where(np.random.default_rng(seed).random((rows, cols)) < 0.5, 1, zero)


def witness_bytes(entries: np.ndarray) -> np.ndarray:
    return np.packbits(entries > 0, axis=1, bitorder="little")


def test_layout_is_that_of_packbits(isa: str) -> None:
    for (rows, cols), alphabet in itertools.product(SIZES, ALPHABETS):
        entries = random_entries(rows, cols, alphabet)
        b = diba.BitMatrix.from_dense(entries, alphabet)
        expected = witness_bytes(entries)
        assert np.array_equal(b.packed_rows(), expected)
        padded = np.zeros((rows, 8 * -(-cols // 64)), np.uint8)
        padded[:, : expected.shape[1]] = expected
        assert np.array_equal(b.words.view(np.uint8), padded)
        assert diba.BitMatrix.from_packed_rows(expected, cols, alphabet) == b
        assert np.array_equal(b.to_dense(), entries)
        assert np.array_equal(b.T.to_dense(), entries.T)
        assert b == b.T.T


def test_products_of_integers_are_exact(isa: str) -> None:
    for (rows, cols), alphabet in itertools.product(SIZES, ALPHABETS):
        entries = random_entries(rows, cols, alphabet).astype(np.float64)
        b = diba.BitMatrix.from_dense(entries, alphabet)
        rng = np.random.default_rng(1)
        for p in (1, 2, 17):
            X = rng.integers(-100, 100, (cols, p)).astype(np.float32)
            Y = rng.integers(-100, 100, (rows, p)).astype(np.float32)
            assert np.array_equal(b.matmat(X), entries @ X)
            assert np.array_equal(b.rmatmat(Y), entries.T @ Y)
            assert np.array_equal(b.matvec(X[:, 0]), entries @ X[:, 0])
            assert np.array_equal(b.rmatvec(Y[:, 0]), entries.T @ Y[:, 0])


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_products_of_floats_meet_the_bound_of_a_float32_sum(isa: str, alphabet: str) -> None:
    rows, cols, p = 77, 301, 5
    entries = random_entries(rows, cols, alphabet).astype(np.float64)
    b = diba.BitMatrix.from_dense(entries, alphabet)
    rng = np.random.default_rng(2)
    X = rng.standard_normal((cols, p)).astype(np.float32)
    Y = rng.standard_normal((rows, p)).astype(np.float32)
    # A sum of N terms errs by at most N eps sum|terms|. Signs are 2 B x - sum(x): three such errors.
    for result, exact, terms in (
        (b.matmat(X), entries @ X, np.abs(X)),
        (b.matvec(X[:, 0])[:, None], entries @ X[:, :1], np.abs(X[:, :1])),
        (b.rmatmat(Y), entries.T @ Y, np.abs(Y)),
        (b.rmatvec(Y[:, 0])[:, None], entries.T @ Y[:, :1], np.abs(Y[:, :1])),
    ):
        bound = 3 * len(terms) * EPS * terms.sum(axis=0, dtype=np.float64)
        assert (np.abs(result - exact) <= bound).all()


def test_results_are_the_same_bytes_for_any_threads_and_instruction_set(isa: str) -> None:
    b = diba.BitMatrix.from_dense(random_entries(333, 777, "sign"), "sign")
    rng = np.random.default_rng(3)
    X, Y = rng.standard_normal((777, 9)), rng.standard_normal((333, 9))

    def all_products(threads: int) -> list[bytes]:
        return [
            b.matvec(X[:, 0], threads=threads).tobytes(),
            b.rmatvec(Y[:, 0], threads=threads).tobytes(),
            b.matmat(X, threads=threads).tobytes(),
            b.rmatmat(Y, threads=threads).tobytes(),
        ]

    expected = all_products(1)
    assert all_products(2) == expected
    assert all_products(7) == expected
    diba._core.select_isa("scalar")  # the isa fixture restores the instruction set
    assert all_products(1) == expected


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pack_and_adjoint_properties(data: st.DataObject) -> None:
    rows, cols = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 200))
    alphabet = data.draw(st.sampled_from(ALPHABETS))
    seed = data.draw(st.integers(0, 2**32 - 1))
    entries = random_entries(rows, cols, alphabet, seed)
    b = diba.BitMatrix.from_dense(entries, alphabet)
    assert np.array_equal(b.to_dense(np.int64), entries)
    assert np.array_equal(b.packed_rows(), witness_bytes(entries))
    rng = np.random.default_rng(seed)
    x, y = rng.integers(-9, 9, cols), rng.integers(-9, 9, rows)
    assert np.vdot(b @ x, y) == np.vdot(x, b.T @ y) == np.vdot(x, y @ b)


def test_dtype_of_to_dense_and_of_numpy_arrays() -> None:
    binary = diba.BitMatrix.from_dense([[1, 0], [0, 1]], "binary")
    sign = diba.BitMatrix.from_dense([[1, -1], [-1, 1]], "sign")
    assert binary.to_dense().dtype == np.float32
    assert np.array_equal(binary.to_dense(bool), np.eye(2, dtype=bool))
    assert sign.to_dense(np.int8).dtype == np.int8
    assert np.array_equal(np.asarray(sign), [[1, -1], [-1, 1]])
    assert np.asarray(sign, dtype=np.float64).dtype == np.float64
    for dtype in (np.uint8, bool, object):
        with pytest.raises(TypeError, match="signed number type"):
            sign.to_dense(dtype)


def test_is_immutable_and_owns_its_words() -> None:
    words = np.array([[5], [2]], np.uint64)
    b = diba.BitMatrix(words, 3, "binary")
    words[:] = 0
    assert np.array_equal(b.to_dense(), [[1, 0, 1], [0, 1, 0]])
    with pytest.raises(ValueError, match="read-only"):
        b.words[0, 0] = 1
    with pytest.raises(AttributeError):
        b.alphabet = "sign"
    owned = np.array([[5], [2]], np.uint64)
    assert np.shares_memory(diba.BitMatrix(owned, 3, "binary", copy=False).words, owned)
    assert not owned.flags.writeable


def test_equality_hash_copy_and_pickle() -> None:
    entries = random_entries(5, 70, "binary")
    b = diba.BitMatrix.from_dense(entries, "binary")
    same = diba.BitMatrix(b.words, 70, "binary")
    assert b == same
    assert hash(b) == hash(same)
    assert b != diba.BitMatrix(b.words, 70, "sign")
    assert b != diba.BitMatrix.from_dense(1 - entries, "binary")
    assert b != entries.tolist()
    wider = diba.BitMatrix.from_dense(np.pad(entries, ((0, 0), (0, 1))), "binary")  # the same words
    assert np.array_equal(wider.words, b.words)
    assert b != wider
    assert copy.copy(b) is b
    assert copy.deepcopy(b) is b
    again = pickle.loads(pickle.dumps(b))
    assert again == b
    assert not again.words.flags.writeable


def test_facts() -> None:
    b = diba.BitMatrix.from_dense(random_entries(5, 70, "sign"), "sign")
    assert (b.shape, b.alphabet, b.nbytes, b.ndim) == ((5, 70), "sign", 5 * 2 * 8, 2)
    assert repr(b) == "BitMatrix(5x70, sign)"


GOOD = np.zeros((2, 1), np.uint64)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: diba.BitMatrix([[0]], 3, "binary"),
            TypeError,
            r"words is \[\[0\]\] \(list\); it must be a uint64",
        ),
        (lambda: diba.BitMatrix(GOOD.view(np.int64), 3, "binary"), TypeError, "words is of dtype int64"),
        (
            lambda: diba.BitMatrix(GOOD, 65, "binary"),
            ValueError,
            r"shape \(2, 1\).*\(rows, 2\) for 65 columns",
        ),
        (
            lambda: diba.BitMatrix(GOOD, 0, "binary"),
            ValueError,
            "cols is 0; it must be an integer of at least 1",
        ),
        (lambda: diba.BitMatrix(GOOD, 3.0, "binary"), TypeError, r"cols is 3\.0"),
        (lambda: diba.BitMatrix(GOOD, True, "binary"), TypeError, "a boolean"),
        (
            lambda: diba.BitMatrix(GOOD, 3, "ternary"),
            ValueError,
            "'ternary'; it must be one of 'binary', 'sign'",
        ),
        (lambda: diba.BitMatrix(GOOD + np.uint64(8), 3, "binary"), ValueError, "ones past column 2"),
        (
            lambda: diba.BitMatrix.from_packed_rows(np.array([[8]], np.uint8), 3, "sign"),
            ValueError,
            "ones past",
        ),
        (
            lambda: diba.BitMatrix.from_packed_rows(np.zeros((1, 2), np.uint8), 3, "sign"),
            ValueError,
            "packed has",
        ),
        (
            lambda: diba.BitMatrix.from_packed_rows(np.zeros((1, 1), bool), 3, "sign"),
            TypeError,
            "packed is of dtype",
        ),
        (
            lambda: diba.BitMatrix.from_dense([[0, 1, 2]], "binary"),
            ValueError,
            r"1 of 3, the first is 2 at .*\[0, 2\]",
        ),
        (lambda: diba.BitMatrix.from_dense([[0, 1]], "sign"), ValueError, "use alphabet='binary'"),
        (lambda: diba.BitMatrix.from_dense([[0, np.nan]], "binary"), ValueError, "the first is nan"),
        (lambda: diba.BitMatrix.from_dense([0, 1], "binary"), ValueError, "must be a matrix"),
        (lambda: diba.BitMatrix.from_dense(np.empty((0, 3)), "binary"), ValueError, "is empty"),
    ],
)
def test_bad_arguments(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
