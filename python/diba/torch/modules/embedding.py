"""Factored embeddings, which compute the rows that are looked up and never the whole table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..._internal import check
from ..ops import operators as _operators  # noqa: F401  (registers torch.ops.diba)
from ..ops import reference
from .dense import Kind
from .layer import FactoredLayer, check_factorization
from .state import CompressedLayer

if TYPE_CHECKING:
    from typing import Self

    import diba

    from ..._internal.check import Alphabet
    from ..._internal.codes import Codes
    from .layer import Sizes
    from .state import CodeSizes

__all__ = ["DibaEmbedding", "EmbeddingKind", "TableLayer", "check_ids", "padding_row"]

_times_bits = torch.ops.diba.times_bits.default


class TableLayer(CompressedLayer):
    """What embeddings share, whatever their tables are stored in.

    Attributes:
        num_embeddings: m, the number of rows.
        embedding_dim: n, the size of a row.
        padding_idx: A row whose look-ups give no gradients, or None.
    """

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None

    def reset_parameters(self) -> None:
        """Set random rows, as large as those of a new ``nn.Embedding``, the padding row zero."""
        super().reset_parameters()
        if self.padding_idx is not None and not self.d1.is_meta:
            with torch.no_grad():
                self.d1[self.padding_idx] = 0

    def _initial_rms(self) -> float:
        return 1.0

    def extra_repr(self) -> str:
        """The arguments of the layer and its size."""
        padding = "" if self.padding_idx is None else f"padding_idx={self.padding_idx}, "
        return f"{self.num_embeddings}, {self.embedding_dim}, {padding}{super().extra_repr()}"

    def _finished(self, ids: Tensor, rows: Tensor) -> Tensor:
        """The rows that were looked up, in the layer's dtype; padding gives no gradients."""
        rows = self._in_dtype(rows)
        if self.padding_idx is not None and rows.requires_grad:
            rows = torch.where((ids == self.padding_idx)[..., None], rows.detach(), rows)
        return rows


class DibaEmbedding(TableLayer, FactoredLayer):
    """``nn.Embedding`` with a factored table: row i is ``d1[i] * ((B1[i] * d2) B2) * d3``.

    A look-up unpacks the requested rows of B1, k entries each. ``F.linear(x, embedding.weight)``, as a tied
    output layer may compute it, works, but builds the dense table in each call.

    Args:
        num_embeddings: m, the number of rows.
        embedding_dim: n, the size of a row.
        k: Inner dimension.
        padding_idx: A row whose look-ups give no gradients to the factors. ``reset_parameters`` makes it
            zero, as in ``nn.Embedding``; training other rows may change it, through d2 and d3.
        alphabet: ``"binary"`` (entries 0/1) or ``"sign"`` (-1/+1).
        device: Device of the tensors; None: torch's default.
        dtype: Dtype of the returned rows; None: torch's default. The diagonals are float32.

    Raises:
        TypeError: A size is not an integer, or ``dtype`` is not a floating-point dtype.
        ValueError: A size is below 1, ``padding_idx`` is not a row, or the alphabet is unknown.

    Notes:
        ``max_norm``, ``scale_grad_by_freq`` and ``sparse`` of ``nn.Embedding`` are not supported.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        k: int,
        *,
        padding_idx: int | None = None,
        alphabet: Alphabet = "binary",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        m = check.positive_int(num_embeddings, "num_embeddings")
        n = check.positive_int(embedding_dim, "embedding_dim")
        self.padding_idx = padding_row(padding_idx, m)  # set first: reset_parameters needs it
        super().__init__(m, n, k, alphabet=alphabet, bias=False, device=device, dtype=dtype)
        self.num_embeddings, self.embedding_dim = m, n

    def forward(self, ids: Tensor) -> Tensor:
        """Look up rows: ids of any shape (...) give shape (..., embedding_dim) in the layer's ``dtype``.

        Raises:
            TypeError: ``ids`` is not an int32 or int64 tensor.
            IndexError: An id is not the number of a row.
        """
        check_ids(ids)
        self._settle()
        bits = functional.embedding(ids, self.b1)
        scale = functional.embedding(ids, self.d1[:, None])
        inner = reference.unpack(bits, self.k, self.sign, self.d2.dtype) * self.d2
        rows: Tensor = _times_bits(inner, self.b2, self.embedding_dim, self.sign, True) * self.d3 * scale
        return self._finished(ids, rows)

    @classmethod
    def from_factorization(
        cls,
        f: diba.Factorization,
        *,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Make a layer from factors of shape (num_embeddings, embedding_dim)."""
        check_factorization(f)
        facts: dict[str, Any] = {"alphabet": f.alphabet, "dtype": dtype, "device": "meta"}
        return cls(*f.shape, f.k, padding_idx=padding_idx, **facts)._fill(f, None, device)


def check_ids(ids: Tensor) -> None:
    """Require numbers of rows."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"ids are {ids.dtype}; they must be torch.int64 or torch.int32; use ids.long()")


def padding_row(padding_idx: int | None, rows: int) -> int | None:
    """The row number, with negative numbers counted from the end."""
    if padding_idx is None:
        return None
    index = check.integer(padding_idx, "padding_idx", minimum=-rows, maximum=rows - 1)
    return index % rows


class EmbeddingKind(Kind):
    """The kind of ``nn.Embedding``, whose inputs are row numbers: it multiplies no vectors."""

    def _impossible(self, module: Any) -> str | None:
        if module.max_norm is not None:
            return f"max_norm is {module.max_norm}, must be None: it would change the rows that are looked up"
        for name in ("scale_grad_by_freq", "sparse"):
            if getattr(module, name):
                return (
                    f"{name} is True, must be False: rows share their factors, and have no separate gradients"
                )
        return None

    def input_size(self, module: Any) -> int | None:
        """None: an embedding multiplies no vectors."""
        return None

    def _built(self, module: Any, sizes: Sizes | diba.Factorization) -> Any:
        options: dict[str, Any] = {"alphabet": sizes.alphabet, "dtype": module.weight.dtype}
        return self.factored(*sizes.shape, sizes.k, padding_idx=module.padding_idx, **options, device="meta")

    def _coded(self, module: Any, sizes: CodeSizes | Codes) -> Any:
        options: dict[str, Any] = {"bits": sizes.bits, "group": sizes.group, "dtype": module.weight.dtype}
        return self.coded(*sizes.shape, padding_idx=module.padding_idx, **options, device="meta")

    def _dense(self, layer: Any) -> Any:
        sizes = layer.num_embeddings, layer.embedding_dim, layer.padding_idx
        return nn.Embedding(*sizes, device="meta", dtype=layer.dtype)
