"""The file format: golden files, an independent reader, and damage of every kind."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import pickle
import stat
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.numpy

import diba
from diba import _core, file_format
from diba._internal import tensor_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from arrays import Factors

    Change = Callable[[dict[str, Any], bytearray], object]

ALPHABETS = ("binary", "sign")
DTYPES = {"U8": np.uint8, "F16": np.float16, "F32": np.float32}


@pytest.fixture(scope="session")
def golden(source_root: Path) -> Path:
    return source_root / "tests" / "golden"


@pytest.fixture(scope="session")
def stated(golden: Path) -> ModuleType:
    """tests/golden/make.py, which states what the golden files hold."""
    spec = importlib.util.spec_from_file_location("golden_make", golden / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensor bytes of a safetensors file, by its definition alone."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: dict[str, Any], tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def tensor(data: bytes, name: str) -> np.ndarray:
    header, tensors = split(data)
    entry = header[name]
    begin, end = entry["data_offsets"]
    return np.frombuffer(tensors[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])


def crc32_of_metadata(metadata: dict[str, str]) -> str:
    lines = "".join(f"{k}={v}\n" for k, v in sorted(metadata.items()) if k != "crc32_metadata")
    return f"{zlib.crc32(lines.encode()):08x}"


# ---------------------------------------------------------------- golden files


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_golden_file_loads_as_stated(golden: Path, stated: ModuleType, alphabet: str) -> None:
    f = diba.load(golden / f"{alphabet}.safetensors")
    assert f.alphabet == alphabet
    assert np.array_equal(f.b1.to_dense(), stated.entries(stated.B1, alphabet))
    assert np.array_equal(f.b2.to_dense(), stated.entries(stated.B2, alphabet))
    for d, expected in zip((f.d1, f.d2, f.d3), stated.CASES[alphabet], strict=True):
        assert np.array_equal(d, np.array(expected, dtype=np.float32))
    assert f.diagonal_bits == (16 if alphabet == "binary" else 32)
    assert f == stated.factorization(alphabet)


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_golden_file_by_an_independent_reader(golden: Path, stated: ModuleType, alphabet: str) -> None:
    data = (golden / f"{alphabet}.safetensors").read_bytes()
    header, _ = split(data)
    metadata = header.pop("__metadata__")
    assert set(header) == {"b1", "b2", "d1", "d2", "d3"}
    for name, rows in (("b1", stated.B1), ("b2", stated.B2)):
        bits = np.array([[int(bit) for bit in row] for row in rows])
        assert np.array_equal(tensor(data, name), np.packbits(bits, axis=1, bitorder="little"))
    for name, expected in zip(("d1", "d2", "d3"), stated.CASES[alphabet], strict=True):
        stored = tensor(data, name)
        assert stored.dtype == (np.float16 if alphabet == "binary" else np.float32)
        value = stored.astype(np.float64) * 2.0 ** int(metadata[f"{name}_exponent"])
        assert np.array_equal(value, np.array(expected, dtype=np.float32))
    for name in header:
        assert metadata.pop(f"crc32_{name}") == f"{zlib.crc32(tensor(data, name).tobytes()):08x}"
    lines = "".join(
        f"{key}={value}\n"
        for key, value in sorted(split(data)[0]["__metadata__"].items())
        if key != "crc32_metadata"
    )
    assert metadata.pop("crc32_metadata") == f"{zlib.crc32(lines.encode()):08x}"
    exponents = [metadata.pop(f"d{i}_exponent") for i in (1, 2, 3)]
    assert exponents == (["1", "-4", "10"] if alphabet == "binary" else ["0", "0", "0"])
    assert metadata == {
        "format": "diba",
        "format_version": "1",
        "alphabet": alphabet,
        "rows": "4",
        "cols": "11",
        "k": "9",
        "written_by": "diba 0.1.0",
    }


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_saving_gives_the_golden_bytes(
    golden: Path, tmp_path: Path, alphabet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_core, "__version__", "0.1.0")  # the version is part of the bytes
    path = golden / f"{alphabet}.safetensors"
    diba.load(path).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 8, 9), (70, 65, 64), (5, 130, 7)])
def test_round_trip(
    make_factors: Callable[..., Factors], tmp_path: Path, m: int, k: int, n: int, rounded: bool, alphabet: str
) -> None:
    f = make_factors(m, k, n, alphabet).diba
    if rounded:
        f = f.round_diagonals()
    path = tmp_path / "f.diba"
    f.save(path)
    assert diba.load(path) == f
    assert diba.load(str(path)) == diba.Factorization.load(path) == f
    again = tmp_path / "again.diba"
    diba.load(path).save(str(again))
    assert again.read_bytes() == path.read_bytes()
    _, tensors = split(path.read_bytes())
    assert 8 * len(tensors) == round(f.bits_per_weight * m * n) + f.file_padding_bits
    assert set(safetensors.numpy.load_file(path)) == {"b1", "b2", "d1", "d2", "d3"}


@pytest.mark.parametrize("wide", ["d1", "d2", "d3"])
def test_one_wide_diagonal_makes_all_float32(
    make_factors: Callable[..., Factors], tmp_path: Path, wide: str
) -> None:
    wide_factors = make_factors(5, 6, 7, "binary").diba
    narrow = wide_factors.round_diagonals()
    diagonals = {name: getattr(narrow, name) for name in ("d1", "d2", "d3")}
    diagonals[wide] = getattr(wide_factors, wide)
    f = diba.Factorization(b1=narrow.b1, b2=narrow.b2, **diagonals)
    assert f.diagonal_bits == 32
    f.save(tmp_path / "f")
    assert diba.load(tmp_path / "f") == f
    assert {tensor((tmp_path / "f").read_bytes(), name).dtype for name in diagonals} == {np.dtype(np.float32)}


def test_bytes_do_not_depend_on_anything_but_the_factors(make_factors: Callable[..., Factors]) -> None:
    f = make_factors(9, 8, 7, "sign").diba
    stored = file_format.StoredFactors(*f._parts())
    first = file_format.encode(stored)
    # the safetensors package orders metadata by a hash that differs from call to call
    assert all(file_format.encode(stored) == first for _ in range(20))
    header, _ = split(first)
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])
    assert int.from_bytes(first[:8], "little") % 8 == 0


# ---------------------------------------------------------------- writing


@pytest.fixture
def f(make_factors: Callable[..., Factors]) -> diba.Factorization:
    return make_factors(5, 11, 13, "binary").diba.round_diagonals()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_mode_follows_the_umask(f: diba.Factorization, tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        f.save(tmp_path / "f")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == mode


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_writing_leaves_the_old_file_and_no_other(
    f: diba.Factorization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        f.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]
    assert path.read_bytes() == b"old"


def test_writing_through_a_link_keeps_it(f: diba.Factorization, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    f.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert diba.load(tmp_path / "target") == f


def test_paths_that_cannot_be_written_or_read(f: diba.Factorization, tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "f"
    with pytest.raises(FileNotFoundError) as caught:
        f.save(missing)
    assert caught.value.filename == str(missing)
    with pytest.raises(IsADirectoryError):
        f.save(tmp_path)
    with pytest.raises(IsADirectoryError):
        diba.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        diba.load(missing)
    for wrong in (3, None, ["a"]):
        with pytest.raises(TypeError, match=r"path is .*must be a str, bytes or a pathlib.Path"):
            f.save(wrong)
        with pytest.raises(TypeError, match="path is"):
            diba.load(wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(f: diba.Factorization, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            f.save(tmp_path / "f")
    finally:
        tmp_path.chmod(0o700)


# ---------------------------------------------------------------- damage


def damaged(change: Change, data: bytes, sign_again: bool) -> bytes:
    """The file with its header and tensors changed, its metadata checksum mended if asked for."""
    header, tensors = split(data)
    content = bytearray(tensors)
    change(header, content)
    metadata = header.get("__metadata__")
    if sign_again and isinstance(metadata, dict):
        metadata["crc32_metadata"] = crc32_of_metadata(metadata)
    return join(header, bytes(content))


def metadata(**changes: str | None) -> Change:
    def change(header: dict[str, Any], tensors: bytearray) -> None:
        for key, value in changes.items():
            if value is None:
                del header["__metadata__"][key]
            else:
                header["__metadata__"][key] = value

    return change


def entry(name: str, **changes: Any) -> Change:
    def change(header: dict[str, Any], tensors: bytearray) -> None:
        header[name].update(changes)

    return change


def rewrite(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Change a tensor and mend its checksum."""

    def change(header: dict[str, Any], tensors: bytearray) -> None:
        begin, end = header[name]["data_offsets"]
        old = np.frombuffer(bytes(tensors[begin:end]), DTYPES[header[name]["dtype"]])
        new = make(old.reshape(header[name]["shape"]).copy()).tobytes()
        assert len(new) == end - begin
        tensors[begin:end] = new
        header["__metadata__"][f"crc32_{name}"] = f"{zlib.crc32(new):08x}"

    return change


def with_tensor(name: str, value: dict[str, Any]) -> Change:
    def change(header: dict[str, Any], tensors: bytearray) -> None:
        header[name] = value

    return change


def without_tensor(header: dict[str, Any], tensors: bytearray) -> None:
    begin, end = header.pop("b2")["data_offsets"]
    assert end == len(tensors)
    del tensors[begin:]


def set_bits(packed: np.ndarray) -> np.ndarray:
    packed[-1, -1] |= 0x80
    return packed


def set_first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(d: np.ndarray) -> np.ndarray:
        d[0] = value
        return d

    return change


DAMAGES: dict[str, tuple[Change, str]] = {
    "no metadata": (lambda h, t: h.pop("__metadata__"), "is not a diba file: metadata 'format' is missing"),
    "other format": (
        metadata(format="gguf"),
        "not a diba file: metadata 'format' is 'gguf', expected 'diba'",
    ),
    "newer": (metadata(format_version="2"), r"'format_version' is 2, .*up to 1; upgrade diba .*diba 0\.1\.0"),
    "no version": (metadata(format_version=None), "metadata 'format_version' is missing"),
    "bad version": (
        metadata(format_version="one"),
        "'format_version' is 'one', expected an integer",
    ),
    "version 0": (
        metadata(format_version="0"),
        "metadata 'format_version' is '0', expected an integer from 1",
    ),
    "no alphabet": (metadata(alphabet=None), "metadata 'alphabet' is missing"),
    "other alphabet": (metadata(alphabet="ternary"), "'alphabet' is 'ternary', expected one of binary, sign"),
    "no rows": (metadata(rows=None), "metadata 'rows' is missing"),
    "float rows": (metadata(rows="4.0"), r"metadata 'rows' is '4\.0', expected an integer"),
    "padded rows": (metadata(rows=" 4"), "metadata 'rows' is ' 4', expected an integer"),
    "negative k": (metadata(k="-9"), "metadata 'k' is '-9', expected an integer from 1"),
    "absurd cols": (
        metadata(cols=str(2**60)),
        f"metadata 'cols' is '{2**60}', expected an integer from 1 to",
    ),
    "endless cols": (metadata(cols="9" * 5000), "metadata 'cols' is '9999"),
    "other k": (metadata(k="10"), r"tensor 'b2' has shape \(9, 2\), expected \(10, 2\)"),
    "other rows": (metadata(rows="5"), r"tensor 'b1' has shape \(4, 2\), expected \(5, 2\)"),
    "no exponent": (metadata(d2_exponent=None), "metadata 'd2_exponent' is missing"),
    "wide exponent": (
        metadata(d2_exponent="128"),
        "'d2_exponent' is '128', expected an integer from -149",
    ),
    "no checksum": (metadata(crc32_b2=None), "metadata 'crc32_b2' is missing"),
    "no author": (metadata(written_by=None), "metadata 'written_by' is missing"),
    "checksum": (
        metadata(crc32_b2="00000000"),
        "'b2' is damaged: its CRC-32 is .*, expected '00000000'",
    ),
    "missing tensor": (without_tensor, "tensor 'b2' is missing"),
    "extra tensor": (
        with_tensor("d4", {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}),
        "tensor 'd4' is unexpected",
    ),
    "integer diagonal": (entry("d1", dtype="I16"), "tensor 'd1' has dtype 'I16', expected F16 or F32"),
    "signed bits": (entry("b1", dtype="I8"), "tensor 'b1' has dtype 'I8', expected U8"),
    "bad entry": (with_tensor("d1", {"dtype": "F16"}), "tensor 'd1': the header entry is damaged"),
    "bad shape": (entry("d1", shape=["4"]), "tensor 'd1': the header entry is damaged"),
    "odd offsets": (entry("d1", data_offsets=[0, 6]), "content is damaged"),
    "far offsets": (entry("d1", data_offsets=[0, 10**15]), "is cut short"),
    "tail bits": (rewrite("b2", set_bits), "tensor 'b2' has ones past its last column, expected zeros"),
    "nan": (rewrite("d1", set_first(np.nan)), "tensor 'd1' has NaN or infinite entries"),
    "infinity": (rewrite("d3", set_first(-np.inf)), "tensor 'd3' has NaN or infinite entries"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(golden: Path, tmp_path: Path, name: str) -> None:
    change, message = DAMAGES[name]
    path = tmp_path / "damaged.diba"
    path.write_bytes(damaged(change, (golden / "binary.safetensors").read_bytes(), sign_again=True))
    with pytest.raises(diba.FormatError, match=message) as caught:
        diba.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_exponent_that_leaves_float32(golden: Path, tmp_path: Path) -> None:
    def change(header: dict[str, Any], tensors: bytearray) -> None:
        header["__metadata__"]["d1_exponent"] = "127"
        rewrite("d1", set_first(2.5))(header, tensors)

    path = tmp_path / "f"
    path.write_bytes(damaged(change, (golden / "binary.safetensors").read_bytes(), sign_again=True))
    with pytest.raises(diba.FormatError, match="'d1' leaves float32's range with metadata 'd1_exponent' 127"):
        diba.load(path)


def test_float32_diagonals_have_no_exponent_and_one_dtype(golden: Path, tmp_path: Path) -> None:
    data = (golden / "sign.safetensors").read_bytes()
    path = tmp_path / "f"
    path.write_bytes(damaged(metadata(d1_exponent="1"), data, sign_again=True))
    with pytest.raises(diba.FormatError, match="'d1_exponent' is 1, expected 0 with float32 diagonals"):
        diba.load(path)
    path.write_bytes(damaged(entry("d1", dtype="F16"), data, sign_again=True))
    with pytest.raises(diba.FormatError, match="tensor 'd1' has 16 bytes, which differ from its shape and"):
        diba.load(path)


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_every_flipped_bit_is_found(golden: Path, tmp_path: Path, alphabet: str) -> None:
    data = (golden / f"{alphabet}.safetensors").read_bytes()
    good = diba.load(golden / f"{alphabet}.safetensors")
    path = tmp_path / "f"
    survived = []
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        with contextlib.suppress(diba.FormatError):
            assert diba.load(path) == good
            survived.append(position)
    # only blanks that pad the header may change into other JSON white space
    assert all(data[position : position + 1] == b" " for position in survived)


def test_every_truncation_and_any_appendix_is_found(golden: Path, tmp_path: Path) -> None:
    data = (golden / "binary.safetensors").read_bytes()
    path = tmp_path / "f"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        expected = "is not a safetensors file" if length < 9 else f"is cut short: it has {length} bytes"
        with pytest.raises(diba.FormatError, match=expected):
            diba.load(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(diba.FormatError, match="1 more than its header announces"):
        diba.load(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\3\4" + b"\0" * 100, b"\x93NUMPY" + b"\0" * 100, b"\xff" * 100, b"\x02" + b"\0" * 7 + b"[]"],
    ids=["empty", "zip", "npy", "ones", "list"],
)
def test_files_of_other_kinds(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)
    with pytest.raises(diba.FormatError, match="is not a safetensors file"):
        diba.load(path)


@pytest.mark.parametrize("header", [b"{" * 100_000, b'{"a": 1', b"{\xff}", b'{"a":' + b"[" * 90_000])
def test_headers_that_are_not_json(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "f"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(diba.FormatError, match=r"header (entry )?is damaged"):
        diba.load(path)


def test_a_header_has_at_most_a_mebibyte(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for blanks, message in (
        ((1 << 20) - 2, "is not a diba file: metadata 'format' is missing"),
        ((1 << 20) - 1, "is not a diba file: its header has 1048577 bytes, expected up to 1048576"),
    ):
        header = b"{}" + b" " * blanks
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(diba.FormatError, match=message):
            diba.load(path)


ENTRY = b'"model.layers.%d.weight":{"dtype":"F32","shape":[0,4096],"data_offsets":[0,0]}'
SIZE = 2_000_000
HEADERS = {  # what it is made of, and bytes of memory for each byte of it
    "nested": (b'{"a":' + b"[" * SIZE, 1.1),
    "lists": (b'{"a":{"shape":[' + b"[]," * (SIZE // 3), 1.1),
    "numbers": (b'{"a":{"dtype":"U8","shape":[' + b"1," * (SIZE // 2), 1.1),
    "backslashes": (b'{"' + b"\\\\" * (SIZE // 2), 1.1),
    "blanks": (b"{" + b" " * SIZE + b"}", 1.1),
    "one text": (b'{"__metadata__":{"a":"' + b"x" * SIZE + b'"}}', 5),
    # a name, a tuple of four, the shape, the offsets: some 500 bytes for one of 80
    "tensors": (b"{" + b",".join(ENTRY % i for i in range(SIZE // 80)) + b"}", 7),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADERS)
def test_long_headers_take_little_memory(name: str) -> None:
    """Those of other safetensors files, as models have them, and hostile ones."""
    header, share = HEADERS[name]
    file = io.BytesIO(len(header).to_bytes(8, "little") + header)
    tracemalloc.start()
    try:
        with contextlib.suppress(diba.FormatError):
            tensor_files.read_header(file, "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < share * len(header)


MEMORY = """
import sys
import diba
from diba import file_format

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

before = peak()
stored = file_format.read(sys.argv[1])
print(peak() - before, stored.b1.shape)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no VmHWM on this system")
def test_reading_takes_little_memory(make_factors: Callable[..., Factors], tmp_path: Path) -> None:
    """That of the factors, and of the bytes of one tensor."""
    f = make_factors(3000, 4000, 4096, "sign").diba
    f.save(tmp_path / "f")
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "f")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    taken, shape = done.stdout.split(maxsplit=1)
    assert shape.strip() == str(f.b1.shape)
    assert int(taken) < f.b1.nbytes + 2 * f.b2.nbytes + (1 << 19)


def test_files_that_end_early_or_raise(make_factors: Callable[..., Factors]) -> None:
    """Whatever an open file does: its own errors come through, and the GIL is there again."""
    f = make_factors(5, 6, 7, "sign").diba
    data = file_format.encode(file_format.StoredFactors(*f._parts()))

    class Short(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            return super().readinto(buffer) if self.tell() < 8 else 0

    class Broken(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            raise OSError(5, "Input/output error")

    class Slow(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            return super().readinto(buffer[:3])

    with pytest.raises(diba.FormatError, match="x: is cut short: it became smaller while it was read"):
        file_format.decode(Short(data), "x")
    with pytest.raises(OSError, match="Input/output error"):
        file_format.decode(Broken(data), "x")
    assert np.array_equal(
        file_format.decode(Slow(data), "x").d2, file_format.decode(io.BytesIO(data), "x").d2
    )
    for wrong in (None, b"bytes", 3):
        with pytest.raises(AttributeError):
            file_format.decode(wrong, "x")
    with pytest.raises(diba.FormatError, match=r"^a\\udcffb: is not a safetensors file"):
        file_format.decode(io.BytesIO(b""), "a\udcffb")


def test_no_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(pickle.dumps({"d1": [1.0]}))
    with pytest.raises(diba.FormatError):
        diba.load(path)


def test_plain_safetensors_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"weight": np.ones((2, 2), np.float32)}, path, {"format": "pt"})
    with pytest.raises(diba.FormatError, match="metadata 'format' is 'pt', expected 'diba'"):
        diba.load(path)
