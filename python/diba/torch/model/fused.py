"""The base of modules that stand for fused ones: several matrices in one parameter, here a layer for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

__all__ = ["Parallel", "UnfusedModule", "linear"]


class Parallel(nn.ModuleList):
    """Layers of which none reads what another one of them makes."""


class UnfusedModule(nn.Module):
    """Stands for a module with fused parameters: a layer for every matrix in them.

    Attributes:
        fused: The module it stands for, with its settings and, while they are shared, its parameters. It is
            no submodule; its submodules belong to this one, too.
        observed: All layers are called, also without vectors, and inputs are marked (``vectors.mark``), so
            that calibration can match two runs in which experts get different tokens.
    """

    fused: Any
    observed: bool = False

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.__dict__["fused"] = fused
        for name, child in fused.named_children():
            self.add_module(name, child)

    def __getattr__(self, name: str) -> Any:
        """Settings of the fused module, for other code that reads them."""
        settings = vars(self.__dict__.get("fused", self))
        if name in settings and not name.startswith("_"):
            return settings[name]
        return super().__getattr__(name)

    @classmethod
    def recognises(cls, module: nn.Module) -> bool:
        """Whether :meth:`from_fused` takes a module."""
        raise NotImplementedError

    @classmethod
    def from_fused(cls, module: nn.Module) -> Self:
        """The module that stands for a fused one; its layers share the memory of the parameters."""
        raise NotImplementedError

    def sources(self) -> dict[str, list[tuple[str, str]]]:
        """Fused parameter -> (layer, its parameter) for every matrix in it, in order."""
        raise NotImplementedError

    def join(self, name: str, tensors: list[Tensor]) -> Tensor:
        """The fused parameter of that name, made of the tensors of its layers."""
        raise NotImplementedError

    def split(self, name: str, tensor: Tensor) -> list[Tensor]:
        """The reverse: views of a fused parameter, one for each layer."""
        raise NotImplementedError

    def fused_shape(self, name: str) -> torch.Size:
        """Shape of the parameter of that name, whether or not the module has it now."""
        shapes = (getattr(self.get_submodule(layer), own).shape for layer, own in self.sources()[name])
        return self.join(name, [torch.empty(shape, device="meta") for shape in shapes]).shape

    def fused_parameters(self) -> dict[str, nn.Parameter | None]:
        """The fused parameters, None where they are not held any more."""
        return {name: getattr(*_place(self.fused, name)) for name in self.sources()}

    def set_fused_parameters(self, parameters: dict[str, nn.Parameter | None]) -> None:
        """Set some of them, None to drop them."""
        for name, parameter in parameters.items():
            owner, own = _place(self.fused, name)
            owner._parameters[own] = parameter

    def to_fused(self, names: Iterable[str]) -> nn.Module:
        """The fused module; these parameters get the values and ``requires_grad`` of the dense layers."""
        with torch.inference_mode(False), torch.no_grad():
            for name in names:
                layers = self.sources()[name]
                tensors = [getattr(self.get_submodule(layer), own) for layer, own in layers]
                joined = nn.Parameter(self.join(name, tensors), any(t.requires_grad for t in tensors))
                self.set_fused_parameters({name: joined})
        result: nn.Module = self.fused.train(self.training)
        return result


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, own = name.rpartition(".")
    return module.get_submodule(owner), own


def linear(weight: Tensor, bias: Tensor | None, requires_grad: bool) -> nn.Linear:
    """A layer on the memory of a matrix, shape (m, n), and a bias (m); parameters become the layer's own.

    ``requires_grad`` is for tensors that are no parameters.
    """
    m, n = weight.shape
    layer = nn.Linear(n, m, bias is not None, device="meta", dtype=weight.dtype)
    layer.weight = _parameter(weight, requires_grad)
    if bias is not None:
        layer.bias = _parameter(bias, requires_grad)
    return layer


def _parameter(tensor: Tensor, requires_grad: bool) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach(), requires_grad)
