"""The operator for products of few bits on both sides (:mod:`diba.levels`); importing registers it.

- ``torch.ops.diba.bit_linear(x, planes, scale, bias, n, bits)``: every vector along the last axis of x is
  rounded to numbers of 1 or 2 bits times a step, see :meth:`diba.Levels.rounded`, and multiplied by numbers
  of 1 or 2 bits, exactly: ``step * scale * (numbers of x . numbers of a row) + bias``. ``planes``, uint8 of
  shape (bits of the weight, m, ceil(n / 8)), has the weight's bits, low bits first.
- ``bit_linear_backward``: the gradients of x, straight through the rounding, and of scale.

x is float32, bfloat16 or float16, and the result has its dtype. float64 inputs, and tensors that are not on
the CPU, use the same numbers in floats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ... import _core
from .operators import ACTIVATIONS, check_vectors, plain, under_autocast, undispatched
from .reference import unpack

__all__ = ["NORMAL_STEP", "bit_linear", "numbers_of", "packed_levels", "rounded", "within"]

_WORD = 8  # bytes
NORMAL_STEP = 0.4979  # kNormalStep of cpp/src/product/bit_counts.hpp

_library: Any = torch.library.Library("diba", "FRAGMENT")  # type: ignore[no-untyped-call]
_MATRIX = "Tensor planes, Tensor scale"
_library.define(f"bit_linear(Tensor x, {_MATRIX}, Tensor? bias, int n, int bits) -> Tensor")
_library.define(
    f"bit_linear_backward(Tensor grad, Tensor x, {_MATRIX}, int n, int bits, bool x_needed,"
    " bool scale_needed) -> (Tensor, Tensor)"
)


# ---- numbers of few bits


def _is_packed(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in ACTIVATIONS


def _packed(x: Tensor, bits: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Planes of words (bits, rows, words) and the steps (rows) of float32 rows."""
    rows, n = x.shape
    words, steps = np.empty((bits, rows, -(-n // 64)), np.uint64), np.empty(rows, np.float32)
    _core.round_rows(x.numpy(), steps, True, words, torch.get_num_threads())
    return words, steps


def packed_levels(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Planes of bytes (bits, rows, ceil(n / 8)) and the steps (rows) of rows (rows, n)."""
    n = x.shape[1]
    if _is_packed(x):
        words, steps = _packed(plain(x.detach()), bits)
        octets = torch.from_numpy(words.view(np.uint8))
        return octets[..., : -(-n // 8)].contiguous(), torch.from_numpy(steps)
    numbers, step = rounded(x.detach(), bits)
    u = (numbers + (2**bits - 1)).div(2).to(torch.uint8)
    u = functional.pad(u, (0, -n % 8)).view(len(u), -1, 8)
    shifts = torch.arange(8, dtype=torch.uint8, device=x.device)
    planes = [(u >> p & 1).bitwise_left_shift(shifts).sum(-1).to(torch.uint8) for p in range(bits)]
    return torch.stack(planes), step


def numbers_of(planes: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """The numbers (rows, n) that planes of bytes hold."""
    bits = len(planes)
    numbers = unpack(planes[0], n, False, dtype).mul_(2)
    for p, plane in enumerate(planes[1:], 2):
        numbers.add_(unpack(plane, n, False, dtype), alpha=2**p)
    return numbers.sub_(2**bits - 1)


def rounded(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Rows as numbers of so many bits in the dtype of x, and their steps; not differentiable."""
    if _is_packed(x):
        words, steps = _packed(plain(x.detach()), bits)
        octets = torch.from_numpy(words.view(np.uint8))
        return numbers_of(octets, x.shape[1], torch.float32).to(x.dtype), torch.from_numpy(steps).to(x.dtype)
    wide = x.detach() if x.dtype == torch.float64 else x.detach().float()
    step = wide.abs().mean(1) if bits == 1 else NORMAL_STEP * wide.square().mean(1).sqrt()
    thresholds = (0.0,) if bits == 1 else (-2.0, 0.0, 2.0)
    above = torch.stack([wide > t * step[:, None] for t in thresholds]).sum(0)
    numbers: Tensor = 2 * above - (2**bits - 1)
    return numbers.to(x.dtype), step.to(x.dtype)


def within(x: Tensor, step: Tensor, bits: int) -> Tensor:
    """Where x is no farther than a step from the outermost number: there the rounding is passed through."""
    inside: Tensor = x.abs() <= 2**bits * step[:, None]
    return inside


# ---- the product


def _check(x: Tensor, planes: Tensor, scale: Tensor, bias: Tensor | None, n: int, bits: int) -> None:
    check_vectors(x, n)
    m = scale.numel()
    if planes.dtype != torch.uint8 or planes.dim() != 3 or not planes.is_contiguous():
        raise ValueError(
            f"planes is a {planes.dtype} tensor of shape {tuple(planes.shape)}; it must be uint8"
        )
    if planes.shape[0] not in (1, 2) or planes.shape[1:] != (m, -(-n // 8)):
        raise ValueError(f"planes has shape {tuple(planes.shape)}; it must be (1 or 2, {m}, {-(-n // 8)})")
    if bits not in (1, 2):
        raise ValueError(f"bits is {bits}; it must be 1 or 2")
    if bias is not None and bias.shape != (m,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be ({m},), the outputs of the layer")


def bit_linear(x: Tensor, planes: Tensor, scale: Tensor, bias: Tensor | None, n: int, bits: int) -> Tensor:
    """``torch.ops.diba.bit_linear``, called without torch's dispatcher where that makes no difference."""
    call: Any = _cpu if undispatched(x) else _registered
    result: Tensor = call(x, planes, scale, bias, n, bits)
    return result


def _cpu(x: Tensor, planes: Tensor, scale: Tensor, bias: Tensor | None, n: int, bits: int) -> Tensor:
    if x.dtype not in ACTIVATIONS or scale.dtype != torch.float32:
        return _elsewhere(x, planes, scale, bias, n, bits)
    _check(x, planes, scale, bias, n, bits)
    vectors = plain(x).reshape(-1, n)
    y = vectors.new_empty(len(vectors), scale.numel())
    if y.numel():
        scales, shift = plain(scale.detach()), None if bias is None else plain(bias.detach()).numpy()
        given = vectors.detach().numpy(), _words(planes), scales.numpy(), shift, bits
        _core.bit_linear(*given, y.numpy(), torch.get_num_threads())
    return y.view(*x.shape[:-1], scale.numel()).to(x.dtype)


def _words(planes: Tensor) -> np.ndarray[Any, Any]:
    """The planes in rows of whole words."""
    missing = -planes.shape[-1] % _WORD
    if missing or planes.data_ptr() % _WORD:
        planes = functional.pad(planes, (0, missing))  # a copy, aligned
    return planes.numpy().view(np.uint64)


def _elsewhere(x: Tensor, planes: Tensor, scale: Tensor, bias: Tensor | None, n: int, bits: int) -> Tensor:
    _check(x, planes, scale, bias, n, bits)
    vectors = x.reshape(-1, n)
    numbers, steps = rounded(vectors if x.dtype == torch.float64 else vectors.float(), bits)
    dtype = torch.float32 if 9 * n < 2**24 else torch.float64  # in which the sums are exact
    sums = functional.linear(numbers.to(dtype), numbers_of(planes, n, dtype)).to(steps.dtype)
    y = sums * steps[:, None] * scale
    y = y if bias is None else y + bias
    return y.view(*x.shape[:-1], scale.numel()).to(x.dtype)


def _fake(x: Tensor, planes: Tensor, scale: Tensor, bias: Tensor | None, n: int, bits: int) -> Tensor:
    _check(x, planes, scale, bias, n, bits)
    return x.new_empty((*x.shape[:-1], scale.shape[0]))


# ---- its gradients


def _backward(
    grad: Tensor,
    x: Tensor,
    planes: Tensor,
    scale: Tensor,
    n: int,
    bits: int,
    x_needed: bool,
    scale_needed: bool,
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, scale.dtype)
    above, vectors = grad.reshape(-1, grad.shape[-1]).to(dtype), x.reshape(-1, n).to(dtype)
    weight = numbers_of(planes, n, dtype)
    numbers, steps = rounded(vectors, bits)
    of_x, of_scale = x.new_empty(0), scale.new_empty(0)
    if x_needed:
        of_x = ((above * scale) @ weight * within(vectors, steps, bits)).to(x.dtype).reshape(x.shape)
    if scale_needed:
        of_scale = (above * steps[:, None] * functional.linear(numbers, weight)).sum(0).to(scale.dtype)
    return of_x, of_scale


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    planes: Tensor,
    scale: Tensor,
    n: int,
    bits: int,
    x_needed: bool,
    scale_needed: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if x_needed else (0,)), scale.new_empty(scale.shape if scale_needed else (0,))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, planes, scale, bias, ctx.n, ctx.bits = inputs
    ctx.save_for_backward(x, planes, scale)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    of_x, _, of_scale, of_bias, *_ = ctx.needs_input_grad
    found_x, found_scale = torch.ops.diba.bit_linear_backward(
        grad, *ctx.saved_tensors, ctx.n, ctx.bits, of_x, of_scale
    )
    shift = None
    if ctx.bias_dtype is not None and of_bias:
        above = grad.reshape(-1, grad.shape[-1])
        shift = above.sum(0, dtype=torch.promote_types(above.dtype, torch.float32)).to(ctx.bias_dtype)
    return found_x if of_x else None, None, found_scale if of_scale else None, shift, None, None


for _name, _first, _other, _shaped in (
    ("bit_linear", _cpu, _elsewhere, _fake),
    ("bit_linear_backward", _backward, _backward, _backward_fake),
):
    _library.impl(_name, _first, "CPU")
    _library.impl(_name, _other, "CompositeExplicitAutograd")
    torch.library.register_fake(f"diba::{_name}", _shaped, lib=_library)
torch.library.register_autograd("diba::bit_linear", _gradients, setup_context=_keep, lib=_library)
_registered: Any = torch.ops.diba.bit_linear.default
for _key in ("AutocastCPU", "AutocastCUDA"):
    _library.impl(_registered, under_autocast(_registered, _key), _key)
