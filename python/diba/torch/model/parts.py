"""Modules that hold several matrices in one parameter, in the form of modules with a layer for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

__all__ = ["Parallel", "Parts", "linear"]


class Parallel(nn.ModuleList):
    """Layers of which none reads what another one of them makes."""


class Parts(nn.Module):
    """Stands for another module, and calls layers where that one multiplies by parts of its parameters.

    Attributes:
        whole: The module it was made of: its settings and, while they are shared, its parameters. It is no
            submodule; the submodules it has are those of this one, too.
        watched: Layers without vectors are called with none, and what others are called with is marked
            (``vectors.mark``): so a run can be matched with another one in which vectors go elsewhere.
    """

    whole: Any
    watched: bool = False

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.__dict__["whole"] = whole
        for name, child in whole.named_children():
            self.add_module(name, child)

    def __getattr__(self, name: str) -> Any:
        """Settings of the module, for other code that reads them."""
        settings = vars(self.__dict__.get("whole", self))
        if name in settings and not name.startswith("_"):
            return settings[name]
        return super().__getattr__(name)

    @classmethod
    def recognises(cls, module: nn.Module) -> bool:
        """Whether :meth:`of` takes a module."""
        raise NotImplementedError

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """What stands for a module, with layers on the memory of its parameters."""
        raise NotImplementedError

    def sources(self) -> dict[str, list[tuple[str, str]]]:
        """Parameter of the module -> (layer, its parameter) for every part, in order."""
        raise NotImplementedError

    def joined(self, name: str, tensors: list[Tensor]) -> Tensor:
        """The parameter of that name, of its parts."""
        raise NotImplementedError

    def split(self, name: str, tensor: Tensor) -> list[Tensor]:
        """The reverse: views of the parameter of that name."""
        raise NotImplementedError

    def held(self) -> dict[str, nn.Parameter | None]:
        """The parameters of the module that are made of parts here."""
        return {name: getattr(*_place(self.whole, name)) for name in self.sources()}

    def hold(self, parameters: dict[str, nn.Parameter | None]) -> None:
        """Set some of them."""
        for name, parameter in parameters.items():
            owner, own = _place(self.whole, name)
            owner._parameters[own] = parameter

    def together(self, names: Iterable[str]) -> nn.Module:
        """The module itself; these of its parameters get values and wish for gradients of dense layers."""
        with torch.inference_mode(False), torch.no_grad():
            for name in names:
                layers = self.sources()[name]
                tensors = [getattr(self.get_submodule(layer), own) for layer, own in layers]
                asked = any(t.requires_grad for t in tensors)
                self.hold({name: nn.Parameter(self.joined(name, tensors), requires_grad=asked)})
        result: nn.Module = self.whole.train(self.training)
        return result


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, own = name.rpartition(".")
    return module.get_submodule(owner), own


def linear(weight: Tensor, bias: Tensor | None, asked: bool) -> nn.Linear:
    """A layer on the memory of a matrix, shape (m, n), and a bias (m); ``asked``: it wants gradients.

    A parameter becomes the layer's own.
    """
    m, n = weight.shape
    layer = nn.Linear(n, m, bias is not None, device="meta", dtype=weight.dtype)
    layer.weight = _parameter(weight, asked)
    if bias is not None:
        layer.bias = _parameter(bias, asked)
    return layer


def _parameter(tensor: Tensor, asked: bool) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach(), requires_grad=asked)
