"""Nodes of diba's operators in the place of placeholders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import file_format
from .._internal import binarized_file
from .._internal.sparse_rows import SparseRows
from ..binarized import APB
from ..torch.modules.apb import DibaAPBLayer
from ..torch.modules.bitwise import DibaBitLayer
from ..torch.modules.state import as_numpy
from .graph import FLOAT, HALF
from .places import ConvPlace, EmbeddingPlace, LinearPlace, Place, TableHead, TableRows

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from ..factorization import Factorization
    from .graph import Editor

__all__ = ["bias_of", "float_product", "float_rows", "library_node", "matrix_bytes"]

_DOMAIN = "diba"


def library_node(edit: Editor, place: Place, x: ir.Value, dtype: Any, precision: str) -> ir.Value:
    """Add the nodes of a layer to a graph, for a runtime with diba's library.

    Args:
        edit: The graph.
        place: The layer.
        x: Its input.
        dtype: Type of its output.
        precision: ``"fast"`` or ``"exact"``.
    """
    if isinstance(place, TableHead):
        return _head(edit, place, x, dtype)
    if isinstance(place, TableRows):
        if place.table.source is None:
            return float_rows(edit, place, x, dtype)
        facts = {"embedding_dim": place.table.columns, **_form(place)}
        return _rows(edit, place.name, (x, *_table_of(edit, place)), facts, dtype)
    if isinstance(place, EmbeddingPlace):
        facts = {"embedding_dim": place.module.embedding_dim}
        return _rows(edit, place.name, (x, _factors(edit, place)), facts, dtype)
    kind, matrix, settings = _matrix(edit, place, precision)
    given = [x, *matrix, *bias_of(edit, place)]
    if isinstance(place, ConvPlace):
        settings |= {"out_channels": place.module.out_channels, **place.settings}
        return edit.node(place.name, f"{kind}Conv", *given, domain=_DOMAIN, **settings)
    assert isinstance(place, LinearPlace)
    settings["out_features"] = [place.module.out_features]
    return edit.node(place.name, f"{kind}Linear", *given, domain=_DOMAIN, **settings)


def _matrix(edit: Editor, place: Any, precision: str) -> tuple[str, list[ir.Value], dict[str, Any]]:
    """What names of operators begin with, the inputs that hold a layer's matrix, and attributes of both."""
    layer, owner = place.module, place.owner
    if not isinstance(layer, DibaBitLayer):
        return "", [_factors(edit, place)], {"precision": precision}
    planes = edit.constant(f"{owner}.planes", lambda: as_numpy(layer.planes))
    scales = edit.constant(f"{owner}.scales", lambda: as_numpy(layer.scale))
    sizes = {"in_features": layer.matrix_shape[1], "activation_bits": layer.activation_bits}
    return "Bit", [planes, scales], sizes


def bias_of(edit: Editor, place: Any) -> list[ir.Value]:
    """The bias of a layer in float32, if it has one."""
    bias = place.module.bias
    return [] if bias is None else [edit.constant(f"{place.name}.bias", lambda: as_numpy(bias))]


def _table_of(edit: Editor, place: Any) -> tuple[ir.Value, ir.Value]:
    """A table of codes, and a scale for each row."""
    table = edit.constant(f"{place.owner}.table", lambda: place.table.packed())
    return table, edit.constant(f"{place.owner}.scales", lambda: place.table.source.d1[:, None])


def _form(place: Any) -> dict[str, int]:
    source = place.table.source
    return {"bits": source.bits} | ({"group": source.group} if source.bits == 4 else {})


def float_rows(edit: Editor, place: TableRows, x: ir.Value, dtype: Any) -> ir.Value:
    """Rows of a table of floats."""
    rows = edit.node(place.name, "Gather", _floats(edit, place), x)
    return edit.cast(place.name, rows, HALF if place.table.bits == 16 else FLOAT, dtype)


def float_product(edit: Editor, place: TableHead, x: ir.Value, weight: ir.Value | None = None) -> ir.Value:
    """A product with a table, which onnxruntime turns round and widens once, when it opens the model.

    Args:
        edit: The graph.
        place: The output layer.
        x: Its input, float32.
        weight: The table in float32; None: the place has floats.
    """
    if weight is None:
        source = HALF if place.table.bits == 16 else FLOAT
        weight = edit.cast(f"{place.name}/weight", _floats(edit, place), source, FLOAT)
    turned = edit.node(f"{place.name}/Transpose", "Transpose", weight, perm=[1, 0])
    return edit.node(place.name, "MatMul", x, turned)


def _floats(edit: Editor, place: Any) -> ir.Value:
    return edit.constant(f"{place.owner}.table", lambda: place.table.floats)


def _rows(edit: Editor, name: str, inputs: Any, facts: dict[str, int], dtype: Any) -> ir.Value:
    """Rows of a table, which the operator gives in float32."""
    rows = edit.node(name, "Embedding", *inputs, domain=_DOMAIN, **facts)
    return edit.cast(name, rows, FLOAT, dtype)


def _head(edit: Editor, place: TableHead, x: ir.Value, dtype: Any) -> ir.Value:
    table = place.table
    if table.source is not None:
        given = [x, *_table_of(edit, place), *bias_of(edit, place)]
        sizes = {"in_features": table.columns, "out_features": [table.shape[0]], **_form(place)}
        return edit.node(place.name, "CodedLinear", *given, domain=_DOMAIN, **sizes)
    y = float_product(edit, place, edit.cast(f"{place.name}/input", x, dtype, FLOAT))
    for shift in bias_of(edit, place):
        y = edit.node(f"{place.name}/Add", "Add", y, shift)
    return edit.cast(place.name, y, FLOAT, dtype)


def _factors(edit: Editor, place: Any) -> ir.Value:
    """The bytes of a diba file with the matrix of a layer."""
    layer = place.module

    def encoded() -> NDArray[np.uint8]:
        return matrix_bytes(layer.matrix() if isinstance(layer, DibaAPBLayer) else layer.factorization())

    return edit.constant(f"{place.owner}.factors", encoded)


def matrix_bytes(f: Factorization | APB) -> NDArray[np.uint8]:
    """The bytes of a diba file with a matrix."""
    if isinstance(f, APB):
        E = SparseRows(f.starts, f.columns, f.values, f.shape)
        return np.frombuffer(b"".join(map(bytes, binarized_file.encoded(f.alpha, f.signs, E))), np.uint8)
    stored = file_format.StoredFactors(f.d1, f.b1, f.d2, f.b2, f.d3)
    return np.frombuffer(file_format.encode(stored), np.uint8)
