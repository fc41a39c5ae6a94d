"""The base class of modules that replace fused ones and have a layer for each matrix of a fused parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

__all__ = ["Parallel", "UnfusedModule", "linear"]


class Parallel(nn.ModuleList):
    """Layers of which none reads the output of another."""


class UnfusedModule(nn.Module):
    """Replaces a module with fused parameters, and has a layer for every matrix in them.

    Attributes:
        fused: The module that is replaced, with its settings and, while they are shared, its parameters. It
            is not a submodule; its submodules are also submodules of this module.
        observed: If True, every layer is called, even with no vectors, and inputs are marked
            (``vectors.mark``), so that calibration can match two runs in which experts get different tokens.
    """

    fused: Any
    observed: bool = False

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.__dict__["fused"] = fused
        for name, child in fused.named_children():
            self.add_module(name, child)

    def __getattr__(self, name: str) -> Any:
        """Give other code access to the settings of the fused module."""
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
        """Make the module that replaces a fused one; its layers share the memory of the fused parameters."""
        raise NotImplementedError

    def sources(self) -> dict[str, list[tuple[str, str]]]:
        """Fused parameter -> (layer, its parameter) for every matrix in it, in order."""
        raise NotImplementedError

    def join(self, name: str, tensors: list[Tensor]) -> Tensor:
        """Build the fused parameter of that name from the tensors of its layers."""
        raise NotImplementedError

    def split(self, name: str, tensor: Tensor) -> list[Tensor]:
        """The reverse of :meth:`join`: views of a fused parameter, one for each layer."""
        raise NotImplementedError

    def fused_shape(self, name: str) -> torch.Size:
        """Shape of the fused parameter of that name, even if it was dropped."""
        shapes = (getattr(self.get_submodule(layer), own).shape for layer, own in self.sources()[name])
        return self.join(name, [torch.empty(shape, device="meta") for shape in shapes]).shape

    def fused_parameters(self) -> dict[str, nn.Parameter | None]:
        """The fused parameters by name; None for those that were dropped."""
        return {name: getattr(*_place(self.fused, name)) for name in self.sources()}

    def set_fused_parameters(self, parameters: dict[str, nn.Parameter | None]) -> None:
        """Set fused parameters by name; None drops one."""
        for name, parameter in parameters.items():
            owner, own = _place(self.fused, name)
            owner._parameters[own] = parameter

    def to_fused(self, names: Iterable[str]) -> nn.Module:
        """Rebuild the named fused parameters from the layers; returns the fused module."""
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
    """Make a linear layer that shares the memory of a matrix (m, n) and a bias (m).

    Parameters are used as they are; other tensors become parameters with ``requires_grad``.
    """
    m, n = weight.shape
    layer = nn.Linear(n, m, bias is not None, device="meta", dtype=weight.dtype)
    layer.weight = _parameter(weight, requires_grad)
    if bias is not None:
        layer.bias = _parameter(bias, requires_grad)
    return layer


def _parameter(tensor: Tensor, requires_grad: bool) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach(), requires_grad)
