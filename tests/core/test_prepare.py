"""The execution layout of fast products: packed once, when needed, no part of the value; its bindings."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

import diba
from arrays import random_factors, vectors
from diba import _core
from kernel_calls import prepared_arguments

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

ALPHABETS = ("binary", "sign")
SHAPES = [(1, 1, 1), (3, 4, 5), (33, 31, 65), (100, 290, 129), (260, 130, 700)]  # (m, k, n)


@pytest.fixture(params=ALPHABETS)
def alphabet(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[diba.Factorization]:
    """Whatever is packed from now on."""
    packed, pack = [], diba.Factorization._pack

    def counted(self: diba.Factorization) -> _core.Packed:
        packed.append(self)
        return pack(self)

    monkeypatch.setattr(diba.Factorization, "_pack", counted)
    return packed


def padded_bytes(rows: int, cols: int) -> int:
    """Of a bit matrix in tiles of 16 rows and 32 columns."""
    return -(-rows // 16) * 16 * (-(-cols // 32) * 4)


@pytest.mark.parametrize("shape", [*SHAPES, (256, 256, 256), (384, 172, 384), (300, 700, 1000)])
def test_bytes_of_the_packed_copy(alphabet: str, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    f = random_factors(m, k, n, alphabet).diba
    assert f.prepared_nbytes == 0
    assert f.prepare() is f
    bits = padded_bytes(m, k) + padded_bytes(k, n)
    assert k * (m + n) / 8 <= bits <= f.prepared_nbytes
    padding = bits - k * (m + n) / 8
    assert f.prepared_nbytes <= 1.3 * f.nbytes + padding
    assert f.T.prepared_nbytes == 0


def test_packing_happens_once_and_only_if_needed(
    alphabet: str, packings: list[diba.Factorization], cut: None
) -> None:
    f = random_factors(33, 31, 65, alphabet).diba
    x, X, y = np.ones(65, np.float32), np.ones((3, 65)), np.ones(33)
    f.matvec(x), f.rmatvec(y), f.matmat(X.T), f.rmatmat(y[:, None]), f.to_dense(), f.error_bound(x)
    assert (packings, f.prepared_nbytes) == ([], 0)
    f @ x
    assert f.prepared_nbytes > 0
    f.prepare(), f @ x, f @ X.T, f.linear(X), f.matmat(X.T, precision="fast", threads=3)
    assert [one is f for one in packings] == [True]
    y @ f, f.rmatvec(y, precision="fast"), f.rmatmat(y[:, None], precision="fast"), f.T.prepare()
    assert [one is f for one in packings] == [True, False]
    assert packings[1] is f.T


@pytest.mark.parametrize("product", ["matvec", "rmatvec"])
def test_threads_that_come_at_once_end_up_with_one_packed_copy(
    alphabet: str, packings: list[diba.Factorization], product: str
) -> None:
    rng = np.random.default_rng(0)
    bits = [rng.integers(0, 2, shape) for shape in ((400, 300), (300, 400))]
    if alphabet == "sign":
        bits = [2 * b - 1 for b in bits]
    x = vectors(2, 400)[0]
    for _ in range(5):
        f = diba.Factorization.from_factors(
            np.ones(400), bits[0], np.ones(300), bits[1], np.ones(400), alphabet
        )
        packings.clear()
        barrier = threading.Barrier(8)

        def first_product(f: diba.Factorization = f, barrier: threading.Barrier = barrier) -> bytes:
            barrier.wait(30)
            return bytes(getattr(f, product)(x, precision="fast").tobytes())

        with ThreadPoolExecutor(8) as pool:
            results = [future.result() for future in [pool.submit(first_product) for _ in range(8)]]
        assert len(set(results)) == 1
        assert 1 <= len(packings) <= 8
        assert len({id(one.T) for one in packings}) == 1  # all of one transpose, or of f
        packings.clear()
        assert getattr(f, product)(x, precision="fast").tobytes() == results[0]
        assert not packings


def test_packing_is_for_one_instruction_set(alphabet: str, packings: list[diba.Factorization]) -> None:
    supported, before = _core.supported_isas(), _core.isa()
    f = random_factors(33, 31, 65, alphabet).diba
    x = vectors(2, 65)[0]
    try:
        results = []
        for isa in (*supported, *supported):
            _core.select_isa(isa)
            results.append((f @ x).tobytes())
            assert f.prepare()._packed.isa == isa
    finally:
        _core.select_isa(before)
    assert len(set(results)) == 1
    assert len(packings) == (2 * len(supported) if len(supported) > 1 else 1)


def test_the_packed_copy_is_not_part_of_the_value(alphabet: str, tmp_path: Path) -> None:
    f, bare = random_factors(33, 31, 65, alphabet).diba, random_factors(33, 31, 65, alphabet).diba
    pickled, representation = pickle.dumps(bare), repr(bare)
    bare.save(tmp_path / "bare.diba")
    f.prepare()
    f.T.prepare()
    f.save(tmp_path / "prepared.diba")
    assert (tmp_path / "prepared.diba").read_bytes() == (tmp_path / "bare.diba").read_bytes()
    assert pickle.dumps(f) == pickled
    assert (f, hash(f), repr(f), f.nbytes) == (bare, hash(bare), representation, bare.nbytes)
    x = np.ones(65, np.float32)
    for again in (pickle.loads(pickle.dumps(f)), diba.load(tmp_path / "prepared.diba"), f.round_diagonals()):
        assert again.prepared_nbytes == 0
    for same in (copy.copy(f), copy.deepcopy(f), pickle.loads(pickled), diba.load(tmp_path / "bare.diba")):
        assert same == f
        assert (same @ x).tobytes() == (f @ x).tobytes()
        assert same.prepared_nbytes == f.prepared_nbytes


# ---------------------------------------------------------------- the bindings


def other_types(value: np.ndarray) -> list[Any]:
    """What must be refused where this array is accepted."""
    views = [np.repeat(value, 2, axis=-1)[..., ::2], np.asfortranarray(value)]
    others = [value.astype(dtype) for dtype in ("f8", ">f4", ">u8", "c8", "O") if value.dtype != dtype]
    return [*others, *(view for view in views if not view.flags.c_contiguous), value.tolist(), None, 1.0]


def other_shapes(value: np.ndarray) -> list[np.ndarray]:
    """One more and one less along each axis, and other numbers of axes."""
    shapes = {tuple(value.shape + sign * axis) for axis in np.eye(value.ndim, dtype=int) for sign in (1, -1)}
    shapes |= {(1, *value.shape), value.shape[1:]}
    return [np.zeros(shape, value.dtype) for shape in shapes]


def test_prepared_matrices_are_made_of_factors_that_fit_only() -> None:
    given = prepared_arguments()
    assert _core.Packed(**given).isa == _core.isa()
    for name in ("d1", "b1", "d2", "b2", "d3"):
        for wrong in other_types(given[name]):
            with pytest.raises(TypeError, match="incompatible constructor arguments"):
                _core.Packed(**given | {name: wrong})
        for wrong in other_shapes(given[name]):
            if name == "d3" and wrong.ndim == 1:
                continue  # 8 or 10 columns take one word, too
            with pytest.raises(ValueError, match="must"):
                _core.Packed(**given | {name: wrong})
    with pytest.raises(ValueError, match="must have shape"):
        _core.Packed(**given | {"d3": np.ones(65, np.float32)})


def test_prepared_matrices_multiply_arrays_that_fit_only() -> None:
    product = _core.Packed(**prepared_arguments(5, 70, 9))
    given = {"x": np.ones((3, 9), np.float32), "bias": np.ones(5, np.float32)}
    given |= {"out": np.zeros((3, 5), np.float32), "threads": 1}
    product.multiply(**given)
    assert np.isfinite(given["out"]).all()
    assert given["out"].any()
    for name in ("x", "bias", "out"):
        for wrong in other_types(given[name]):
            if name != "bias" or wrong is not None:
                with pytest.raises(TypeError, match="incompatible function arguments"):
                    product.multiply(**given | {name: wrong})
        for wrong in other_shapes(given[name]):
            with pytest.raises(ValueError, match="must have shape"):
                product.multiply(**given | {name: wrong})
    frozen = given["out"].copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        product.multiply(**given | {"out": frozen})
    for wrong in ("1", None, 1.0, 2**70):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            product.multiply(**given | {"threads": wrong})


def test_what_cannot_be_multiplied_at_once_is_left_to_python() -> None:
    """None, never an exception: the slow way converts, or says what is wrong."""
    product = _core.Packed(**prepared_arguments(5, 70, 9))
    x = np.random.default_rng(0).standard_normal((3, 9), dtype=np.float32)
    out = np.empty((3, 5), np.float32)
    product.multiply(x, None, out, 1)
    for shape in ((3, 9), (1, 3, 9), (3, 1, 9)):
        found = product.try_multiply(x.reshape(shape), 1)
        assert found.shape == (*shape[:-1], 5)
        assert found.tobytes() == out.tobytes()
    assert np.array_equal(product.try_multiply(x[1], 1), out[1])
    assert product.try_multiply(x[:0], 1).shape == (0, 5)
    shifted = np.zeros(4 * x.size + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)  # not aligned
    for other in (*other_types(x), x[:, 1:], x[0, :0], np.float32(1), "x", shifted, np):
        assert product.try_multiply(other, 1) is None


def test_reading_is_timed_for_packed_words_only() -> None:
    words = np.ones((3, 40), np.uint64)
    assert 0 <= _core.read_seconds(words) < 60
    assert _core.read_seconds(words[:0]) >= 0
    for wrong in other_types(words):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            _core.read_seconds(wrong)
