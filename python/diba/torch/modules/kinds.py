"""The kinds of dense layers that can be factored, and what the rest of diba asks of them.

A new kind is a module of its own, as ``conv.py`` is one, and an entry of ``KINDS``. Selection, calibration,
conversion and checkpoints look at no class themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from .conv import ConvolutionKind, DibaConv1d, DibaConv2d
from .embedding import DibaEmbedding, EmbeddingKind
from .linear import DibaLinear, LinearKind, TransformersConv1DKind
from .state import as_numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    import diba

    from .dense import Kind
    from .layer import FactoredLayer

__all__ = [
    "KINDS",
    "compressed",
    "dense_matrix",
    "factored_matrix",
    "input_layout",
    "input_size",
    "kind_of",
    "replaceable",
]

KINDS: tuple[Kind, ...] = (
    LinearKind("Linear", nn.Linear, DibaLinear, "a torch.nn.Linear"),
    TransformersConv1DKind("Conv1D", None, DibaLinear, "a Conv1D of transformers"),
    ConvolutionKind("Conv1d", nn.Conv1d, DibaConv1d, "a torch.nn.Conv1d", "convolutions", axes=1),
    ConvolutionKind("Conv2d", nn.Conv2d, DibaConv2d, "a torch.nn.Conv2d", "convolutions", axes=2),
    EmbeddingKind("Embedding", nn.Embedding, DibaEmbedding, "a torch.nn.Embedding", "embeddings"),
)
for _kind in KINDS:
    _kind.factored.kinds = (*_kind.factored.kinds, _kind)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a dense layer by its class, whether or not it can be replaced; None: no dense layer."""
    return next((kind for kind in KINDS if kind.covers(module)), None)


def replaceable(module: nn.Module) -> Kind | None:
    """The kind of a dense layer that can be replaced; None: it cannot, or is none."""
    kind = kind_of(module)
    return kind if kind is not None and kind.obstacle(module) is None else None


def factored_matrix(module: nn.Module) -> Tensor | None:
    """The matrix, shape (m, n), that would be factored: a view of the weight; None: not replaceable.

    ``weight`` of ``nn.Linear`` and ``nn.Embedding``, its transpose for transformers' ``Conv1D``,
    ``weight.flatten(1)`` for convolutions.
    """
    kind = replaceable(module)
    return None if kind is None else kind.matrix(module)


def dense_matrix(module: nn.Module) -> NDArray[Any]:
    """The matrix of a replaceable layer, shape (m, n), for NumPy: float32 (float64 if the weight is).

    Raises:
        ValueError: the layer is not replaceable.
    """
    matrix = factored_matrix(module)
    if matrix is None:
        raise ValueError(f"{type(module).__name__} is no dense layer that can be factored")
    return as_numpy(matrix)


def input_size(module: nn.Module) -> int | None:
    """Length n of the vectors that a dense layer multiplies its matrix by; None: it is none, or has none."""
    kind = kind_of(module)
    return None if kind is None else kind.input_size(module)


def input_layout(module: nn.Module) -> object:
    """Dense layers of equal layouts make the same vectors of the same input."""
    kind = kind_of(module)
    return None if kind is None else kind.input_layout(module)


def compressed(module: nn.Module, f: diba.Factorization | None = None, **solve_options: Any) -> FactoredLayer:
    """The layer that takes a dense one's place, whatever its kind: see :meth:`FactoredLayer.from_dense`.

    Raises:
        TypeError: ``module`` is no dense layer.
        ValueError: it cannot be replaced, or ``f`` has another shape.
    """
    kind = kind_of(module)
    if kind is None:
        known = ", ".join(kind.described for kind in KINDS)
        raise TypeError(f"module is a {type(module).__name__}; it must be one of: {known}")
    return kind.replacement(module, f, **solve_options)
