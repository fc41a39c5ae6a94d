"""The safetensors files of a checkpoint: what their headers say, and single tensors, read where they lie."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from .._internal import container, disk
from .._internal.storage import BITS, DIAGONALS
from ..errors import FormatError
from .entries import Tensor, check_headers, check_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

__all__ = ["Stored", "check_stored"]


class _Place(NamedTuple):
    file: str
    begin: int
    end: int


class Stored:
    """A checkpoint as its files have it.

    Args:
        files: What opens each file, by its name for messages.
        where: The folder, likewise.

    Attributes:
        tensors: By name, from the headers.
        where: The folder.

    Raises:
        FormatError: a file is damaged, or two of them hold the same tensor.
    """

    def __init__(self, files: Mapping[str, Callable[[], BinaryIO]], where: str = "the checkpoint") -> None:
        self.tensors: dict[str, Tensor] = {}
        self.where = where
        self._files = files
        self._places: dict[str, _Place] = {}
        for file, opened in files.items():
            with opened() as stream:
                header = container.read_header(stream, file)
            for name, tensor in header.tensors.items():
                if name in self.tensors:
                    known = Path(self._places[name].file).name
                    raise FormatError(f"{file}: tensor {name[:200]!r} is in {known}, too; expected once")
                self.tensors[name] = Tensor(tensor.dtype, tensor.shape)
                self._places[name] = _Place(file, tensor.begin, tensor.end)

    @classmethod
    def at(cls, paths: Iterable[str]) -> Stored:
        """The files of these paths; those that are no safetensors files are passed by."""
        known = [path for path in paths if path.endswith(".safetensors")]
        files = {path: functools.partial(disk.open_regular, path) for path in known}
        return cls(files, str(Path(known[0]).parent) if known else "the checkpoint")

    def array(self, name: str) -> NDArray[Any]:
        """The values of one tensor.

        Raises:
            FormatError: the header gives it more or fewer bytes than its shape and dtype need.
        """
        (dtype, shape), (file, begin, end) = self.tensors[name], self._places[name]
        kind, count = np.dtype(container.DTYPES[dtype]), math.prod(shape)
        if end - begin != count * kind.itemsize:
            raise FormatError(
                f"{file}: tensor {name[:200]!r} has {end - begin} bytes, expected {count * kind.itemsize}"
            )
        with self._files[file]() as stream:
            stream.seek(begin)
            return np.frombuffer(stream.read(end - begin), kind).reshape(shape)


def check_stored(entries: Mapping[str, Mapping[str, Any]], stored: Stored) -> set[str]:
    """Check all factors in the files against their entries, one tensor at a time.

    Args:
        entries: Checked by themselves.
        stored: The files.

    Returns:
        Layers that the files do not have under their names: to be checked once they are loaded.

    Raises:
        FormatError: the checkpoint is damaged; the message names the layer and the tensor.
    """
    elsewhere = check_headers(entries, stored.tensors, stored.where)
    for name, layer in entries.items():
        if "shared" not in layer and name not in elsewhere:
            for own in (*DIAGONALS, *BITS):
                check_tensor(name, layer, own, stored.array(f"{name}.{own}"), stored.where)
    return elsewhere
