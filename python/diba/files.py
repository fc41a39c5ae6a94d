"""The file format: five tensors and a versioned header in one safetensors file.

Tensors (m x n matrix, inner size k):
    b1: uint8 (m, ceil(k/8)), b2: uint8 (k, ceil(n/8)): the bits, each row cut to
        whole bytes, bit j of a row in bit ``j % 8`` of byte ``j // 8``, zeros past the
        last column.
    d1 (m), d2 (k), d3 (n): float16 if all three fit ``2^e * float16`` (see
        ``storage``), else float32; finite, and so is ``2^e`` times it in float32.

Metadata, all strings: format ("diba"), format_version ("1"), alphabet ("binary"
or "sign"), rows, cols, k (1 to 2^40), d1_exponent, d2_exponent, d3_exponent (-149 to
127; 0 for float32), crc32_b1 ... crc32_d3 (8 hex digits over the tensor's bytes),
crc32_metadata (the same over the lines ``key=value`` of all other keys, sorted),
written_by. Integers are ``0|-?[1-9][0-9]*``; other keys are allowed.

The header has at most 2^20 bytes; what JSON it may be, ``_internal/container.py`` says. Tensors
follow one another without gap, in any order, up to the end of the file.

Exactly such files are read, here and in ``cpp/src/file/file.cpp``: the same checks in the
same order. Equal factors give equal bytes. No pickle is involved anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ._internal import check, signed, storage
from ._internal.check import ALPHABETS, Alphabet
from ._internal.disk import PathLike, open_regular, replace_file
from ._internal.signed import SignedFile, StoredTensor
from ._internal.storage import BITS, DIAGONALS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FORMAT_VERSION",
    "PathLike",
    "StoredFactors",
    "decode",
    "encode",
    "read",
    "read_metadata",
    "replace_file",
    "write",
]

FORMAT_VERSION = 1
_FORMAT = signed.Format("diba", "a diba file", FORMAT_VERSION, longest_header=1 << 20)
_LARGEST_SIZE = 2**40


@dataclass(frozen=True, eq=False)
class StoredFactors:
    """The factors as a file holds them.

    Attributes:
        alphabet: How bits are read.
        d1, d2, d3: float32 diagonals of lengths m, k, n.
        b1, b2: uint8 packed rows of shapes (m, ceil(k/8)) and (k, ceil(n/8)).
    """

    alphabet: Alphabet
    d1: NDArray[np.float32]
    b1: NDArray[np.uint8]
    d2: NDArray[np.float32]
    b2: NDArray[np.uint8]
    d3: NDArray[np.float32]


# ---------------------------------------------------------------- writing


def write(path: PathLike, stored: StoredFactors) -> None:
    """Write a file, whole or not at all.

    Raises:
        OSError: the folder does not exist, is not writable, or ``path`` is a folder.
    """
    replace_file(path, encode(stored))


def encode(stored: StoredFactors, written_by: str | None = None) -> bytes:
    """The bytes of the file; ``written_by`` defaults to this version of diba."""
    diagonals = {name: getattr(stored, name) for name in DIAGONALS}
    exponents = dict.fromkeys(DIAGONALS, 0)
    narrow = all(storage.fits_16(d) for d in diagonals.values())
    arrays: dict[str, NDArray[Any]] = {}
    for name, d in diagonals.items():
        arrays[name], exponents[name] = storage.encode(d) if narrow else (d, 0)
    arrays |= {"b1": stored.b1, "b2": stored.b2}
    dtypes = dict.fromkeys(BITS, "U8") | dict.fromkeys(DIAGONALS, "F16" if narrow else "F32")
    tensors = {
        name: StoredTensor(dtypes[name], array.shape, partial(np.asarray, array))
        for name, array in arrays.items()
    }
    metadata = {
        "alphabet": stored.alphabet,
        "rows": str(stored.d1.size),
        "cols": str(stored.d3.size),
        "k": str(stored.d2.size),
        **{f"{name}_exponent": str(e) for name, e in exponents.items()},
    }
    return b"".join(signed.encode(_FORMAT, metadata, tensors, written_by))


# ---------------------------------------------------------------- reading


def read(path: PathLike) -> StoredFactors:
    """Read a file and verify everything that can be verified.

    Raises:
        OSError: the file cannot be opened, or is no regular file.
        FormatError: it is not a diba file, is damaged, or is of a newer format version.
    """
    name = check.path(path)
    with open_regular(name) as file:
        return decode(file, name)


def read_metadata(path: PathLike) -> dict[str, str]:
    """The checked metadata of a file, without its tensors; raises as :func:`read`."""
    name = check.path(path)
    with open_regular(name) as file:
        return _open_checked(file, name).metadata


def decode(file: BinaryIO, name: str) -> StoredFactors:
    """Read an open file, or bytes in memory, as :func:`read` does; ``name`` is for messages."""
    found = _open_checked(file, name)
    b1, b2 = _bits(found, "b1", "k"), _bits(found, "b2", "cols")
    d1, d2, d3 = (_diagonal(found, key) for key in DIAGONALS)
    return StoredFactors(check.alphabet(found.metadata["alphabet"]), d1, b1, d2, b2, d3)


def _open_checked(file: BinaryIO, name: str) -> SignedFile:
    """Check all that the header alone can tell, before any tensor is read."""
    found = signed.open_signed(file, name, _FORMAT)
    alphabet = found.value("alphabet")
    if alphabet not in ALPHABETS:
        found.fail(f"metadata 'alphabet' is {alphabet[:40]!r}, expected one of {', '.join(ALPHABETS)}")
    rows, cols, k = (found.integer(key, 1, _LARGEST_SIZE) for key in ("rows", "cols", "k"))
    shapes = {"b1": (rows, -(-k // 8)), "b2": (k, -(-cols // 8)), "d1": (rows,), "d2": (k,), "d3": (cols,)}
    for key in found.tensors:
        if key not in shapes:
            found.fail(f"tensor {key[:40]!r} is unexpected; a diba file has b1, b2, d1, d2, d3 only")
    for key, shape in shapes.items():
        _check_entry(found, key, shape)
    dtypes = {found.tensors[key].dtype for key in DIAGONALS}
    if len(dtypes) > 1:
        found.fail(f"tensors d1, d2, d3 have dtypes {sorted(dtypes)}, expected one for all three")
    found.value("written_by")
    found.check_entries()
    return found


def _check_entry(signed: SignedFile, key: str, shape: tuple[int, ...]) -> None:
    if key not in signed.tensors:
        signed.fail(f"tensor {key!r} is missing")
    entry = signed.tensors[key]
    dtypes = ("U8",) if key in BITS else ("F16", "F32")
    if entry.dtype not in dtypes:
        signed.fail(f"tensor {key!r} has dtype {entry.dtype[:40]}, expected {' or '.join(dtypes)}")
    if entry.shape != shape:
        found = str(entry.shape)
        found = found if len(found) <= 100 else f"{found[:100]}..."
        signed.fail(f"tensor {key!r} has shape {found}, expected {shape} from metadata rows, cols, k")


def _bits(signed: SignedFile, key: str, cols: str) -> NDArray[np.uint8]:
    packed = signed.array(key)
    used = int(signed.metadata[cols]) % 8
    if used and (packed[:, -1] >> used).any():
        signed.fail(f"tensor {key!r} has ones past its last column, expected zeros")
    return packed


def _diagonal(signed: SignedFile, key: str) -> NDArray[np.float32]:
    stored = signed.array(key)
    e = signed.integer(f"{key}_exponent", storage.EXPONENT_MIN, storage.EXPONENT_MAX)
    if stored.dtype == np.float32 and e != 0:
        signed.fail(f"metadata '{key}_exponent' is {e}, expected 0 with float32 diagonals")
    if not np.isfinite(stored).all():
        signed.fail(f"tensor {key!r} has NaN or infinite entries, expected finite numbers")
    if stored.dtype == np.float32:
        return stored
    if np.ldexp(np.abs(stored).max().astype(np.float64), e) > float(np.finfo(np.float32).max):
        signed.fail(f"tensor {key!r} leaves float32's range with metadata '{key}_exponent' {e}")
    return storage.decode(stored, e)
