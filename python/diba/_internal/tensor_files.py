"""Safetensors files: read any of them, read and write those of diba's own.

The readers are the compiled ones (``cpp/src/file/safetensors.hpp`` says what they refuse, ``signed.hpp``
what diba's own files have besides); here are their arrays, and the one writer.
"""

from __future__ import annotations

import json
import sys
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from .. import _core
from ..errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

__all__ = [
    "DTYPES",
    "Format",
    "Header",
    "SignedFile",
    "StoredTensor",
    "TensorEntry",
    "crc32",
    "encode",
    "read_array",
    "read_header",
]

DTYPES = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "BF16": "<u2",  # the upper half of a float32, which NumPy has no name for
    "F32": "<f4",
    "F64": "<f8",
}


# ---------------------------------------------------------------- any safetensors file


class TensorEntry(NamedTuple):
    """One tensor as the header states it; offsets count from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """Metadata and tensors of a safetensors file, by name."""

    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]


def read_header(file: BinaryIO, name: str) -> Header:
    """Read and check the header of an open file, and that the tensors fill the rest of the file.

    Args:
        file: Regular file, or bytes in memory.
        name: For messages.

    Raises:
        FormatError: not a safetensors file, a damaged header, or too few or too many bytes.
    """
    metadata, tensors = _core.read_header(file, name)
    return Header(metadata, _entries(tensors))


def read_array(file: BinaryIO, entry: TensorEntry, name: str) -> NDArray[Any]:
    """The values of one tensor of a known dtype, as this machine orders bytes; of BF16 as float32."""
    array, data = _room(entry)
    file.seek(entry.begin)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise FormatError(f"{name}: is cut short: it became smaller while it was read")
    return _native(array, entry)


def _entries(tensors: dict[str, tuple[str, tuple[int, ...], int, int]]) -> dict[str, TensorEntry]:
    return {
        key: TensorEntry(sys.intern(dtype), shape, begin, end)
        for key, (dtype, shape, begin, end) in tensors.items()
    }


def _room(entry: TensorEntry) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """An array for a tensor, and its bytes."""
    array = np.empty(entry.shape, DTYPES[entry.dtype])
    return array, array.reshape(-1).view(np.uint8)


def _native(array: NDArray[Any], entry: TensorEntry) -> NDArray[Any]:
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if entry.dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


# ---------------------------------------------------------------- diba's own: reading


@dataclass(frozen=True)
class Format:
    """What tells files of one format from others.

    Attributes:
        name: Metadata ``format``.
        what: For messages: "is not {what}".
        version: The newest ``format_version`` this diba reads; it writes this one.
    """

    name: str
    what: str
    version: int


class SignedFile:
    """An open file whose header and metadata are right; its tensors have still to be read.

    Args:
        file: Regular file, or bytes in memory.
        name: For messages.
        kind: Its format.

    Attributes:
        metadata: All of it.
        tensors: What the header says of each, not checked against the format.

    Raises:
        FormatError: not a file of this format, damaged, or of a newer version.
    """

    def __init__(self, file: BinaryIO, name: str, kind: Format) -> None:
        self._file = _core.SignedFile(file, name, kind.name, kind.what, kind.version)
        self._name = name
        self.metadata = self._file.metadata
        self.tensors = _entries(self._file.tensors)

    def fail(self, problem: str) -> NoReturn:
        """Raise the FormatError that says so."""
        raise FormatError(f"{self._name}: {problem}")

    def value(self, key: str) -> str:
        """A metadata value that must be there."""
        if key not in self.metadata:
            self.fail(f"metadata {key!r} is missing")
        return self.metadata[key]

    def array(self, key: str) -> NDArray[Any]:
        """A tensor of a known dtype, whose checksum is right."""
        array, data = _room(self.tensors[key])
        self._file.read(key, data)
        return _native(array, self.tensors[key])


# ---------------------------------------------------------------- diba's own: writing


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to be written.

    Attributes:
        dtype: Safetensors' name of it.
        shape: Its sizes.
        make: Makes the array, once for its checksum and once for its bytes, so that never two are held.
    """

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], NDArray[Any]]

    def data(self) -> memoryview:
        """Its bytes, as a file holds them."""
        array = np.ascontiguousarray(self.make(), dtype=DTYPES[self.dtype])
        return array.reshape(-1).view(np.uint8).data


def crc32(data: memoryview | bytes) -> str:
    """8 hex digits."""
    return f"{zlib.crc32(data):08x}"


def encode(
    kind: Format,
    metadata: Mapping[str, str],
    tensors: Mapping[str, StoredTensor],
    written_by: str | None = None,
) -> Iterator[bytes | memoryview]:
    """The bytes of a file in parts: one before the tensors', one for each of these, in this order.

    Equal content gives equal bytes: metadata are sorted by key, tensors begin at a multiple of 8 bytes.
    """
    crcs: dict[str, str] = {}
    header: dict[str, object] = {"__metadata__": {}}
    end = 0
    for key, tensor in tensors.items():
        data = tensor.data()
        crcs[f"crc32_{key}"] = crc32(data)
        offsets = (end, end := end + len(data))
        header[key] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
    signed = {
        "format": kind.name,
        "format_version": str(kind.version),
        "written_by": written_by or f"diba {_core.__version__}",
        **metadata,
        **crcs,
    }
    lines = (f"{key}={value}\n" for key, value in sorted(signed.items()))
    signed["crc32_metadata"] = crc32("".join(lines).encode())
    header["__metadata__"] = dict(sorted(signed.items()))
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        yield tensor.data()
