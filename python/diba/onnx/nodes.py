"""Nodes of diba's operators, and of onnxruntime's for dense output layers, in the place of placeholders."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import file_format
from ..torch.modules.state import as_numpy
from .graph import FLOAT, HALF
from .places import ConvPlace, EmbeddingPlace, LinearPlace, Place, TableHead, TableRows

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from .graph import Editor

__all__ = ["bias_of", "float_product", "float_rows", "library_node", "table_of"]

_DOMAIN, _RUNTIME = "diba", "com.microsoft"
_INT8_ACTIVATIONS = 4  # MatMulNBits: products of 8-bit integers, the fastest; errors of about 0.5 %


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
        if place.table.scales is None:
            return float_rows(edit, place, x, dtype)
        codes, scales = table_of(edit, place)
        facts = {"embedding_dim": place.table.columns, "bits": place.table.bits}
        return _rows(edit, place.name, (x, codes, scales), facts, dtype)
    factors = edit.constant(f"{place.owner}.factors", partial(_factors, place))
    if isinstance(place, EmbeddingPlace):
        return _rows(edit, place.name, (x, factors), {"embedding_dim": place.module.embedding_dim}, dtype)
    given = [x, factors, *bias_of(edit, place)]
    if isinstance(place, ConvPlace):
        conv = place.module
        return edit.node(
            place.name,
            "Conv",
            *given,
            domain=_DOMAIN,
            out_channels=conv.out_channels,
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
            pads=place.pads,
            dilations=list(conv.dilation),
            precision=precision,
        )
    assert isinstance(place, LinearPlace)
    sizes = [place.module.out_features]
    return edit.node(place.name, "Linear", *given, domain=_DOMAIN, out_features=sizes, precision=precision)


def bias_of(edit: Editor, place: Any) -> list[ir.Value]:
    """The bias of a layer in float32, if it has one."""
    bias = place.module.bias
    return [] if bias is None else [edit.constant(f"{place.name}.bias", lambda: as_numpy(bias))]


def table_of(edit: Editor, place: Any) -> tuple[ir.Value, ir.Value]:
    """A table of codes, and its scales."""
    codes = edit.constant(f"{place.owner}.table", lambda: place.table.codes)
    return codes, edit.constant(f"{place.owner}.scales", lambda: place.table.scales)


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


def _floats(edit: Editor, place: TableRows | TableHead) -> ir.Value:
    return edit.constant(f"{place.owner}.table", lambda: place.table.codes)


def _rows(edit: Editor, name: str, inputs: Any, facts: dict[str, int], dtype: Any) -> ir.Value:
    """Rows of a table, which the operator gives in float32."""
    rows = edit.node(name, "Embedding", *inputs, domain=_DOMAIN, **facts)
    return edit.cast(name, rows, FLOAT, dtype)


def _head(edit: Editor, place: TableHead, x: ir.Value, dtype: Any) -> ir.Value:
    table = place.table
    x = edit.cast(f"{place.name}/input", x, dtype, FLOAT)
    y = float_product(edit, place, x) if table.scales is None else _product(edit, place, x)
    for shift in bias_of(edit, place):
        y = edit.node(f"{place.name}/Add", "Add", y, shift)
    return edit.cast(place.name, y, FLOAT, dtype)


def _product(edit: Editor, place: TableHead, x: ir.Value) -> ir.Value:
    """A product with a table of codes."""
    table: Any = place.table
    rows, blocks = table.scales.shape
    # The bytes are those of an embedding with the same table, and are stored once.
    codes = edit.constant(f"{place.owner}.blocks", lambda: table.codes.reshape(rows, blocks, -1))
    scales = edit.constant(f"{place.owner}.block_scales", lambda: table.scales.reshape(-1))
    sizes = {"K": table.columns, "N": rows, "bits": table.bits, "block_size": table.block}
    return edit.node(
        place.name,
        "MatMulNBits",
        *(x, codes, scales),
        domain=_RUNTIME,
        **sizes,
        accuracy_level=_INT8_ACTIVATIONS,
    )


def _factors(place: Any) -> NDArray[np.uint8]:
    """The bytes of a diba file with the factors of a layer."""
    f = place.module.factorization()
    stored = file_format.StoredFactors(f.d1, f.b1, f.d2, f.b2, f.d3)
    return np.frombuffer(file_format.encode(stored), np.uint8)
