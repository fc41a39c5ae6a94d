"""The registry of the kinds of dense layers that can be factored, and the questions about them.

To add a kind, write a module like ``conv.py`` and add an entry to ``KINDS``. Selection, calibration,
conversion and checkpoints ask this registry and check no classes themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from .apb_layers import DibaAPBConv2d, DibaAPBLinear
from .bitwise_layers import DibaBitConv2d, DibaBitLinear
from .coded_layers import DibaCodedEmbedding, DibaCodedLinear
from .conv import ConvolutionKind, DibaConv1d, DibaConv2d
from .embedding import DibaEmbedding, EmbeddingKind
from .linear import DibaLinear, LinearKind, TransformersConv1DKind
from .state import as_numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    import diba

    from ..._internal.bit_weights import BitWeights
    from ..._internal.codes import Codes
    from .dense import Kind
    from .state import CompressedLayer

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
    LinearKind(
        "Linear",
        nn.Linear,
        DibaLinear,
        "a torch.nn.Linear",
        coded=DibaCodedLinear,
        apb=DibaAPBLinear,
        bitwise=DibaBitLinear,
    ),
    TransformersConv1DKind("Conv1D", None, DibaLinear, "a Conv1D of transformers"),
    ConvolutionKind("Conv1d", nn.Conv1d, DibaConv1d, "a torch.nn.Conv1d", "convolutions", axes=1),
    ConvolutionKind(
        "Conv2d",
        nn.Conv2d,
        DibaConv2d,
        "a torch.nn.Conv2d",
        "convolutions",
        axes=2,
        apb=DibaAPBConv2d,
        bitwise=DibaBitConv2d,
    ),
    EmbeddingKind(
        "Embedding",
        nn.Embedding,
        DibaEmbedding,
        "a torch.nn.Embedding",
        "embeddings",
        coded=DibaCodedEmbedding,
    ),
)
for _kind in KINDS:
    _kind.factored.kinds = (*_kind.factored.kinds, _kind)
    for _other in (_kind.coded, _kind.apb, _kind.bitwise):
        if _other is not None:
            _other.kinds = (*_other.kinds, _kind)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a dense layer by its class, whether or not it can be replaced; None: not a dense layer."""
    return next((kind for kind in KINDS if kind.covers(module)), None)


def replaceable(module: nn.Module) -> Kind | None:
    """The kind of a dense layer that can be replaced; None: it cannot be, or is not a dense layer."""
    kind = kind_of(module)
    return kind if kind is not None and kind.obstacle(module) is None else None


def factored_matrix(module: nn.Module) -> Tensor | None:
    """The matrix of shape (m, n) that would be factored, a view of the weight; None: not replaceable.

    ``weight`` of ``nn.Linear`` and ``nn.Embedding``, its transpose for transformers' ``Conv1D``,
    ``weight.flatten(1)`` for convolutions.
    """
    kind = replaceable(module)
    return None if kind is None else kind.matrix(module)


def dense_matrix(module: nn.Module) -> NDArray[Any]:
    """The matrix of a replaceable layer as a NumPy array (m, n), float32 (float64 if the weight is).

    Raises:
        ValueError: The layer is not replaceable.
    """
    matrix = factored_matrix(module)
    if matrix is None:
        raise ValueError(f"{type(module).__name__} is not a dense layer that can be factored")
    return as_numpy(matrix)


def input_size(module: nn.Module) -> int | None:
    """Length n of the vectors that a dense layer multiplies; None: it multiplies none, or is not dense."""
    kind = kind_of(module)
    return None if kind is None else kind.input_size(module)


def input_layout(module: nn.Module) -> object:
    """A key: dense layers with equal keys read the same vectors from the same input."""
    kind = kind_of(module)
    return None if kind is None else kind.input_layout(module)


def compressed(
    module: nn.Module,
    f: diba.Factorization | Codes | diba.APB | BitWeights | None = None,
    **solve_options: Any,
) -> CompressedLayer:
    """Make a compressed layer from a dense one of any kind: see :meth:`FactoredLayer.from_dense`.

    Raises:
        TypeError: ``module`` is not a dense layer.
        ValueError: It cannot be replaced, or ``f`` has another shape.
    """
    kind = kind_of(module)
    if kind is None:
        known = ", ".join(kind.described for kind in KINDS)
        raise TypeError(f"module is a {type(module).__name__}; it must be one of: {known}")
    return kind.replacement(module, f, **solve_options)
