"""diba.load: a file of either kind of matrix."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, BinaryIO

from ._internal import check
from ._internal.binarized_file import FORMAT
from ._internal.disk import open_regular
from .binarized import APB
from .factorization import Factorization

if TYPE_CHECKING:
    from ._internal.disk import PathLike

__all__ = ["decoded", "load"]

_LONGEST_HEADER = 2**20  # bytes; that of a factorization may not be longer
_IS_APB = re.compile(rf'"format"\s*:\s*"{FORMAT.name}"'.encode())  # in a string, quotes would be escaped


def load(path: PathLike) -> Factorization | APB:
    """Read a file that ``Factorization.save`` or ``APB.save`` wrote, whichever it is.

    ``Factorization.load`` and ``APB.load`` read their own kind alone.

    Raises:
        OSError: the file cannot be opened.
        diba.FormatError: it is not such a file, is damaged, or has a newer format version.
    """
    name = check.path(path)
    with open_regular(name) as file:
        return decoded(file, name)


def decoded(file: BinaryIO, name: str) -> Factorization | APB:
    """Read an open file, or bytes in memory, like :func:`load`; ``name`` is used in messages."""
    length = int.from_bytes(file.read(8), "little")
    is_apb = _IS_APB.search(file.read(min(length, _LONGEST_HEADER))) is not None
    file.seek(0)
    return APB._decoded(file, name) if is_apb else Factorization._decoded(file, name)
