"""Safetensors files: reading any of them, and reading and writing those of diba.

Headers are read by compiled code: ``cpp/src/file/safetensors.hpp`` specifies what it refuses,
``checksummed.hpp`` the metadata and checksums that diba's files have in addition. This module reads their
arrays, and has the only writer.
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
    "ChecksummedFile",
    "Format",
    "Header",
    "StoredTensor",
    "TensorEntry",
    "crc32",
    "encode",
    "framed",
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
    "BF16": "<u2",  # the upper half of a float32; NumPy has no such dtype
    "F32": "<f4",
    "F64": "<f8",
}


# ---------------------------------------------------------------- any safetensors file


class TensorEntry(NamedTuple):
    """A tensor's entry in the header; offsets count from the start of the file."""

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
        name: Name of the file in messages.

    Raises:
        FormatError: it is not a safetensors file, its header is damaged, or it has too few or too many bytes.
    """
    metadata, tensors = _core.read_header(file, name)
    return Header(metadata, _entries(tensors))


def read_array(file: BinaryIO, entry: TensorEntry, name: str) -> NDArray[Any]:
    """Read one tensor of a dtype in ``DTYPES``, in native byte order; BF16 becomes float32."""
    array, data = _empty(entry)
    file.seek(entry.begin)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise FormatError(f"{name}: is cut short: it became smaller while it was read")
    return _native(array, entry)


def _entries(tensors: dict[str, tuple[str, tuple[int, ...], int, int]]) -> dict[str, TensorEntry]:
    return {
        key: TensorEntry(sys.intern(dtype), shape, begin, end)
        for key, (dtype, shape, begin, end) in tensors.items()
    }


def _empty(entry: TensorEntry) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """An empty array for a tensor, and a view of its bytes."""
    array = np.empty(entry.shape, DTYPES[entry.dtype])
    return array, array.reshape(-1).view(np.uint8)


def _native(array: NDArray[Any], entry: TensorEntry) -> NDArray[Any]:
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if entry.dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


# ---------------------------------------------------------------- files of diba: reading


@dataclass(frozen=True)
class Format:
    """A file format of diba.

    Attributes:
        name: Value of the metadata key ``format``.
        what: The format in messages: "is not {what}".
        version: ``format_version`` that is written, and the newest that is read.
    """

    name: str
    what: str
    version: int


class ChecksummedFile:
    """An open file of diba, its header and metadata checked, its tensors not read yet.

    Args:
        file: Regular file, or bytes in memory.
        name: Name of the file in messages.
        kind: Format of the file.

    Attributes:
        metadata: All metadata.
        tensors: Entries of the header; dtypes and shapes are not checked against the format.

    Raises:
        FormatError: it is not a file of this format, is damaged, or has a newer format version.
    """

    def __init__(self, file: BinaryIO, name: str, kind: Format) -> None:
        self._file = _core.ChecksummedFile(file, name, kind.name, kind.what, kind.version)
        self._name = name
        self.metadata = self._file.metadata
        self.tensors = _entries(self._file.tensors)

    def fail(self, problem: str) -> NoReturn:
        """Raise a FormatError about this file."""
        raise FormatError(f"{self._name}: {problem}")

    def value(self, key: str) -> str:
        """A required metadata value."""
        if key not in self.metadata:
            self.fail(f"metadata {key!r} is missing")
        return self.metadata[key]

    def integer(self, key: str, minimum: int, maximum: int) -> int:
        """A required metadata value that is an integer from ``minimum`` to ``maximum``."""
        return self._file.integer(key, minimum, maximum)

    def array(self, key: str) -> NDArray[Any]:
        """Read a tensor of a dtype in ``DTYPES`` and check its checksum."""
        array, data = _empty(self.tensors[key])
        self._file.read(key, data)
        return _native(array, self.tensors[key])


# ---------------------------------------------------------------- files of diba: writing


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to write.

    Attributes:
        dtype: Dtype in safetensors' names.
        shape: Shape.
        make: Makes the array. Called twice, for the checksum and for the bytes, so that only one array is in
            memory at a time.
    """

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], NDArray[Any]]

    def data(self) -> memoryview:
        """The bytes of the tensor in a file."""
        array = np.ascontiguousarray(self.make(), dtype=DTYPES[self.dtype])
        return array.reshape(-1).view(np.uint8).data


def crc32(data: memoryview | bytes) -> str:
    """CRC-32 as 8 hex digits."""
    return f"{zlib.crc32(data):08x}"


def framed(header: bytes) -> bytes:
    """What a safetensors file begins with; the tensors then begin at a multiple of 8 bytes."""
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def encode(
    kind: Format,
    metadata: Mapping[str, str],
    tensors: Mapping[str, StoredTensor],
    written_by: str | None = None,
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a file in parts: the header, then each tensor.

    Equal content gives equal bytes: metadata are sorted by key. The first tensor begins at a multiple of 8
    bytes.
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
    yield framed(json.dumps(header, separators=(",", ":")).encode("ascii"))
    for tensor in tensors.values():
        yield tensor.data()
