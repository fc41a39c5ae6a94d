r"""The header of a safetensors file, read strictly and leanly, and written in a fixed order.

A safetensors file is: the header's length (8 bytes, little-endian), the header
(JSON: tensor name -> dtype, shape, data_offsets; ``__metadata__`` -> strings),
the tensors' bytes.

Readers of JSON differ in what they make of its rarer forms, so these are refused,
here and in ``cpp/src/file/safetensors.cpp`` alike: a key twice, half of a surrogate pair, any
number but ``0|[1-9][0-9]*`` of up to 19 digits, a tensor's entry with other fields than
those three, and escapes in its fields' names and dtype (``"shap\u0065"``).
No depth is left to chance: the header is matched against its one possible shape.
"""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, NoReturn

from ..errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DTYPES", "Header", "TensorEntry", "encode_header", "read_header"]

_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # the safetensors package's own limit
_METADATA = "__metadata__"
_NOT_JSON = "the safetensors header is damaged, it is not JSON"
_NOT_STRINGS = "the safetensors metadata is damaged; all its values must be strings"

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
    header = Header({}, {}, data_start)
    _Parser(file.read(length), header, name).parse()
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


def _pattern(text: str) -> re.Pattern[bytes]:
    """A regular expression; ``~`` stands for blanks, STRING for a string, NUMBER for a number.

    Unbounded quantifiers are possessive: nothing is tried twice, so time is linear in the header's length.
    """
    string = r'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"'
    text = text.replace("STRING", string).replace("NUMBER", "(?:0|[1-9][0-9]{0,18}+)")
    return re.compile(text.replace("~", r"[ \t\n\r]*+").encode())


_KEY = "~(?P<key>STRING)~:~"
_NEXT = "~(?P<next>[,}])"
_FIELDS = (
    r'"dtype"~:~(?P<dtype>"[^"\\\x00-\x1f]*+")',
    r'"shape"~:~\[~(?P<shape>(?:NUMBER~(?:,~NUMBER~){0,63})?)\]',
    r'"data_offsets"~:~\[~(?P<begin>NUMBER)~,~(?P<end>NUMBER)~\]',
)
_OPEN = _pattern(r"~\{~(?P<close>\}?)")
_START = _pattern(_KEY)
_STRINGS = _pattern(f"{_KEY}(?P<value>STRING){_NEXT}")
_TENSOR = _pattern(rf'{_KEY}\{{~(?:(?:{"|".join(_FIELDS)})~(?:,~(?=")|(?=\}}))){{3}}\}}{_NEXT}')
_AFTER = _pattern(_NEXT)
_END = _pattern(r"~\Z")


class _Parser:
    """The header's text, and the place reached in it."""

    def __init__(self, text: bytes, header: Header, name: str) -> None:
        self._text = text
        self._position = 0
        self._header = header
        self._name = name

    def parse(self) -> None:
        """Put all of the text into the header; a tensor costs one match."""
        has_metadata = False
        more = not self._take(_OPEN, _NOT_JSON)["close"]
        while more:
            found = _TENSOR.match(self._text, self._position)
            key = self._string(
                (found or _START.match(self._text, self._position) or self._fail(_NOT_JSON))["key"]
            )
            if key == _METADATA:
                if has_metadata:
                    self._fail("the safetensors header has __metadata__ twice, expected once")
                has_metadata = True
                self._take(_START, _NOT_JSON)
                self._read_metadata()
                found = self._take(_AFTER, _NOT_JSON)
            elif found is None:
                self._fail_entry(key)
            else:
                self._position = found.end()
                self._add(key, found)
            more = found["next"] == b","
        self._take(_END, _NOT_JSON)

    def _add(self, key: str, found: re.Match[bytes]) -> None:
        dtype, shape, begin, end = found.group("dtype", "shape", "begin", "end")
        if dtype is None or shape is None or begin is None or int(begin) > int(end):
            self._fail_entry(key)  # there are three fields: where one is missing, one comes twice
        if key in self._header.tensors:
            self._fail(f"tensor {key[:40]!r} is there twice, expected once")
        sizes = tuple(map(int, shape.split(b","))) if shape else ()
        start, kind = self._header.data_start, sys.intern(self._string(dtype))
        self._header.tensors[key] = TensorEntry(kind, sizes, start + int(begin), start + int(end))

    def _read_metadata(self) -> None:
        metadata = self._header.metadata
        more = not self._take(_OPEN, _NOT_STRINGS)["close"]
        while more:
            found = self._take(_STRINGS, _NOT_STRINGS)
            key, value = self._string(found["key"]), self._string(found["value"])
            if key in metadata:
                self._fail(f"metadata {key[:40]!r} is there twice, expected once")
            metadata[key] = value
            more = found["next"] == b","

    def _take(self, pattern: re.Pattern[bytes], problem: str) -> re.Match[bytes]:
        """What must come next."""
        found = pattern.match(self._text, self._position)
        if found is None:
            self._fail(problem)
        self._position = found.end()
        return found

    def _string(self, token: bytes) -> str:
        """What a matched string stands for."""
        try:
            text = token.decode()
            if "\\" not in text:
                return text[1:-1]
            unescaped: str = json.loads(text)
            unescaped.encode()  # refuses half of a surrogate pair
        except ValueError:
            self._fail(_NOT_JSON)
        return unescaped

    def _fail_entry(self, key: str) -> NoReturn:
        self._fail(
            f"tensor {key[:40]!r}: the header entry is damaged; expected dtype, shape and data_offsets"
        )

    def _fail(self, problem: str) -> NoReturn:
        raise FormatError(f"{self._name}: {problem} (at or after byte {self._position} of the header)")
