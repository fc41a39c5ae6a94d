"""Straight-through training of bits: a stand-in for a factored layer with a latent number for every bit.

The stand-in multiplies by ``D1 sign(L) D2 sign(R) D3``, with latent matrices L and R that start at the bits
of the layer, as -1 and 1. The gradients of the signs are given to the latents as they are; how
these move: ``retuning.latents``. Linear layers in float32 on the CPU multiply packed signs, see
:class:`_Packed`; all others form the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..._internal.storage import BITS
from ..model.swap import put
from ..modules.layer import FactoredLayer
from ..modules.linear import DibaLinear
from ..modules.state import as_numpy
from ..ops.operators import ACTIVATIONS
from ..ops.reference import unpack
from ..retuning.flips import differing
from ..retuning.latents import sign_gradients

__all__ = ["Straight", "movable", "stand_ins"]


def movable(module: nn.Module, elsewhere: set[int]) -> dict[str, FactoredLayer]:
    """The factored layers of a block whose bits can be trained, by their names in it.

    Args:
        module: The block.
        elsewhere: Ids of tensors that other modules use too; layers that share their factors with others
            keep their bits.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, FactoredLayer)}
    owners: dict[int, int] = {}
    for layer in layers.values():
        owners[id(layer.b1)] = owners.get(id(layer.b1), 0) + 1
    return {
        name: layer
        for name, layer in layers.items()
        if owners[id(layer.b1)] == 1 and id(layer.b1) not in elsewhere and _multiplies(layer)
    }


def _multiplies(layer: FactoredLayer) -> bool:
    """Whether it multiplies input vectors; embeddings do not."""
    return layer.kind.input_size(layer.kind.shell(layer)) is not None


class Straight(nn.Module):
    """Stands in for a factored layer while its bits are trained.

    Args:
        layer: Its diagonals and bias are trained in place, its bits are set by :meth:`harden`.
    """

    def __init__(self, layer: FactoredLayer) -> None:
        super().__init__()
        self.d1, self.d2, self.d3, self.bias = *layer.diagonals(), layer.bias
        columns = layer.d2.numel(), layer.d3.numel()
        self.left, self.right = (
            nn.Parameter(unpack(getattr(layer, name), count, True, layer.d1.dtype))
            for name, count in zip(BITS, columns, strict=True)
        )
        # In tuples, so that they are no submodules: the parameters are here under their own names.
        self._layer, self._shell = (layer,), (layer.kind.shell(layer),)
        self._packed_of: dict[str, tuple[int, Tensor]] = {}  # version of a latent -> its signs
        self.train(layer.training)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_layer" not in self.__dict__:
                raise
            return getattr(self._layer[0], name)  # in_features, and what else a model asks of its layers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer computes, from the signs of the latents."""
        layer = self._layer[0]
        if len(args) == 1 and not kwargs and _packs(layer, args[0]):
            factors = self.d1, self.left, self.d2, self.right, self.d3
            y: Tensor = _Packed.apply(args[0], *factors, *self.packed(), layer.sign)  # type: ignore[no-untyped-call]
            return (y if self.bias is None else y + self.bias).to(layer.dtype)
        left, right = _signs(self.left), _signs(self.right)
        if not layer.sign:
            left, right = (left + 1) / 2, (right + 1) / 2
        matrix = (left * self.d1[:, None]) @ (right * self.d2[:, None]) * self.d3
        tensors = {"weight": layer._as_weight(matrix)}
        if self.bias is not None:
            tensors["bias"] = self.bias
        dtype = layer.dtype
        return torch.func.functional_call(
            self._shell[0], {name: t.to(dtype) for name, t in tensors.items()}, args, kwargs
        )

    @property
    def latents(self) -> tuple[nn.Parameter, nn.Parameter]:
        """L (m, k) and R (k, n)."""
        return self.left, self.right

    def packed(self) -> tuple[Tensor, Tensor]:
        """The signs of the latents as rows of bits, as ``b1`` and ``b2`` of the layer."""
        for name, latent in zip(BITS, self.latents, strict=True):
            version, bits = self._packed_of.get(name, (-1, None))
            if bits is None or version != latent._version:
                self._packed_of[name] = latent._version, packed_signs(latent)
        left, right = (self._packed_of[name][1] for name in BITS)
        return left, right

    @torch.no_grad()
    def harden(self) -> tuple[int, int]:
        """Set the layer's bits to the signs of the latents; returns the number of flips and of bits."""
        layer, flips = self._layer[0], 0
        for name, new in zip(BITS, self.packed(), strict=True):
            bits = getattr(layer, name)
            flips += differing(bits, new)
            bits.copy_(new)
        layer.bits_changed()
        return flips, sum(latent.numel() for latent in self.latents)


class _Sign(torch.autograd.Function):
    """The sign of every entry, +1 for 0 (no latent is -0), with the identity as its gradient."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor) -> Tensor:
        return torch.copysign(torch.ones_like(latent[:1, :1]), latent)  # 15 times as fast as torch.where

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _packs(layer: FactoredLayer, x: Tensor) -> bool:
    """Whether there are kernels for the layer's packed signs and these inputs."""
    return (
        isinstance(layer, DibaLinear)
        and x.device.type == layer.d1.device.type == "cpu"
        and layer.d1.dtype == torch.float32
        and x.dtype in ACTIVATIONS
    )


class _Packed(torch.autograd.Function):
    """``x D3 R' D2 L' D1`` for vectors x along the last axis, with L and R packed as ``b1`` and ``b2``.

    The layer's own product and gradients, which round vectors to integers where they are many, and
    ``sign_gradients``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        d1: Tensor,
        left: Tensor,
        d2: Tensor,
        right: Tensor,
        d3: Tensor,
        b1: Tensor,
        b2: Tensor,
        sign: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, d1, b1, d2, b2, d3)
        ctx.sign = sign
        y: Tensor = torch.ops.diba.linear(x.float(), d1, b1, d2, b2, d3, None, sign)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, *factors), needed = ctx.saved_tensors, ctx.needs_input_grad[0]
        d1, b1, d2, b2, d3 = factors
        vectors, above = (t.reshape(-1, t.shape[-1]).float() for t in (x, grads[0]))
        of_left, of_right = sign_gradients(vectors, above, (d1, d2, d3), (b1, b2), ctx.sign)
        rows, of_d1, of_d2, of_d3 = torch.ops.diba.linear_backward(above, vectors, *factors, ctx.sign, needed)
        of_x = rows.view(x.shape).to(x.dtype) if needed else None
        return of_x, of_d1, of_left, of_d2, of_right, of_d3, None, None, None


def _signs(latent: Tensor) -> Tensor:
    result: Tensor = _Sign.apply(latent)  # type: ignore[no-untyped-call]
    return result


def packed_signs(latent: Tensor) -> Tensor:
    """Rows of bits, 1 where an entry is not negative, low bit first, unused bits zero: uint8."""
    bits = np.packbits(~(as_numpy(latent) < 0), axis=1, bitorder="little")
    return torch.from_numpy(bits).to(latent.device)


@contextmanager
def stand_ins(module: nn.Module, layers: Mapping[str, FactoredLayer]) -> Iterator[list[Straight]]:
    """A context in which these layers of a block are replaced by stand-ins."""
    made = {name: Straight(layer) for name, layer in layers.items()}
    try:
        for name, stand_in in made.items():
            put(module, name, stand_in)
        yield list(made.values())
    finally:
        for name, layer in layers.items():
            put(module, name, layer)
