"""The file format: five tensors and a versioned header in one safetensors file.

Tensors of an m x n matrix with inner dimension k:
    b1: uint8 (m, ceil(k/8)), b2: uint8 (k, ceil(n/8)): the bits, each row in
        whole bytes, bit j of a row in bit ``j % 8`` of byte ``j // 8``, zeros past the
        last column.
    d1 (m), d2 (k), d3 (n): float16 if ``2^e`` times float16 holds all three exactly (see
        ``storage``), else float32; finite, also after multiplication by ``2^e`` in float32.

Metadata, all strings: format ("diba"), format_version ("1"), alphabet ("binary"
or "sign"), rows, cols, k (1 to 2^40), d1_exponent, d2_exponent, d3_exponent (-149 to
127; 0 for float32), crc32_b1 ... crc32_d3 (8 hex digits over the tensor's bytes),
crc32_metadata (the same over the lines ``key=value`` of all other keys, sorted),
written_by. Integers are ``0|-?[1-9][0-9]*``; other keys are allowed.

The header has at most 2^20 bytes; ``cpp/src/file/safetensors.hpp`` specifies its JSON. Tensors follow one
another without gaps, in any order, up to the end of the file.

The only reader is ``cpp/src/file/factors.cpp``; it refuses every other file. Equal factors give equal bytes.
Pickle is never used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from . import _core
from ._internal import check, storage, tensor_files
from ._internal.disk import PathLike, open_regular, replace_file
from ._internal.storage import BITS, DIAGONALS
from ._internal.tensor_files import StoredTensor
from .bits import BitMatrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FORMAT_VERSION", "PathLike", "StoredFactors", "decode", "encode", "read", "write"]

FORMAT_VERSION = _core.format_version
_FORMAT = tensor_files.Format("diba", "a diba file", FORMAT_VERSION)


@dataclass(frozen=True, eq=False)
class StoredFactors:
    """The contents of a diba file.

    Attributes:
        d1, d2, d3: float32 diagonals of lengths m, k, n.
        b1, b2: Bit matrices of shapes (m, k) and (k, n), of the same alphabet.
        metadata: Metadata of the file; empty if it was not read from one.
    """

    d1: NDArray[np.float32]
    b1: BitMatrix
    d2: NDArray[np.float32]
    b2: BitMatrix
    d3: NDArray[np.float32]
    metadata: dict[str, str] = field(default_factory=dict)


# ---------------------------------------------------------------- writing


def write(path: PathLike, stored: StoredFactors) -> None:
    """Write a diba file, whole or not at all.

    Raises:
        OSError: the folder does not exist, is not writable, or ``path`` is a folder.
    """
    replace_file(path, encode(stored))


def encode(stored: StoredFactors, written_by: str | None = None) -> bytes:
    """The bytes of a diba file; ``written_by`` defaults to this version of diba."""
    diagonals = {name: getattr(stored, name) for name in DIAGONALS}
    exponents = dict.fromkeys(DIAGONALS, 0)
    narrow = all(storage.fits_16(d) for d in diagonals.values())
    arrays: dict[str, NDArray[Any]] = {}
    for name, d in diagonals.items():
        arrays[name], exponents[name] = storage.encode(d) if narrow else (d, 0)
    arrays |= {name: getattr(stored, name).packed_rows() for name in BITS}
    dtypes = dict.fromkeys(BITS, "U8") | dict.fromkeys(DIAGONALS, "F16" if narrow else "F32")
    tensors = {
        name: StoredTensor(dtypes[name], array.shape, partial(np.asarray, array))
        for name, array in arrays.items()
    }
    metadata = {
        "alphabet": stored.b1.alphabet,
        "rows": str(stored.d1.size),
        "cols": str(stored.d3.size),
        "k": str(stored.d2.size),
        **{f"{name}_exponent": str(e) for name, e in exponents.items()},
    }
    return b"".join(tensor_files.encode(_FORMAT, metadata, tensors, written_by))


# ---------------------------------------------------------------- reading


def read(path: PathLike) -> StoredFactors:
    """Read a diba file and check all of it, checksums included.

    Raises:
        OSError: the file cannot be opened, or is no regular file.
        FormatError: it is not a diba file, is damaged, or has a newer format version.
    """
    name = check.path(path)
    with open_regular(name) as file:
        return decode(file, name)


def decode(file: BinaryIO, name: str) -> StoredFactors:
    """Read an open file or bytes in memory like :func:`read`; ``name`` is used in messages."""
    metadata, d1, b1, d2, b2, d3 = _core.read_factors(file, name)
    alphabet = check.alphabet(metadata["alphabet"])
    left = BitMatrix(b1, d2.size, alphabet, copy=False)
    right = BitMatrix(b2, d3.size, alphabet, copy=False)
    return StoredFactors(d1, left, d2, right, d3, metadata)
