"""The header of a safetensors file, read defensively and written in a fixed order.

A safetensors file is: the header's length (8 bytes, little-endian), the header
(JSON: tensor name -> dtype, shape, data_offsets; ``__metadata__`` -> strings),
the tensors' bytes. Tensors themselves are read and written by the safetensors
package; it keeps metadata in an unordered map, so equal content would not give
equal files without :func:`in_fixed_order`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, BinaryIO

from .errors import FormatError

__all__ = ["Header", "TensorEntry", "in_fixed_order", "read_header"]

_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # the safetensors package's own limit


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as the header states it; offsets count from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """Metadata and tensors of a safetensors file, in the header's order."""

    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]


def read_header(file: BinaryIO, name: str) -> Header:
    """Read the header from the start of an open file.

    Raises:
        FormatError: not a safetensors file, a damaged header, or too few or too many bytes.
    """
    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(_LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    looks_right = len(start) == _LENGTH_BYTES and file.read(1) == b"{"
    if not looks_right or not 2 <= length <= _LONGEST_HEADER:
        raise FormatError(f"{name}: is not a safetensors file (it does not begin with a header)")
    data_start = _LENGTH_BYTES + length
    _check_size(name, size, data_start, at_least=True)
    file.seek(_LENGTH_BYTES)
    header = _parse(file.read(length), name)
    metadata = _metadata(header.pop("__metadata__", {}), name)
    tensors = {key: _entry(value, key, data_start, name) for key, value in header.items()}
    end = max((tensor.end for tensor in tensors.values()), default=data_start)
    _check_size(name, size, end, at_least=False)
    return Header(metadata, tensors)


def in_fixed_order(data: bytes) -> bytes:
    """The same safetensors file with its metadata sorted by key."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # tensors stay aligned to 8 bytes
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + data[_LENGTH_BYTES + length :]


def _parse(text: bytes, name: str) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name}: the safetensors header is damaged, it is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise FormatError(f"{name}: the safetensors header is damaged, it is not a JSON object")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What json makes of an object; readers do not agree on what a key that comes twice means."""
    for key, value in pairs:
        for text in (key, value) if isinstance(value, str) else (key,):
            text.encode()  # half of a surrogate pair is no text: UnicodeEncodeError, a ValueError
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def _metadata(value: Any, name: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise FormatError(f"{name}: the safetensors metadata is damaged; all its values must be strings")
    return value


def _entry(value: Any, key: str, data_start: int, name: str) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        numbers = [None]
    if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(dtype, str):
        raise FormatError(
            f"{name}: tensor {key!r}: the header entry is damaged; expected dtype, shape and data_offsets"
        )
    return TensorEntry(dtype, tuple(shape), data_start + begin, data_start + end)


def _check_size(name: str, size: int, announced: int, at_least: bool) -> None:
    if size < announced:
        raise FormatError(f"{name}: is cut short: it has {size} bytes, its header announces {announced}")
    if size > announced and not at_least:
        raise FormatError(f"{name}: has {size} bytes, {size - announced} more than its header announces")
