"""Argument rules: what is accepted, and what each refusal says."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import diba
from diba._internal import check, check_arrays, machine

BASE = np.array([[1, 0, 1], [0, 1, 1]])  # also a valid bool array


WIDE = np.zeros((4, 6))
WIDE[::2, ::2] = BASE
READ_ONLY = BASE.astype(np.float32)
READ_ONLY.flags.writeable = False

ACCEPTED: dict[str, Callable[[], Any]] = {
    **{f"dtype {code}": lambda code=code: BASE.astype(code) for code in "?bBhHiIlLqQefdg"},
    "big-endian float32": lambda: BASE.astype(">f4"),
    "big-endian int16": lambda: BASE.astype(">i2"),
    "nested lists": lambda: BASE.tolist(),
    "tuple of arrays": lambda: tuple(BASE),
    "strided": lambda: WIDE[::2, ::2],
    "reversed": lambda: np.ascontiguousarray(BASE[::-1, ::-1])[::-1, ::-1],
    "Fortran order": lambda: np.asfortranarray(BASE, dtype=np.float64),
    "read-only": lambda: READ_ONLY,
    "np.matrix": lambda: np.asmatrix(BASE),
    "BitMatrix": lambda: diba.BitMatrix.from_dense(BASE, "binary"),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("name", ACCEPTED)
def test_matrices_of_every_real_kind_are_accepted(name: str) -> None:
    result = check_arrays.real_matrix(ACCEPTED[name](), "A")
    assert type(result) is np.ndarray
    assert result.dtype in (np.float32, np.float64)
    assert result.dtype.isnative
    assert result.flags.c_contiguous
    assert np.array_equal(result, BASE)


def test_no_value_is_lost_and_nothing_is_copied_without_need() -> None:
    for exact in (
        np.float64(1 / 3),
        np.int64(2**53 - 1),
        np.int32(2**31 - 1),
        np.uint16(65535),
        np.float16(0.1),
    ):
        assert check_arrays.real_matrix(np.array([[exact]]), "A")[0, 0] == exact
    for dtype in (np.float32, np.float64):
        A = np.ones((3, 4), dtype)
        assert check_arrays.real_matrix(A, "A") is A


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    A = torch.tensor(BASE)
    with warnings.catch_warnings():  # some time they will be gone
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(A.float(), 0.5, 0, torch.qint8)
    for value in (
        *(
            A.to(dtype)
            for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.bool)
        ),
        A.float().requires_grad_(),
        torch.nn.Parameter(A.float()),
        A.T.contiguous().T,
        torch.tensor(-1j * BASE).conj().imag,  # a view that is negated when read
        A.float().requires_grad_() * 1,
        quantized,
    ):
        assert np.array_equal(check_arrays.real_matrix(value, "A"), BASE)
    for wrong, message in (
        (A.to("meta"), r"on device 'meta'; it must be on the CPU: use A.cpu\(\)"),
        (A.float().to_sparse(), r"layout torch.sparse_coo; it must be dense: use A.to_dense\(\)"),
        (A + 0j, "A is complex"),
    ):
        with pytest.raises(TypeError, match=message):
            check_arrays.real_matrix(wrong, "A")


def test_sparse_matrices_are_refused() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    for kind in (sparse.csr_matrix, sparse.coo_array):
        with pytest.raises(TypeError, match=r"A is a sparse .*; it must be dense: use A.toarray\(\)"):
            check_arrays.real_matrix(kind(BASE), "A")


class Refusing:
    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise TypeError("use .get()")


NAN = np.ones((3, 4))
NAN[1, 2] = NAN[2, 0] = np.nan


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (3.0, ValueError, r"A is 0-D, of shape \(\); it must be a matrix \(2-D\): use numpy.reshape"),
        ([1.0, 2.0], ValueError, r"A is 1-D, of shape \(2,\).*A.reshape\(1, -1\) for one row"),
        (
            np.ones((2, 3, 4)),
            ValueError,
            r"A is 3-D, of shape \(2, 3, 4\).*use A.reshape\(A.shape\[0\], -1\)",
        ),
        (np.ones((0, 3)), ValueError, r"A is empty, of shape \(0, 3\); it must have at least one row"),
        ([[]], ValueError, r"A is empty, of shape \(1, 0\)"),
        ([], ValueError, r"A is 1-D, of shape \(0,\)"),
        (
            NAN,
            ValueError,
            r"NaN or infinite entries \(2 of 12, the first is nan at A\[1, 2\]\).*nan_to_num",
        ),
        ([[1.0, -np.inf]], ValueError, r"\(1 of 2, the first is -inf at A\[0, 1\]\)"),
        (np.array([[np.inf]], np.float16), ValueError, "NaN or infinite"),
        (
            [[1e39]],
            ValueError,
            r"magnitudes up to 1e\+39.*float32's range, at most 3.4e\+38: divide A",
        ),
        ([[-1e300, 1.0]], ValueError, r"up to 1e\+300"),
        (BASE + 1j, TypeError, r"A is complex \(complex128\); it must be real: use A.real or A.imag"),
        (BASE.astype(object), TypeError, "A is .*entries of dtype object.*use numpy.asarray"),
        ([[1, None]], TypeError, "dtype object"),
        ([[10**30]], TypeError, "dtype object"),
        ([[1, 2], [3]], ValueError, "A cannot be read as a matrix: .*same length"),
        ("weights.npy", TypeError, r"A is 'weights.npy' \(str\); it must be an array of real numbers"),
        (None, TypeError, "A is None; it must be an array"),
        ({"A": 1}, TypeError, "A is {'A': 1}"),
        (np.array([["1", "2"]]), TypeError, "A has dtype <U1; it must be a real number type"),
        (np.array([["2020-01-01"]], "M8[D]"), TypeError, "A has dtype datetime64"),
        (np.zeros((1, 1), [("x", "f4")]), TypeError, "A has dtype "),
        (np.ma.masked_equal(BASE, 0), TypeError, r"A is a masked array.*use A.filled\(0\)"),
        (Refusing(), TypeError, r"A \(.*\) cannot be read as an array of numbers: use .get\(\)"),
    ],
)
def test_bad_matrices(value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_arrays.real_matrix(value, "A")


def test_longdouble_beyond_float64() -> None:
    if np.finfo(np.longdouble).max <= np.finfo(np.float64).max:
        pytest.skip("longdouble is no wider than float64 here")
    with pytest.raises(ValueError, match="A has NaN or infinite entries"):
        check_arrays.real_matrix(np.array([["1e400"]]).astype(np.longdouble), "A")


# ---------------------------------------------------------------- operands


@pytest.mark.parametrize(
    ("form", "shapes"),
    [
        ("vector", [(3,)]),
        ("column", [(3,), (3, 1)]),
        ("columns", [(3, 1), (3, 4), (3, 0)]),
        ("either", [(3,), (3, 4), (3, 1), (3, 0)]),
        ("rows", [(3,), (4, 3), (2, 4, 3), (0, 3), (1, 1, 1, 3)]),
    ],
)
def test_forms_of_operands(form: Any, shapes: list[tuple[int, ...]]) -> None:
    every = {(), (2,), (3,), (3, 1), (3, 4), (3, 0), (4, 3), (2, 4, 3), (0, 3), (1, 1, 1, 3), (3, 1, 1)}
    for shape in shapes:
        for dtype in ("f4", "f8", ">f4", "i1", "?", "f2"):
            found = check_arrays.operand(np.ones(shape, dtype), "X", 3, form, "columns")
            assert (found.shape, found.dtype) == (shape, np.float32)
    for shape in every - set(shapes):
        if form == "rows" and shape[-1:] == (3,):
            continue
        with pytest.raises(ValueError, match=r"^X (is .*-D|has shape).*3[,)]"):
            check_arrays.operand(np.ones(shape), "X", 3, form, "columns")


def test_operands_are_rounded_to_float32_if_they_fit() -> None:
    x = np.ones(6, np.float32)[::2]
    assert np.shares_memory(check_arrays.operand(x, "x", 3, "vector", "columns"), x)
    assert check_arrays.operand([1 / 3, np.inf, 1e-60], "x", 3, "vector", "columns").tolist() == [
        np.float32(1 / 3),
        np.inf,
        0,
    ]
    with pytest.raises(ValueError, match=r"beyond float32's range \(1 of 3, .* 1e\+300 at x\[1\]"):
        check_arrays.operand([1, 1e300, np.inf], "x", 3, "vector", "columns")


# ---------------------------------------------------------------- numbers and names


def test_good_numbers() -> None:
    assert check.positive_int(np.int64(3), "k") == 3
    assert type(check.positive_int(np.uint8(3), "k")) is int
    assert check.number(np.float32(0.5), "tol", minimum=0) == 0.5
    assert check.number(0, "tol", minimum=0) == 0
    assert check.seed(2**64 - 1) == 2**64 - 1
    assert check.thread_count(1) == 1
    assert check.alphabet("sign") == "sign"
    assert check.one_of("greedy", "method", ("greedy", "other")) == "greedy"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: check.positive_int(0, "k"), ValueError, "k is 0; it must be an integer of at least 1"),
        (lambda: check.positive_int(-3, "k"), ValueError, "k is -3"),
        (
            lambda: check.positive_int(10**30, "k"),
            ValueError,
            "k is 1000.*; it must be an integer from 1",
        ),
        (lambda: check.positive_int(True, "k"), TypeError, "k is True, a boolean; it must be an integer"),
        (lambda: check.positive_int(np.True_, "k"), TypeError, "a boolean"),
        (
            lambda: check.positive_int(2.0, "k"),
            TypeError,
            r"k is 2.0 \(float\).*use int\(k\) if a whole",
        ),
        (lambda: check.positive_int("2", "k"), TypeError, r"k is '2' \(str\)"),
        (lambda: check.positive_int(np.array([2]), "k"), TypeError, "k is an array of shape"),
        (lambda: check.seed(-1), ValueError, "seed is -1; it must be an integer of at least 0"),
        (lambda: check.seed(2**64), ValueError, "seed is 18446744073709551616; .* from 0 to 1844"),
        (lambda: check.seed(None), TypeError, "seed is None; it must be an integer"),
        (lambda: check.thread_count(0), ValueError, "threads is 0; it must be an integer of at least 1"),
        (
            lambda: check.thread_count(10**6),
            ValueError,
            "threads is 1000000; .* from 1 to 1024",
        ),
        (
            lambda: check.number(-1, "tol", minimum=0),
            ValueError,
            "tol is -1; .* a finite number of at least 0",
        ),
        (lambda: check.number(0, "b", minimum=0, exclusive=True), ValueError, "b is 0; .* number above 0"),
        (lambda: check.number(np.nan, "tol", minimum=0), ValueError, "tol is nan"),
        (lambda: check.number(np.inf, "tol", minimum=0), ValueError, "tol is inf"),
        (lambda: check.number("1", "tol", minimum=0), TypeError, r"tol is '1' \(str\)"),
        (lambda: check.number(1j, "tol", minimum=0), TypeError, "tol is 1j"),
        (lambda: check.number(True, "tol", minimum=0), TypeError, "tol is True"),
        (lambda: check.number([1, 2], "tol", minimum=0), TypeError, r"tol is \[1, 2\]"),
        (lambda: check.number(10**400, "tol", minimum=0), ValueError, "tol is inf"),
        (
            lambda: check.alphabet("Binary"),
            ValueError,
            "alphabet is 'Binary'; .* one of 'binary', 'sign'",
        ),
        (lambda: check.alphabet(None), TypeError, "alphabet is None; it must be one of"),
        (
            lambda: check.one_of("magic", "method", ("greedy",)),
            ValueError,
            "method is 'magic'; .* one of 'greedy'",
        ),
    ],
)
def test_bad_numbers_and_names(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ---------------------------------------------------------------- sizes


def test_exactly_one_size() -> None:
    assert check.exactly_one_size(np.int32(7), None, None, None) == ("k", 7)
    assert check.exactly_one_size(None, 1, None, None) == ("bits_per_weight", 1.0)
    assert check.exactly_one_size(None, None, 0.05, None) == ("storage_ratio", 0.05)
    assert check.exactly_one_size(None, None, None, 12) == ("snr_db", 12.0)
    for wrong, error, message in (
        (
            (None, None, None, None),
            ValueError,
            "^no size is given; give exactly one of k, .*bits_per_weight=1",
        ),
        ((3, 1.0, None, None), ValueError, r"^k=3 and bits_per_weight=1\.0 are given; give exactly one"),
        ((0, None, None, None), ValueError, "k is 0"),
        ((1.5, None, None, None), TypeError, r"k is 1\.5"),
        ((None, 0, None, None), ValueError, "bits_per_weight is 0; it must be a finite number above 0"),
        ((None, np.nan, None, None), ValueError, "bits_per_weight is nan"),
        ((None, None, -0.1, None), ValueError, r"storage_ratio is -0\.1"),
        ((None, None, "1%", None), TypeError, "storage_ratio is '1%'"),
        ((None, None, None, 0), ValueError, "snr_db is 0; it must be a finite number above 0"),
    ):
        with pytest.raises(error, match=message):
            check.exactly_one_size(*wrong)


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 2_000_000_000)
    check.fits_in_memory(2_000_000_000, "the work", "use less")
    with pytest.raises(
        ValueError, match=r"^the work needs about 3e\+03 GB of memory; 2 GB are available: use a smaller k$"
    ):
        check.fits_in_memory(3 * 10**12, "the work", "use a smaller k")
    monkeypatch.setattr(machine, "available_memory", lambda: None)
    check.fits_in_memory(3 * 10**12, "the work", "use less")


def test_solve_refuses_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules above are those of diba.solve; the messages name its arguments."""

    def never(progress: diba.Progress) -> None:
        raise AssertionError("work has begun")

    A = np.eye(4)
    for arguments, error, message in (
        ({"A": NAN, "k": 1}, ValueError, r"A has NaN .*A\[1, 2\]"),
        ({"A": "x", "k": 1}, TypeError, "A is 'x'"),
        ({"A": A}, ValueError, "give exactly one"),
        ({"A": A, "k": 2, "storage_ratio": 1}, ValueError, "give exactly one"),
        ({"A": A, "k": True}, TypeError, "k is True"),
        ({"A": A, "k": 10**15}, ValueError, "of memory.* available"),
        ({"A": A, "k": 2, "alphabet": "ternary"}, ValueError, "alphabet is 'ternary'"),
        ({"A": A, "k": 2, "method": "magic"}, ValueError, "method is 'magic'"),
        ({"A": A, "k": 2, "seed": -1}, ValueError, "seed is -1"),
        ({"A": A, "k": 2, "max_iter": 1.5}, TypeError, r"max_iter is 1\.5"),
        ({"A": A, "k": 2, "tol": -1}, ValueError, "tol is -1"),
        ({"A": A, "k": 2, "threads": 0}, ValueError, "threads is 0"),
    ):
        with pytest.raises(error, match=message):
            diba.solve(**arguments, progress=never)
    with pytest.raises(TypeError, match="progress is 3"):
        diba.solve(A, k=2, progress=3)


def test_torch_is_not_imported_to_recognise_its_tensors() -> None:
    before = "torch" in sys.modules
    check_arrays.real_matrix(BASE, "A")
    assert ("torch" in sys.modules) == before
