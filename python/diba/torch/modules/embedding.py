"""Embeddings on packed factors: the rows that are asked for, never the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..._internal import check
from ..ops import (
    operators,  # noqa: F401  # ops registers torch.ops.diba
    reference,  # ops registers torch.ops.diba
)
from .dense import Kind
from .layer import FactoredLayer, check_factorization

if TYPE_CHECKING:
    from typing import Self

    import diba

    from ..._internal.check import Alphabet
    from .layer import Sizes

__all__ = ["DibaEmbedding", "EmbeddingKind"]

_times_bits = torch.ops.diba.times_bits.default


class DibaEmbedding(FactoredLayer):
    """``nn.Embedding`` with a factored table: row i is ``d1[i] * ((B1[i] * d2) B2) * d3``.

    A look-up unpacks the rows of B1 that are asked for, k entries each. ``weight`` serves tied output
    layers, ``F.linear(x, embedding.weight)``, at the price of a dense table for each call.

    Args:
        num_embeddings: m, the number of rows.
        embedding_dim: n, the size of one.
        k: Inner dimension.
        padding_idx: A row that gives no gradients to the factors. It is a row like any other, as in
            ``nn.Embedding``, and zero after ``reset_parameters``; other rows do change it, by d2 and d3.
        alphabet: ``"binary"`` (entries 0/1) or ``"sign"`` (-1/+1).
        device: Where the tensors are made; None: torch's default.
        dtype: The dtype of the returned rows; None: torch's default. The diagonals are float32.

    Raises:
        TypeError: a size is not an integer, or ``dtype`` is not floating.
        ValueError: a size is below 1, ``padding_idx`` is no row, or the alphabet is unknown.

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
        self.padding_idx = _padding_row(padding_idx, m)  # first, for reset_parameters
        super().__init__(m, n, k, alphabet=alphabet, bias=False, device=device, dtype=dtype)
        self.num_embeddings, self.embedding_dim = m, n

    def forward(self, ids: Tensor) -> Tensor:
        """From row numbers of any shape (...) to rows, shape (..., embedding_dim), in the layer's ``dtype``.

        Raises:
            TypeError: ``ids`` is no tensor of int32 or int64.
            IndexError: a number is not a row.
        """
        if ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"ids are {ids.dtype}; they must be torch.int64 or torch.int32; use ids.long()")
        self._settle()
        bits = functional.embedding(ids, self.b1)
        scale = functional.embedding(ids, self.d1[:, None])
        inner = reference.unpack(bits, self.k, self.sign, self.d2.dtype) * self.d2
        rows: Tensor = _times_bits(inner, self.b2, self.embedding_dim, self.sign, True) * self.d3 * scale
        largest = torch.finfo(self.dtype).max  # as the dense rows are finite
        rows = rows.clamp(-largest, largest).to(self.dtype)
        if self.padding_idx is not None and rows.requires_grad:
            rows = torch.where((ids == self.padding_idx)[..., None], rows.detach(), rows)
        return rows

    def reset_parameters(self) -> None:
        """A random start: rows as large as those of a fresh ``nn.Embedding``, the padding row zero."""
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

    @classmethod
    def from_factorization(
        cls,
        f: diba.Factorization,
        *,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The layer of these factors, shape (num_embeddings, embedding_dim)."""
        check_factorization(f)
        facts: dict[str, Any] = {"alphabet": f.alphabet, "dtype": dtype, "device": "meta"}
        return cls(*f.shape, f.k, padding_idx=padding_idx, **facts)._fill(f, None, device)


def _padding_row(padding_idx: int | None, rows: int) -> int | None:
    """A row number from 0 on; negative ones count from the end."""
    if padding_idx is None:
        return None
    index = check.integer(padding_idx, "padding_idx", minimum=-rows, maximum=rows - 1)
    return index % rows


class EmbeddingKind(Kind):
    """``nn.Embedding``, whose inputs are row numbers: it multiplies nothing."""

    def _impossible(self, module: Any) -> str | None:
        if module.max_norm is not None:
            return f"max_norm is {module.max_norm}, must be None: looked-up rows would have to be rewritten"
        for name in ("scale_grad_by_freq", "sparse"):
            if getattr(module, name):
                return f"{name} is True, must be False: rows have no gradients of their own"
        return None

    def input_size(self, module: Any) -> int | None:
        """None: see above."""
        return None

    def _built(self, module: Any, sizes: Sizes | diba.Factorization) -> Any:
        options: dict[str, Any] = {"alphabet": sizes.alphabet, "dtype": module.weight.dtype}
        return self.factored(*sizes.shape, sizes.k, padding_idx=module.padding_idx, **options, device="meta")

    def _dense(self, layer: Any) -> Any:
        sizes = layer.num_embeddings, layer.embedding_dim, layer.padding_idx
        return nn.Embedding(*sizes, device="meta", dtype=layer.dtype)
