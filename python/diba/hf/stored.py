"""The safetensors files of a checkpoint: what their headers say, and single tensors, read where they lie."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _safetensors
from ..checkpoints import Tensor
from ..errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["Stored"]

_DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}  # of factors


class _Place(NamedTuple):
    path: str
    begin: int
    end: int


class Stored:
    """A checkpoint as its files have it.

    Args:
        paths: The files; those that are no safetensors files are passed by.

    Attributes:
        tensors: By name, from the headers.
        where: The folder, for messages.

    Raises:
        FormatError: a file is damaged, or two of them hold the same tensor.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.where = "the checkpoint"
        self._places: dict[str, _Place] = {}
        for path in paths:
            if not path.endswith(".safetensors"):
                continue
            self.where = str(Path(path).parent)
            with Path(path).open("rb") as file:
                header = _safetensors.read_header(file, path)
            for name, tensor in header.tensors.items():
                if name in self.tensors:
                    raise FormatError(f"{path}: {name} is in {self._places[name].path}, too; it must be once")
                self.tensors[name] = Tensor(tensor.dtype, tensor.shape)
                self._places[name] = _Place(path, tensor.begin, tensor.end)

    def array(self, name: str) -> NDArray[Any]:
        """The values of one tensor of factors.

        Raises:
            FormatError: the header gives it more or fewer bytes than its shape and dtype need.
        """
        (dtype, shape), (path, begin, end) = self.tensors[name], self._places[name]
        kind, count = _DTYPES[dtype], math.prod(shape)
        if end - begin != count * kind.itemsize:
            raise FormatError(f"{path}: {name} has {end - begin} bytes, expected {count * kind.itemsize}")
        return np.fromfile(path, kind, count, offset=begin).reshape(shape)
