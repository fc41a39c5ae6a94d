"""The two files of an exported model: the graph, and its tensors beside it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from .._internal.disk import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["data_file", "publish", "staged", "write"]

_INLINE = 1024  # bytes of a tensor that stays in the graph, where shapes are computed from it
_LARGE, _PAGE, _LINE = 65536, 4096, 64  # tensors of _LARGE bytes begin at pages, so that they can be mapped


def data_file(path: Path) -> Path:
    """The file of tensors of a model."""
    return path.with_name(f"{path.name}.data")


def write(model: ir.Model, path: Path) -> None:
    """Write a model and its tensors. The model says how large the file of tensors is, and its SHA-256.

    Tensors of equal bytes are stored once, large ones first.

    Args:
        model: The model; its larger tensors become references to the file.
        path: The file of the graph.
    """
    target = data_file(path)
    values: list[Any] = [v for v in model.graph.initializers.values() if _size(v) >= _INLINE]
    values.sort(key=_size, reverse=True)
    places: dict[tuple[int, bytes], int] = {}
    parts: list[tuple[int, Any]] = []
    end = 0
    for value in values:
        tensor = value.const_value
        size = tensor.nbytes
        key = size, hashlib.sha256(_bytes(tensor)).digest()
        if key not in places:
            unit = _PAGE if size >= _LARGE else _LINE
            places[key] = -(-end // unit) * unit
            parts.append((places[key], tensor))
            end = places[key] + size
        value.const_value = ir.ExternalTensor(
            target.name, places[key], size, tensor.dtype, shape=tensor.shape, name=value.name
        )
    digest = hashlib.sha256()
    replace_file(target, _stream(parts, digest))
    facts = {"bytes": end, "sha256": digest.hexdigest()}
    model.metadata_props["diba.data"] = json.dumps(facts)
    replace_file(path, ir.to_proto(model).SerializeToString())


def _size(value: Any) -> int:
    return int(value.const_value.nbytes)


def _stream(parts: list[tuple[int, Any]], digest: Any) -> Iterator[bytes | memoryview]:
    """The bytes of tensors at their offsets, with zeros between them."""
    end = 0
    for offset, tensor in parts:
        for data in (bytes(offset - end), _bytes(tensor)):
            digest.update(data)
            yield data
        end = offset + tensor.nbytes


def _bytes(tensor: Any) -> memoryview:
    """The bytes of a tensor, without a copy if it is an array in memory."""
    array: NDArray[Any] = np.ascontiguousarray(tensor.numpy())
    if array.nbytes != tensor.nbytes:  # entries of less than a byte
        return memoryview(tensor.tobytes())
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Context manager: a path of the same name in a new folder beside it, which is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(stage: Path, path: Path) -> None:
    """Move a model to its place. An older one goes first, so that no graph lies beside another's tensors."""
    path.unlink(missing_ok=True)
    data_file(stage).replace(data_file(path))
    stage.replace(path)
