"""Which layers of a model become nodes of their own: factored ones, dense embeddings, the output layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from ..torch.modules.conv import Convolution
from ..torch.modules.embedding import DibaEmbedding
from ..torch.modules.kinds import replaceable
from ..torch.modules.layer import FactoredLayer
from ..torch.modules.linear import DibaLinear
from ..torch.modules.state import as_numpy
from .places import ConvPlace, EmbeddingPlace, LinearPlace, Place, TableHead, TableRows
from .tables import Table, rounded

if TYPE_CHECKING:
    from .tables import TableBits

__all__ = ["plan"]

_FACTORED = ((DibaLinear, LinearPlace), (Convolution, ConvPlace), (DibaEmbedding, EmbeddingPlace))

_SMALL = 2**14  # entries of a table that are left as they are: 64 KiB at most

_BLOCKS = {8: (128, 64, 32, 16), 4: (32, 16)}
"""Entries that share a scale, best first; the first that divides a row is taken. onnxruntime's product with
blocks takes powers of two from 16 on. At 4 bits, steps are coarse and small blocks worth their scales."""


def plan(model: nn.Module, embeddings: TableBits | None, head: TableBits | None) -> list[Place]:
    """The layers of a model that become nodes of their own, numbered.

    Args:
        model: Any module.
        embeddings: Bits of dense embeddings of 64 KiB or more; None: they stay as they are.
        head: Bits of a dense output layer; None: it stays as it is.
    """
    places: list[Place] = []
    kind: Any
    factored: dict[int, str] = {}
    tables: dict[tuple[int, int], tuple[str, Table]] = {}
    output = _output_layer(model)
    shared = None if output is None else id(output.weight)
    for path, module in model.named_modules():
        name = path or type(module).__name__
        if isinstance(module, FactoredLayer):
            kind = next(place for layer, place in _FACTORED if isinstance(module, layer))
            made: list[Any] = [factored.setdefault(id(module.b1), name)]
        elif module is output or (_is_table(module) and module.weight.numel() >= _SMALL):
            kind, bits = (TableHead, head) if module is output else (TableRows, embeddings)
            whole = module is not output and not (id(module.weight) == shared and embeddings == head)
            if bits is None and id(module.weight) != shared:
                continue
            key = id(module.weight), bits or 32
            if key not in tables:
                tables[key] = name, _table(module, bits or 32, whole)
            made = [*tables[key]]
        else:
            continue
        places.append(kind(name, module, *made))
        places[-1].number = len(places) - 1
    return places


def _output_layer(model: nn.Module) -> Any:
    """The dense layer that makes a language model's scores of tokens; None: there is none."""
    getter: Any = getattr(model, "get_output_embeddings", None)
    found = None if getter is None else getter()
    return found if isinstance(found, nn.Linear) and replaceable(found) is not None else None


def _is_table(module: nn.Module) -> bool:
    """Whether it is a dense embedding, also of a class that scales the rows."""
    return (
        isinstance(module, nn.Embedding)
        and type(module.weight) is nn.Parameter
        and module.weight.is_floating_point()
        and module.max_norm is None
    )


def _table(module: Any, bits: int, whole: bool) -> Table:
    """The table of a layer; ``whole``: rows need not be cut into blocks for a product.

    Rows of odd sizes, which cannot be cut, are stored at 16 bits.
    """
    matrix = as_numpy(module.weight)
    columns = matrix.shape[1]
    if bits >= 16:
        return rounded(matrix, bits, columns)
    fitting = [block for block in _BLOCKS[bits] if columns % block == 0]
    if columns % 2 or not (fitting or whole):  # no product takes such blocks
        return rounded(matrix, 16, columns)
    return rounded(matrix, bits, columns if not fitting or (whole and bits == 8) else fitting[0])
