"""Batch normalisations that follow convolutions of packed bits become part of their matrices."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from .._internal import storage
from ..binarized import APB
from ..factorization import Factorization
from ..loading import decoded
from .operations import matrix_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["fold_batch_norms"]

_BIAS_OF = {"Conv": 2, "BitConv": 3}
"""The input of an operator that is its bias, after the one that holds the scales of rows."""


def fold_batch_norms(model: ir.Model) -> int:
    """Fold ``BatchNormalization`` into the ``Conv`` or ``BitConv`` before it, as onnxruntime with its own.

    ``s (M x + b) + t`` is a product with the rows of M times s: with other scales, another d1, or alpha and
    exceptions, of 16 bits if they were, and another bias.

    Returns:
        How many there were.
    """
    folded = 0
    for norm in [node for node in model.graph if (node.domain, node.op_type) == ("", "BatchNormalization")]:
        source = norm.inputs[0]
        conv = None if source is None else source.producer()
        if source is None or conv is None or conv.domain != "diba" or conv.op_type not in _BIAS_OF:
            continue
        at = _BIAS_OF[conv.op_type]
        rows, values = conv.inputs[at - 1], [_values(value) for value in norm.inputs[1:]]
        alone = len(source.uses()) == 1 and not source.is_graph_output() and len(norm.outputs) == 1
        if rows is None or len(rows.uses()) > 1 or not alone or any(value is None for value in values):
            continue
        gain, shift, mean, variance = (np.asarray(value, np.float64) for value in values)
        scale = gain / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
        before = _values(conv.inputs[at]) if len(conv.inputs) > at else None
        bias = shift + scale * ((0.0 if before is None else before) - mean)
        _put(rows, _scaled(rows, scale))
        new = ir.Value(name=f"{conv.name}.folded_bias")
        _put(new, bias.astype(np.float32))
        model.graph.register_initializer(new)
        _replace(model.graph, conv, norm, [*conv.inputs[:at], new])
        folded += 1
    return folded


def _values(value: ir.Value | None) -> NDArray[Any] | None:
    tensor = None if value is None else value.const_value
    return None if tensor is None else tensor.numpy()


def _put(value: ir.Value, array: NDArray[Any]) -> None:
    tensor = ir.tensor(array, name=value.name)
    value.const_value, value.shape, value.dtype = tensor, ir.Shape(array.shape), tensor.dtype


def _scaled(factors: ir.Value, scale: NDArray[np.float64]) -> NDArray[Any]:
    """The bytes of the same matrix with other rows, or other scales of rows; floats of 16 bits stay that."""
    array = _values(factors)
    assert array is not None
    if array.dtype == np.float32:
        return np.asarray(array * scale, np.float32)
    f = decoded(io.BytesIO(array.tobytes()), str(factors.name))
    if isinstance(f, APB):
        starts = f.starts.astype(np.int64)
        rows = np.repeat(scale, starts[1:] - starts[:-1])
        alpha, values = _times(f.alpha, scale), _times(f.values, rows)
        return matrix_bytes(APB(alpha, f.signs, f.starts, f.columns, values))
    d1 = (scale * f.d1).astype(np.float32)
    if f.diagonal_bits == 16:
        d1 = storage.round_to_16(d1)
    return matrix_bytes(Factorization(d1, f.b1, f.d2, f.b2, f.d3))


def _times(numbers: NDArray[np.float32], scale: NDArray[np.float64]) -> NDArray[np.float32]:
    scaled = np.asarray(numbers * scale, np.float32)
    return storage.round_to_16(scaled) if numbers.size and storage.fits_16(numbers) else scaled


def _replace(graph: ir.Graph, conv: ir.Node, norm: ir.Node, inputs: list[ir.Value | None]) -> None:
    """One node in the place of two."""
    new = ir.Node(
        conv.domain, conv.op_type, inputs, list(conv.attributes.values()), num_outputs=1, name=conv.name
    )
    old, made = norm.outputs[0], new.outputs[0]
    made.shape, made.type = old.shape, old.type
    graph.insert_before(norm, new)
    ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
    graph.remove([norm, conv], safe=True)
    made.name, old.name = old.name, None
