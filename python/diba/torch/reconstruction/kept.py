"""The trainings of a block in files, from which a conversion that was stopped in one goes on.

Inside of ``trainings_kept_in(folder)``, the state of a training is written every so many seconds, one file
for each training of a block; those of the next block are written over them. A state is taken only for the
same training: its key is the SHA-256 of all that it begins with. Damaged files and those of other trainings
are written anew.
"""

from __future__ import annotations

import contextlib
import time
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..retuning.kept import read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["KeptTraining", "KeptTrainings", "kept_trainings", "trainings_kept_in"]

kept_trainings: ContextVar[KeptTrainings | None] = ContextVar("kept_trainings", default=None)
"""Where the blocks that are reconstructed now keep their trainings; None: nowhere."""


@contextlib.contextmanager
def trainings_kept_in(folder: Path, seconds: float) -> Iterator[None]:
    """A context whose conversions keep the trainings of a block in a folder, which is made.

    Args:
        folder: Of nothing else.
        seconds: Least time between two states that are written.

    Raises:
        OSError: The folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    token = kept_trainings.set(KeptTrainings(folder, seconds))
    try:
        yield
    finally:
        kept_trainings.reset(token)


class KeptTrainings:
    """A folder with a file for each training of a block, and when the last one was written."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self._written = time.monotonic()

    def training(self, number: int, key: str) -> KeptTraining:
        """The training of that number in its block."""
        return KeptTraining(self, self._folder / str(number), key)

    def is_due(self) -> bool:
        """Whether enough time has passed to write again."""
        return time.monotonic() - self._written >= self._seconds

    def was_written(self) -> None:
        """Begin to count the time anew."""
        self._written = time.monotonic()


class KeptTraining:
    """The file of one training."""

    def __init__(self, place: KeptTrainings, path: Path, key: str) -> None:
        self._place, self._path, self._key = place, path, key

    def read(self) -> dict[str, Any] | None:
        """The state that was kept; None: nothing that is of this training and whole."""
        found = read_state(self._path)
        return found if found is not None and found["key"] == self._key else None

    def write(self, state: Callable[[], dict[str, Any]]) -> None:
        """Write a state if it is time; it is on the disk when this returns.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        if self._place.is_due():
            write_state(self._path, {"key": self._key, **state()})
            self._place.was_written()
