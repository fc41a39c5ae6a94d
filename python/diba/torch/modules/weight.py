"""The ``weight`` of a factored layer: a stand-in that has the metadata of the dense weight, but no values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Weight"]

_METADATA = {
    *(
        getattr(Tensor, name).__get__
        for name in (
            *("device", "dtype", "grad", "grad_fn", "is_cpu", "is_cuda", "is_leaf", "is_meta", "is_mps"),
            *("is_quantized", "is_sparse", "is_xpu", "itemsize", "layout", "nbytes", "ndim"),
            *("requires_grad", "retains_grad", "shape"),
        )
    ),
    *(Tensor.__len__, Tensor.dim, Tensor.element_size, Tensor.get_device, Tensor.is_complex),
    *(Tensor.is_contiguous, Tensor.is_floating_point, Tensor.is_inference, Tensor.is_signed),
    *(Tensor.ndimension, Tensor.nelement, Tensor.numel, Tensor.size, Tensor.stride, Tensor.storage_offset),
    # These describe the stand-in, which has no storage: the dense values would be freed at once.
    *(Tensor.data_ptr, Tensor.storage, Tensor.untyped_storage),
    *(torch.is_complex, torch.is_floating_point, torch.numel),
}
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_WRITING = {
    *("__set__", "__delete__", "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__"),
    *(
        "__ifloordiv__",
        "__imod__",
        "__ipow__",
        "__iand__",
        "__ior__",
        "__ixor__",
        "__ilshift__",
        "__irshift__",
    ),
}


class Weight(Tensor):
    """The stand-in that ``FactoredLayer.weight`` returns: metadata at no cost, values on demand.

    A torch function that needs values gets ``layer.dense_weight()`` instead, which is built anew for each
    call and is differentiable in the diagonals. Functions that would write into the weight raise.
    """

    _is_hf_initialized = True  # so that the initialisers of transformers leave it alone
    _layer: Any
    _detached: bool

    @staticmethod
    def of(layer: Any, detached: bool = False) -> Weight:
        """The stand-in for the weight of a layer; ``detached``: its values have no gradients."""
        weight = Tensor._make_wrapper_subclass(
            Weight,
            layer.weight_shape,
            dtype=layer.dtype,
            device=layer.diagonals()[0].device,
            requires_grad=not detached and any(d.requires_grad for d in layer.diagonals()),
        )
        weight._layer, weight._detached = layer, detached
        return weight

    def dense(self) -> Tensor:
        """The dense values."""
        dense: Tensor = self._layer.dense_weight()
        return dense.detach() if self._detached else dense

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Show the metadata only."""
        return f"Weight(shape={tuple(self.shape)}, dtype={self.dtype}, of {type(self._layer).__name__})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Answer metadata directly, ``.data`` with a stand-in, and all else from the dense weight."""
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        target: Any = args[0] if args else kwargs.get("tensor")
        if func == _DATA:
            return Weight.of(target._layer, detached=True)
        for written in (target if _writes(func.__name__) else None, kwargs.get("out")):
            if isinstance(written, Weight):
                raise RuntimeError(
                    f"{func.__name__} would change the weight of {type(written._layer).__name__}, which is "
                    f"computed from its {written._layer.stored}; change its "
                    f"{', '.join(written._layer.diagonal_names)}, or call {written._layer._setter}, "
                    f"reset_parameters or requires_grad_ of the layer"
                )
        return func(*_dense(args), **_dense(kwargs))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Refuse calls below autograd, where the gradient would be lost."""
        raise RuntimeError(f"{func} got a stand-in for a diba layer's weight; use the layer's dense_weight()")


def _writes(name: str) -> bool:
    """Whether a torch function of this name changes its first argument, like ``add_`` and ``__iadd__``."""
    return (name.endswith("_") and not name.endswith("__")) or name in _WRITING


def _dense(value: Any) -> Any:
    """Arguments with dense weights in place of the stand-ins."""
    if isinstance(value, Weight):
        return value.dense()
    if type(value) in (tuple, list):
        return type(value)(_dense(item) for item in value)
    if type(value) is dict:
        return {key: _dense(item) for key, item in value.items()}
    return value
