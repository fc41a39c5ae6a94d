"""The operators in plain torch, on unpacked bits: for any float dtype and device, and differentiable.

The packed operators are tested against these functions, and call them where there is no kernel: for float64
activations and for tensors that are not on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["linear", "linear_backward", "times_bits", "to_dense", "unpack"]

_ROOM = 2.0**20  # scales intermediate sums down, so that they cannot overflow; a power of two is exact


def unpack(bits: Tensor, columns: int, sign: bool, dtype: torch.dtype) -> Tensor:
    """Unpack rows of ceil(columns / 8) bytes, low bit first, to entries 0/1 or -1/+1, (rows, columns)."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    entries = bits[..., None].bitwise_right_shift(shifts).bitwise_and_(1).flatten(-2)[..., :columns].to(dtype)
    return entries.mul_(2).sub_(1) if sign else entries


def times_bits(x: Tensor, bits: Tensor, columns: int, sign: bool, transposed: bool) -> Tensor:
    """``x @ B`` if transposed, else ``x @ B'``, with B of shape (rows, columns) in the dtype of x."""
    entries = unpack(bits, columns, sign, x.dtype)
    return x @ entries if transposed else x @ entries.T


def linear(
    x: Tensor, d1: Tensor, b1: Tensor, d2: Tensor, b2: Tensor, d3: Tensor, bias: Tensor | None, sign: bool
) -> Tensor:
    """``d1 * (B1 (d2 * (B2 (d3 * x)))) + bias`` for every vector x along the last axis."""
    dtype = torch.promote_types(x.dtype, d1.dtype)
    inner = times_bits(x.to(dtype) * d3, b2, d3.numel(), sign, False) * d2
    y = times_bits(inner, b1, d2.numel(), sign, False) * d1
    return (y if bias is None else y + bias).to(x.dtype)


def linear_backward(
    grad: Tensor,
    x: Tensor,
    d1: Tensor,
    b1: Tensor,
    d2: Tensor,
    b2: Tensor,
    d3: Tensor,
    sign: bool,
    input_needed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``linear`` for x (empty if not needed), d1, d2 and d3, given that of its result."""
    dtype = torch.promote_types(x.dtype, d1.dtype)
    rows, above = x.reshape(-1, x.shape[-1]).to(dtype), grad.reshape(-1, grad.shape[-1]).to(dtype)
    u = times_bits(rows * d3, b2, d3.numel(), sign, False)
    v = times_bits(u * d2, b1, d2.numel(), sign, False)
    w = times_bits(above * d1, b1, d2.numel(), sign, True)
    z = times_bits(w * d2, b2, d3.numel(), sign, True)
    of_x = (z * d3).to(x.dtype).reshape(x.shape) if input_needed else x.new_empty(0)
    of_d1, of_d2, of_d3 = (above * v).sum(0), (w * u).sum(0), (z * rows).sum(0)
    return of_x, of_d1.to(d1.dtype), of_d2.to(d2.dtype), of_d3.to(d3.dtype)


def to_dense(d1: Tensor, b1: Tensor, d2: Tensor, b2: Tensor, d3: Tensor, sign: bool) -> Tensor:
    """The dense m x n matrix, in the dtype of the diagonals."""
    left = unpack(b1, d2.numel(), sign, d1.dtype) * d1[:, None] * d2
    return (left @ (unpack(b2, d3.numel(), sign, d1.dtype) * (d3 / _ROOM))).mul_(_ROOM)
