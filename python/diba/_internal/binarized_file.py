"""The file of a matrix of signs and exceptions: tensors and a versioned header in one safetensors file.

Tensors of ``diag(alpha) S + E``, of shape (m, n), E with s entries:
    signs: uint8 (m, ceil(n/8)): bits of S, each row in whole bytes, bit j of a row in bit ``j % 8`` of byte
        ``j // 8``, zeros past the last column.
    alpha: (1) or (m), values: (s) entries of E: each float16 if ``2^e`` times float16 holds all of it exactly
        (see ``storage``), else float32; finite, also after multiplication by ``2^e``.
    counts: (m) entries of each row: uint16, or uint32 from 65536 columns on.
    columns: (s) of the entries, ascending in each row: uint8 up to 256 columns, uint16 up to 65536, else
        uint32.

Metadata: format ("diba apb"), format_version ("1"), rows, cols, alpha_exponent, values_exponent, and what
all files of diba have (``cpp/src/file/checksummed.hpp``). Tensors take the bits that ``APB.bits_per_weight``
counts, and the padding of ``signs``. Equal matrices give equal bytes. Pickle is never used.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..bits import BitMatrix
from ..errors import FormatError
from . import storage
from .disk import PathLike, replace_file
from .sparse_rows import SparseRows, column_dtype, count_bits
from .tensor_files import DTYPES, ChecksummedFile, Format, StoredTensor, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["FORMAT", "decode", "encoded", "write"]

FORMAT = Format("diba apb", "a file of diba.APB", 1)
_FLOATS = ("F16", "F32")
_MOST = 2**40  # rows or columns


# ---------------------------------------------------------------- writing


def write(path: PathLike, alpha: NDArray[np.float32], signs: BitMatrix, sparse: SparseRows) -> None:
    """Write a file, whole or not at all.

    Raises:
        OSError: the folder does not exist, is not writable, or ``path`` is a folder.
    """
    replace_file(path, encoded(alpha, signs, sparse))


def encoded(
    alpha: NDArray[np.float32], signs: BitMatrix, sparse: SparseRows, written_by: str | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of a file; ``written_by`` defaults to this version of diba."""
    (m, n), exponents, arrays = sparse.shape, {}, {"signs": signs.packed_rows()}
    for name, values in {"alpha": alpha, "values": sparse.values}.items():
        narrow = not values.size or storage.fits_16(values)
        given = storage.encode(values) if narrow and values.size else (values, 0)
        arrays[name] = given[0].astype(np.float16 if narrow else np.float32)
        exponents[f"{name}_exponent"] = str(given[1])
    arrays |= {"counts": sparse.counts.astype(f"u{count_bits(n) // 8}"), "columns": sparse.columns}
    tensors = {
        name: StoredTensor(_stored_as(array.dtype), array.shape, partial(np.asarray, array))
        for name, array in arrays.items()
    }
    return encode(FORMAT, {"rows": str(m), "cols": str(n), **exponents}, tensors, written_by)


def _stored_as(dtype: np.dtype[Any]) -> str:
    return next(name for name, stored in DTYPES.items() if np.dtype(stored) == dtype)


# ---------------------------------------------------------------- reading


def decode(file: BinaryIO, name: str) -> tuple[NDArray[np.float32], BitMatrix, SparseRows]:
    """(alpha, signs, E) of an open file, or of bytes in memory; all of it is checked, checksums included.

    Raises:
        FormatError: it is not such a file, is damaged, or has a newer format version.
    """
    own = ChecksummedFile(file, name, FORMAT)
    m, n = own.integer("rows", 1, _MOST), own.integer("cols", 1, _MOST)
    entries = _check_entries(own, m, n)
    own.value("written_by")
    alpha, values = (_floats(own, key) for key in ("alpha", "values"))
    counts = own.array("counts").astype(np.int64)
    if counts.sum() != entries:
        own.fail(f"tensor 'counts' has {counts.sum()} in all, expected {entries}, the length of columns")
    starts = np.concatenate(([0], np.cumsum(counts)))
    try:
        signs = BitMatrix.from_packed_rows(own.array("signs"), n, "sign")
        return alpha, signs, SparseRows(starts, own.array("columns"), values, (m, n))
    except FormatError:
        raise
    except ValueError as error:
        raise FormatError(f"{name}: tensors do not fit together: {error}") from None


def _check_entries(own: ChecksummedFile, m: int, n: int) -> int:
    """Check all that the header states, before any tensor is read; returns the number of entries of E."""
    columns = own.tensors.get("columns")
    entries = columns.shape[0] if columns is not None and len(columns.shape) == 1 else 0
    wanted: dict[str, tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]] = {
        "signs": (("U8",), ((m, -(-n // 8)),)),
        "alpha": (_FLOATS, ((1,), (m,))),
        "counts": ((_stored_as(np.dtype(f"u{count_bits(n) // 8}")),), ((m,),)),
        "columns": ((_stored_as(column_dtype(n)),), ((entries,),)),
        "values": (_FLOATS, ((entries,),)),
    }
    for key in own.tensors:
        if key not in wanted:
            own.fail(f"tensor {_shown(key)} is unexpected; such a file has {', '.join(wanted)} only")
    for key, (dtypes, shapes) in wanted.items():
        if key not in own.tensors:
            own.fail(f"tensor {key!r} is missing")
        found = own.tensors[key]
        if found.dtype not in dtypes:
            own.fail(f"tensor {key!r} has dtype {_shown(found.dtype)}, expected {' or '.join(dtypes)}")
        if found.shape not in shapes:
            own.fail(
                f"tensor {key!r} has shape {_shown(found.shape)}, expected {' or '.join(map(str, shapes))}"
            )
    return entries


def _shown(value: object) -> str:
    """What a file says, in a message: a file may say much."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _floats(own: ChecksummedFile, key: str) -> NDArray[np.float32]:
    exponent = own.integer(f"{key}_exponent", storage.EXPONENT_MIN, storage.EXPONENT_MAX)
    if exponent and own.tensors[key].dtype == "F32":
        own.fail(f"metadata '{key}_exponent' is {exponent}, expected 0 with float32 numbers")
    with np.errstate(over="ignore", invalid="ignore"):  # numbers that are refused
        values = np.ldexp(own.array(key).astype(np.float64), exponent).astype(np.float32)
    if not np.isfinite(values).all():
        own.fail(f"tensor {key!r} has entries that are not finite in float32, expected finite numbers")
    return values
