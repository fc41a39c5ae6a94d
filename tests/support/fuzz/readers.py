"""Files of factors, by both readers: they accept the same ones and read the same from them."""

from __future__ import annotations

import os
import subprocess
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy

from .files import FilesDriver, decoded

if TYPE_CHECKING:
    from diba.files import StoredFactors

    from .mutations import Content


def _words(packed: np.ndarray) -> bytes:
    """Rows of whole 64-bit words."""
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).tobytes()


def fingerprint(stored: StoredFactors) -> str:
    """What fuzz_file.cpp says of an accepted file."""
    m, k, n = stored.d1.size, stored.d2.size, stored.d3.size
    parts = [d.tobytes() for d in (stored.d1, stored.d2, stored.d3)]
    parts += [_words(stored.b1), _words(stored.b2)]
    crcs = " ".join(f"{zlib.crc32(part):08x}" for part in parts)
    return f"accepted {m} {n} {k} {int(stored.alphabet == 'sign')} {crcs}"


class CppReader:
    """The program fuzz_file, which answers for one file after another."""

    def __init__(self, build: Path | None = None) -> None:
        folder = build or Path(os.environ["DIBA_BUILD_DIR"])
        self._process = subprocess.Popen(
            [folder / "fuzz_file", "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def answer(self, data: bytes) -> str:
        """Its line; an AssertionError if it has none, as after a crash."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(len(data).to_bytes(8, "little") + data)
        process.stdin.flush()
        line = process.stdout.readline().decode().strip()
        assert line, f"the C++ reader ended with code {process.wait(10)}"
        return line

    def close(self) -> None:
        """End it."""
        self._process.communicate()


class ReadersDriver(FilesDriver):
    """The readers of Python and C++ against each other; what they accept, the safetensors package reads."""

    name = "readers"

    def __init__(self) -> None:
        self._cpp = CppReader()

    def check(self, mutant: Content, seed: Content | None) -> int | None:
        assert isinstance(mutant, bytes)
        stored = decoded(mutant)
        expected = "refused" if stored is None else fingerprint(stored)
        found = self._cpp.answer(mutant)
        assert found == expected, f"C++ says {found!r}, Python {expected!r}"
        if stored is None:
            return None
        assert safetensors.numpy.load(mutant)["b1"].tobytes() == stored.b1.tobytes()
        arrays = (stored.d1, stored.b1, stored.d2, stored.b2, stored.d3)
        return sum(a.nbytes for a in arrays)

    def close(self) -> None:
        """End the program."""
        self._cpp.close()
