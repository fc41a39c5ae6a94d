"""The operators ``torch.ops.diba``; importing this module registers them.

- ``linear(x, d1, b1, d2, b2, d3, bias, sign)``: ``d1 * (B1 (d2 * (B2 (d3 * x)))) + bias`` for every vector
  along the last axis of x. It has gradients for x, the diagonals and the bias, none for the bits. Neither
  forward nor backward forms a dense matrix, and only x is saved for the backward pass.
- ``linear_backward``: computes these gradients.
- ``times_bits(x, bits, columns, sign, transposed)``: ``x @ B'``, or ``x @ B`` if transposed, with a gradient
  for x.

x is float32, bfloat16 or float16, and the result has its dtype. The table kernels compute the sums, with an
SNR of about 45 dB against the exact product. Diagonals are float32; the bias has either dtype. float64
inputs, and tensors that are not on the CPU, use ``reference``, which unpacks the bits. Under autocast the
results have autocast's dtype, as with ``torch.nn.functional.linear``; diagonals are not cast. The operators
use ``torch.get_num_threads()`` threads.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from ... import _core
from . import packed, reference

__all__ = ["ACTIVATIONS", "check_vectors", "linear", "plain", "under_autocast", "undispatched"]

_FACTORS = "Tensor d1, Tensor b1, Tensor d2, Tensor b2, Tensor d3"
_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
ACTIVATIONS = (torch.float32, torch.bfloat16, torch.float16)

_library: Any = torch.library.Library("diba", "DEF")  # type: ignore[no-untyped-call]
_library.define(f"linear(Tensor x, {_FACTORS}, Tensor? bias, bool sign) -> Tensor")
_library.define(
    f"linear_backward(Tensor grad, Tensor x, {_FACTORS}, bool sign, bool input_needed)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define("times_bits(Tensor x, Tensor bits, int columns, bool sign, bool transposed) -> Tensor")

# A daemon thread inside an operator is also inside torch's C++ code, which aborts if Python ends the thread.
_core.hold_threads_at_exit(threading.main_thread().ident or 0)


# ---- linear


def check_vectors(x: Tensor, length: int) -> None:
    """Require vectors of that length along the last axis."""
    if not x.dtype.is_floating_point:
        raise TypeError(f"x is of dtype {x.dtype}; it must be floating point: use x.float()")
    if x.dim() == 0 or x.shape[-1] != length:
        raise ValueError(f"x has shape {tuple(x.shape)}; its last axis must have {length} entries")


def _check(x: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, bias: Tensor | None) -> None:
    check_vectors(x, d3.shape[0])
    if not (d1.dtype == d2.dtype == d3.dtype):
        raise TypeError(f"the diagonals are {d1.dtype}, {d2.dtype}, {d3.dtype}; they must be of one dtype")
    if bias is not None and bias.shape != d1.shape:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}; it must be {tuple(d1.shape)}, the outputs of the layer"
        )


def plain(t: Tensor) -> Tensor:
    """The tensor as the kernels need it: float32 and contiguous."""
    if t.dtype is torch.float32 and t.is_contiguous():
        return t
    return t.to(torch.float32).contiguous()


def _is_packed(x: Tensor, d1: Tensor) -> bool:
    return d1.dtype is torch.float32 and x.dtype in ACTIVATIONS


def _linear(
    x: Tensor, d1: Tensor, b1: Tensor, d2: Tensor, b2: Tensor, d3: Tensor, bias: Tensor | None, sign: bool
) -> Tensor:
    at_once = packed.try_linear(x, d1, b1, d2, b2, d3, bias, sign)
    if at_once is not None:
        return at_once
    if not _is_packed(x, d1):
        return _linear_elsewhere(x, d1, b1, d2, b2, d3, bias, sign)
    _check(x, d1, d2, d3, bias)
    shift = None if bias is None else plain(bias)
    y = packed.linear(plain(x), plain(d1), b1, plain(d2), b2, plain(d3), shift, sign)
    return y.to(x.dtype)


def _linear_elsewhere(
    x: Tensor, d1: Tensor, b1: Tensor, d2: Tensor, b2: Tensor, d3: Tensor, bias: Tensor | None, sign: bool
) -> Tensor:
    _check(x, d1, d2, d3, bias)
    return reference.linear(x, d1, b1, d2, b2, d3, bias, sign)


def _linear_fake(
    x: Tensor, d1: Tensor, b1: Tensor, d2: Tensor, b2: Tensor, d3: Tensor, bias: Tensor | None, sign: bool
) -> Tensor:
    _check(x, d1, d2, d3, bias)
    return x.new_empty((*x.shape[:-1], d1.shape[0]))


# ---- its gradients


def _linear_backward(
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
    if not _is_packed(x, d1):
        return reference.linear_backward(grad, x, d1, b1, d2, b2, d3, sign, input_needed)
    rows, above, e1, e2, e3 = (plain(t) for t in (x, grad, d1, d2, d3))
    of_x, of_d1, of_d2, of_d3 = packed.gradients(above, rows, e1, b1, e2, b2, e3, sign, input_needed)
    return of_x.to(x.dtype), of_d1, of_d2, of_d3


def _linear_backward_fake(
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
    of_x = torch.empty_like(x, memory_format=torch.contiguous_format) if input_needed else x.new_empty(0)
    return of_x, torch.empty_like(d1), torch.empty_like(d2), torch.empty_like(d3)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        x, d1, b1, d2, b2, d3, bias, sign = inputs
        ctx.save_for_backward(x, d1, b1, d2, b2, d3)
        ctx.sign = sign
        ctx.bias_dtype = None if bias is None else bias.dtype
        return _below_autograd(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), needed = grads, ctx.needs_input_grad
        of_x: Tensor | None
        of_x, of_d1, of_d2, of_d3 = torch.ops.diba.linear_backward(
            grad, *ctx.saved_tensors, ctx.sign, needed[0]
        )
        if not needed[0]:
            of_x = None
        of_bias = None
        if ctx.bias_dtype is not None and needed[6]:
            above = grad.reshape(-1, grad.shape[-1])
            of_bias = above.sum(0, dtype=torch.promote_types(above.dtype, torch.float32)).to(ctx.bias_dtype)
        return of_x, of_d1, None, of_d2, None, of_d3, of_bias, None


def _below_autograd(*inputs: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.diba.linear.default(*inputs)


def _linear_autograd(
    x: Tensor, d1: Tensor, b1: Tensor, d2: Tensor, b2: Tensor, d3: Tensor, bias: Tensor | None, sign: bool
) -> Any:
    if torch.is_grad_enabled() and (
        d1.requires_grad
        or d2.requires_grad
        or d3.requires_grad
        or x.requires_grad
        or (bias is not None and bias.requires_grad)
    ):
        return _Linear.apply(x, d1, b1, d2, b2, d3, bias, sign)  # type: ignore[no-untyped-call]
    if type(x) is Tensor and x.is_cpu and _modes() == 0:  # no mode wants to see this call
        return _linear(x, d1, b1, d2, b2, d3, bias, sign)
    return _below_autograd(x, d1, b1, d2, b2, d3, bias, sign)


def undispatched(x: Tensor) -> bool:
    """Whether torch's dispatcher would make no difference for a product with x.

    It is not needed for a plain tensor without gradients, tracing, autocast, modes or function transforms.
    """
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and not torch.is_grad_enabled()
        and x.is_cpu
        and _modes() == 0
        and _function_modes() == 0
        and not torch.is_autocast_enabled("cpu")
        and torch._C._get_tracing_state() is None
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def linear(
    x: Tensor, d1: Tensor, b1: Tensor, d2: Tensor, b2: Tensor, d3: Tensor, bias: Tensor | None, sign: bool
) -> Tensor:
    """``torch.ops.diba.linear``, called without torch's dispatcher where that makes no difference.

    For a small layer the dispatcher takes longer than the product.
    """
    if undispatched(x):
        at_once = packed.try_linear(x, d1, b1, d2, b2, d3, bias, sign)
        if at_once is not None:
            return at_once
    result: Tensor = _registered(x, d1, b1, d2, b2, d3, bias, sign)
    return result


# ---- products with one bit matrix


def _times_bits(x: Tensor, bits: Tensor, columns: int, sign: bool, transposed: bool) -> Tensor:
    if x.dtype not in ACTIVATIONS:
        return _times_bits_elsewhere(x, bits, columns, sign, transposed)
    check_vectors(x, bits.shape[0] if transposed else columns)
    return packed.times_bits(plain(x), bits, columns, sign, transposed).to(x.dtype)


def _times_bits_elsewhere(x: Tensor, bits: Tensor, columns: int, sign: bool, transposed: bool) -> Tensor:
    check_vectors(x, bits.shape[0] if transposed else columns)
    return reference.times_bits(x, bits, columns, sign, transposed)


def _times_bits_fake(x: Tensor, bits: Tensor, columns: int, sign: bool, transposed: bool) -> Tensor:
    check_vectors(x, bits.shape[0] if transposed else columns)
    return x.new_empty((*x.shape[:-1], columns if transposed else bits.shape[0]))


def _keep_bits(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, bits, ctx.columns, ctx.sign, ctx.transposed = inputs
    ctx.save_for_backward(bits)


def _times_bits_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (bits,) = ctx.saved_tensors
    of_x = torch.ops.diba.times_bits(grad, bits, ctx.columns, ctx.sign, not ctx.transposed)
    return of_x, None, None, None, None


# ---- autocast: casts the activations, not the factors


def under_autocast(operator: Any, key: str) -> Any:
    """The operator under autocast, which casts its first argument alone."""
    device = "cpu" if key == "AutocastCPU" else "cuda"
    off = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def call(x: Tensor, *others: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(off):
            wanted = torch.get_autocast_dtype(device)
            eligible = x.dtype in ACTIVATIONS and x.device.type == device
            return operator(x.to(wanted) if eligible else x, *others)

    return call


_registered = torch.ops.diba.linear.default
for _name, _cpu, _elsewhere, _fake in (
    ("linear", _linear, _linear_elsewhere, _linear_fake),
    ("linear_backward", _linear_backward, reference.linear_backward, _linear_backward_fake),
    ("times_bits", _times_bits, _times_bits_elsewhere, _times_bits_fake),
):
    _library.impl(_name, _cpu, "CPU")
    _library.impl(_name, _elsewhere, "CompositeExplicitAutograd")
    torch.library.register_fake(f"diba::{_name}", _fake, lib=_library)
_library.impl("linear", _linear_autograd, "Autograd")
torch.library.register_autograd(
    "diba::times_bits", _times_bits_backward, setup_context=_keep_bits, lib=_library
)
for _key in ("AutocastCPU", "AutocastCUDA"):
    for _operator in (torch.ops.diba.linear.default, torch.ops.diba.times_bits.default):
        _library.impl(_operator, under_autocast(_operator, _key), _key)
