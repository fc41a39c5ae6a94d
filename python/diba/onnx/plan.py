"""Which layers of a model become nodes of their own: compressed ones, dense embeddings, output layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from ..torch.model.coding import output_layer
from ..torch.modules.apb import DibaAPBLayer
from ..torch.modules.apb_layers import DibaAPBConv2d, DibaAPBLinear
from ..torch.modules.bitwise import DibaBitLayer
from ..torch.modules.bitwise_layers import DibaBitConv2d, DibaBitLinear
from ..torch.modules.coded import CodedLayer
from ..torch.modules.coded_layers import DibaCodedEmbedding
from ..torch.modules.conv import Convolution
from ..torch.modules.embedding import DibaEmbedding
from ..torch.modules.kinds import replaceable
from ..torch.modules.layer import FactoredLayer
from ..torch.modules.linear import DibaLinear
from ..torch.modules.state import as_numpy
from .places import CodedHead, CodedRows, ConvPlace, EmbeddingPlace, LinearPlace, Place, TableHead, TableRows
from .tables import coded, rounded

if TYPE_CHECKING:
    from .tables import Table, TableBits

__all__ = ["plan"]

_PACKED = (
    (DibaLinear, LinearPlace),
    (DibaAPBLinear, LinearPlace),
    (DibaBitLinear, LinearPlace),
    (Convolution, ConvPlace),
    (DibaAPBConv2d, ConvPlace),
    (DibaBitConv2d, ConvPlace),
    (DibaEmbedding, EmbeddingPlace),
)

_SMALL = 2**14  # entries of a table that are left as they are: 64 KiB at most


def plan(model: nn.Module, embeddings: TableBits | None, head: TableBits | None) -> list[Place]:
    """The layers of a model that become nodes of their own, numbered.

    Args:
        model: Any module.
        embeddings: Bits of dense embeddings of 64 KiB or more; None: they stay as they are.
        head: Bits of a dense output layer; None: it stays as it is.
    """
    places: list[Place] = []
    kind: Any
    packed: dict[int, str] = {}
    tables: dict[Any, tuple[str, Table]] = {}
    output = _output_layer(model)
    shared = None if output is None else id(output.weight)
    for path, module in model.named_modules():
        name = path or type(module).__name__
        if isinstance(module, (FactoredLayer, DibaAPBLayer, DibaBitLayer)):
            kind = next(place for layer, place in _PACKED if isinstance(module, layer))
            made: list[Any] = [packed.setdefault(id(getattr(module, module.bit_names[0])), name)]
        elif isinstance(module, CodedLayer):
            kind = CodedRows if isinstance(module, DibaCodedEmbedding) else CodedHead
            if module.identity not in tables:
                tables[module.identity] = name, coded(module.matrix_codes())
            made = [*tables[module.identity]]
        elif module is output or (_is_table(module) and module.weight.numel() >= _SMALL):
            kind, width = (TableHead, head) if module is output else (TableRows, embeddings)
            if width is None and id(module.weight) != shared:
                continue
            key = id(module.weight), width or 32
            if key not in tables:
                tables[key] = name, rounded(as_numpy(module.weight), width or 32)
            made = [*tables[key]]
        else:
            continue
        places.append(kind(name, module, *made))
        places[-1].number = len(places) - 1
    return places


def _output_layer(model: nn.Module) -> Any:
    """The dense layer that makes a language model's scores of tokens; None: there is none."""
    found = output_layer(model)
    return found if isinstance(found, nn.Linear) and replaceable(found) is not None else None


def _is_table(module: nn.Module) -> bool:
    """Whether it is a dense embedding, also of a class that scales the rows."""
    return (
        isinstance(module, nn.Embedding)
        and type(module.weight) is nn.Parameter
        and module.weight.is_floating_point()
        and module.max_norm is None
    )
