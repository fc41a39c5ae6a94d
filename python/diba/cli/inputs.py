"""Reading the input matrix of the command line: ``FILE`` or ``FILE:TENSOR``, npy, npz or safetensors.

Pickle is never used. Only the tensor asked for is read from a safetensors file.
"""

from __future__ import annotations

import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .._internal import tensor_files
from .._internal.disk import open_regular

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["InputMatrix", "locate", "read_matrix"]

_NAMES_SHOWN = 20


@dataclass(frozen=True)
class InputMatrix:
    """A matrix read from a file.

    Attributes:
        entries: 2-D array, not checked further.
        source: ``FILE`` or ``FILE:TENSOR``.
        dtype: Dtype in the file.
        note: How the tensor was reshaped to a matrix; None if it was not.
    """

    entries: NDArray[Any]
    source: str
    dtype: str
    note: str | None


def read_matrix(argument: str) -> InputMatrix:
    """Read the matrix ``FILE`` or ``FILE:TENSOR``.

    Without a tensor's name, the file must hold exactly one matrix. The weight of a 1x1 convolution, of shape
    (out, in, 1, 1), is read as a matrix (out, in).

    Raises:
        OSError: the file cannot be opened or is not a regular file.
        ValueError: the file is damaged or of another format, or has no such matrix.
    """
    path, tensor = locate(argument)
    with open_regular(path) as file:
        start = file.read(6)
        file.seek(0)
        if start == b"\x93NUMPY":
            entries, dtype = _read_npy(file, path, tensor)
        elif start.startswith(b"PK"):
            entries, dtype, tensor = _read_npz(file, path, tensor)
        else:
            entries, dtype, tensor = _read_safetensors(file, path, tensor)
    source = f"{path}:{tensor}" if tensor is not None else str(path)
    note = None
    if entries.ndim == 4 and entries.shape[2:] == (1, 1):
        note = f"a 1x1 convolution of shape {entries.shape}, taken as a matrix of shape {entries.shape[:2]}"
        entries = entries.reshape(entries.shape[:2])
    if entries.ndim != 2:
        raise ValueError(f"{source}: has shape {entries.shape}; it must be a matrix (2-D)")
    return InputMatrix(entries, source, dtype, note)


def locate(argument: str) -> tuple[Path, str | None]:
    """Path and tensor name; colons may occur in both, so the longest path that exists wins."""
    end = len(argument)
    while end > 0:
        path = Path(argument[:end])
        if path.exists() and not path.is_dir():
            return path, argument[end + 1 :] if end < len(argument) else None
        end = argument.rfind(":", 0, end)
    return Path(argument.partition(":")[0] or argument), None  # opening it will fail with the reason


def _read_npy(file: BinaryIO, path: Path, tensor: str | None) -> tuple[NDArray[Any], str]:
    if tensor is not None:
        raise ValueError(f"{path}: an npy file holds one array without a name; leave out ':{tensor}'")
    entries = _numpy_array(file, str(path), os.fstat(file.fileno()).st_size)
    return entries, str(entries.dtype)


def _read_npz(file: BinaryIO, path: Path, tensor: str | None) -> tuple[NDArray[Any], str, str]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            shapes = {}
            for name in members:
                with archive.open(name) as member:
                    shapes[name.removesuffix(".npy")] = _npy_shape(member)
            tensor = _choose(path, tensor, shapes)
            with archive.open(tensor + ".npy") as member:
                size = archive.getinfo(tensor + ".npy").file_size
                entries = _numpy_array(member, f"{path}:{tensor}", size)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path}: is damaged or not an npz file ({error})") from error
    return entries, str(entries.dtype), tensor


def _numpy_array(file: Any, name: str, size: int) -> NDArray[Any]:
    """Read an npy file of ``size`` bytes; its header may announce more than there are."""
    try:
        shape, dtype = _npy_header(file)
        announced = file.tell() + math.prod(shape) * dtype.itemsize
        if announced > size:
            raise ValueError(f"it has {size} bytes, but its header announces {announced}")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{name}: cannot be read as an array of numbers ({error})") from error


def _npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return tuple(shape), dtype


def _npy_shape(file: Any) -> tuple[int, ...]:
    try:
        return _npy_header(file)[0]
    except ValueError:
        return ()  # not a matrix; asking for it by name gives the reason


def _read_safetensors(file: BinaryIO, path: Path, tensor: str | None) -> tuple[NDArray[Any], str, str]:
    try:
        header = tensor_files.read_header(file, str(path))
    except ValueError as error:
        raise ValueError(f"{error}; diba solve reads npy, npz and safetensors files") from error
    if header.metadata.get("format") == "diba":
        raise ValueError(
            f"{path}: is a diba file, the result of a solve; it must be the original matrix: "
            f"use 'diba inspect {path}' to see its contents"
        )
    tensor = _choose(path, tensor, {name: entry.shape for name, entry in header.tensors.items()})
    entry = header.tensors[tensor]
    if entry.dtype not in tensor_files.DTYPES:
        known = ", ".join(tensor_files.DTYPES)
        raise ValueError(f"{path}:{tensor}: has dtype {entry.dtype}; it must be one of {known}")
    return tensor_files.read_array(file, entry, str(path)), entry.dtype, tensor


def _choose(path: Path, tensor: str | None, shapes: dict[str, tuple[int, ...]]) -> str:
    """The name of the tensor asked for, or of the only matrix in the file."""
    matrices = [name for name, shape in shapes.items() if _is_matrix(shape)]
    shown = ", ".join(sorted(matrices)[:_NAMES_SHOWN]) or "none"
    if len(matrices) > _NAMES_SHOWN:
        shown += f" and {len(matrices) - _NAMES_SHOWN} more"
    if tensor is None:
        if len(matrices) == 1:
            return matrices[0]
        raise ValueError(
            f"{path}: has {len(matrices)} matrices; name one as {path}:TENSOR; matrices in it: {shown}"
        )
    if tensor not in shapes:
        raise ValueError(f"{path}: has no tensor {tensor!r}; matrices in it: {shown}")
    if not _is_matrix(shapes[tensor]):
        raise ValueError(
            f"{path}: tensor {tensor!r} has shape {shapes[tensor]}; it must be a matrix (2-D); "
            f"matrices in it: {shown}"
        )
    return tensor


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return (len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))) and 0 not in shape
