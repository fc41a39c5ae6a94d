"""A second reader of files of factors, by regular expressions: what the compiled one must accept, and find.

It states the format once more, for the fuzzers to compare; it is slow, and its messages say little.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from typing import Any

import numpy as np

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
SIZES = range(1, 2**40 + 1)
EXPONENTS = range(-149, 128)


class RefusedError(Exception):
    """The file is none of the format."""


def require(condition: Any) -> None:
    if not condition:
        raise RefusedError


# ---------------------------------------------------------------- the header


def _pattern(text: str) -> re.Pattern[bytes]:
    """``~`` stands for blanks, STRING for a string, NUMBER for a number."""
    string = r'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"'
    text = text.replace("STRING", string).replace("NUMBER", "(?:0|[1-9][0-9]{0,18}+)")
    return re.compile(text.replace("~", r"[ \t\n\r]*+").encode())


_FIELDS = (
    r'"dtype"~:~(?P<dtype>"[^"\\\x00-\x1f]*+")',
    r'"shape"~:~\[~(?P<shape>(?:NUMBER~(?:,~NUMBER~){0,63})?)\]',
    r'"data_offsets"~:~\[~(?P<begin>NUMBER)~,~(?P<end>NUMBER)~\]',
)
_ENTRY = rf'\{{~(?:(?:{"|".join(_FIELDS)})~(?:,~(?=")|(?=\}}))){{3}}\}}'
_OPEN = _pattern(r"~\{~(?P<close>\}?)")
_TENSOR = _pattern(rf"~(?P<key>STRING)~:~{_ENTRY}~(?P<next>[,}}])")
_METADATA = _pattern(r"~(?P<key>STRING)~:")
_STRING = _pattern(r"~(?P<key>STRING)~:~(?P<value>STRING)~(?P<next>[,}])")
_AFTER = _pattern(r"~(?P<next>[,}])")
_END = _pattern(r"~\Z")


class _Text:
    def __init__(self, text: bytes) -> None:
        self.text, self.position = text, 0

    def take(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        found = pattern.match(self.text, self.position)
        if found is None:
            raise RefusedError
        self.position = found.end()
        return found


def _unescaped(token: bytes) -> str:
    try:
        text: str = json.loads(token.decode())
        text.encode()  # refuses half of a surrogate pair
    except ValueError:
        raise RefusedError from None
    return text


def _metadata(text: _Text) -> dict[str, str]:
    found: dict[str, str] = {}
    more = not text.take(_OPEN)["close"]
    while more:
        pair = text.take(_STRING)
        key = _unescaped(pair["key"])
        require(key not in found)
        found[key] = _unescaped(pair["value"])
        more = pair["next"] == b","
    return found


def header(content: bytes) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...], bytes]]]:
    """Metadata, and tensors as (dtype, shape, bytes)."""
    length = int.from_bytes(content[:8], "little")
    require(len(content) > 8 and content[8:9] == b"{" and 2 <= length <= 1 << 20)
    require(8 + length <= len(content))
    text, data = _Text(content[8 : 8 + length]), content[8 + length :]
    metadata: dict[str, str] | None = None
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    places = []
    more = not text.take(_OPEN)["close"]
    while more:
        start = text.position
        key = _unescaped(text.take(_METADATA)["key"])
        if key == "__metadata__":
            require(metadata is None)
            metadata = _metadata(text)
            more = text.take(_AFTER)["next"] == b","
            continue
        text.position = start
        found = text.take(_TENSOR)
        dtype, shape, begin, end = found.group("dtype", "shape", "begin", "end")
        require(key not in tensors and None not in (dtype, shape, begin))
        first, last = int(begin), int(end)
        sizes = tuple(map(int, shape.split(b","))) if shape else ()
        require(first <= last <= len(data))
        kind = _unescaped(dtype)
        require(ITEM_BYTES.get(kind, 0) * math.prod(sizes) == last - first)
        tensors[key] = kind, sizes, data[first:last]
        places.append((first, last))
        more = found["next"] == b","
    text.take(_END)
    ends = [0, *(end for _, end in sorted(places))]
    require([begin for begin, _ in sorted(places)] == ends[:-1])
    require(ends[-1] == len(data))
    return metadata or {}, tensors


# ---------------------------------------------------------------- the factors


def _integer(text: str | None, allowed: range) -> int:
    require(text is not None and re.fullmatch(r"0|-?[1-9][0-9]{0,18}", text, re.ASCII))
    require(int(text or "") in allowed)
    return int(text or "")


def read(content: bytes) -> dict[str, Any]:
    """Alphabet, float32 diagonals ``d1 d2 d3`` and packed rows of uint8 ``b1 b2``.

    Raises:
        RefusedError: it is no such file.
    """
    metadata, tensors = header(content)
    lines = "".join(f"{key}={value}\n" for key, value in sorted(metadata.items()) if key != "crc32_metadata")
    require(metadata.get("format") == "diba" and metadata.get("format_version") == "1")
    require(metadata.get("crc32_metadata") == f"{zlib.crc32(lines.encode()):08x}")
    require(metadata.get("alphabet") in ("binary", "sign") and "written_by" in metadata)
    rows, cols, k = (_integer(metadata.get(key), SIZES) for key in ("rows", "cols", "k"))
    shapes = {"b1": (rows, -(-k // 8)), "b2": (k, -(-cols // 8)), "d1": (rows,), "d2": (k,), "d3": (cols,)}
    require(tensors.keys() == shapes.keys())
    require(all(tensors[key][1] == shape for key, shape in shapes.items()))
    require({tensors[key][0] for key in ("d1", "d2", "d3")} in ({"F16"}, {"F32"}))
    found: dict[str, Any] = {"alphabet": metadata["alphabet"]}
    for key, (dtype, shape, data) in tensors.items():
        require(metadata.get(f"crc32_{key}") == f"{zlib.crc32(data):08x}")
        if key in ("b1", "b2"):
            require(dtype == "U8")
            found[key] = np.frombuffer(data, np.uint8).reshape(shape)
            used = (k if key == "b1" else cols) % 8
            require(not used or not (found[key][:, -1] >> used).any())
            continue
        exponent = _integer(metadata.get(f"{key}_exponent"), EXPONENTS)
        require(dtype == "F16" or exponent == 0)
        stored = np.frombuffer(data, "<f2" if dtype == "F16" else "<f4")
        require(np.isfinite(stored).all())
        values = np.ldexp(stored.astype(np.float64), exponent)
        require(np.abs(values).max() <= np.finfo(np.float32).max)
        found[key] = values.astype(np.float32)
    return found
