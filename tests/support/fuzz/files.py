"""Files of factors."""

from __future__ import annotations

import io
import json
import re
import zlib
from typing import TYPE_CHECKING

import numpy as np

import diba
from diba import file_format

from .engine import Driver
from .mutations import join, split

if TYPE_CHECKING:
    from .mutations import Content


def decoded(data: bytes) -> file_format.StoredFactors | None:
    """What the reader makes of a file; None if it refuses it."""
    try:
        return file_format.decode(io.BytesIO(data), "the file")
    except diba.FormatError as error:
        check_message(error)
        return None


def check_message(error: diba.FormatError) -> None:
    """It names the file, and is no copy of it."""
    assert str(error).startswith("the file: "), error
    assert len(str(error)) < 600, f"a message of {len(str(error))} characters"


def fingerprint(stored: file_format.StoredFactors) -> tuple[object, ...]:
    """All that was read, to the last bit."""
    diagonals, bits = (stored.d1, stored.d2, stored.d3), (stored.b1, stored.b2)
    rows = ((b.alphabet, b.shape, b.packed_rows().tobytes()) for b in bits)
    return *((d.dtype, d.shape, d.tobytes()) for d in diagonals), *rows


def memory(stored: file_format.StoredFactors) -> int:
    """Bytes of what was read."""
    return sum(part.nbytes for part in (stored.d1, stored.b1, stored.d2, stored.b2, stored.d3))


def example(m: int, k: int, n: int, alphabet: str, narrow: bool) -> bytes:
    """A file of random factors."""
    rng = np.random.default_rng([m, k, n])
    zero = 0 if alphabet == "binary" else -1
    b1, b2 = (np.where(rng.random(shape) < 0.5, 1, zero) for shape in ((m, k), (k, n)))
    d1, d2, d3 = (rng.standard_normal(size).astype(np.float32) for size in (m, k, n))
    f = diba.Factorization.from_factors(d1, b1, d2, b2, d3, alphabet)
    stored = file_format.StoredFactors(*(f.round_diagonals() if narrow else f)._parts())
    return file_format.encode(stored, "diba 0.1.0")


def mended(data: bytes) -> bytes | None:
    """The file with the checksums its content should have; None if its header is no such header.

    Only they change: whatever is odd about the header's text stays.
    """
    parts = split(data)
    try:
        text, tensors = parts
        header = json.loads(text)
        metadata = header["__metadata__"]
        for key in [key for key in metadata if key.startswith("crc32_") and key[6:] in header]:
            begin, end = header[key[6:]]["data_offsets"]
            metadata[key] = f"{zlib.crc32(tensors[begin:end]):08x}"
            text = _with_value(text, key, metadata[key])
        lines = (f"{key}={value}\n" for key, value in sorted(metadata.items()) if key != "crc32_metadata")
        crc = zlib.crc32("".join(lines).encode())
        return join(_with_value(text, "crc32_metadata", f"{crc:08x}"), tensors)
    except (TypeError, KeyError, ValueError, IndexError, AttributeError, RecursionError):
        return None


def _with_value(text: bytes, key: str, value: str) -> bytes:
    pattern = rb'("%s"\s*:\s*)"[^"]*"' % re.escape(key.encode())
    return re.sub(pattern, rb'\g<1>"%s"' % value.encode(), text)


class FilesDriver(Driver):
    """Whatever the reader accepts decodes to the seed, and is whole."""

    name = "files"

    def seeds(self) -> list[Content]:
        return [
            example(m, k, n, alphabet, narrow)
            for m, k, n, alphabet, narrow in (
                (1, 1, 1, "sign", True),
                (4, 9, 11, "binary", True),
                (3, 16, 8, "sign", False),
                (70, 3, 5, "binary", False),
            )
        ]

    def mend(self, mutant: Content) -> Content | None:
        return mended(mutant)

    def check(self, mutant: Content, seed: Content | None) -> int | None:
        stored = decoded(mutant)
        if stored is None:
            return None
        m, k, n = stored.d1.size, stored.d2.size, stored.d3.size
        assert (stored.b1.shape, stored.b2.shape) == ((m, k), (k, n))
        assert all(np.isfinite(d).all() for d in (stored.d1, stored.d2, stored.d3))
        if seed is not None:
            assert fingerprint(stored) == fingerprint(decoded(seed)), "it decodes to something else"
        return memory(stored)
