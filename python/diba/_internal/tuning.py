"""Settings of the fast products that are measured, not guessed: for speed alone, results stay the same bytes.

``diba.autotune()`` measures them; ``autotune().save(path)`` keeps them, and the environment variable
``DIBA_TUNING`` names the file for later processes, which read it before their first fast product.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import TYPE_CHECKING

from .. import _core
from . import check
from .disk import open_regular, replace_file

if TYPE_CHECKING:
    from .disk import PathLike

__all__ = ["NEVER", "Tuning", "read_environment", "set_tuning", "tuning"]

_ENVIRONMENT = "DIBA_TUNING"
_LONGEST_FILE = 1 << 16
NEVER = 1 << 62  # bits per thread where a second thread never pays


@dataclass(frozen=True)
class Tuning:
    """Settings of the fast products.

    Attributes:
        table_bytes: Vectors of a batch are worked on together as long as their
            tables (about 4 bytes an entry) fit this; they should stay in a cache.
        bits_per_thread: Bits of both factors, times the vectors of a batch, that pay
            for each further thread.
    """

    table_bytes: int
    bits_per_thread: int

    def __post_init__(self) -> None:
        for field in fields(self):
            check.integer(getattr(self, field.name), field.name, minimum=1, maximum=NEVER)

    def save(self, path: PathLike) -> None:
        """Write JSON for ``DIBA_TUNING``.

        Raises:
            OSError: the folder does not exist or cannot be written.
        """
        replace_file(check.path(path), (json.dumps(asdict(self), indent=1) + "\n").encode())


def tuning() -> Tuning:
    """The settings in use.

    Raises:
        ValueError: ``DIBA_TUNING`` names no file that ``Tuning.save`` wrote.
    """
    read_environment()
    return Tuning(*_core.tuning())


def set_tuning(values: Tuning) -> None:
    """Use other settings in this process from now on.

    Raises:
        TypeError: ``values`` is no Tuning.
    """
    check.instance(values, "values", Tuning, "use diba.Tuning(table_bytes, bits_per_thread)")
    read_environment()  # not later, over these
    _core.set_tuning(values.table_bytes, values.bits_per_thread)


@cache
def read_environment() -> None:
    """Use the file that ``DIBA_TUNING`` names, if it is set: once in a process.

    Raises:
        ValueError: it is no such file.
    """
    path = os.environ.get(_ENVIRONMENT, "")
    if not path:
        return
    try:
        with open_regular(path) as file:
            values = Tuning(**json.loads(file.read(_LONGEST_FILE).decode()))
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{_ENVIRONMENT} is {path!r}; it must be a file that diba.autotune().save() wrote, "
            f"or be unset ({error})"
        ) from error
    _core.set_tuning(values.table_bytes, values.bits_per_thread)
