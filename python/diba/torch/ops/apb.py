"""The operators for binary weights with exceptions (``diba._internal.apb_bytes``); importing registers them.

- ``torch.ops.diba.apb_linear(x, alpha, signs, counts, columns, values, exponent, bias, n)``:
  ``alpha * (S x) + bias + E x`` for every vector along the last axis of x. ``columns`` and ``values`` are
  None without exceptions. It has gradients for x, alpha and the bias.
- ``apb_linear_backward``: computes those of x and alpha.

x is float32, bfloat16 or float16, and the result has its dtype. S is multiplied by the table kernels, see
``operators``; E exactly. float64 inputs, and tensors that are not on the CPU, use a dense weight.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..._internal.apb_bytes import apb_shapes, decoded_exceptions
from ..._internal.sparse_rows import SparseRows
from . import packed
from .operators import ACTIVATIONS, check_vectors, plain, under_autocast, undispatched
from .reference import unpack

__all__ = ["apb_linear", "apb_matrix", "forget_exceptions"]

_library: Any = torch.library.Library("diba", "FRAGMENT")  # type: ignore[no-untyped-call]
_MATRIX = "Tensor alpha, Tensor signs, Tensor counts, Tensor? columns, Tensor? values, Tensor exponent"
_library.define(f"apb_linear(Tensor x, {_MATRIX}, Tensor? bias, int n) -> Tensor")
_library.define(
    f"apb_linear_backward(Tensor grad, Tensor x, {_MATRIX}, int n, bool x_needed, bool alpha_needed)"
    " -> (Tensor, Tensor)"
)

Parts = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor]
"""alpha, signs, counts, columns, values, exponent."""


# ---- the exceptions, decoded once


class _Decoded:
    """E as the kernels need it, made from the bytes when they are first used, or have changed."""

    __slots__ = ("addresses", "matrix", "places", "storage", "versions")

    def __init__(self, parts: Parts, shape: tuple[int, int]) -> None:
        tensors = _bytes_of(parts)
        self.places = [t.data_ptr() for t in tensors.values()]
        self.versions = [packed.version(t) for t in tensors.values()]
        starts, columns, values = decoded_exceptions({name: t.numpy() for name, t in tensors.items()})
        self.matrix = E = SparseRows(starts, columns, values, shape)
        self.addresses = 0, 0, 0, 0
        if E.values.size:
            places = E.starts.ctypes.data, E.columns.ctypes.data, E.values.ctypes.data
            self.addresses = *places, E.columns.itemsize
        key = parts[2].data_ptr()
        self.storage = weakref.ref(parts[2].untyped_storage(), lambda _: _decoded.pop(key, None))
        _decoded[key] = self

    def fits(self, parts: Parts, n: int) -> bool:
        """Whether the bytes are those that were decoded, as far as torch counts changes."""
        _, signs, counts, columns, values, exponent = parts
        tensors = (
            [counts, exponent] if columns is None or values is None else [counts, columns, values, exponent]
        )
        try:
            versions = [t._version for t in tensors]
        except RuntimeError:  # tensors of inference mode have none
            return False
        return (
            self.versions == versions
            and self.places == [t.data_ptr() for t in tensors]
            and self.matrix.shape == (signs.shape[0], n)
            and all(t.is_contiguous() for t in tensors)
        )


_decoded: dict[int, _Decoded] = {}  # by the address of the counts


def _bytes_of(parts: Parts) -> dict[str, Tensor]:
    _, _, counts, columns, values, exponent = parts
    some = {} if columns is None or values is None else {"columns": columns, "values": values}
    return {"counts": counts, **some, "exponent": exponent}


def _exceptions(parts: Parts, n: int) -> _Decoded:
    kept = _decoded.get(parts[2].data_ptr())
    return kept if kept is not None and kept.fits(parts, n) else _Decoded(parts, (parts[1].shape[0], n))


def forget_exceptions(counts: Tensor) -> None:
    """Drop what was decoded of the bytes that belong to these counts."""
    if counts.device.type == "cpu" and type(counts) is Tensor:
        _decoded.pop(counts.data_ptr(), None)


# ---- the matrix, dense


def apb_matrix(
    alpha: Tensor,
    signs: Tensor,
    counts: Tensor,
    columns: Tensor | None,
    values: Tensor | None,
    exponent: Tensor,
    n: int,
) -> Tensor:
    """The dense matrix (m, n) in the dtype of alpha; it is differentiable in alpha."""
    matrix = alpha[:, None] * unpack(signs, n, True, alpha.dtype)
    if columns is None or values is None:
        return matrix
    count, column = _whole(counts), _whole(columns)
    row = torch.arange(len(count), device=count.device).repeat_interleave(count, output_size=len(column))
    scale = torch.ldexp(torch.ones((), dtype=alpha.dtype, device=alpha.device), exponent[0].int() - 128)
    entry = _words(values, torch.float16).to(alpha.dtype) * scale
    return matrix.index_put((row, column), entry, accumulate=True)


def _whole(t: Tensor) -> Tensor:
    """Rows of little-endian bytes as int64."""
    shifts = torch.arange(0, 8 * t.shape[1], 8, device=t.device)
    return t.long().bitwise_left_shift(shifts).sum(-1)


def _words(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of bytes as numbers of that dtype."""
    aligned = t if t.is_contiguous() and t.storage_offset() % dtype.itemsize == 0 else t.clone()
    return aligned.view(dtype)[:, 0]


# ---- the product


def _check(x: Tensor, parts: Parts, bias: Tensor | None, n: int) -> None:
    check_vectors(x, n)
    alpha, signs, _, columns, values, _ = parts
    m, entries = signs.shape[0], 0 if columns is None else columns.shape[0]
    if (columns is None) != (values is None) or alpha.numel() not in (1, m):
        raise ValueError(
            f"alpha has {alpha.numel()} entries, must have 1 or {m}; columns and values go together"
        )
    shapes = apb_shapes(m, n, alpha.numel(), entries)
    for name, t in {"signs": signs, **_bytes_of(parts)}.items():
        if t.dtype != torch.uint8 or t.shape != shapes.get(name, t.shape) or not t.is_contiguous():
            raise ValueError(
                f"{name} is a {t.dtype} tensor of shape {tuple(t.shape)}; it must be contiguous uint8 of "
                f"shape {shapes.get(name)}"
            )
    if bias is not None and bias.shape != (m,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be ({m},), the outputs of the layer")


def apb_linear(x: Tensor, *rest: Any) -> Tensor:
    """``torch.ops.diba.apb_linear``, called without torch's dispatcher where that makes no difference."""
    result: Tensor = _cpu(x, *rest) if undispatched(x) else _registered(x, *rest)
    return result


def _at_once(x: Tensor, parts: Parts, bias: Tensor | None, n: int) -> Tensor | None:
    """The product if all is decoded and packed already, and nothing must be converted; else None."""
    kept = _decoded.get(parts[2].data_ptr())
    if kept is None or not kept.fits(parts, n):
        return None
    return packed.try_binarized(x, parts[0], parts[1], kept.addresses, bias)


def _cpu(x: Tensor, *rest: Any) -> Tensor:
    *given, bias, n = rest
    parts: Parts = tuple(given)
    at_once = _at_once(x, parts, bias, n)
    if at_once is not None:
        return at_once
    alpha, signs, *_ = parts
    if x.dtype not in ACTIVATIONS or alpha.dtype != torch.float32:
        return _elsewhere(x, *rest)
    _check(x, parts, bias, n)
    shift, E = None if bias is None else plain(bias), _exceptions(parts, n)
    return packed.binarized(plain(x), plain(alpha), signs, n, E.addresses, shift).to(x.dtype)


def _elsewhere(x: Tensor, *rest: Any) -> Tensor:
    *parts, bias, n = rest
    _check(x, tuple(parts), bias, n)
    dtype = torch.promote_types(x.dtype, parts[0].dtype)
    matrix = apb_matrix(*(*parts, n)).to(dtype)
    return functional.linear(x.to(dtype), matrix, None if bias is None else bias.to(dtype)).to(x.dtype)


def _fake(x: Tensor, *rest: Any) -> Tensor:
    *parts, bias, n = rest
    _check(x, tuple(parts), bias, n)
    return x.new_empty((*x.shape[:-1], parts[1].shape[0]))


# ---- its gradients


def _backward(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *given, n, x_needed, alpha_needed = rest
    parts: Parts = tuple(given)
    alpha, signs, *_ = parts
    fast = x.is_cpu and x.dtype in ACTIVATIONS and alpha.dtype == torch.float32
    dtype = torch.promote_types(x.dtype, alpha.dtype)
    above, vectors = grad.reshape(-1, signs.shape[0]).to(dtype), x.reshape(-1, n).to(dtype)
    of_x, of_alpha = x.new_empty(0), alpha.new_empty(0)
    bits = None if fast else unpack(signs, n, True, dtype)
    if x_needed and fast:
        scaled = (above * alpha).contiguous()
        found = packed.times_bits(scaled, signs, n, True, True)
        E = _exceptions(parts, n).matrix.T
        if E.values.size and above.numel():
            E.add_products(above.contiguous().numpy(), found.numpy(), torch.get_num_threads())
        of_x = found.to(x.dtype).reshape(x.shape)
    elif x_needed:
        of_x = (above @ apb_matrix(*parts, n).to(dtype)).to(x.dtype).reshape(x.shape)
    if alpha_needed:
        product = (
            packed.times_bits(vectors.contiguous(), signs, n, True, False)
            if bits is None
            else vectors @ bits.T
        )
        each = (above * product).sum(0)
        of_alpha = (each.sum()[None] if alpha.numel() == 1 else each).to(alpha.dtype)
    return of_x, of_alpha


def _backward_fake(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *parts, _, x_needed, alpha_needed = rest
    alpha = parts[0]
    return x.new_empty(x.shape if x_needed else (0,)), alpha.new_empty(alpha.shape if alpha_needed else (0,))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *parts, bias, ctx.n = inputs
    ctx.given = [part is not None for part in parts]
    ctx.save_for_backward(x, *(part for part in parts if part is not None))
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, *saved = ctx.saved_tensors
    held = iter(saved)
    parts = [next(held) if given else None for given in ctx.given]
    of_x, of_alpha, *_, of_bias, _ = ctx.needs_input_grad
    found_x, found_alpha = torch.ops.diba.apb_linear_backward(grad, x, *parts, ctx.n, of_x, of_alpha)
    shift = None
    if ctx.bias_dtype is not None and of_bias:
        above = grad.reshape(-1, grad.shape[-1])
        shift = above.sum(0, dtype=torch.promote_types(above.dtype, torch.float32)).to(ctx.bias_dtype)
    return found_x if of_x else None, found_alpha if of_alpha else None, *[None] * 5, shift, None


for _name, _first, _other, _shaped in (
    ("apb_linear", _cpu, _elsewhere, _fake),
    ("apb_linear_backward", _backward, _backward, _backward_fake),
):
    _library.impl(_name, _first, "CPU")
    _library.impl(_name, _other, "CompositeExplicitAutograd")
    torch.library.register_fake(f"diba::{_name}", _shaped, lib=_library)
torch.library.register_autograd("diba::apb_linear", _gradients, setup_context=_keep, lib=_library)
_registered: Any = torch.ops.diba.apb_linear.default
for _key in ("AutocastCPU", "AutocastCUDA"):
    _library.impl(_registered, under_autocast(_registered, _key), _key)
