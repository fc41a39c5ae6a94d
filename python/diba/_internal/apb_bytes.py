"""The tensors of a layer with binary weights and exceptions, as bytes: rows of signs, and compressed rows.

The matrix is ``alpha * S + E`` (:class:`diba.APB`). Its tensors are ``alpha``, float32, of one entry or of
one for each row, and uint8 arrays, which no library casts or averages as numbers:

- ``signs``: S in rows of ceil(n / 8) bytes, low bit first, unused bits zero;
- ``counts``: entries of E in each row, little-endian in ``count_bytes(n)`` bytes each;
- ``columns``: the columns of these entries, row after row and ascending in each, in ``column_bytes(n)``;
- ``values``: the entries as float16 over a power of two;
- ``exponent``: this power of two, and 128.

Without exceptions there are neither columns nor values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import storage
from .sparse_rows import column_dtype, count_bits, stored_bits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = [
    "APB_TENSORS",
    "apb_bits",
    "apb_shapes",
    "column_bytes",
    "count_bytes",
    "decoded_exceptions",
    "encoded_exceptions",
    "problem",
]

APB_TENSORS = ("alpha", "signs", "counts", "exponent", "columns", "values")
_OFFSET = 128
_LEAST, _MOST = -128, 127


def column_bytes(cols: int) -> int:
    """Bytes of the number of a column."""
    return int(column_dtype(cols).itemsize)


def count_bytes(cols: int) -> int:
    """Bytes of the number of entries in a row."""
    return count_bits(cols) // 8


def apb_bits(m: int, n: int, alphas: int, entries: int, alpha_bits: int) -> int:
    """Stored bits of such a layer: signs, alphas, and E with values of 16 bits."""
    return m * n + alphas * alpha_bits + stored_bits(m, n, entries)


def apb_shapes(m: int, n: int, alphas: int, entries: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors, by name."""
    some = {"columns": (entries, column_bytes(n)), "values": (entries, 2)} if entries else {}
    return {
        "alpha": (alphas,),
        "signs": (m, -(-n // 8)),
        "counts": (m, count_bytes(n)),
        "exponent": (1,),
        **some,
    }


def encoded_exceptions(
    starts: NDArray[Any], columns: NDArray[Any], values: NDArray[np.float32], cols: int
) -> dict[str, NDArray[np.uint8]]:
    """Counts, columns, values and exponent of E; values that 16 bits do not hold are rounded."""
    ends = starts.astype(np.int64)
    values = storage.round_to_16(values) if values.size else values
    exponent = min(max(storage.exponent(values) if values.size else 0, _LEAST), _MOST)
    halves = np.ldexp(values.astype(np.float64), -exponent).astype("<f2")
    result = {"counts": _bytes((ends[1:] - ends[:-1]).astype(f"<u{count_bytes(cols)}"))}
    if values.size:
        result |= {"columns": _bytes(columns.astype(f"<u{column_bytes(cols)}")), "values": _bytes(halves)}
    return {**result, "exponent": np.array([exponent + _OFFSET], np.uint8)}


def decoded_exceptions(
    own: Mapping[str, NDArray[np.uint8]],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Starts, columns and values of E; the reverse of :func:`encoded_exceptions`."""
    counts = _numbers(own["counts"], "u").astype(np.int64)
    starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    if "columns" not in own:
        return starts, np.zeros(0, np.int64), np.zeros(0, np.float32)
    halves = _numbers(own["values"], "f").astype(np.float64)
    values = np.ldexp(halves, int(own["exponent"][0]) - _OFFSET).astype(np.float32)
    return starts, _numbers(own["columns"], "u").astype(np.int64), values


def problem(own: str, array: NDArray[Any], cols: int, entries: int) -> str | None:
    """What is wrong in the values of a tensor of the right shape and dtype; None: nothing."""
    if own == "signs" and cols % 8 and (array[:, -1] >> cols % 8).any():
        return "ones past its last column, expected zeros"
    if own == "counts" and int(_numbers(array, "u").sum(dtype=np.int64)) != entries:
        return f"a sum that is not {entries}, the number of exceptions"
    if own == "columns" and int(_numbers(array, "u").max()) >= cols:
        return f"a column beyond {cols - 1}"
    if own == "values" and not np.isfinite(_numbers(array, "f")).all():
        return "NaN or infinite entries, expected finite numbers"
    return None


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of each entry as a row."""
    return np.ascontiguousarray(array).view(np.uint8).reshape(array.size, array.itemsize)


def _numbers(array: NDArray[np.uint8], kind: str) -> NDArray[Any]:
    """The reverse of :func:`_bytes`; ``kind`` is that of the dtype."""
    plain = np.ascontiguousarray(array)
    return plain.reshape(-1).view(f"<{kind}{plain.shape[1]}")
