"""Values of a description in JSON: their forms, and which of them are good."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from .._internal.check import ALPHABETS
from .._internal.codes import CODE_BITS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ADDED", "CRC", "DTYPE", "GOOD", "from_json", "is_number", "readable", "to_json"]

_LARGEST_SIZE = 2**40
ADDED = "added"  # as "bias" in JSON
CRC = re.compile(r"[0-9a-f]{8}")
DTYPE = re.compile(r"b?float(8|16|32|64)\w*")


def readable(name: str) -> str:
    """A name shortened and escaped for messages."""
    part = name if len(name) <= 120 else f"{name[:120]}..."
    return part if part.isprintable() else ascii(part)[1:-1]


def to_json(value: Any) -> Any:
    """A number for JSON, which has no infinity: the SNR of an exact fit is written as "inf"."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def from_json(value: Any) -> Any:
    """The reverse of :func:`to_json`."""
    return float(value) if value in ("inf", "-inf") else value


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a number, "inf", "-inf" or null."""
    finite = type(value) in (int, float) and abs(value) < _LARGEST_SIZE
    return value is None or finite or (type(value) is str and value in ("inf", "-inf"))


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _LARGEST_SIZE


GOOD: dict[str, Callable[[Any], bool]] = {
    "kind": lambda x: type(x) is str,
    "shape": lambda x: type(x) is list and len(x) == 2 and all(map(_is_size, x)),
    "k": _is_size,
    "alphabet": lambda x: type(x) is str and x in ALPHABETS,
    "codes": lambda x: type(x) is int and x in CODE_BITS,
    "group": lambda x: _is_size(x) and x >= 32 and x & (x - 1) == 0,
    "alphas": _is_size,
    "entries": lambda x: type(x) is int and 0 <= x <= _LARGEST_SIZE,
    "weight_bits": lambda x: type(x) is int and x in (1, 2),
    "activation_bits": lambda x: type(x) is int and x in (1, 2),
    "bias": lambda x: type(x) is bool or x == ADDED,
    "dtype": lambda x: type(x) is str and DTYPE.fullmatch(x) is not None,
    "diagonal_bits": lambda x: type(x) is int and x in (16, 32),
    "shared": lambda x: type(x) is str,
    "crc32_entry": lambda x: type(x) is str,
}
"""Name of a value in the entry of a layer -> whether a value is possible there."""
