"""Which dense layers can be replaced, and by what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .conv import DibaConv1d, DibaConv2d
from .embedding import DibaEmbedding
from .layer import FactoredLayer
from .linear import DibaLinear

if TYPE_CHECKING:
    from torch import Tensor, nn

    import diba

__all__ = [
    "LAYERS",
    "compressed",
    "dense_numbers_more",
    "distinct",
    "factored_matrix",
    "layer_class",
    "obstacle",
]

LAYERS: tuple[type[FactoredLayer], ...] = (DibaLinear, DibaConv1d, DibaConv2d, DibaEmbedding)


def layer_class(module: nn.Module) -> type[FactoredLayer] | None:
    """The class for layers of this kind, whether or not every setting is possible; None: no dense layer.

    ``nn.Linear``, transformers' ``Conv1D``, ``nn.Conv1d``, ``nn.Conv2d``, ``nn.Embedding`` and subclasses
    that leave ``forward`` alone. Subclasses that compute something else are not replaced, nor is the
    ``out_proj`` of ``nn.MultiheadAttention``, whose weight that module reads without calling the layer.
    """
    return next((layer for layer in LAYERS if layer.replaces(module)), None)


def obstacle(module: nn.Module) -> str | None:
    """Why a dense layer cannot be replaced, as ``"groups is 32, must be 1"``; None: it can, or is none."""
    layer = layer_class(module)
    return None if layer is None else layer.obstacle(module)


def factored_matrix(module: nn.Module) -> Tensor | None:
    """The matrix, shape (m, n), that would be factored: a view of the weight; None: not replaceable.

    ``weight`` of ``nn.Linear`` and ``nn.Embedding``, its transpose for transformers' ``Conv1D``,
    ``weight.flatten(1)`` for convolutions.
    """
    layer = layer_class(module)
    return None if layer is None or layer.obstacle(module) else layer.matrix_of(module)


def compressed(module: nn.Module, f: diba.Factorization | None = None, **solve_options: Any) -> FactoredLayer:
    """The layer that replaces a dense one: ``from_dense`` of the class for its kind.

    Args:
        module: The dense layer.
        f: Factors of its matrix; None: ``diba.solve(matrix, **solve_options)``.
        **solve_options: For ``diba.solve``, as ``bits_per_weight=2``.

    Raises:
        TypeError: ``module`` is no dense layer.
        ValueError: a setting of it is not possible, or ``f`` has another shape.
    """
    layer = layer_class(module)
    if layer is None:
        raise TypeError(
            f"module is a {type(module).__name__}; it must be a torch.nn.Linear, Embedding, Conv1d or "
            f"Conv2d, or transformers' Conv1D, with their own forward"
        )
    return layer.from_dense(module, f, **solve_options)


def distinct(model: nn.Module) -> list[FactoredLayer]:
    """The factored layers of a model in module order, the first of those that share their factors."""
    found: dict[int, FactoredLayer] = {}
    for module in model.modules():
        if isinstance(module, FactoredLayer):
            found.setdefault(id(module.b1), module)
    return list(found.values())


def dense_numbers_more(model: nn.Module, embeddings: bool = True) -> int:
    """How many parameters more a model would have with dense layers in place of the factored ones.

    ``embeddings=False``: than it has outside of its embeddings, those that share their factors with one
    included.
    """
    more = 0
    for layer in distinct(model):
        more -= sum(d.numel() for d in layer.diagonals())
        if embeddings or not isinstance(layer, DibaEmbedding):
            more += layer.weight_shape.numel()
    return more
