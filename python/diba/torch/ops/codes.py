"""The operators for matrices of 8 or 4 bits an entry (``diba._internal.codes``); importing registers them.

- ``torch.ops.diba.code_linear(x, d1, codes, steps, bias, columns, group)``: ``d1 * (E x) + bias`` for every
  vector along the last axis of x. ``steps`` is None with 8 bits. It has gradients for x, d1 and the bias.
- ``code_linear_backward``: computes those of x and d1.

x is float32, bfloat16 or float16, and the result has its dtype. The codes are read where they lie, and no
copy of them is made. Activations are rounded to whole numbers of 10 to 16 bits, as many as let sums fit 32
bits (``cpp/src/product/code_rows.hpp``), and the sums are exact. float64 inputs, and tensors that are not on
the CPU, use products with some thousand rows at a time, made dense.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ... import _core
from ..._internal.codes import group_count, row_bytes
from .operators import ACTIVATIONS, check_vectors, plain, under_autocast

__all__ = ["code_linear", "entries"]

_ROWS = 4096  # made dense at once

_library: Any = torch.library.Library("diba", "FRAGMENT")  # type: ignore[no-untyped-call]
_MATRIX = "Tensor d1, Tensor codes, Tensor? steps"
_library.define(f"code_linear(Tensor x, {_MATRIX}, Tensor? bias, int columns, int group) -> Tensor")
_library.define(
    f"code_linear_backward(Tensor grad, Tensor x, {_MATRIX}, int columns, int group, bool x_needed,"
    " bool d1_needed) -> (Tensor, Tensor)"
)


def entries(codes: Tensor, steps: Tensor | None, columns: int, group: int, dtype: torch.dtype) -> Tensor:
    """The whole numbers E of rows of codes: (..., bytes) to (..., columns)."""
    if steps is None:
        return codes.to(dtype).sub_(128)
    numbers = torch.stack((codes.bitwise_and(15), codes.bitwise_right_shift(4)), -1).flatten(-2)
    each = steps.to(dtype).sub_(128).repeat_interleave(group, -1)
    return numbers[..., :columns].to(dtype).sub_(8).mul_(each[..., :columns])


def _check(
    x: Tensor, d1: Tensor, codes: Tensor, steps: Tensor | None, bias: Tensor | None, columns: int, group: int
) -> None:
    check_vectors(x, columns)
    m, bits = d1.shape[0], 8 if steps is None else 4
    held = [("codes", codes, row_bytes(columns, bits))]
    held += [] if steps is None else [("steps", steps, group_count(columns, group))]
    for name, t, width in held:
        if t.dtype != torch.uint8 or t.shape != (m, width) or not t.is_contiguous():
            raise ValueError(
                f"{name} is a {t.dtype} tensor of shape {tuple(t.shape)}; it must be contiguous uint8 of "
                f"shape ({m}, {width})"
            )
    if bias is not None and bias.shape != (m,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be ({m},), the outputs of the layer")


def _cpu(
    x: Tensor, d1: Tensor, codes: Tensor, steps: Tensor | None, bias: Tensor | None, columns: int, group: int
) -> Tensor:
    if x.dtype not in ACTIVATIONS or d1.dtype != torch.float32:
        return _elsewhere(x, d1, codes, steps, bias, columns, group)
    _check(x, d1, codes, steps, bias, columns, group)
    vectors, scale, shift = plain(x), plain(d1), None if bias is None else plain(bias)
    m = d1.shape[0]
    y = vectors.new_empty((*x.shape[:-1], m))
    _core.multiply_codes(
        codes.data_ptr(),
        0 if steps is None else steps.data_ptr(),
        scale.data_ptr(),
        m,
        columns,
        8 if steps is None else 4,
        group,
        vectors.data_ptr(),
        x.numel() // columns,
        0 if shift is None else shift.data_ptr(),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y.to(x.dtype)


def _elsewhere(
    x: Tensor, d1: Tensor, codes: Tensor, steps: Tensor | None, bias: Tensor | None, columns: int, group: int
) -> Tensor:
    _check(x, d1, codes, steps, bias, columns, group)
    dtype = torch.promote_types(x.dtype, d1.dtype)
    parts = [
        functional.linear(x.to(dtype), e) * d1[rows].to(dtype)
        for rows, e in _dense(codes, steps, columns, group, dtype)
    ]
    y = torch.cat(parts, -1)
    return (y if bias is None else y + bias).to(x.dtype)


def _dense(codes: Tensor, steps: Tensor | None, columns: int, group: int, dtype: torch.dtype) -> Any:
    """Slices of the rows, and E of these rows."""
    for begin in range(0, len(codes), _ROWS):
        rows = slice(begin, begin + _ROWS)
        yield rows, entries(codes[rows], None if steps is None else steps[rows], columns, group, dtype)


def _fake(
    x: Tensor, d1: Tensor, codes: Tensor, steps: Tensor | None, bias: Tensor | None, columns: int, group: int
) -> Tensor:
    _check(x, d1, codes, steps, bias, columns, group)
    return x.new_empty((*x.shape[:-1], d1.shape[0]))


# ---- its gradients


def _backward(
    grad: Tensor,
    x: Tensor,
    d1: Tensor,
    codes: Tensor,
    steps: Tensor | None,
    columns: int,
    group: int,
    x_needed: bool,
    d1_needed: bool,
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, d1.dtype)
    vectors, above = x.reshape(-1, columns).to(dtype), grad.reshape(-1, grad.shape[-1]).to(dtype)
    of_x = vectors.new_zeros(vectors.shape if x_needed else 0)
    of_d1 = vectors.new_zeros(d1.shape if d1_needed else 0)
    for rows, e in _dense(codes, steps, columns, group, dtype):
        part = above[:, rows]
        if x_needed:
            of_x.addmm_(part * d1[rows].to(dtype), e)
        if d1_needed:
            of_d1[rows] = (part * functional.linear(vectors, e)).sum(0)
    return of_x.to(x.dtype).reshape(x.shape if x_needed else (0,)), of_d1.to(d1.dtype)


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    d1: Tensor,
    codes: Tensor,
    steps: Tensor | None,
    columns: int,
    group: int,
    x_needed: bool,
    d1_needed: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if x_needed else (0,)), d1.new_empty(d1.shape if d1_needed else (0,))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, d1, codes, steps, bias, ctx.columns, ctx.group = inputs
    ctx.save_for_backward(x, d1, codes, *(() if steps is None else (steps,)))
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, d1, codes, *steps = ctx.saved_tensors
    of_x, of_d1, *_, of_bias = ctx.needs_input_grad[:5]
    found_x, found_d1 = torch.ops.diba.code_linear_backward(
        grad, x, d1, codes, steps[0] if steps else None, ctx.columns, ctx.group, of_x, of_d1
    )
    shift = None
    if ctx.bias_dtype is not None and of_bias:
        above = grad.reshape(-1, grad.shape[-1])
        shift = above.sum(0, dtype=torch.promote_types(above.dtype, torch.float32)).to(ctx.bias_dtype)
    return found_x if of_x else None, found_d1 if of_d1 else None, None, None, shift, None, None


for _name, _plain, _other, _shaped in (
    ("code_linear", _cpu, _elsewhere, _fake),
    ("code_linear_backward", _backward, _backward, _backward_fake),
):
    _library.impl(_name, _plain, "CPU")
    _library.impl(_name, _other, "CompositeExplicitAutograd")
    torch.library.register_fake(f"diba::{_name}", _shaped, lib=_library)
torch.library.register_autograd("diba::code_linear", _gradients, setup_context=_keep, lib=_library)
code_linear: Any = torch.ops.diba.code_linear.default
for _key in ("AutocastCPU", "AutocastCUDA"):
    _library.impl(code_linear, under_autocast(code_linear, _key), _key)
