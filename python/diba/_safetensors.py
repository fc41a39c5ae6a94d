r"""The header of a safetensors file, read strictly and leanly, and written in a fixed order.

A safetensors file is: the header's length (8 bytes, little-endian), the header
(JSON: tensor name -> dtype, shape, data_offsets; ``__metadata__`` -> strings),
the tensors' bytes.

Readers of JSON differ in what they make of its rarer forms, so these are refused,
here and in ``cpp/src/safetensors.cpp`` alike: a key twice, half of a surrogate pair, any
number but ``0|[1-9][0-9]*`` below 2^64, a tensor's entry with other fields than
those three, and escapes in its fields' names and dtype (``"shap\u0065"``).
No depth is left to chance: the header is matched against its one possible shape.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from .errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["DTYPES", "Header", "TensorEntry", "encode_header", "read_header"]

_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # the safetensors package's own limit
_METADATA = "__metadata__"

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


class TensorEntry(NamedTuple):
    """One tensor as the header states it; offsets count from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """Metadata and tensors of a safetensors file, in the header's order; tensors begin at ``data_start``."""

    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]
    data_start: int


def read_header(file: BinaryIO, name: str, longest: int = _LONGEST_HEADER) -> Header:
    """Read the header from the start of an open file.

    Args:
        file: Regular file, or bytes in memory.
        name: For messages.
        longest: Bytes that a header may have, where files of one kind have small ones.

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
    if length > longest:
        raise FormatError(
            f"{name}: is not a diba file: its header has {length} bytes, expected up to {longest}"
        )
    file.seek(_LENGTH_BYTES)
    header = _parse(file.read(length), data_start, name)
    end = max((tensor.end for tensor in header.tensors.values()), default=data_start)
    _check_size(name, size, end, at_least=False)
    return header


def encode_header(
    metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, tuple[int, ...], int]]
) -> bytes:
    """All bytes before the tensors', which must follow in this order.

    Args:
        metadata: Written sorted by key.
        tensors: Name -> (dtype, shape, number of bytes).
    """
    header: dict[str, object] = {_METADATA: dict(sorted(metadata.items()))}
    end = 0
    for key, (dtype, shape, size) in tensors.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": (end, end + size)}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # tensors stay aligned to 8 bytes
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _check_size(name: str, size: int, announced: int, at_least: bool) -> None:
    if size < announced:
        raise FormatError(f"{name}: is cut short: it has {size} bytes, its header announces {announced}")
    if size > announced and not at_least:
        raise FormatError(f"{name}: has {size} bytes, {size - announced} more than its header announces")


# ---------------------------------------------------------------- the one shape of a header

# Possessive quantifiers: nothing is tried twice, so time is linear in the header's length.
_BLANKS = rb"[ \t\n\r]*+"
_STRING = rb'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"'
_NUMBER = rb"(?:0|[1-9][0-9]{0,19}+)"
_NUMBERS = rb"\[_(?:#_(?:,_#_)*+)?+\]"
_PAIR = rb"\[_#_,_#_\]"
_ENTRY = (
    rb'\{_(?:(?:"dtype"_:_"(?P<dtype>[^"\\\x00-\x1f]*+)"|"shape"_:_(?P<shape>' + _NUMBERS + rb")"
    rb'|"data_offsets"_:_(?P<offsets>' + _PAIR + rb'))_(?:,_(?=")|(?=\}))){3}\}'
)


def _pattern(text: bytes) -> re.Pattern[bytes]:
    """``_`` stands for blanks, ``#`` for a number; field names have their own underscore."""
    parts = text.split(b"data_offsets")
    return re.compile(
        b"data_offsets".join(part.replace(b"_", _BLANKS).replace(b"#", _NUMBER) for part in parts)
    )


_OBJECT = _pattern(rb"_\{_(\}?)")
_KEY = _pattern(rb"_(" + _STRING + rb")_:_")
_TEXT = _pattern(_STRING)
_TENSOR = _pattern(_ENTRY)
_NEXT = _pattern(rb"_([,}])")
_END = _pattern(rb"_\Z")
_DIGITS = re.compile(rb"[0-9]+")


class _Damaged(ValueError):
    """What was expected, and where."""


class _Scanner:
    """A place in the header's text."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._position = 0

    def take(self, pattern: re.Pattern[bytes], expected: str) -> re.Match[bytes]:
        """What must come next."""
        found = pattern.match(self._text, self._position)
        if found is None:
            raise _Damaged(f"expected {expected}, byte {self._position}")
        self._position = found.end()
        return found

    def string(self, token: bytes) -> str:
        """What a matched string stands for."""
        try:
            text = token.decode()
            if "\\" not in text:
                return text[1:-1]
            unescaped: str = json.loads(text)
            unescaped.encode()  # refuses half of a surrogate pair
        except ValueError:
            raise _Damaged(f"expected a string in UTF-8, before byte {self._position}") from None
        return unescaped

    def keys(self, expected: str) -> Iterator[str]:
        """The keys of an object; the caller takes each value before it asks for the next."""
        if self.take(_OBJECT, expected)[1]:
            return
        while True:
            yield self.string(self.take(_KEY, "a key")[1])
            if self.take(_NEXT, "',' or '}'")[1] == b"}":
                return


def _parse(text: bytes, data_start: int, name: str) -> Header:
    scanner = _Scanner(text)
    header = Header({}, {}, data_start)
    has_metadata = False
    try:
        for key in scanner.keys("'{'"):
            if key != _METADATA:
                if key in header.tensors:
                    raise FormatError(f"{name}: tensor {key[:40]!r} is there twice, expected once")
                header.tensors[key] = _entry(scanner, key, data_start, name)
            elif has_metadata:
                raise FormatError(f"{name}: the safetensors header has __metadata__ twice, expected once")
            else:
                has_metadata = True
                _read_metadata(scanner, header.metadata, name)
        scanner.take(_END, "the end")
    except _Damaged as error:
        raise FormatError(f"{name}: the safetensors header is damaged, it is not JSON ({error})") from None
    return header


def _read_metadata(scanner: _Scanner, metadata: dict[str, str], name: str) -> None:
    problem = f"{name}: the safetensors metadata is damaged; all its values must be strings"
    try:
        for key in scanner.keys("'{'"):
            value = scanner.string(scanner.take(_TEXT, "a string")[0])
            if key in metadata:
                raise FormatError(f"{name}: metadata {key[:40]!r} is there twice, expected once")
            metadata[key] = value
    except _Damaged as error:
        raise FormatError(f"{problem} ({error})") from None


def _entry(scanner: _Scanner, key: str, data_start: int, name: str) -> TensorEntry:
    try:
        found = scanner.take(_TENSOR, "an object of these three")
        dtype, shape, offsets = found.group("dtype", "shape", "offsets")
        if dtype is None or shape is None or offsets is None:
            raise _Damaged("expected each of them once")
        sizes = tuple(map(int, _DIGITS.findall(shape)))
        begin, end = map(int, _DIGITS.findall(offsets))
        if max(begin, end, *sizes) >= 2**64 or begin > end:
            raise _Damaged("expected integers below 2^64, and offsets in order")
        return TensorEntry(scanner.string(b'"' + dtype + b'"'), sizes, data_start + begin, data_start + end)
    except _Damaged as error:
        raise FormatError(
            f"{name}: tensor {key[:40]!r}: the header entry is damaged; "
            f"expected dtype, shape and data_offsets ({error})"
        ) from None
