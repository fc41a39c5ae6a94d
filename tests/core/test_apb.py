"""diba.APB: its products against float64 and brute force, its bits, its files and what it refuses."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import diba
from diba import _core
from diba._internal import binarized_file
from fuzz.files import mended

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RNG = np.random.default_rng(5)
SHAPES = [(1, 1), (3, 8), (70, 130), (130, 300), (260, 40)]
EPS = 2.0**-23


def made(m: int, n: int, share: float = 0.1, rows: bool = False) -> diba.APB:
    A = RNG.standard_t(3, (m, n)).astype(np.float32)
    return diba.apb(A, exceptions=share, scales="rows" if rows else "layer")


def dense(f: diba.APB) -> np.ndarray:
    """All entries in float64, one at a time."""
    result = np.repeat(f.alpha.astype(np.float64)[:, None], f.shape[1], axis=1)
    result = np.broadcast_to(result, f.shape) * f.signs.to_dense(np.float64)
    for i in range(f.shape[0]):
        for t in range(f.starts[i], f.starts[i + 1]):
            result[i, f.columns[t]] += f.values[t]
    return result


def lengths(f: diba.APB) -> tuple[np.ndarray, np.ndarray]:
    """The entries of alpha S and of E by their magnitudes, float64: what rounding errors are bounded by."""
    signs = np.broadcast_to(np.abs(f.alpha.astype(np.float64))[:, None], f.shape)
    sparse = np.abs(dense(f) - signs * f.signs.to_dense(np.float64))
    return signs, sparse


# ---------------------------------------------------------------- products


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [False, True])
def test_exact_products(isa: str, shape: tuple[int, int], rows: bool) -> None:
    f = made(*shape, rows=rows)
    m, n = shape
    exact, (signs, sparse) = dense(f), lengths(f)
    for p in (1, 3, 7, 20):
        X, Y = RNG.standard_normal((n, p), dtype=np.float32), RNG.standard_normal((m, p), dtype=np.float32)
        bound = (n + 4) * EPS * ((signs + sparse) @ np.abs(X))
        assert (np.abs(f.matmat(X) - exact @ X) <= bound).all()
        turned = (m + 4) * EPS * ((signs + sparse).T @ np.abs(Y))
        assert (np.abs(f.rmatmat(Y) - exact.T @ Y) <= turned).all()
        assert np.array_equal(Y.T @ f, f.rmatmat(Y).T)
        assert np.array_equal(f.matmat(X, threads=3), f.matmat(X))


@pytest.mark.parametrize("shape", SHAPES)
def test_fast_products_are_those_of_the_signs_and_the_exceptions(isa: str, shape: tuple[int, int]) -> None:
    f = made(*shape, rows=True)
    m, n = shape
    X = RNG.standard_normal((23, n), dtype=np.float32)
    bias = RNG.standard_normal(m, dtype=np.float32)
    whole = f.linear(X, bias)
    for threads in (1, 3):
        assert np.array_equal(f.linear(X, bias, threads=threads), whole)
        for count in (1, 4, 6, 16, 17):
            assert np.array_equal(f.linear(X[:count], bias, threads=threads), whole[:count])
    assert np.array_equal(f @ X.T, f.linear(X).T)
    assert np.array_equal(f @ X[0], f.linear(X[0]))
    # The signs by themselves, as a factorization with the identity: its bound, and float32's for the rest.
    one = diba.Factorization.from_factors(
        f.alpha, f.signs.to_dense(), np.ones(n), 2 * np.eye(n) - 1, np.ones(n), "sign"
    )
    assert one.shape == f.shape
    error = f.linear(X).astype(np.float64) - X.astype(np.float64) @ dense(f).T
    signs, sparse = lengths(f)
    # _internal/error_bound.py, of one product
    groups = np.abs(np.pad(X, ((0, 0), (0, -n % 4)))).reshape(23, -1, 4).sum(-1).astype(np.float64)
    steps = groups.sum(1) / 254 + groups.shape[1] * groups.max(1) / 4064
    bound = np.outer(steps * 0.525 * 2 * 1.01, f.alpha) + (n + 8) * EPS * np.abs(X) @ (signs + sparse).T
    assert (np.abs(error) <= bound).all()


def test_bytes_do_not_depend_on_the_instruction_set() -> None:
    f, X = made(130, 300), RNG.standard_normal((33, 300), dtype=np.float32)
    before, found = _core.isa(), set()
    for isa in _core.supported_isas():
        _core.select_isa(isa)
        found.add((f.linear(X).tobytes(), f.matmat(X.T).tobytes(), f.rmatmat(X[:, :130].T).tobytes()))
    _core.select_isa(before)
    assert len(found) == 1


@pytest.mark.parametrize("precision", ["fast", "exact"])
def test_sums_beyond_float32_are_made_again(precision: Any) -> None:
    signs = diba.BitMatrix.from_dense([[1, 1]], "sign")
    f = diba.APB([1.0], signs, [0, 2], [0, 1], [-0.75, -0.75])
    x = np.array([3e38, 3e38], np.float32)
    assert f.matvec(x, precision=precision)[0] == np.float32(1.5e38)
    assert f.linear(x, [1e38], precision=precision)[0] == pytest.approx(2.5e38, rel=1e-6)
    large = diba.APB([9.0], signs, [0, 0], [], [])
    assert large.matvec(x, precision=precision)[0] == np.finfo(np.float32).max


@pytest.mark.parametrize("cols", [256, 257, 65536, 65537])
def test_every_width_of_columns(cols: int) -> None:
    width = {256: 8, 257: 16, 65536: 16, 65537: 32}[cols]
    signs = diba.BitMatrix.from_dense(np.where(RNG.random((3, cols)) < 0.5, -1, 1), "sign")
    columns = [0, 3, cols - 1, 1, cols - 1]
    f = diba.APB([0.5], signs, [0, 3, 3, 5], columns, [1, 2, 3, 4, 5])
    assert f.columns.dtype == np.dtype(f"u{width // 8}")
    count = 16 if cols < 65536 else 32
    assert f.bits_per_weight * 3 * cols == pytest.approx(3 * cols + 16 + 3 * count + 5 * (width + 16))
    x = RNG.integers(-9, 10, cols).astype(np.float32)
    assert np.array_equal(f.matvec(x), dense(f) @ x)  # whole numbers and halves: exact


# ---------------------------------------------------------------- facts


def test_facts() -> None:
    f = made(70, 130)
    m, n = f.shape
    assert f.exceptions == 0.1
    assert np.array_equal(f.to_dense(np.float64), dense(f).astype(np.float32))
    assert np.array_equal(np.asarray(f), f.to_dense())
    assert f == f.T.T
    assert np.array_equal(f.T.to_dense(), f.to_dense().T)
    assert f.storage_ratio == f.bits_per_weight / 32
    assert f.bits_per_weight == (m * n + 16 + 16 * m + 910 * (8 + 16)) / (m * n)
    assert f.nbytes == f.signs.nbytes + 4 + 4 * (m + 1) + 910 * (1 + 4)
    wide = diba.APB(f.alpha, f.signs, f.starts, f.columns, f.values * np.float32(1 / 3))
    assert wide.bits_per_weight == (m * n + 16 + 16 * m + 910 * (8 + 32)) / (m * n)
    assert repr(f) == f"APB(70x130, 10.00% exceptions, {f.bits_per_weight:.2f} bits/weight)"
    assert f.prepared_nbytes == 0 < f.prepare().prepared_nbytes
    for part in (f.alpha, f.starts, f.columns, f.values):
        assert not part.flags.writeable
    with pytest.raises(ValueError, match="use x @ M"):
        made(3, 4, rows=True).T  # noqa: B018


def test_equal_copies() -> None:
    f = made(70, 130)
    other = diba.APB(f.alpha, f.signs, f.starts, f.columns, f.values)
    assert f == other == pickle.loads(pickle.dumps(f)) == copy.deepcopy(f)
    assert hash(f) == hash(other)
    assert f != diba.APB(f.alpha, f.signs, f.starts, f.columns, -f.values)
    assert f != "f"


def test_the_exceptions_may_be_gone_before_the_packed_copy() -> None:
    """It keeps their arrays."""
    f, x = made(70, 130), RNG.standard_normal(130, dtype=np.float32)
    packed, expected = f._pack(), f @ x
    del f
    assert np.array_equal(packed.try_multiply(x, 1), expected)


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"alpha": [1.0, 2.0]}, ValueError, "alpha has 2 entries; it must have 3"),
        ({"alpha": [np.inf]}, ValueError, "alpha has NaN or infinite"),
        ({"signs": np.ones((3, 4))}, TypeError, "signs is"),
        ({"signs": diba.BitMatrix.from_dense(np.ones((3, 4)), "binary")}, ValueError, "alphabet of signs"),
        ({"starts": [0, 1, 2]}, ValueError, "length of starts is 3; it must be 4"),
        ({"starts": [0, 2, 1, 3]}, ValueError, "starts must ascend from 0 to 3"),
        ({"starts": [1, 1, 2, 3]}, ValueError, "starts must ascend from 0 to 3"),
        ({"starts": [0, 1, 2, 2]}, ValueError, "starts must ascend from 0 to 3"),
        ({"starts": [0, 1, 2, 4]}, ValueError, r"starts\[3\] is 4; it must be from 0 to 3"),
        ({"starts": [0, 1, 2, 3.0]}, TypeError, "starts has dtype float64"),
        ({"columns": [0, 1, 4]}, ValueError, r"columns\[2\] is 4; it must be from 0 to 3"),
        ({"columns": [0, 1, -1]}, ValueError, r"columns\[2\] is -1"),
        ({"columns": [0, 1]}, ValueError, r"starts\[3\] is 3; it must be from 0 to 2"),
        ({"columns": [[0, 1, 2]]}, ValueError, "it must be 1-D"),
        ({"starts": [0, 0, 2, 3], "columns": [2, 2, 1]}, ValueError, "2 after 2 in row 1"),
        ({"starts": [0, 0, 0, 3], "columns": [0, 3, 1]}, ValueError, "1 after 3 in row 2"),
        ({"values": [1.0, 2.0]}, ValueError, "values has 2 entries; it must have 3"),
        ({"values": [1.0, 2.0, np.nan]}, ValueError, "values has NaN"),
    ],
)
def test_bad_parts(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    signs = diba.BitMatrix.from_dense(np.ones((3, 4)), "sign")
    parts = {
        "alpha": [1.0],
        "signs": signs,
        "starts": [0, 1, 2, 3],
        "columns": [3, 1, 2],
        "values": [1, 2, 3],
    }
    diba.APB(**parts)
    with pytest.raises(kind, match=message):
        diba.APB(**(parts | changed))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("shape", [(1, 1), (70, 130), (5, 300)])
@pytest.mark.parametrize("share", [0, 0.1, 1])
@pytest.mark.parametrize("rows", [False, True])
def test_saved_and_read_again(tmp_path: Path, shape: tuple[int, int], share: float, rows: bool) -> None:
    f = made(*shape, share=share, rows=rows)
    third = np.float32(1 / 3)
    for each in (f, diba.APB(f.alpha * third, f.signs, f.starts, f.columns, f.values * third)):
        path = tmp_path / "f.apb"
        each.save(path)
        again = diba.load(path)
        assert type(again) is diba.APB
        assert again == each == diba.APB.load(str(path))
        tensors = load_file(path)
        bits = 8 * sum(tensor.nbytes for tensor in tensors.values())
        assert bits == round(each.bits_per_weight * each.shape[0] * each.shape[1]) + each.shape[0] * (
            -each.shape[1] % 8
        )
        data = path.read_bytes()
        again.save(path)
        assert path.read_bytes() == data


def test_the_other_kind_is_refused(tmp_path: Path) -> None:
    made(3, 4).save(tmp_path / "apb")
    f = diba.solve(RNG.standard_normal((4, 4)), k=2)
    f.save(tmp_path / "factors")
    assert diba.load(tmp_path / "factors") == f
    with pytest.raises(diba.FormatError, match="is not a diba file: metadata 'format' is 'diba apb'"):
        diba.Factorization.load(tmp_path / "apb")
    with pytest.raises(diba.FormatError, match=r"is not a file of diba.APB: metadata 'format' is 'diba'"):
        diba.APB.load(tmp_path / "factors")


def content(f: diba.APB) -> bytes:
    return b"".join(binarized_file.encoded(f.alpha, f.signs, f._sparse, "diba 0.1.0"))


def test_every_flipped_bit_and_every_truncation_is_found() -> None:
    f = made(3, 12, share=0.2)
    data = content(f)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        with contextlib.suppress(diba.FormatError):
            assert diba.APB._decoded(io.BytesIO(changed), "f") == f
            assert data[position : position + 1] == b" "  # which pads the header
        with pytest.raises(diba.FormatError):
            diba.APB._decoded(io.BytesIO(data[:position]), "f")


def changed_file(tmp_path: Path, change: Callable[[dict[str, np.ndarray], dict[str, str]], None]) -> bytes:
    """A file with other tensors or metadata, and checksums that fit."""
    signs = diba.BitMatrix.from_dense(np.ones((3, 4)), "sign")
    data = content(diba.APB([1.0], signs, [0, 1, 2, 3], [3, 1, 2], [1, 2, 3]))
    path = tmp_path / "changed"
    path.write_bytes(data)
    tensors = load_file(path)
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    change(tensors, metadata)
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, path, metadata)
    again = mended(path.read_bytes())
    assert again is not None
    return again


def tensor(name: str, value: Any) -> Callable[[dict[str, np.ndarray], dict[str, str]], None]:
    def change(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        tensors[name] = value
        metadata.setdefault(f"crc32_{name}", "00000000")

    return change


def meta(**values: str) -> Callable[[dict[str, np.ndarray], dict[str, str]], None]:
    return lambda _tensors, metadata: metadata.update(values)


def large_values(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    tensors["values"] = np.full(3, 2, np.float16)
    metadata["values_exponent"] = "127"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tensor("more", np.zeros(1)), "tensor 'more' is unexpected"),
        (lambda tensors, _: tensors.pop("alpha"), "tensor 'alpha' is missing"),
        (lambda tensors, _: tensors.pop("columns"), "tensor 'columns' is missing"),
        (tensor("alpha", np.ones(2, np.float16)), r"'alpha' has shape \(2,\), expected \(1,\) or \(3,\)"),
        (tensor("alpha", np.ones(1, np.int16)), "'alpha' has dtype 'I16', expected F16 or F32"),
        (tensor("alpha", np.full(1, np.nan, np.float16)), "'alpha' has entries that are not finite"),
        (tensor("values", np.ones(2, np.float16)), r"'values' has shape \(2,\), expected \(3,\)"),
        (tensor("counts", np.array([1, 1, 2], np.uint16)), "'counts' has 4 in all, expected 3"),
        (tensor("counts", np.ones(3, np.uint32)), "'counts' has dtype 'U32', expected U16"),
        (tensor("columns", np.array([4, 1, 2], np.uint8)), r"do not fit together: columns\[0\] is 4"),
        (tensor("columns", np.zeros((3, 1), np.uint8)), r"'columns' has shape \(3, 1\), expected"),
        (tensor("signs", np.full((3, 1), 31, np.uint8)), "has ones past column 3"),
        (meta(rows="4"), r"'alpha' has shape|'signs' has shape \(3, 1\), expected \(4, 1\)"),
        (meta(cols="0"), "metadata 'cols' is '0', expected an integer from 1"),
        (meta(alpha_exponent="128"), "metadata 'alpha_exponent' is '128'"),
        (large_values, "'values' has entries that are not finite"),
        (meta(format_version="2"), "this diba reads up to 1"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Any, message: str) -> None:
    data = changed_file(tmp_path, change)
    with pytest.raises(diba.FormatError, match=message) as caught:
        diba.APB._decoded(io.BytesIO(data), "the file")
    assert str(caught.value).startswith("the file: ")
