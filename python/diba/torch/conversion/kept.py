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

from ..._internal.codes import Codes
from ..._internal.disk import open_regular, replace_file
from ..._internal.tensor_files import ChecksummedFile, Format, StoredTensor, encode
from ...checkpoints.layers import LayerRecipe
from .solving import Solved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ..calibration.targets import LayerTask
    from ..model.config import Settings

__all__ = ["KeptLayers", "kept_in", "kept_layers"]

_FORMAT = Format("diba layer", "a finished layer", 1)
_DTYPES = {"float32": "F32", "float64": "F64", "uint8": "U8"}

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
        path = self._path(task.name)
        try:
            with open_regular(path) as file:
                solved = _read(ChecksummedFile(file, str(path), _FORMAT), _key(task, settings))
        except (OSError, ValueError):  # not there, or damaged
            return None
        self.found += solved is not None
        return solved

    def put(self, task: LayerTask, settings: Settings, solved: Solved) -> None:
        """Write a layer; it is on the disk when this returns.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        arrays = {name: value for name, value in _arrays(solved).items() if value is not None}
        metadata = {"key": _key(task, settings), "recipe": json.dumps(dataclasses.asdict(solved.recipe))}
        if isinstance(solved.f, Codes):
            metadata |= {"codes": json.dumps([*solved.f.shape, solved.f.bits, solved.f.group])}
        else:
            metadata |= {"alphabet": solved.f.alphabet}
        tensors = {
            name: StoredTensor(_DTYPES[value.dtype.name], value.shape, lambda value=value: value)  # type: ignore[misc]
            for name, value in arrays.items()
        }
        replace_file(self._path(task.name), encode(_FORMAT, metadata, tensors))

    def _path(self, layer: str) -> Path:
        return self._folder / f"{hashlib.sha256(layer.encode()).hexdigest()[:32]}.layer"


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


def _arrays(solved: Solved) -> dict[str, NDArray[Any] | None]:
    f = solved.f
    own: dict[str, NDArray[Any] | None]
    if isinstance(f, Codes):
        own = {"d1": f.d1, "codes": f.codes, "steps": f.steps}
    else:
        own = {"d1": f.d1, "b1": f.b1.packed_rows(), "d2": f.d2, "b2": f.b2.packed_rows(), "d3": f.d3}
    return own | {"bias": solved.bias}


def _read(file: ChecksummedFile, key: str) -> Solved | None:
    if file.value("key") != key:
        return None
    own = {name: file.array(name) for name in file.tensors}
    f: diba.Factorization | Codes
    if "codes" in file.metadata:
        m, n, bits, group = json.loads(file.value("codes"))
        f = Codes((m, n), bits, group, own["d1"], own["codes"], own.get("steps"))
    else:
        alphabet: Any = file.value("alphabet")
        b1 = diba.BitMatrix.from_packed_rows(own["b1"], len(own["d2"]), alphabet)
        b2 = diba.BitMatrix.from_packed_rows(own["b2"], len(own["d3"]), alphabet)
        f = diba.Factorization(own["d1"], b1, own["d2"], b2, own["d3"])
    return Solved(f, LayerRecipe(**json.loads(file.value("recipe"))), own.get("bias"))
