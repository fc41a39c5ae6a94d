"""Editing a graph of onnx_ir: tensors by name, nodes in the place of a placeholder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

__all__ = ["FLOAT", "HALF", "INT32", "Editor"]

FLOAT, HALF, INT32 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT32


class Editor:
    """Puts nodes in the place of one placeholder after another.

    Args:
        model: The model; it is edited.

    Attributes:
        kept: Values that were made once and are used by several nodes, by a key of the maker.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model, self._graph = model, model.graph
        self._made: dict[str, ir.Value] = {}
        self._new: list[ir.Node] = []
        self._names: dict[str, int] = {}
        self.kept: dict[Any, ir.Value] = {}

    def placeholders(self, domain: str) -> Iterator[ir.Node]:
        """The nodes of a domain, which may be replaced meanwhile."""
        yield from [node for node in self._graph if node.domain == domain]

    def constant(self, name: str, make: Callable[[], NDArray[Any]]) -> ir.Value:
        """The tensor of a name, made if it is not there yet."""
        if name not in self._made:
            tensor = ir.tensor(np.ascontiguousarray(make()), name=self._free(name))
            value = ir.Value(name=tensor.name, const_value=tensor)
            value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
            self._graph.register_initializer(value)
            self._made[name] = value
        return self._made[name]

    def integers(self, *values: int) -> ir.Value:
        """A small constant of int64."""
        return self.constant(
            f"diba.integers.{'.'.join(map(str, values))}", lambda: np.array(values, np.int64)
        )

    def once(self, key: Any, make: Callable[[], ir.Value]) -> ir.Value:
        """The value of a key, made if it is not there yet."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def node(
        self, name: str, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """Add a node with one output.

        Args:
            name: Name of the node; a number is appended to one that is taken.
            kind: Type of the operator.
            *inputs: Its inputs; None where an optional one is missing.
            domain: Domain of the operator.
            **attributes: Its attributes.
        """
        count = self._names[name] = self._names.get(name, -1) + 1
        used = f"{name}:{count}" if count else name
        listed = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()]
        version = None if not domain else 1
        node = ir.Node(domain, kind, inputs, listed, num_outputs=1, version=version, name=used)
        node.outputs[0].name = f"{used}.out"
        if domain:
            self._graph.opset_imports.setdefault(domain, 1)
        self._new.append(node)
        return node.outputs[0]

    def cast(self, name: str, value: ir.Value, source: Any, target: Any) -> ir.Value:
        """A value of type ``source`` as ``target``; if that takes a node, it is named ``name/Cast``."""
        return value if source == target else self.node(f"{name}/Cast", "Cast", value, to=int(target))

    def replace(self, old: ir.Node, value: ir.Value) -> None:
        """Put the nodes added since the last call in the place of ``old``, and ``value`` in its output's."""
        before = old.outputs[0]
        self._graph.insert_before(old, self._new)
        value.shape, value.type = before.shape, before.type
        ir.convenience.replace_all_uses_with(before, value, replace_graph_outputs=True)
        self._graph.remove(old, safe=True)
        value.name, before.name = before.name, None
        self._new = []

    def finish(self, domain: str) -> None:
        """Drop a domain, tensors that no node uses, and torch's notes on each node: stacks with paths."""
        self._graph.opset_imports.pop(domain, None)
        for node in self._graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*self._graph.inputs, *self._graph.initializers.values()):
            value.metadata_props.clear()
        self._graph.metadata_props.clear()
        outputs = set(map(id, self._graph.outputs))
        for name, value in list(self._graph.initializers.items()):
            if not value.uses() and id(value) not in outputs:
                del self._graph.initializers[name]

    def _free(self, name: str) -> str:
        while name in self._graph.initializers:
            name += "_"
        return name
