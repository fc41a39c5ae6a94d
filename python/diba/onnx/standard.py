"""The layers in operators of ONNX alone: factors at one bit an entry, unpacked by the graph itself.

Everything that depends on no input is computed once, when onnxruntime opens the model: a linear layer is then
one product with a float32 matrix. Runtimes that do not fold constants unpack it in every call. Layers with
16-bit activations compute in float32, too: on CPUs, few runtimes have anything else.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..torch.modules.apb import DibaAPBLayer
from ..torch.modules.bitwise import DibaBitLayer
from ..torch.modules.state import as_numpy
from ..torch.ops.bits import NORMAL_STEP
from .graph import FLOAT, INT32
from .nodes import bias_of, float_product, float_rows
from .places import ConvPlace, EmbeddingPlace, Place, TableHead, TableRows

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from .graph import Editor

__all__ = ["standard_node"]


def standard_node(edit: Editor, place: Place, x: ir.Value, dtype: Any) -> ir.Value:
    """Add the nodes of a layer to a graph; see ``nodes.library_node`` for the arguments."""
    if isinstance(place, TableHead):
        return _head(edit, place, x, dtype)
    if isinstance(place, TableRows):
        return _table_rows(edit, place, x, dtype)
    if isinstance(place, EmbeddingPlace):
        return _factored_rows(edit, place, x, dtype)
    bits = isinstance(place.module, DibaBitLayer)
    if isinstance(place, ConvPlace):
        return _bit_conv(edit, place, x, dtype) if bits else _conv(edit, place, x, dtype)
    turned = edit.once((place.owner, "turned"), partial(_turned, edit, place))
    x = edit.cast(f"{place.name}/input", x, dtype, FLOAT)
    y = edit.node(place.name, "MatMul", _rounded(edit, place, x, -1) if bits else x, turned)
    for bias in bias_of(edit, place):
        y = edit.node(f"{place.name}/Add", "Add", y, bias)
    return edit.cast(place.name, y, FLOAT, dtype)


# ---------------------------------------------------------------- factors


def _entries(edit: Editor, name: str, bits: ir.Value, columns: int, sign: bool) -> ir.Value:
    """Unpack rows of bytes, low bit first, to entries 0/1 or -1/+1 in float32."""
    entries = edit.constant("diba.signs" if sign else "diba.bits", lambda: _entries_of_bytes(sign))
    return _looked_up(edit, name, bits, entries, 8, columns)


def _entries_of_bytes(sign: bool) -> NDArray[np.float32]:
    """The eight entries that each byte stands for, (256, 8)."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return bits.astype(np.float32) * 2 - 1 if sign else bits.astype(np.float32)


def _looked_up(
    edit: Editor, name: str, codes: ir.Value, numbers: ir.Value, width: int, columns: int
) -> ir.Value:
    """Rows of ``columns`` numbers from rows of bytes: one look-up a byte leaves the fewest temporaries."""
    index = edit.node(f"{name}/Index", "Cast", codes, to=int(INT32))
    each = edit.node(f"{name}/Gather", "Gather", numbers, index)
    front = edit.node(f"{name}/Shape", "Shape", codes, end=-1)
    shape = edit.node(f"{name}/Concat", "Concat", front, edit.integers(-1), axis=0)
    rows = edit.node(f"{name}/Reshape", "Reshape", each, shape)
    if columns % width == 0:
        return rows
    return edit.node(
        f"{name}/Slice", "Slice", rows, edit.integers(0), edit.integers(columns), edit.integers(-1)
    )


def _bits(edit: Editor, place: Any, name: str) -> ir.Value:
    return edit.constant(f"{place.owner}.{name}", lambda: as_numpy(getattr(place.module, name)))


def _scales(edit: Editor, place: Any, name: str, *shape: int) -> ir.Value:
    """A diagonal in float32, of a shape that multiplies rows or columns."""
    d: Any = getattr(place.module, name)
    return edit.constant(f"{place.owner}.{name}", lambda: np.asarray(as_numpy(d), np.float32).reshape(*shape))


def _right(edit: Editor, place: Any) -> ir.Value:
    """D2 B2 D3, float32, (k, n)."""
    layer, name = place.module, f"{place.owner}/right"
    entries = _entries(edit, name, _bits(edit, place, "b2"), layer.d3.numel(), layer.sign)
    d2 = _scales(edit, place, "d2", -1, 1)
    d3 = _scales(edit, place, "d3", -1)
    return edit.node(f"{name}/d3", "Mul", edit.node(f"{name}/d2", "Mul", entries, d2), d3)


def _matrix(edit: Editor, place: Any) -> ir.Value:
    """The dense matrix in float32, (m, n)."""
    if isinstance(place.module, DibaAPBLayer):
        return _signs_and_exceptions(edit, place)
    if isinstance(place.module, DibaBitLayer):
        return _few_bits(edit, place)
    layer, name = place.module, f"{place.owner}/left"
    left = _entries(edit, name, _bits(edit, place, "b1"), layer.k, layer.sign)
    right = edit.once((place.owner, "right"), partial(_right, edit, place))
    d1 = _scales(edit, place, "d1", -1, 1)
    return edit.node(f"{place.owner}/matrix", "MatMul", edit.node(f"{name}/d1", "Mul", left, d1), right)


def _signs_and_exceptions(edit: Editor, place: Any) -> ir.Value:
    """diag(alpha) S + E in float32, (m, n); the places of E take 16 bytes each."""
    owner, f = place.owner, place.module.matrix()
    bits = edit.constant(f"{owner}.signs", f.signs.packed_rows)
    alpha = edit.constant(f"{owner}.alpha", lambda: f.alpha[:, None])
    scaled = edit.node(
        f"{owner}/alpha", "Mul", _entries(edit, f"{owner}/signs", bits, f.shape[1], True), alpha
    )
    if not f.values.size:
        return scaled
    rows = np.repeat(np.arange(f.shape[0]), np.diff(f.starts.astype(np.int64)))
    places = edit.constant(f"{owner}.places", lambda: np.stack((rows, f.columns.astype(np.int64)), axis=1))
    values = edit.constant(f"{owner}.values", lambda: f.values)
    return edit.node(f"{owner}/matrix", "ScatterND", scaled, places, values, reduction="add")


def _few_bits(edit: Editor, place: Any) -> ir.Value:
    """diag(scale) times numbers of 1 or 2 bits in float32, (m, n): planes are signs, worth 1 and 2."""
    layer, owner = place.module, place.owner
    n, packed = layer.matrix_shape[1], as_numpy(layer.planes)
    planes = [
        _entries(
            edit, f"{owner}/plane{p}", edit.constant(f"{owner}.plane{p}", partial(packed.take, p, 0)), n, True
        )
        for p in range(layer.weight_bits)
    ]
    numbers = planes[0]
    if len(planes) == 2:
        twice = edit.node(f"{owner}/twice", "Add", planes[1], planes[1])
        numbers = edit.node(f"{owner}/numbers", "Add", numbers, twice)
    return edit.node(f"{owner}/matrix", "Mul", numbers, _scales(edit, place, "scale", -1, 1))


def _rounded(edit: Editor, place: Any, x: ir.Value, axis: int) -> ir.Value:
    """Vectors along an axis as numbers of 1 or 2 bits times a step, which is found: diba.Levels.rounded."""
    name, bits = place.name, place.module.activation_bits

    def number(value: float) -> ir.Value:
        return edit.constant(f"diba.number.{value:g}", lambda: np.array(value, np.float32))

    size = edit.node(f"{name}/size", "Abs", x) if bits == 1 else edit.node(f"{name}/square", "Mul", x, x)
    step = edit.node(f"{name}/mean", "ReduceMean", size, edit.integers(axis), keepdims=1)
    if bits == 2:
        step = edit.node(f"{name}/step", "Mul", edit.node(f"{name}/root", "Sqrt", step), number(NORMAL_STEP))
    levels = []
    for worth in (0.0,) if bits == 1 else (-2.0, 0.0, 2.0):
        border = number(0.0) if worth == 0 else edit.node(f"{name}/border", "Mul", step, number(worth))
        above = edit.node(f"{name}/above", "Greater", x, border)
        levels.append(edit.node(f"{name}/sign", "Where", above, number(1.0), number(-1.0)))
    numbers = levels[0]
    for level in levels[1:]:
        numbers = edit.node(f"{name}/numbers", "Add", numbers, level)
    return edit.node(f"{name}/rounded", "Mul", numbers, step)


def _turned(edit: Editor, place: Any) -> ir.Value:
    """The transposed matrix."""
    return edit.node(f"{place.owner}/turned", "Transpose", _matrix(edit, place), perm=[1, 0])


# ---------------------------------------------------------------- layers


def _conv(edit: Editor, place: ConvPlace, x: ir.Value, dtype: Any) -> ir.Value:
    conv = place.module

    def kernel() -> ir.Value:
        shape = edit.integers(*conv.weight_shape)
        return edit.node(f"{place.owner}/kernel", "Reshape", _matrix(edit, place), shape)

    x = edit.cast(f"{place.name}/input", x, dtype, FLOAT)
    given = x, edit.once((place.owner, "kernel"), kernel), *bias_of(edit, place)
    return edit.cast(place.name, edit.node(place.name, "Conv", *given, **place.settings), FLOAT, dtype)


def _bit_conv(edit: Editor, place: ConvPlace, x: ir.Value, dtype: Any) -> ir.Value:
    """Patches, taken by a convolution of ones and zeros, are rounded and multiplied like vectors.

    A pixel is another number in every patch, so a convolution of rounded pixels would not do.
    """
    conv: Any = place.module
    name, n = place.name, conv.matrix_shape[1]

    def kernel(owner: str, matrix: ir.Value, *shape: int) -> ir.Value:
        return edit.node(f"{owner}/kernel", "Reshape", matrix, edit.integers(*shape))

    size = edit.node(f"{name}/size", "ConstantOfShape", edit.integers(n, n))
    taking = kernel(name, edit.node(f"{name}/eye", "EyeLike", size), n, *conv.weight_shape[1:])
    x = edit.cast(f"{name}/input", x, dtype, FLOAT)
    patches = edit.node(f"{name}/patches", "Conv", x, taking, **place.settings)
    pixel = (1,) * conv.axes
    matrix = edit.once(
        (place.owner, "kernel"),
        lambda: kernel(place.owner, _matrix(edit, place), conv.out_channels, n, *pixel),
    )
    given = _rounded(edit, place, patches, 1), matrix, *bias_of(edit, place)
    return edit.cast(name, edit.node(name, "Conv", *given, kernel_shape=list(pixel)), FLOAT, dtype)


def _factored_rows(edit: Editor, place: EmbeddingPlace, x: ir.Value, dtype: Any) -> ir.Value:
    """Unpack the rows that are looked up, never the whole table."""
    layer = place.module
    bits = edit.node(f"{place.name}/bits", "Gather", _bits(edit, place, "b1"), x)
    entries = _entries(edit, place.name, bits, layer.k, layer.sign)
    right = edit.once((place.owner, "right"), partial(_right, edit, place))
    rows = edit.node(f"{place.name}/MatMul", "MatMul", entries, right)
    d1 = _scales(edit, place, "d1", -1, 1)
    rows = edit.node(place.name, "Mul", rows, edit.node(f"{place.name}/d1", "Gather", d1, x))
    return edit.cast(f"{place.name}/rows", rows, FLOAT, dtype)


def _table_rows(edit: Editor, place: TableRows, x: ir.Value, dtype: Any) -> ir.Value:
    if place.table.source is None:
        return float_rows(edit, place, x, dtype)
    all_codes, all_scales = _table_of(edit, place)
    codes = edit.node(f"{place.name}/codes", "Gather", all_codes, x)
    scales = edit.node(f"{place.name}/scales", "Gather", all_scales, x)
    return edit.cast(f"{place.name}/rows", _scaled(edit, place.name, place, codes, scales), FLOAT, dtype)


def _head(edit: Editor, place: TableHead, x: ir.Value, dtype: Any) -> ir.Value:
    x = edit.cast(f"{place.name}/input", x, dtype, FLOAT)
    weight = None
    if place.table.source is not None:
        weight = _scaled(edit, f"{place.name}/weight", place, *_table_of(edit, place))
    y = float_product(edit, place, x, weight)
    for bias in bias_of(edit, place):
        y = edit.node(f"{place.name}/Add", "Add", y, bias)
    return edit.cast(place.name, y, FLOAT, dtype)


# ---------------------------------------------------------------- tables


def _table_of(edit: Editor, place: Any) -> tuple[ir.Value, ir.Value]:
    """Codes, and scales of their blocks."""
    codes = edit.constant(f"{place.owner}.codes", lambda: place.table.source.codes)
    return codes, edit.constant(f"{place.owner}.block_scales", place.table.block_scales)


def _scaled(edit: Editor, name: str, place: Any, codes: ir.Value, scales: ir.Value) -> ir.Value:
    """The numbers of some rows of codes, (..., bytes), with their scales, (..., blocks)."""
    table = place.table
    if table.bits == 4:
        halves = edit.constant("diba.halves", _halves_of_bytes)
        numbers = _looked_up(edit, name, codes, halves, 2, table.columns)
    else:
        middle = edit.constant("diba.middle", lambda: np.array(-128, np.float32))
        numbers = edit.node(f"{name}/Float", "Cast", codes, to=int(FLOAT))
        numbers = edit.node(f"{name}/Add", "Add", numbers, middle)
    last, name_of = edit.integers(-1), f"{name}/{{}}".format
    outer = edit.node(name_of("outer"), "Shape", scales)
    cut = edit.node(name_of("cut"), "Concat", outer, last, axis=0)
    parts = edit.node(name_of("parts"), "Reshape", numbers, cut)
    parts = edit.node(name_of("scale"), "Mul", parts, edit.node(name_of("each"), "Unsqueeze", scales, last))
    front = edit.node(name_of("front"), "Shape", scales, end=-1)
    return edit.node(name, "Reshape", parts, edit.node(name_of("join"), "Concat", front, last, axis=0))


def _halves_of_bytes() -> NDArray[np.float32]:
    """The two numbers of 4 bits that each byte stands for, (256, 2)."""
    codes = np.arange(256)
    return np.stack((codes & 15, codes >> 4), axis=1).astype(np.float32) - 8
