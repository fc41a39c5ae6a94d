"""What layers that are trained with few bits, in place of dense ones, have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..modules.dense import assigned
from ..modules.kinds import kind_of
from ..modules.patches import SETTINGS

if TYPE_CHECKING:
    from typing import Self

    from ..modules.dense import Kind

__all__ = ["TrainedConv2d", "TrainedLayer", "TrainedLinear"]


class TrainedLayer(nn.Module):
    """A layer with the parameters of a dense one, whose weight is made of few bits in use."""

    weight: Tensor
    bias: Any

    _form: ClassVar[str]
    """The field of ``dense.Kind`` that has the class of the frozen layer."""

    _kind: ClassVar[str]
    """The name of the kind of dense layers that it replaces."""

    _diba_own: ClassVar[frozenset[str]]
    """Attributes that the layer sets itself; all others are kept when it is frozen."""

    _tensors: ClassVar[frozenset[str]]
    """Names of tensors that the dense layer does not have, of the layer and of the frozen one."""

    @property
    def matrix(self) -> Tensor:
        """The latent weight as a matrix (m, n), one row for each output."""
        matrix: Tensor = self.weight.flatten(1)
        return matrix

    @classmethod
    def from_dense(cls, module: nn.Module, **settings: Any) -> Self:
        """Make a layer that trains on from a dense one, whose parameters it takes.

        Args:
            module: An ``nn.Linear``, or an ``nn.Conv2d``.
            **settings: The arguments that the dense layer does not have.

        Raises:
            TypeError: ``module`` is another layer.
            ValueError: It cannot be replaced, or a setting is out of range.
        """
        kind = cls._checked(module)
        dense: Any = module
        sizes, geometry = cls._arguments(dense)
        with torch.device("meta"):
            new = cls(*sizes, **geometry, bias=dense.bias is not None, **settings)
        new.weight, new.bias = dense.weight, dense.bias
        new.__dict__.update(assigned(kind, dense))
        new._begin()
        return new.train(dense.training)

    @classmethod
    def _checked(cls, module: nn.Module) -> Kind:
        """The kind of a dense layer, which the class can replace."""
        kind = kind_of(module)
        if kind is None or kind.name != cls._kind:
            raise TypeError(f"module is a {type(module).__name__}; it must be a torch.nn.{cls._kind}")
        reason = kind.obstacle(module)
        taken = cls._diba_own | cls._tensors
        for own in assigned(kind, module) if reason is None else ():
            if own in taken or hasattr(cls, own) or hasattr(getattr(kind, cls._form), own):
                reason = f"its attribute {own!r} would be lost"
        if reason is not None:
            raise ValueError(f"module cannot be replaced: {reason}; leave it dense")
        return kind

    @classmethod
    def _arguments(cls, dense: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The sizes of a dense layer, and what else it was made with apart from the bias."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Set what depends on the weight, which was just taken from a dense layer."""

    def _facts(self) -> str:
        """What ``print`` shows beyond the dense layer's arguments."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The arguments of the layer."""
        return f"{super().extra_repr()}, {self._facts()}"


class TrainedLinear(TrainedLayer, nn.Linear):
    """The base of such layers that are an ``nn.Linear``."""

    _kind = "Linear"

    @classmethod
    def _arguments(cls, dense: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (dense.in_features, dense.out_features), {}


class TrainedConv2d(TrainedLayer, nn.Conv2d):
    """The base of such layers that are an ``nn.Conv2d``; ``groups`` is 1."""

    _kind = "Conv2d"

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, **geometry: Any) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **geometry)

    @classmethod
    def _arguments(cls, dense: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        sizes = dense.in_channels, dense.out_channels, dense.kernel_size
        return sizes, {name: getattr(dense, name) for name in SETTINGS}
