"""What a solve of one layer gave, how it is found without data, and its file on the disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from .._internal.codes import Codes, quantize
from .._internal.disk import open_regular, replace_file
from .._internal.snr import energy_and_error, snr_db
from .._internal.tensor_files import ChecksummedFile, Format, StoredTensor, encode
from ..bits import BitMatrix
from ..checkpoints.layers import LayerRecipe
from ..factorization import Factorization
from ..solvers.solver import solve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from .._internal.check import Alphabet
    from .config import Settings

__all__ = [
    "CODED_ENTRIES",
    "Rows",
    "Solved",
    "layer_file",
    "layer_of",
    "pieces",
    "read_solved",
    "recorded",
    "solve_weight",
    "tensors_of",
    "write_solved",
]

_FORMAT = Format("diba layer", "a finished layer", 1)
_DTYPES = {"float32": "F32", "float64": "F64", "uint8": "U8"}
CODED_ENTRIES = 2**21
"""Entries of a matrix that get codes at once."""


class Rows(Protocol):
    """A matrix of which some rows can be had at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, (m, n)."""

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Some rows, float32 or float64."""


class Solved(NamedTuple):
    """Factors or codes of one layer, how they were found, and its new bias (m,); None: the bias it has."""

    f: Factorization | Codes
    recipe: LayerRecipe
    bias: NDArray[np.float64] | None


def solve_weight(matrix: Rows, settings: Settings, **options: Any) -> tuple[Factorization | Codes, float]:
    """Factors or codes of a matrix for themselves, without data, and their SNR in dB.

    Args:
        matrix: Shape (m, n). Rows that get codes are read some at a time.
        settings: Of the layer.
        **options: Arguments of ``diba.solve`` beyond the settings.
    """
    if settings.codes is not None:
        return _coded(matrix, settings.codes, settings.group)
    whole = matrix[:]
    f = solve(whole, **{**options, **settings.solve_options()})
    return f, recorded(f.snr_db(whole))


def _coded(matrix: Rows, bits: int, group: int) -> tuple[Codes, float]:
    m, n = matrix.shape
    parts, energy, error = [], 0.0, 0.0
    for some in pieces(m, n):
        rows = matrix[some]
        part = quantize(rows, bits, group)
        parts.append((part.d1, part.codes, part.steps))
        found = energy_and_error(rows, part.rows())
        energy, error = energy + found[0], error + found[1]
    d1, codes = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    steps = np.concatenate([part[2] for part in parts]) if bits == 4 else None
    return Codes((m, n), bits, group, d1, codes, steps), recorded(snr_db(energy, error))


def pieces(rows: int, columns: int) -> Iterator[slice]:
    """The rows of a matrix, as many at a time as ``CODED_ENTRIES`` allows."""
    step = max(1, CODED_ENTRIES // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, start + step)


def recorded(snr: float) -> float:
    """An SNR as it is recorded: the last digits depend on NumPy's BLAS, and what is written must not."""
    return round(snr, 4)


# ---------------------------------------------------------------- files


def layer_file(folder: Path, name: str) -> Path:
    """The file of a finished layer in a folder."""
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.layer"


def write_solved(path: Path, key: str, solved: Solved) -> None:
    """Write a finished layer; it is on the disk when this returns.

    Args:
        path: The file; one that is there is replaced.
        key: What the layer is the result of; ``read_solved`` asks for the same.
        solved: The layer.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    arrays = tensors_of(solved.f) | ({} if solved.bias is None else {"bias": solved.bias})
    metadata = {"key": key, "recipe": json.dumps(dataclasses.asdict(solved.recipe))}
    if isinstance(solved.f, Codes):
        metadata |= {"codes": json.dumps([*solved.f.shape, solved.f.bits, solved.f.group])}
    else:
        metadata |= {"alphabet": solved.f.alphabet}
    tensors = {
        name: StoredTensor(_DTYPES[value.dtype.name], value.shape, _given(value))
        for name, value in arrays.items()
    }
    replace_file(path, encode(_FORMAT, metadata, tensors))


def read_solved(path: Path, key: str) -> Solved | None:
    """A finished layer from its file; None: it is not there, is damaged, or is that of another key."""
    try:
        with open_regular(path) as file:
            return _read(ChecksummedFile(file, str(path), _FORMAT), key)
    except (OSError, ValueError):
        return None


def _given(value: NDArray[Any]) -> Callable[[], NDArray[Any]]:
    return lambda: value


def tensors_of(f: Factorization | Codes) -> dict[str, NDArray[Any]]:
    """The tensors of a layer, by the names and as the arrays that files have."""
    if isinstance(f, Codes):
        own: dict[str, NDArray[Any] | None] = {"d1": f.d1, "codes": f.codes, "steps": f.steps}
        return {name: array for name, array in own.items() if array is not None}
    return {"d1": f.d1, "b1": f.b1.packed_rows(), "d2": f.d2, "b2": f.b2.packed_rows(), "d3": f.d3}


def layer_of(
    own: Mapping[str, NDArray[Any]], form: tuple[tuple[int, int], int, int] | Alphabet
) -> Factorization | Codes:
    """The reverse of :func:`tensors_of`.

    Args:
        own: The arrays.
        form: The alphabet of factors; or the shape, bits and group of codes.
    """
    if not isinstance(form, str):
        return Codes(*form, own["d1"], own["codes"], own.get("steps"))
    b1 = BitMatrix.from_packed_rows(own["b1"], len(own["d2"]), form)
    b2 = BitMatrix.from_packed_rows(own["b2"], len(own["d3"]), form)
    return Factorization(own["d1"], b1, own["d2"], b2, own["d3"])


def _read(file: ChecksummedFile, key: str) -> Solved | None:
    if file.value("key") != key:
        return None
    own = {name: file.array(name) for name in file.tensors}
    form: Any
    if "codes" in file.metadata:
        m, n, bits, group = json.loads(file.value("codes"))
        form = (m, n), bits, group
    else:
        form = file.value("alphabet")
    return Solved(layer_of(own, form), LayerRecipe(**json.loads(file.value("recipe"))), own.get("bias"))
