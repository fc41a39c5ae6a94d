"""Safetensors files of diba's own: versioned, with a checksum of every tensor and of all metadata.

Metadata, all strings: format, format_version, written_by, crc32_NAME (8 hex
digits over the bytes of the tensor NAME), crc32_metadata (the same over the lines
``key=value`` of all other keys, sorted), and whatever a format adds.

Nothing is allocated for a tensor before its bytes are known to be in the file, and
nothing of it is believed before its checksum is right.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import numpy as np

from .. import _core
from ..errors import FormatError
from . import container

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

__all__ = ["Format", "SignedFile", "StoredTensor", "crc32", "encode", "open_signed"]


@dataclass(frozen=True)
class Format:
    """What tells files of one format from others.

    Attributes:
        name: Metadata ``format``.
        what: For messages: "is not {what}".
        version: The newest ``format_version`` this diba reads; it writes this one.
        longest_header: Bytes that its header may have.
    """

    name: str
    what: str
    version: int
    longest_header: int


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
        array = np.ascontiguousarray(self.make(), dtype=container.DTYPES[self.dtype])
        return _bytes_of(array)


def encode(
    kind: Format,
    metadata: Mapping[str, str],
    tensors: Mapping[str, StoredTensor],
    written_by: str | None = None,
) -> Iterator[bytes | memoryview]:
    """The bytes of a file in parts: one before the tensors', one for each of these, in this order."""
    crcs, entries = {}, {}
    for key, tensor in tensors.items():
        data = tensor.data()
        crcs[f"crc32_{key}"] = crc32(data)
        entries[key] = (tensor.dtype, tensor.shape, len(data))
    signed = {
        "format": kind.name,
        "format_version": str(kind.version),
        "written_by": written_by or f"diba {_core.__version__}",
        **metadata,
        **crcs,
    }
    signed["crc32_metadata"] = _crc32_of_metadata(signed)
    yield container.encode_header(signed, entries)
    for tensor in tensors.values():
        yield tensor.data()


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def crc32(data: memoryview | bytes) -> str:
    """8 hex digits."""
    return f"{zlib.crc32(data):08x}"


def _crc32_of_metadata(metadata: Mapping[str, str]) -> str:
    lines = (f"{key}={value}\n" for key, value in sorted(metadata.items()) if key != "crc32_metadata")
    return crc32("".join(lines).encode())


@dataclass(frozen=True)
class SignedFile:
    """An open file whose container and metadata are right; its tensors have still to be read.

    Attributes:
        name: For messages.
        metadata: All of it.
        tensors: What the header says of each, not checked against its format yet.
    """

    name: str
    metadata: dict[str, str]
    tensors: dict[str, container.TensorEntry]
    _data_start: int
    _file: BinaryIO

    def fail(self, problem: str) -> NoReturn:
        """Raise the FormatError that says so."""
        raise FormatError(f"{self.name}: {problem}")

    def value(self, key: str) -> str:
        """A metadata value that must be there."""
        if key not in self.metadata:
            self.fail(f"metadata {key!r} is missing")
        return self.metadata[key]

    def integer(self, key: str, minimum: int, maximum: int) -> int:
        """A metadata value that must be ``0|-?[1-9][0-9]*``, within bounds."""
        text = self.value(key)
        wanted = f"expected an integer from {minimum} to {maximum}"
        if not re.fullmatch(r"0|-?[1-9][0-9]{0,18}", text):
            self.fail(f"metadata {key!r} is {text[:40]!r}, {wanted}")
        if not minimum <= int(text) <= maximum:
            self.fail(f"metadata {key!r} is {text}, {wanted}")
        return int(text)

    def check_entries(self) -> None:
        """The tensors follow one another without gap, with as many bytes as shape and dtype say."""
        where = sorted((entry.begin, entry.end, key) for key, entry in self.tensors.items())
        expected = self._data_start
        for begin, end, key in where:
            entry = self.tensors[key]
            if entry.dtype not in container.DTYPES:
                self.fail(f"tensor {key[:40]!r} has dtype {entry.dtype[:40]!r}, which is unknown")
            length = math.prod(entry.shape) * np.dtype(container.DTYPES[entry.dtype]).itemsize
            if end - begin != length:
                self.fail(
                    f"the safetensors content is damaged: tensor {key[:40]!r} has {end - begin} bytes, "
                    f"which differ from its shape and dtype"
                )
        for begin, end, _ in where:
            if begin != expected:
                self.fail(
                    "the safetensors content is damaged: its tensors overlap or leave gaps, "
                    "expected one after another"
                )
            expected = end

    def array(self, key: str) -> NDArray[Any]:
        """A tensor whose checksum is right; after :meth:`check_entries`."""
        entry = self.tensors[key]
        dtype = np.dtype(container.DTYPES[entry.dtype])
        array = np.empty(entry.shape, dtype)
        data = _bytes_of(array)
        self._file.seek(entry.begin)
        if self._file.readinto(data) != len(data):  # type: ignore[attr-defined]
            self.fail("is cut short: it became smaller while it was read")
        found, expected = crc32(data), self.value(f"crc32_{key}")
        if found != expected:
            self.fail(
                f"tensor {key[:40]!r} is damaged: its CRC-32 is {found}, expected {expected[:40]!r} "
                f"from metadata {f'crc32_{key}'[:40]!r}"
            )
        return array.astype(dtype.newbyteorder("="), copy=False)


def open_signed(file: BinaryIO, name: str, kind: Format) -> SignedFile:
    """Check all that container and metadata alone can tell, before any tensor is read.

    Raises:
        FormatError: not a file of this format, damaged, or of a newer version.
    """
    header = container.read_header(file, name, kind.longest_header)
    signed = SignedFile(name, header.metadata, header.tensors, header.data_start, file)
    found = signed.metadata.get("format")
    if found != kind.name:
        stated = "is missing" if found is None else f"is {found[:40]!r}"
        signed.fail(f"is not {kind.what}: metadata 'format' {stated}, expected {kind.name!r}")
    version = signed.integer("format_version", 1, 2**31)
    if version > kind.version:
        author = signed.metadata.get("written_by", "an unknown version")
        signed.fail(
            f"metadata 'format_version' is {version}, this diba reads up to {kind.version}; "
            f"upgrade diba (the file was written by {author[:40]})"
        )
    if signed.value("crc32_metadata") != _crc32_of_metadata(signed.metadata):
        signed.fail("the metadata is damaged: its CRC-32 differs from metadata 'crc32_metadata'")
    return signed
