"""Embeddings and output layers whose table has 8 or 4 bits an entry, for look-ups and products alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..._internal import check
from ..ops import codes as operators
from .coded import CodedLayer
from .embedding import TableLayer, check_ids, padding_row

__all__ = ["DibaCodedEmbedding", "DibaCodedLinear"]


class DibaCodedLinear(CodedLayer):
    """``nn.Linear`` with 8 or 4 bits an entry, such as the output layer of a language model.

    A product reads the codes where they lie; the activations of a vector are rounded to 10 to 16 bits, which
    costs nothing that can be measured in a model.

    Args:
        in_features: n, the size of the inputs.
        out_features: m, the size of the outputs.
        bits: 8 or 4.
        group: Entries of a row that share a step, with 4 bits: a power of two, at least 32.
        bias: Whether a bias is added.
        device: Device of the tensors; None: torch's default.
        dtype: Dtype of bias and dense weight; None: torch's default.

    Example:
        >>> import torch
        >>> layer = DibaCodedLinear.from_dense(torch.nn.Linear(64, 1000, bias=False), bits=8)
        >>> layer(torch.zeros(5, 64)).shape
        torch.Size([5, 1000])
    """

    fan_in_fan_out = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int = 8,
        group: int = 32,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        n = check.positive_int(in_features, "in_features")
        m = check.positive_int(out_features, "out_features")
        super().__init__(m, n, bits=bits, group=group, bias=bias, device=device, dtype=dtype)
        self.in_features, self.out_features = n, m

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), in the dtype of ``x``."""
        self._settle()
        y: Tensor = operators.code_linear(
            x, self.d1, self.codes, self.steps, self.bias, self.in_features, self.group
        )
        return y

    def extra_repr(self) -> str:
        """The arguments of the layer and its size."""
        facts = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{facts}, bias={self.bias is not None}, {super().extra_repr()}"


class DibaCodedEmbedding(TableLayer, CodedLayer):
    """``nn.Embedding`` with 8 or 4 bits an entry; a look-up widens the rows that it needs and no others.

    Args:
        num_embeddings: m, the number of rows.
        embedding_dim: n, the size of a row.
        bits: 8 or 4.
        group: Entries of a row that share a step, with 4 bits: a power of two, at least 32.
        padding_idx: A row whose look-ups give no gradients.
        device: Device of the tensors; None: torch's default.
        dtype: Dtype of the returned rows; None: torch's default.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        bits: int = 8,
        group: int = 32,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        m = check.positive_int(num_embeddings, "num_embeddings")
        n = check.positive_int(embedding_dim, "embedding_dim")
        self.padding_idx = padding_row(padding_idx, m)  # set first: reset_parameters needs it
        super().__init__(m, n, bits=bits, group=group, bias=False, device=device, dtype=dtype)
        self.num_embeddings, self.embedding_dim = m, n

    def forward(self, ids: Tensor) -> Tensor:
        """Look up rows: ids of any shape (...) give shape (..., embedding_dim) in the layer's ``dtype``.

        Raises:
            TypeError: ``ids`` is not an int32 or int64 tensor.
            IndexError: An id is not the number of a row.
        """
        check_ids(ids)
        self._settle()
        codes = functional.embedding(ids, self.codes)
        steps = None if self.steps is None else functional.embedding(ids, self.steps)
        scale = functional.embedding(ids, self.d1[:, None])
        e = operators.entries(codes, steps, self.embedding_dim, self.group, self.d1.dtype)
        return self._finished(ids, e * scale)
