"""Nodes of diba's operators in the place of placeholders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import operations
from .graph import FLOAT, HALF
from .places import EmbeddingPlace, Place, TableHead, TableRows

if TYPE_CHECKING:
    import onnx_ir as ir

    from .graph import Editor

__all__ = ["bias_of", "float_product", "float_rows", "library_node"]

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
    if isinstance(place, TableHead) and place.table.source is None:
        return _float_head(edit, place, x, dtype)
    if isinstance(place, TableRows) and place.table.source is None:
        return float_rows(edit, place, x, dtype)
    found = operations.operation(place, precision)
    constants = [edit.constant(name, values) for name, values in found.constants.items()]
    y = edit.node(place.name, found.name, x, *constants, domain=_DOMAIN, **found.attributes)
    # Rows of tables are float32, all else has the type of the input.
    return edit.cast(place.name, y, FLOAT, dtype) if isinstance(place, (TableRows, EmbeddingPlace)) else y


def bias_of(edit: Editor, place: Any) -> list[ir.Value]:
    """The bias of a layer in float32, if it has one."""
    return [edit.constant(name, values) for name, values in operations.bias_of(place).items()]


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


def _float_head(edit: Editor, place: TableHead, x: ir.Value, dtype: Any) -> ir.Value:
    y = float_product(edit, place, edit.cast(f"{place.name}/input", x, dtype, FLOAT))
    for shift in bias_of(edit, place):
        y = edit.node(f"{place.name}/Add", "Add", y, shift)
    return edit.cast(place.name, y, FLOAT, dtype)
