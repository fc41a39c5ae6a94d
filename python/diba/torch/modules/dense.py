"""The base class of the kinds of dense layers: everything that diba must know to replace such a layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import diba

from ..._internal import check
from ..._internal.bit_weights import BitWeights
from ..._internal.codes import Codes
from .apb import APBSizes, sizes_of
from .bitwise import BitSizes
from .layer import check_factorization
from .state import CodeSizes, as_numpy

if TYPE_CHECKING:
    from .layer import Sizes
    from .state import CompressedLayer

__all__ = ["Kind", "assigned", "forward_owner", "runs_its_class"]

_INITIAL = ("init", "reset")  # prefixes of initialisers, which a factored layer does not need
_HARMLESS = {  # names in a class that do not change what its layers do
    *("__init__", "__repr__", "__doc__", "__module__", "__qualname__", "__dict__", "__weakref__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__constants__"),
    *("__static_attributes__", "__firstlineno__", "__classdictcell__", "__conditional_annotations__"),
    *("__orig_bases__", "__parameters__", "__abstractmethods__", "_abc_impl", "extra_repr"),
}
_TAKEN = {"k", "sign", "fan_in_fan_out", "bits", "group", "codes", "steps"}  # attributes of compressed layers


@dataclass(frozen=True)
class Kind:
    """One kind of dense layer, and the factored layer that replaces it.

    Attributes:
        name: Name of the kind in reports, settings and checkpoints.
        dense: The dense class; None where its library is not imported (transformers).
        factored: The class of the factored layer.
        described: The dense class as messages name it.
        switch: The field of ``Config`` that leaves layers of this kind dense if it is False; "": none.
        axes: Number of spatial axes of the input, for kinds that multiply patches; 0: the layer multiplies
            the vectors along the last axis.
        coded: The class of the layer with 8- or 4-bit codes that replaces this kind; None: there is none.
        apb: The class of the layer with binary weights and exceptions; None: there is none.
        bitwise: The class of the layer with few bits on both sides of the product; None: there is none.
    """

    name: str
    dense: Any
    factored: Any
    described: str
    switch: str = ""
    axes: int = 0
    coded: Any = None
    apb: Any = None
    bitwise: Any = None

    # ------------------------------------------------------------ recognition

    def covers(self, module: nn.Module) -> bool:
        """Whether a module is a dense layer of this kind, or of a subclass of it, replaceable or not."""
        return isinstance(module, self.dense)

    def computes(self, module: nn.Module) -> bool:
        """Whether the class of a covered module computes the same as this kind."""
        kind: Any = type(module)
        return bool(kind.forward is self.dense.forward)

    def obstacle(self, module: Any) -> str | None:
        """Why a covered module cannot be replaced, such as ``"groups is 32, must be 1"``; None: it can."""
        if "weight" not in module._parameters:
            return "its weight is computed from other parameters (parametrized, pruned or normalised)"
        if not self.computes(module) or not runs_its_class(module):
            return f"its {type(module).__name__} has a forward of its own"
        return self._impossible(module) or _unreadable(module.weight) or _lost(self, module)

    def _impossible(self, module: Any) -> str | None:
        """Which setting of a dense layer the factored layer does not support; None: it supports all."""
        return None

    # ------------------------------------------------------------ the matrix and its input vectors

    def matrix(self, module: Any) -> Tensor:
        """The matrix of a dense layer, shape (m, n): a view of its weight."""
        weight: Tensor = module.weight
        return weight

    def input_size(self, module: Any) -> int | None:
        """Length n of the vectors that a dense layer multiplies; None: it multiplies none."""
        return int(module.in_features)

    def input_layout(self, module: Any) -> object:
        """A key: layers with equal keys read the same vectors from the same input."""
        return None

    def windows(self, module: Any, x: Tensor) -> Tensor:
        """For kinds with axes: the patches, a view of shape (batch, *positions, *patch)."""
        raise NotImplementedError

    # ------------------------------------------------------------ from dense to factored, and back

    def empty(self, module: Any, sizes: Any) -> CompressedLayer:
        """Make the compressed layer on the meta device, with settings, mode, attributes of the dense one.

        Args:
            module: The dense layer.
            sizes: ``Sizes``, ``CodeSizes``, ``APBSizes`` or ``BitSizes``; or factors, codes or a matrix of
                these sizes.
        """
        layer: Any
        if isinstance(sizes, (CodeSizes, Codes)):
            layer = self._coded(module, sizes)
        elif isinstance(sizes, (APBSizes, diba.APB)):
            layer = self._binary(module, sizes if isinstance(sizes, APBSizes) else sizes_of(sizes))
        elif isinstance(sizes, (BitSizes, BitWeights)):
            layer = self._bitwise(module, sizes)
        else:
            layer = self._built(module, sizes)
        kept = assigned(self, module)
        if kept:
            layer.__dict__.update(kept, _kept=tuple(kept))
        return layer.train(module.training)  # type: ignore[no-any-return]

    def replacement(
        self,
        module: Any,
        f: diba.Factorization | Codes | diba.APB | BitWeights | None = None,
        **solve_options: Any,
    ) -> CompressedLayer:
        """Make the compressed layer: see :meth:`FactoredLayer.from_dense`."""
        reason = self.obstacle(module)
        if reason is not None:
            raise ValueError(f"module cannot be replaced: {reason}; leave this {type(module).__name__} dense")
        matrix = self.matrix(module).detach()
        if f is None:
            f = diba.solve(as_numpy(matrix), **solve_options)
        elif solve_options:
            options = ", ".join(solve_options)
            raise TypeError(f"f and {options} are both given; give either factors or options of diba.solve")
        if not isinstance(f, (Codes, diba.APB, BitWeights)):
            check_factorization(f)
        check.equal(f.shape, "the shape of f", tuple(matrix.shape), "shape of the layer's matrix")
        layer: Any = self.empty(module, f)
        bias = getattr(module, "bias", None)
        layer._fill(f, bias, matrix.device)
        for d in layer.diagonals():
            d.requires_grad_(module.weight.requires_grad)
        if layer.bias is not None and bias is not None:
            layer.bias.requires_grad_(bias.requires_grad)
        return layer  # type: ignore[no-any-return]

    def made(self, layer: Any) -> bool:
        """Whether a layer of class ``factored`` replaced this kind, not another kind with the same class."""
        return True

    def restored(self, layer: Any) -> nn.Module:
        """The reverse of :meth:`replacement`: make a dense layer on the same device and in the same dtype."""
        dense: Any = self._dense(layer).to_empty(device=layer.diagonals()[0].device)
        with torch.no_grad():
            dense.weight.copy_(layer.dense_weight())
            if layer.bias is not None:
                dense.bias.copy_(layer.bias)
        dense.weight.requires_grad_(any(d.requires_grad for d in layer.diagonals()))
        if layer.bias is not None:
            dense.bias.requires_grad_(layer.bias.requires_grad)
        held = vars(layer)
        dense.__dict__.update({name: held[name] for name in layer._kept if name in held})
        result: nn.Module = dense.train(layer.training)
        return result

    def shell(self, layer: Any) -> nn.Module:
        """Make a dense layer like the one that was replaced, without values: on the meta device."""
        result: nn.Module = self._dense(layer)
        return result

    def _plain(self) -> nn.Module:
        """Make a dense layer of this kind that has no attributes beyond those of its class."""
        module: nn.Module = self.dense(1, 1, device="meta")
        return module

    def _built(self, module: Any, sizes: Sizes | diba.Factorization) -> Any:
        """Make a factored layer on the meta device with the settings of a dense one."""
        raise NotImplementedError

    def _coded(self, module: Any, sizes: CodeSizes | Codes) -> Any:
        """Make a layer of class ``coded`` on the meta device with the settings of a dense one."""
        raise NotImplementedError

    def _binary(self, module: Any, sizes: APBSizes) -> Any:
        """Make a layer of class ``apb`` on the meta device with the settings of a dense one."""
        raise NotImplementedError

    def _bitwise(self, module: Any, sizes: BitSizes | BitWeights) -> Any:
        """Make a layer of class ``bitwise`` on the meta device with the settings of a dense one."""
        raise NotImplementedError

    def _dense(self, layer: Any) -> Any:
        """Make a dense layer on the meta device with the settings and dtype of a factored one."""
        raise NotImplementedError


# ---------------------------------------------------------------- obstacles


def _unreadable(weight: Any) -> str | None:
    """Why the values of a weight cannot be read; None: they can."""
    if is_lazy(weight):
        return "its weight has no shape before the first call"
    if type(weight) not in (nn.Parameter, Tensor):
        return f"its weight is a {type(weight).__name__}, whose values only its own library can read"
    if not weight.is_floating_point() or weight.numel() == 0:
        return f"its weight is {weight.dtype} of shape {tuple(weight.shape)}, must be floating and not empty"
    return None


def forward_owner(module: nn.Module) -> type:
    """The class that defines the ``forward`` of a module."""
    return next(cls for cls in type(module).__mro__ if "forward" in vars(cls))


def runs_its_class(module: nn.Module) -> bool:
    """Whether a call runs the ``forward`` of the class: removed hooks may leave it set on the instance."""
    forward: Any = vars(module).get("forward", module.forward)
    return getattr(forward, "__func__", None) is type(module).forward


def assigned(kind: Kind, module: Any) -> dict[str, Any]:
    """Attributes that were set on a dense layer, and are to be set on the factored one."""
    own = _plain_attributes(kind) | ({"forward"} if runs_its_class(module) else set())
    own |= getattr(module, "_diba_own", set())  # of a layer that was trained in place of a dense one
    return {name: value for name, value in vars(module).items() if name not in own and name[:2] != "__"}


def _lost(kind: Kind, module: nn.Module) -> str | None:
    """What would be lost if a factored layer replaced a dense one; None: nothing.

    The following would be lost: further parameters, buffers and submodules; everything that the class adds to
    the one that defines ``forward``, on the class or on its instances, since other code may use it (except
    names that begin with ``init`` or ``reset``); and attributes that cannot be kept on the factored layer:
    functions, and names that it uses itself.
    """
    for what, held in (
        ("parameter", {name: p for name, p in module._parameters.items() if name not in ("weight", "bias")}),
        ("buffer", module._buffers),
        ("submodule", module._modules),
    ):
        for name, value in held.items():
            if value is not None:
                return f"its {what} {name!r} would be lost"
    base = forward_owner(module)
    for name in _own_names(type(module), base):
        return f"{name!r}, which its class {type(module).__name__} adds, would be lost"
    for name, value in assigned(kind, module).items():
        subclass = type(module) is not base and not _initial(name)
        if subclass or callable(value) or name in _TAKEN or hasattr(kind.factored, name):
            return f"its attribute {name!r} would be lost"
    return None


def _own_names(cls: type, base: type) -> Iterator[str]:
    """Names that a class and its parents define beyond ``base``."""
    for parent in cls.__mro__:
        if parent not in base.__mro__ and parent.__module__ not in ("typing", "abc"):
            yield from (name for name in vars(parent) if name not in _HARMLESS and not _initial(name))


def _initial(name: str) -> bool:
    return name.lstrip("_").startswith(_INITIAL)


@cache
def _plain_attributes(kind: Kind) -> frozenset[str]:
    return frozenset(vars(kind._plain()))
