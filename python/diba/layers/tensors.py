"""Tensors in safetensors and npz files, read one by one, or some rows at a time."""

from __future__ import annotations

import contextlib
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal import tensor_files
from .._internal.disk import open_regular
from ..checkpoints.folders import weight_files
from ..errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["FLOATS", "FileMatrix", "FileTensor", "tensors_at"]

FLOATS = ("F64", "F32", "F16", "BF16")
_BLOCK = 2**20
_NAMES = {np.dtype(code): name for name, code in tensor_files.DTYPES.items() if name != "BF16"}


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a file. It can be pickled: it says where the values are, and has none.

    Attributes:
        path: The file.
        name: Its name in there.
        dtype: As safetensors files name it.
        shape: Its shape.
        begin: Where its bytes begin in a safetensors file; None: the file is an npz.
    """

    path: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int | None

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * np.dtype(tensor_files.DTYPES[self.dtype]).itemsize

    def array(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """The values, or some of the rows, in native byte order; BF16 becomes float32.

        Raises:
            OSError: The file cannot be read.
            FormatError: It is damaged.
        """
        if self.begin is None:
            return self._from_npz()[start:stop]
        shape = self.shape
        if shape:
            first, last, _ = slice(start, stop).indices(shape[0])
            shape = (max(0, last - first), *shape[1:])
            row = self.nbytes // max(1, self.shape[0])
        else:
            first = row = 0
        begin = self.begin + first * row
        size = math.prod(shape) * np.dtype(tensor_files.DTYPES[self.dtype]).itemsize
        entry = tensor_files.TensorEntry(self.dtype, shape, begin, begin + size)
        with open_regular(self.path) as file:
            return tensor_files.read_array(file, entry, self.path)

    def parts(self) -> Iterator[bytes]:
        """Its bytes as a safetensors file has them, in parts.

        Raises:
            OSError: The file cannot be read.
            FormatError: It is damaged.
        """
        if self.begin is None:
            array = self._from_npz()
            yield np.ascontiguousarray(array, tensor_files.DTYPES[self.dtype]).tobytes()
            return
        with open_regular(self.path) as file:
            file.seek(self.begin)
            left = self.nbytes
            while left:
                part = file.read(min(left, _BLOCK))
                if not part:
                    raise FormatError(f"{self.path}: is cut short: it became smaller while it was read")
                left -= len(part)
                yield part

    def _from_npz(self) -> NDArray[Any]:
        with _opened_npz(self.path) as found:
            array: NDArray[Any] = found[self.name]
        if array.shape != self.shape:
            raise FormatError(f"{self.path}: {self.name} has changed while it was read")
        return array.astype(array.dtype.newbyteorder("="), copy=False)


@dataclass(frozen=True)
class FileMatrix:
    """A tensor in a file as the matrix of a layer. It can be pickled, and holds no values.

    ``matrix[start:stop]`` reads some rows, float32 (float64 if the file's are).

    Attributes:
        name: Of the layer, for messages.
        tensor: Its first axis is that of the rows, unless it is ``turned``.
        shape: (m, n).
        turned: Whether the file has the matrix transposed.
    """

    name: str
    tensor: FileTensor
    shape: tuple[int, int]
    turned: bool = False

    @classmethod
    def of(cls, name: str, tensor: FileTensor, shape: tuple[int, int], kind: str) -> FileMatrix | None:
        """The matrix of a layer of a kind; None: the tensor has another shape, or is none of floats."""
        turned = kind == "Conv1D"
        found = (tensor.shape[0], math.prod(tensor.shape[1:])) if tensor.shape else ()
        fits = found == (shape[::-1] if turned else shape) and tensor.dtype in FLOATS
        return FileMatrix(name, tensor, shape, turned) if fits else None

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Some rows.

        Raises:
            OSError, FormatError: The file cannot be read, or is damaged.
            ValueError: An entry is not finite.
        """
        if self.turned:
            found = np.ascontiguousarray(self.tensor.array().T[rows])
        else:
            start, stop, _ = rows.indices(self.shape[0])
            found = self.tensor.array(start, stop)
            found = found.reshape(len(found), self.shape[1])
        if found.dtype.itemsize < 4:
            found = found.astype(np.float32)
        bad = int(np.count_nonzero(~np.isfinite(found)))
        if bad:
            raise ValueError(
                f"the weight of {self.name} has {bad} NaN or infinite entries in {self.tensor.path}; all "
                f"must be finite: repair it, or use skip=[{self.name!r}]"
            )
        return found


def tensors_at(path: Path) -> dict[str, FileTensor]:
    """All tensors of a safetensors file, of a folder of them, of those that an index names, or of an npz.

    Raises:
        OSError: There is none, or it cannot be read.
        FormatError: A file is damaged, or two of them have the same tensor.
        ValueError: It is of another kind, or holds what is no array of numbers.
    """
    if path.is_dir():
        files = weight_files(path)
    elif path.name.endswith(".index.json"):
        files = weight_files(path.parent, path)
    elif path.suffix in (".safetensors", ".npz"):
        files = [path]
    else:
        raise ValueError(
            f"{path} ends in {path.suffix or 'nothing'}; it must be a folder, or a file that ends in "
            ".safetensors, .safetensors.index.json or .npz"
        )
    found: dict[str, FileTensor] = {}
    for file in files:
        for name, tensor in (_npz(file) if file.suffix == ".npz" else _safetensors(file)).items():
            if name in found:
                known = Path(found[name].path).name
                raise FormatError(f"{file}: tensor {name[:200]!r} is in {known}, too; expected once")
            found[name] = tensor
    return found


def _safetensors(path: Path) -> dict[str, FileTensor]:
    with open_regular(path) as file:
        header = tensor_files.read_header(file, str(path))
    if header.metadata.get("format", "").startswith("diba"):
        raise ValueError(f"{path} is a file of diba; it must hold the dense weights")
    return {
        name: FileTensor(str(path), name, entry.dtype, tuple(entry.shape), entry.begin)
        for name, entry in header.tensors.items()
    }


def _npz(path: Path) -> dict[str, FileTensor]:
    found = {}
    with _opened_npz(str(path)) as archive:
        for name in archive.files:
            shape, dtype = _header(archive, name, path)
            known = _NAMES.get(dtype.newbyteorder("<"))
            if known is None:
                raise ValueError(f"{path}: {name} is of dtype {dtype}; it must be an array of numbers")
            found[name] = FileTensor(str(path), name, known, shape, None)
    return found


def _header(archive: Any, name: str, path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array, without its values."""
    try:
        with archive.zip.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            old = version == (1, 0)
            read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
    except (KeyError, ValueError, EOFError) as error:
        raise FormatError(f"{path}: {name} cannot be read as an array ({error})") from error
    return tuple(shape), dtype


@contextlib.contextmanager
def _opened_npz(path: str) -> Iterator[Any]:
    with open_regular(path) as file:
        try:
            found = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise FormatError(f"{path}: is damaged or not an npz file ({error})") from error
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise FormatError(f"{path}: holds one array without a name; use numpy.savez")
        with found:
            yield found
