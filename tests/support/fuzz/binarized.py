"""Files of signs and exceptions."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

import diba
from diba._internal import binarized_file

from .engine import Driver
from .files import check_message, mended

if TYPE_CHECKING:
    from .mutations import Content


def example(m: int, n: int, share: float, narrow: bool) -> bytes:
    """A file of a random matrix."""
    f = diba.apb(np.random.default_rng([m, n]).standard_normal((m, n)), exceptions=share, scales="rows")
    factor = np.float32(1 if narrow else 1 / 3)
    sparse = diba.APB(f.alpha, f.signs, f.starts, f.columns, f.values * factor)._sparse
    return b"".join(binarized_file.encoded(f.alpha * factor, f.signs, sparse, "diba 0.1.0"))


def decoded(data: bytes) -> diba.APB | None:
    """What the reader makes of a file; None if it refuses it."""
    try:
        return diba.APB._decoded(io.BytesIO(data), "the file")
    except diba.FormatError as error:
        check_message(error)
        return None


class BinarizedDriver(Driver):
    """Whatever the reader accepts decodes to the seed, and multiplies."""

    name = "binarized"

    def seeds(self) -> list[Content]:
        return [
            example(m, n, share, narrow)
            for m, n, share, narrow in ((1, 1, 0, True), (4, 11, 0.2, True), (3, 300, 0.01, False))
        ]

    def mend(self, mutant: Content) -> Content | None:
        return mended(mutant)

    def check(self, mutant: Content, seed: Content | None) -> int | None:
        f = decoded(mutant)
        if f is None:
            return None
        assert np.isfinite(f @ np.ones(f.shape[1], np.float32)).all()
        if seed is not None:
            assert f == decoded(seed), "it decodes to something else"
        return f.nbytes
