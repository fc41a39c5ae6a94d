"""Writing a compressed model's files, one tensor in memory at a time."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal.tensor_files import framed
from ..checkpoints.description import FORMAT_VERSION, Description
from ..checkpoints.integrity import Tensor
from ..layers.solved import tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from ..checkpoints.layers import LayerDescription
    from ..layers.solved import Solved
    from .outline import Outline

__all__ = ["described", "file_bytes", "without_times", "write_tensors"]

_METADATA = {"diba_format_version": str(FORMAT_VERSION), "format": "pt"}

# As the library of safetensors orders tensors: those of large entries first, which keeps all aligned.
_ORDER = (
    "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64",
    "U64",
)  # fmt: skip


def described(outline: Outline, solved: Callable[[str], Solved]) -> Description:
    """The description of the model, with the checksums of its layers and how they were found.

    Args:
        outline: Of the model.
        solved: Gives a finished layer by name.
    """
    layers: dict[str, LayerDescription] = {}
    for name, layer in outline.layers.items():
        owner = layer.shared or name
        found = solved(owner)
        own = dataclasses.replace(layer, recipe=found.recipe)
        if layer.shared is None:
            own = own.sealed(name, tensors_of(found.f))
        else:
            own = dataclasses.replace(own, diagonal_bits=layers[owner].diagonal_bits)
        layers[name] = own
    return dataclasses.replace(outline.description, layers=layers)


def without_times(description: Description) -> Description:
    """The description as it is written: times differ from run to run."""
    layers = {
        name: dataclasses.replace(
            layer, recipe=layer.recipe and dataclasses.replace(layer.recipe, seconds=None)
        )
        for name, layer in description.layers.items()
    }
    return dataclasses.replace(description, layers=layers)


def file_bytes(outline: Outline) -> int:
    """Bytes of the file of weights, header included."""
    return len(_header(outline)) + sum(tensor.nbytes for tensor in outline.tensors.values())


def write_tensors(path: Path, outline: Outline, solved: Callable[[str], Solved]) -> None:
    """Write the safetensors file of a model.

    Args:
        path: The file.
        outline: Of the model.
        solved: Gives a finished layer by name.

    Raises:
        OSError: The disk is full, or a file cannot be read.
    """
    last = functools.lru_cache(maxsize=1)(lambda name: tensors_of(solved(name).f))
    with path.open("wb") as file:
        file.write(_header(outline))
        for name in _ordered(outline.tensors):
            layer, _, own = name.rpartition(".")
            if name in outline.dense:
                file.writelines(outline.dense[name].parts())
            elif layer in outline.weights and own != "weight":
                file.write(_bytes(last(layer)[own]))


def _header(outline: Outline) -> bytes:
    tensors = outline.tensors
    header: dict[str, Any] = {"__metadata__": _METADATA}
    end = 0
    for name in _ordered(tensors):
        dtype, shape = tensors[name]
        offsets = [end, end := end + tensors[name].nbytes]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
    return framed(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())


def _ordered(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    yield from sorted(tensors, key=lambda name: (-_ORDER.index(tensors[name].dtype), name))


def _bytes(array: NDArray[Any]) -> memoryview:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data
