"""Settings of the fast products that depend on the machine. They change speed alone, never results.

``diba.autotune()`` measures them and ``autotune().save(path)`` writes them to a file. If the environment
variable ``DIBA_TUNING`` names that file, later processes read it before their first fast product.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, astuple, dataclass, fields
from functools import cache
from typing import TYPE_CHECKING

from .. import _core
from . import check
from .disk import open_regular, replace_file

if TYPE_CHECKING:
    from .disk import PathLike

__all__ = ["MOST_AHEAD", "NEVER", "Tuning", "read_environment", "set_tuning", "tuning"]

_ENVIRONMENT = "DIBA_TUNING"
_LONGEST_FILE = 1 << 16
MOST_AHEAD = 1 << 20
NEVER = 1 << 62  # value of bits_per_thread for which a product always runs on one thread


@dataclass(frozen=True)
class Tuning:
    """Settings of the fast products.

    Attributes:
        table_bytes: Largest size of the tables of vectors multiplied together (about 4 bytes per entry of a
            vector); they should stay in a cache.
        bits_per_thread: One more thread is used for every so many bits of both factors, times the vectors of
            a batch.
        fetch_bytes: How far ahead of its reading a matrix is fetched from memory, for one vector; 0 leaves
            that to the processor.
    """

    table_bytes: int
    bits_per_thread: int
    fetch_bytes: int = _core.tuning()[-1]  # of files written before it was there

    def __post_init__(self) -> None:
        for field in fields(self):
            least, most = (0, MOST_AHEAD) if field.name == "fetch_bytes" else (1, NEVER)
            check.integer(getattr(self, field.name), field.name, minimum=least, maximum=most)

    def save(self, path: PathLike) -> None:
        """Write a JSON file for ``DIBA_TUNING``.

        Raises:
            OSError: the folder does not exist or cannot be written.
        """
        replace_file(check.path(path), (json.dumps(asdict(self), indent=1) + "\n").encode())


def tuning() -> Tuning:
    """The settings in use.

    Raises:
        ValueError: ``DIBA_TUNING`` does not name a file written by ``Tuning.save``.
    """
    read_environment()
    return Tuning(*_core.tuning())


def set_tuning(values: Tuning) -> None:
    """Use these settings in this process from now on.

    Raises:
        TypeError: ``values`` is not a Tuning.
    """
    check.instance(values, "values", Tuning, "use diba.Tuning(table_bytes, bits_per_thread, fetch_bytes)")
    read_environment()  # now, so that it does not replace these later
    _core.set_tuning(*astuple(values))


@cache
def read_environment() -> None:
    """Read the file that ``DIBA_TUNING`` names, if it is set; once in a process.

    Raises:
        ValueError: the file was not written by ``Tuning.save``.
    """
    path = os.environ.get(_ENVIRONMENT, "")
    if not path:
        return
    try:
        with open_regular(path) as file:
            values = Tuning(**json.loads(file.read(_LONGEST_FILE).decode()))
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{_ENVIRONMENT} is {path!r}; it must be a file written by diba.autotune().save(), "
            f"or be unset ({error})"
        ) from error
    _core.set_tuning(*astuple(values))
