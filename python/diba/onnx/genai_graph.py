"""From the placeholders of a graph of onnxruntime-genai's builder to nodes of diba's operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from .graph import Editor
from .nodes import library_node
from .places import DOMAIN
from .results import ExportError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .places import Place

__all__ = ["fill"]


def fill(model: ir.Model, places: Sequence[Place], precision: str) -> None:
    """Put the nodes of all layers in the place of their placeholders.

    A layer that the builder cut into several, as a stacked projection of queries, keys and values, becomes
    one node with several outputs.

    Args:
        model: The graph; it is edited.
        places: The layers.
        precision: ``"fast"`` or ``"exact"``.

    Raises:
        ExportError: The builder left a layer out, or uses it in a way that has no node.
    """
    edit = Editor(model)
    found: dict[int, list[ir.Node]] = {place.number: [] for place in places}
    for node in edit.placeholders(DOMAIN):
        found[node.attributes["number"].as_int()].append(node)
    for place in places:
        parts = found[place.number]
        if not parts:
            raise ExportError(
                f"{place.name} is compressed, and the model builder of onnxruntime-genai makes no node of "
                "it; leave it dense, or use diba.onnx.export"
            )
        first = parts[0]
        x = first.inputs[0]
        assert x is not None
        y = library_node(edit, place, x, first.outputs[0].dtype, precision)
        edit.replace(first, y)
        if "rows" in first.attributes:
            _share_out(model.graph, place, y, parts)
    edit.finish(DOMAIN)
    model.graph.sort()


def _share_out(graph: ir.Graph, place: Place, y: ir.Value, parts: list[ir.Node]) -> None:
    """Give the node of a layer an output for each of its placeholders, the first of which is replaced."""
    linear = y.producer()
    assert linear is not None
    sizes = [part.attributes["rows"].as_int() for part in parts]
    starts = [part.attributes["first"].as_int() for part in parts]
    whole = place.module.out_features
    expected = [sum(sizes[:i]) for i in range(len(sizes))]
    if (
        starts != expected
        or sum(sizes) != whole
        or any(x.inputs[0] is not linear.inputs[0] for x in parts[1:])
    ):
        raise ExportError(
            f"{place.name} has {whole} rows, and the model builder of onnxruntime-genai uses {sizes} of them "
            f"from {starts} on, or for other inputs; leave it dense, or use diba.onnx.export"
        )
    if len(parts) == 1:
        return
    linear.attributes.add(ir.AttrInt64s("out_features", sizes))
    linear.resize_outputs(len(parts))
    for part, value in zip(parts[1:], linear.outputs[1:], strict=True):
        before = part.outputs[0]
        value.shape, value.type = before.shape, before.type
        ir.convenience.replace_all_uses_with(before, value)
        graph.remove(part, safe=True)
        value.name, before.name = before.name, None
