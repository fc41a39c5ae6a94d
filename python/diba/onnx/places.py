"""The layers of a model that become nodes of their own, and what each computes: traced, in PyTorch, exactly.

While a model is traced, such a layer leaves a placeholder in the graph, a node of the domain ``DOMAIN`` with
the number of its place. ``nodes.py`` and ``standard.py`` put the real nodes there.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ..torch.modules.apb import DibaAPBLayer
from ..torch.modules.apb_layers import DibaAPBConv2d, DibaAPBLinear
from ..torch.modules.bitwise import DibaBitLayer
from ..torch.modules.bitwise_layers import DibaBitConv2d, DibaBitLinear
from ..torch.modules.conv import Convolution
from ..torch.modules.embedding import DibaEmbedding
from ..torch.modules.layer import FactoredLayer
from ..torch.modules.linear import DibaLinear
from ..torch.modules.patches import windows
from ..torch.ops import reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .tables import Table

    Placeholder = Callable[[Tensor, int, Sequence[Any], torch.dtype], Tensor]

__all__ = [
    "DOMAIN",
    "CodedHead",
    "CodedRows",
    "ConvPlace",
    "EmbeddingPlace",
    "LinearPlace",
    "Place",
    "TableHead",
    "TableRows",
    "acting",
]

DOMAIN = "diba.placeholder"

_NUDGE = 2.0**-17

_HEAD_ROWS = 8192  # of an output layer, made dense at once


def onnx_placeholder(x: Tensor, number: int, shape: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """Leave the placeholder of a place in a graph that ``torch.onnx.export`` makes."""
    symbolic: Any = torch.onnx.ops.symbolic
    made: Tensor = symbolic(
        f"{DOMAIN}::Place", (x,), {"number": number}, dtype=dtype, shape=tuple(shape), version=1
    )
    return made


@dataclass(eq=False)
class Place:
    """A layer that becomes a node.

    Attributes:
        name: Path of the module in the model, and name of the node.
        module: The layer.
        owner: Name of the first layer that has the same factors or table: its tensors are stored once.
        number: Number of the place.
        placeholder: What leaves it in a graph.
    """

    name: str
    module: Any
    owner: str
    number: int = field(default=-1, init=False)
    placeholder: Placeholder = field(default_factory=lambda: onnx_placeholder, init=False)

    def trace(self, x: Tensor) -> Tensor:
        """Leave a placeholder in the graph."""
        return self.symbol(x, (*x.shape[:-1], self.module.rows), x.dtype)

    def symbol(self, x: Tensor, shape: tuple[Any, ...], dtype: torch.dtype) -> Tensor:
        """A placeholder with one input and one output."""
        return self.placeholder(x, self.number, shape, dtype)

    def run(self, x: Tensor) -> Tensor:
        """What PyTorch computes."""
        result: Tensor = type(self.module).forward(self.module, x)
        return result

    def exact(self, x: Tensor) -> Tensor:
        """The same with exact products, in float32."""
        raise NotImplementedError


class LinearPlace(Place):
    """A linear layer of packed bits."""

    module: DibaLinear | DibaAPBLinear | DibaBitLinear

    def exact(self, x: Tensor) -> Tensor:
        """See :meth:`Place.exact`."""
        return _exact(self.module, x)


class ConvPlace(Place):
    """A convolution of packed bits. Padding other than zeros becomes nodes of its own before it."""

    module: Convolution | DibaAPBConv2d | DibaBitConv2d

    @property
    def pads(self) -> list[int]:
        """Zeros before each axis, then after each; none where other padding is done outside."""
        pads = self.module._pads if self.module.padding_mode == "zeros" else [0] * 2 * self.module.axes
        return [*pads[::2][::-1], *pads[1::2][::-1]]

    @property
    def settings(self) -> dict[str, Any]:
        """How patches are taken: the attributes that diba's operators share with ONNX's ``Conv``."""
        conv = self.module
        kernel, strides, dilations = map(list, (conv.kernel_size, conv.stride, conv.dilation))
        return {"kernel_shape": kernel, "strides": strides, "pads": self.pads, "dilations": dilations}

    def trace(self, x: Tensor) -> Tensor:
        """See :meth:`Place.trace`."""
        conv = self.module
        if x.dim() == conv.axes + 1:
            return self.trace(x[None])[0]
        if conv.padding_mode != "zeros" and any(conv._pads):
            x = functional.pad(x, conv._pads, mode=conv.padding_mode)
        begins, ends = self.pads[: conv.axes], self.pads[conv.axes :]
        sizes = zip(x.shape[2:], begins, ends, conv.kernel_size, conv.stride, conv.dilation, strict=True)
        positions = ((n + a + b - d * (k - 1) - 1) // s + 1 for n, a, b, k, s, d in sizes)
        return self.symbol(x, (x.shape[0], conv.out_channels, *positions), x.dtype)

    def exact(self, x: Tensor) -> Tensor:
        """See :meth:`Place.exact`."""
        conv = self.module
        channel = x.dim() - conv.axes - 1
        patches = windows(conv, x, channel, conv._pads).flatten(channel + conv.axes)
        return _exact(conv, patches).movedim(-1, channel).contiguous()


class EmbeddingPlace(Place):
    """A factored embedding."""

    module: DibaEmbedding

    def trace(self, x: Tensor) -> Tensor:
        """See :meth:`Place.trace`."""
        return self.symbol(x, (*x.shape, self.module.embedding_dim), self.module.dtype)

    def exact(self, x: Tensor) -> Tensor:
        """See :meth:`Place.exact`."""
        layer = self.module
        inner = reference.unpack(functional.embedding(x, layer.b1), layer.k, layer.sign, torch.float32)
        rows = reference.times_bits(inner * layer.d2, layer.b2, layer.embedding_dim, layer.sign, True)
        return (rows * layer.d3 * functional.embedding(x, layer.d1[:, None])).to(layer.dtype)


@dataclass(eq=False)
class TableRows(Place):
    """A dense embedding, stored in few bits. What its class does to the rows, such as scaling, stays."""

    table: Table

    def trace(self, x: Tensor) -> Tensor:
        """See :meth:`Place.trace`."""
        columns, dtype = self.table.columns, self.module.weight.dtype
        return self._with_rows(x, lambda ids: self.symbol(ids, (*ids.shape, columns), dtype))

    def run(self, x: Tensor) -> Tensor:
        """See :meth:`Place.run`."""
        return self._with_rows(
            x, lambda ids: torch.from_numpy(self.table.rows(ids.cpu().numpy())).to(self.module.weight)
        )

    exact = run

    def _with_rows(self, x: Tensor, rows: Callable[[Tensor], Tensor]) -> Tensor:
        """Call the class of the module, with other rows than those of its weight."""
        kept = functional.embedding
        try:
            functional.embedding = lambda ids, *_, **__: rows(ids)
            return super().run(x)
        finally:
            functional.embedding = kept


@dataclass(eq=False)
class TableHead(Place):
    """A dense output layer, stored in few bits."""

    table: Table

    def trace(self, x: Tensor) -> Tensor:
        """See :meth:`Place.trace`."""
        return self.symbol(x, (*x.shape[:-1], self.table.shape[0]), x.dtype)

    def run(self, x: Tensor) -> Tensor:
        """See :meth:`Place.run`."""
        count = self.table.shape[0]
        parts = [
            functional.linear(
                x.float(), torch.from_numpy(self.table.rows(slice(i, i + _HEAD_ROWS))).to(x.device)
            )
            for i in range(0, count, _HEAD_ROWS)
        ]
        y = torch.cat(parts, -1)
        return (y if self.module.bias is None else y + self.module.bias).to(x.dtype)

    exact = run


class CodedRows(TableRows):
    """An embedding of 8 or 4 bits."""

    def trace(self, x: Tensor) -> Tensor:
        """See :meth:`Place.trace`."""
        return self.symbol(x, (*x.shape, self.table.columns), self.module.dtype)

    def run(self, x: Tensor) -> Tensor:
        """See :meth:`Place.run`."""
        return Place.run(self, x)

    exact = run


class CodedHead(TableHead):
    """A linear layer of 8 or 4 bits."""

    def run(self, x: Tensor) -> Tensor:
        """See :meth:`Place.run`."""
        return Place.run(self, x)

    exact = TableHead.run


def _exact(layer: FactoredLayer | DibaAPBLayer | DibaBitLayer, x: Tensor) -> Tensor:
    """The vectors x (..., n) times the dense matrix of a layer, plus its bias, in float32."""
    if isinstance(layer, DibaBitLayer):
        return layer._multiply(_nudged(x))
    if isinstance(layer, DibaAPBLayer):
        matrix = torch.from_numpy(layer.matrix().to_dense()).to(x.device)
    else:
        matrix = reference.to_dense(layer.d1, layer.b1, layer.d2, layer.b2, layer.d3, layer.sign)
    bias = None if layer.bias is None else layer.bias.to(matrix.dtype)
    return functional.linear(x.to(matrix.dtype), matrix, bias).to(x.dtype)


def _nudged(x: Tensor) -> Tensor:
    """The vectors, all but their zeros moved by some of float32's roundings of sums.

    Numbers between two levels go to either, as sums before them happen to be rounded, and what follows is
    another then: so the yardstick has more of these than either runtime.
    """
    generator = torch.Generator(x.device).manual_seed(0)
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=torch.float32)
    moved = x + _NUDGE * x.abs().mean(-1, keepdim=True) * noise
    return torch.where(x == 0, x, moved.to(x.dtype))


@contextmanager
def acting(places: Sequence[Place], how: str) -> Iterator[None]:
    """Context manager: calls of the layers go to the method ``how`` of their places."""
    kept = [(place.module, vars(place.module).get("forward")) for place in places]
    try:
        for place in places:
            vars(place.module)["forward"] = getattr(place, how)
        yield
    finally:
        for module, forward in kept:
            if forward is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward
