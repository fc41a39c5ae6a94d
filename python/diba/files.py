"""The file format: five tensors and a versioned header in one safetensors file.

Tensors (m x n matrix, inner size k):
    b1: uint8 (m, ceil(k/8)), b2: uint8 (k, ceil(n/8)): the bits, each row cut to
        whole bytes, bit j of a row in bit ``j % 8`` of byte ``j // 8``.
    d1 (m), d2 (k), d3 (n): float16 if all three fit ``2^e * float16`` (see
        ``diagonal16``), else float32.

Metadata, all strings: format ("diba"), format_version ("1"), alphabet ("binary"
or "sign"), rows, cols, k, d1_exponent, d2_exponent, d3_exponent (0 for float32),
crc32_b1 ... crc32_d3 (8 hex digits over the tensor's bytes), crc32_metadata (the
same over the lines ``key=value`` of all other keys, sorted), written_by.

Equal factors give equal bytes. No pickle is involved anywhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from . import _check, _core, _safetensors, diagonal16
from ._check import ALPHABETS, Alphabet
from .errors import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FORMAT_VERSION", "StoredFactors", "encode", "read", "read_metadata", "replace_file", "write"]

FORMAT_VERSION = 1
_DIAGONALS = ("d1", "d2", "d3")
_BITS = ("b1", "b2")
_LARGEST_SIZE = 2**40

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class StoredFactors:
    """The factors as a file holds them.

    Attributes:
        alphabet: How bits are read.
        d1, d2, d3: float32 diagonals of lengths m, k, n.
        b1, b2: uint8 packed rows of shapes (m, ceil(k/8)) and (k, ceil(n/8)).
    """

    alphabet: Alphabet
    d1: NDArray[np.float32]
    b1: NDArray[np.uint8]
    d2: NDArray[np.float32]
    b2: NDArray[np.uint8]
    d3: NDArray[np.float32]


# ---------------------------------------------------------------- writing


def write(path: PathLike, stored: StoredFactors) -> None:
    """Write a file, whole or not at all.

    Raises:
        OSError: the folder does not exist, is not writable, or ``path`` is a folder.
    """
    replace_file(path, encode(stored))


def encode(stored: StoredFactors, written_by: str | None = None) -> bytes:
    """The bytes of the file; ``written_by`` defaults to this version of diba."""
    from safetensors.numpy import save

    tensors: dict[str, NDArray[Any]] = {"b1": stored.b1, "b2": stored.b2}
    exponents = dict.fromkeys(_DIAGONALS, 0)
    diagonals = {name: getattr(stored, name) for name in _DIAGONALS}
    if all(diagonal16.fits(d) for d in diagonals.values()):
        for name, d in diagonals.items():
            tensors[name], exponents[name] = diagonal16.encode(d)
    else:
        tensors.update(diagonals)
    metadata = {
        "format": "diba",
        "format_version": str(FORMAT_VERSION),
        "alphabet": stored.alphabet,
        "rows": str(stored.d1.size),
        "cols": str(stored.d3.size),
        "k": str(stored.d2.size),
        "written_by": written_by or f"diba {_core.__version__}",
        **{f"{name}_exponent": str(e) for name, e in exponents.items()},
        **{f"crc32_{name}": _crc32(np.ascontiguousarray(t).data) for name, t in tensors.items()},
    }
    metadata["crc32_metadata"] = _crc32_of_metadata(metadata)
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return _safetensors.in_fixed_order(save(contiguous, metadata))


def replace_file(path: PathLike, data: bytes) -> None:
    """Put ``data`` at ``path`` in one step: a temporary file beside it, then a rename.

    The new file's mode follows the umask; a symbolic link stays one. Whatever
    interrupts the writing, no partial file is left.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if target.exists() and not target.is_file():  # a device or a pipe: not ours to replace
        target.write_bytes(data)
        return
    temporary = target.with_name(f".{target.name[:100]}.{os.urandom(6).hex()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:  # name the file asked for, not the temporary one
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


# ---------------------------------------------------------------- reading


def read(path: PathLike) -> StoredFactors:
    """Read a file and verify everything that can be verified.

    Raises:
        OSError: the file cannot be opened.
        FormatError: it is not a diba file, is damaged, or is of a newer format version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    name = os.fspath(path)
    with Path(path).open("rb") as file:
        header = _read_checked_header(file, name)
        file.seek(0)
        data = file.read()
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise FormatError(f"{name}: the safetensors content is damaged ({error})") from error
    return _decode(header.metadata, tensors, name)


def read_metadata(path: PathLike) -> dict[str, str]:
    """The checked metadata of a file, without its tensors; raises as :func:`read`."""
    with Path(path).open("rb") as file:
        return _read_checked_header(file, os.fspath(path)).metadata


def _read_checked_header(file: BinaryIO, name: str) -> _safetensors.Header:
    """Check all that the header alone can tell, before any tensor is read."""
    header = _safetensors.read_header(file, name)
    metadata = header.metadata
    _check_format(metadata, name)
    if _value(metadata, "crc32_metadata", name) != _crc32_of_metadata(metadata):
        raise FormatError(
            f"{name}: the metadata is damaged: its CRC-32 differs from metadata 'crc32_metadata'"
        )
    if metadata.get("alphabet") not in ALPHABETS:
        found = _value(metadata, "alphabet", name)
        raise FormatError(f"{name}: metadata 'alphabet' is {found!r}, expected one of {', '.join(ALPHABETS)}")
    rows, cols, k = (_integer(metadata, key, name, 1, _LARGEST_SIZE) for key in ("rows", "cols", "k"))
    shapes = {"d1": (rows,), "b1": (rows, -(-k // 8)), "d2": (k,), "b2": (k, -(-cols // 8)), "d3": (cols,)}
    for key in sorted(shapes.keys() | header.tensors.keys()):
        _check_entry(header.tensors.get(key), shapes.get(key), key, name)
    dtypes = {header.tensors[key].dtype for key in _DIAGONALS}
    if len(dtypes) > 1:
        raise FormatError(
            f"{name}: tensors d1, d2, d3 have dtypes {sorted(dtypes)}, expected one for all three"
        )
    _value(metadata, "written_by", name)
    return header


def _check_format(metadata: dict[str, str], name: str) -> None:
    if metadata.get("format") != "diba":
        found = f"is {metadata['format']!r}" if "format" in metadata else "is missing"
        raise FormatError(f"{name}: is not a diba file: metadata 'format' {found}, expected 'diba'")
    version = _integer(metadata, "format_version", name, 1, 2**31)
    if version > FORMAT_VERSION:
        raise FormatError(
            f"{name}: metadata 'format_version' is {version}, this diba reads up to {FORMAT_VERSION}; "
            f"upgrade diba (the file was written by {metadata.get('written_by', 'an unknown version')})"
        )


def _check_entry(
    entry: _safetensors.TensorEntry | None, shape: tuple[int, ...] | None, key: str, name: str
) -> None:
    if shape is None:
        raise FormatError(f"{name}: tensor {key!r} is unexpected; a diba file has b1, b2, d1, d2, d3 only")
    if entry is None:
        raise FormatError(f"{name}: tensor {key!r} is missing")
    dtypes = ("U8",) if key in _BITS else ("F16", "F32")
    if entry.dtype not in dtypes:
        raise FormatError(f"{name}: tensor {key!r} has dtype {entry.dtype}, expected {' or '.join(dtypes)}")
    if entry.shape != shape:
        raise FormatError(
            f"{name}: tensor {key!r} has shape {entry.shape}, expected {shape} from metadata rows, cols, k"
        )


def _decode(metadata: dict[str, str], tensors: dict[str, NDArray[Any]], name: str) -> StoredFactors:
    for key, tensor in tensors.items():
        found, expected = _crc32(tensor.data), _value(metadata, f"crc32_{key}", name)
        if found != expected:
            raise FormatError(
                f"{name}: tensor {key!r} is damaged: its CRC-32 is {found}, expected {expected} "
                f"from metadata 'crc32_{key}'"
            )
    for key, bits in (("b1", tensors["d2"].size), ("b2", tensors["d3"].size)):
        used = bits % 8
        if used and (tensors[key][:, -1] >> used).any():
            raise FormatError(f"{name}: tensor {key!r} has ones past its last column, expected zeros")
    diagonals = {key: _decode_diagonal(metadata, tensors[key], key, name) for key in _DIAGONALS}
    alphabet = _check.alphabet(metadata["alphabet"])
    return StoredFactors(alphabet, b1=tensors["b1"], b2=tensors["b2"], **diagonals)


def _decode_diagonal(
    metadata: dict[str, str], tensor: NDArray[Any], key: str, name: str
) -> NDArray[np.float32]:
    e = _integer(metadata, f"{key}_exponent", name, diagonal16.EXPONENT_MIN, diagonal16.EXPONENT_MAX)
    if tensor.dtype == np.float32 and e != 0:
        raise FormatError(f"{name}: metadata '{key}_exponent' is {e}, expected 0 with float32 diagonals")
    if not np.isfinite(tensor).all():
        raise FormatError(f"{name}: tensor {key!r} has NaN or infinite entries, expected finite numbers")
    if tensor.dtype == np.float32:
        return tensor
    if np.ldexp(np.abs(tensor).max().astype(np.float64), e) > float(np.finfo(np.float32).max):
        raise FormatError(f"{name}: tensor {key!r} leaves float32's range with metadata '{key}_exponent' {e}")
    return diagonal16.decode(tensor, e)


def _value(metadata: dict[str, str], key: str, name: str) -> str:
    if key not in metadata:
        raise FormatError(f"{name}: metadata {key!r} is missing")
    return metadata[key]


def _integer(metadata: dict[str, str], key: str, name: str, minimum: int, maximum: int) -> int:
    text = _value(metadata, key, name)
    wanted = f"expected an integer from {minimum} to {maximum}"
    if not re.fullmatch(r"0|-?[1-9][0-9]{0,18}", text):
        raise FormatError(f"{name}: metadata {key!r} is {text[:40]!r}, {wanted}")
    if not minimum <= int(text) <= maximum:
        raise FormatError(f"{name}: metadata {key!r} is {text}, {wanted}")
    return int(text)


def _crc32(data: memoryview | bytes) -> str:
    return f"{zlib.crc32(data):08x}"


def _crc32_of_metadata(metadata: dict[str, str]) -> str:
    lines = (f"{key}={value}\n" for key, value in sorted(metadata.items()) if key != "crc32_metadata")
    return _crc32("".join(lines).encode())
