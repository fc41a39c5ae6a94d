"""Finished layers in a folder, from which a conversion that was stopped goes on.

Inside of ``kept_in(folder)``, every layer that a conversion has solved is written to a file before it is
replaced, and looked for before it is solved. A file is taken only for the same task: its key is the SHA-256
of the version, the layer's settings, its matrix, and its moments. Damaged files and those of other tasks are
solved again, and written over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import diba

from ...layers.solved import layer_file, read_solved, write_solved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ...layers.config import Settings
    from ...layers.solved import Solved
    from ..calibration.targets import LayerTask

__all__ = ["KeptLayers", "kept_in", "kept_layers"]

kept_layers: ContextVar[KeptLayers | None] = ContextVar("kept_layers", default=None)
"""Where the conversions that begin now keep their layers; None: nowhere."""


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[KeptLayers]:
    """A context whose conversions keep their layers in a folder, which is made if it is not there.

    Raises:
        OSError: The folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layers = KeptLayers(folder)
    token = kept_layers.set(layers)
    try:
        yield layers
    finally:
        kept_layers.reset(token)


class KeptLayers:
    """Finished layers in a folder, one in a file. Used from several threads, for different layers.

    Attributes:
        found: Layers that were taken from the folder, and not solved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.found = 0

    def get(self, task: LayerTask, settings: Settings) -> Solved | None:
        """What was kept of this task; None: nothing that can be read."""
        solved = read_solved(layer_file(self._folder, task.name), _key(task, settings))
        self.found += solved is not None
        return solved

    def put(self, task: LayerTask, settings: Settings, solved: Solved) -> None:
        """Write a layer; it is on the disk when this returns.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        write_solved(layer_file(self._folder, task.name), _key(task, settings), solved)


def _key(task: LayerTask, settings: Settings) -> str:
    """What the result of a task depends on, all of it."""
    chosen = {name: value for name, value in dataclasses.asdict(settings).items() if name != "threads"}
    digest = hashlib.sha256(json.dumps([diba.__version__, task.name, chosen], default=str).encode())
    arrays: list[NDArray[Any] | None] = [task.matrix, task.bias]
    if task.moments is not None:
        moments = task.moments
        arrays += [moments.second, moments.gradient_rms, moments.mean]
        digest.update(f"{moments.count} {moments.gradient_count}".encode())
    for array in arrays:
        digest.update(b"none" if array is None else f"{array.dtype} {array.shape}".encode())
        if array is not None:
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()
