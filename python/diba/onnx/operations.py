"""What a layer is in diba's operators: the name of one, its constants and its attributes (docs/deploy.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import file_format
from .._internal import binarized_file
from .._internal.sparse_rows import SparseRows
from ..binarized import APB
from ..torch.modules.apb import DibaAPBLayer
from ..torch.modules.bitwise import DibaBitLayer
from ..torch.modules.state import as_numpy
from .places import ConvPlace, EmbeddingPlace, LinearPlace, TableHead, TableRows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ..factorization import Factorization
    from .places import Place

    Constants = dict[str, Callable[[], NDArray[Any]]]

__all__ = ["Operation", "bias_of", "matrix_bytes", "operation"]


@dataclass(frozen=True)
class Operation:
    """A call of an operator.

    Attributes:
        name: Of the operator.
        constants: Its inputs after the first: names of tensors, the same for layers that share one, and what
            makes their values, uint8 or float32.
        attributes: Integers, lists of them, and text.
    """

    name: str
    constants: Constants
    attributes: dict[str, Any]


def operation(place: Place, precision: str) -> Operation:
    """The operator of a layer.

    Args:
        place: The layer; no table of floats.
        precision: ``"fast"`` or ``"exact"``, of layers that have both.
    """
    if isinstance(place, TableHead):
        sizes = {"in_features": place.table.columns, "out_features": [place.table.shape[0]]}
        return Operation("CodedLinear", _table(place) | bias_of(place), {**sizes, **_form(place)})
    if isinstance(place, TableRows):
        facts = {"embedding_dim": place.table.columns, **_form(place)}
        return Operation("Embedding", _table(place), facts)
    if isinstance(place, EmbeddingPlace):
        return Operation("Embedding", _factors(place), {"embedding_dim": place.module.embedding_dim})
    kind, matrix, settings = _matrix(place, precision)
    constants = matrix | bias_of(place)
    if isinstance(place, ConvPlace):
        settings |= {"out_channels": place.module.out_channels, **place.settings}
        return Operation(f"{kind}Conv", constants, settings)
    assert isinstance(place, LinearPlace)
    return Operation(f"{kind}Linear", constants, settings | {"out_features": [place.module.out_features]})


def _matrix(place: Any, precision: str) -> tuple[str, Constants, dict[str, Any]]:
    """What names of operators begin with, the constants with a layer's matrix, and attributes of both."""
    layer, owner = place.module, place.owner
    if not isinstance(layer, DibaBitLayer):
        return "", _factors(place), {"precision": precision}
    sizes = {"in_features": layer.matrix_shape[1], "activation_bits": layer.activation_bits}
    planes = {f"{owner}.planes": lambda: as_numpy(layer.planes)}
    return "Bit", planes | {f"{owner}.scales": lambda: as_numpy(layer.scale)}, sizes


def _factors(place: Any) -> Constants:
    """The bytes of a diba file with the matrix of a layer."""
    layer = place.module
    return {
        f"{place.owner}.factors": lambda: matrix_bytes(
            layer.matrix() if isinstance(layer, DibaAPBLayer) else layer.factorization()
        )
    }


def bias_of(place: Any) -> Constants:
    """The bias of a layer in float32, if it has one."""
    bias = place.module.bias
    return {} if bias is None else {f"{place.name}.bias": lambda: as_numpy(bias)}


def _table(place: Any) -> Constants:
    """A table of codes, and a scale for each row."""
    return {
        f"{place.owner}.table": lambda: place.table.packed(),
        f"{place.owner}.scales": lambda: place.table.source.d1[:, None],
    }


def _form(place: Any) -> dict[str, int]:
    source = place.table.source
    return {"bits": source.bits} | ({"group": source.group} if source.bits == 4 else {})


def matrix_bytes(f: Factorization | APB) -> NDArray[np.uint8]:
    """The bytes of a diba file with a matrix."""
    if isinstance(f, APB):
        E = SparseRows(f.starts, f.columns, f.values, f.shape)
        return np.frombuffer(b"".join(map(bytes, binarized_file.encoded(f.alpha, f.signs, E))), np.uint8)
    stored = file_format.StoredFactors(f.d1, f.b1, f.d2, f.b2, f.d3)
    return np.frombuffer(file_format.encode(stored), np.uint8)
