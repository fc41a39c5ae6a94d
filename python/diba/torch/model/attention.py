"""``nn.MultiheadAttention`` with its projections as separate linear layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..modules.dense import runs_its_class
from .fused import UnfusedModule, linear

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Attention"]

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class Attention(UnfusedModule):
    """``nn.MultiheadAttention`` computed with layers ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``.

    The first three hold the row blocks of ``in_proj_weight`` and ``in_proj_bias``. ``bias_k`` and ``bias_v``
    remain parameters.
    """

    embed_dim: int
    num_heads: int
    head_dim: int
    dropout: float
    batch_first: bool
    add_zero_attn: bool
    biased: bool
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    # These values make nn.TransformerEncoderLayer avoid its fast path, which reads weights itself.
    in_proj_weight = None
    in_proj_bias = None
    _qkv_same_embed_dim = False

    @classmethod
    def recognises(cls, module: nn.Module) -> bool:
        """Whether a module is exactly an ``nn.MultiheadAttention`` with its usual parameters and forward."""
        if type(module) is not nn.MultiheadAttention or not runs_its_class(module):
            return False
        known = {"in_proj_weight", "in_proj_bias", "bias_k", "bias_v", *(f"{p}_weight" for p in _PROJECTIONS)}
        held = {name for name, p in module._parameters.items() if p is not None}
        plain = set(module._modules) == {"out_proj"} and not module._buffers and held <= known
        whole = "in_proj_weight" in held or {f"{p}_weight" for p in _PROJECTIONS} <= held
        return plain and whole and set(module.out_proj._parameters) == {"weight", "bias"}

    @classmethod
    def from_fused(cls, module: nn.Module) -> Self:
        """Make separate layers that share the memory of the fused parameters."""
        self = cls(module)
        del self.out_proj  # added again as the last submodule
        m: Any = module
        biases = [None] * 3 if m.in_proj_bias is None else m.in_proj_bias.detach().chunk(3)
        if m.in_proj_weight is not None:
            weights, requires_grad = m.in_proj_weight.detach().chunk(3), m.in_proj_weight.requires_grad
        else:
            weights, requires_grad = [getattr(m, f"{name}_weight") for name in _PROJECTIONS], False
        for name, weight, bias in zip(_PROJECTIONS, weights, biases, strict=True):
            layer = linear(weight, bias, requires_grad)
            if bias is not None:
                layer.bias.requires_grad_(m.in_proj_bias.requires_grad)
            setattr(self, name, layer)
        self.biased = m.out_proj.bias is not None  # a compressed layer may have been given one
        self.out_proj = linear(m.out_proj.weight, m.out_proj.bias, True)
        self.bias_k, self.bias_v = m.bias_k, m.bias_v
        self.embed_dim, self.num_heads, self.head_dim = m.embed_dim, m.num_heads, m.head_dim
        self.dropout, self.batch_first, self.add_zero_attn = m.dropout, m.batch_first, m.add_zero_attn
        return self.train(module.training)

    def sources(self) -> dict[str, list[tuple[str, str]]]:
        """See :class:`UnfusedModule`."""
        found = {}
        if self.fused._qkv_same_embed_dim:
            found["in_proj_weight"] = [(name, "weight") for name in _PROJECTIONS]
        else:
            found |= {f"{name}_weight": [(name, "weight")] for name in _PROJECTIONS}
        found["out_proj.weight"] = [("out_proj", "weight")]
        if self.biased:
            found["out_proj.bias"] = [("out_proj", "bias")]
            found["in_proj_bias"] = [(name, "bias") for name in _PROJECTIONS]
        return found

    def join(self, name: str, tensors: list[Tensor]) -> Tensor:
        """See :class:`UnfusedModule`."""
        return torch.cat(tensors)

    def split(self, name: str, tensor: Tensor) -> list[Tensor]:
        """See :class:`UnfusedModule`."""
        return list(tensor.chunk(len(self.sources()[name])))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The forward of ``nn.MultiheadAttention``; ``is_causal`` needs ``attn_mask``, as there."""
        if is_causal and attn_mask is None:
            raise RuntimeError(
                "is_causal is True and attn_mask is None; is_causal only describes attn_mask: give both"
            )
        batched = query.dim() == 3
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if not batched:
            q, k, v = q[None], k[None], v[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        k, v, mask = self._keys(q, k, v, attn_mask, key_padding_mask)
        mixed, weights = self._mixed(q, k, v, mask, need_weights)
        if not batched:
            mixed = mixed[0]
        elif not self.batch_first:
            mixed = mixed.transpose(0, 1)
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if weights is not None and not batched:
            weights = weights[0]
        return self.out_proj(mixed), weights

    def _keys(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, padding: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Extend keys and values by ``bias_k``, ``bias_v`` and zeros, and combine the masks.

        Returns:
            Keys and values of shape (batch, source, size); a mask to be added to the scores, which broadcasts
            to (batch, heads, target, source), or None.
        """
        batch, source, target = len(k), k.shape[1], q.shape[1]
        masks: list[Tensor] = []
        if attn_mask is not None:
            shapes = [(target, source), (batch * self.num_heads, target, source)]
            added = _additive(attn_mask, "attn_mask", shapes, q.dtype)
            masks.append(added if added.ndim == 2 else added.view(batch, self.num_heads, target, source))
        if padding is not None:
            masks.append(_additive(padding, "key_padding_mask", [(batch, source)], q.dtype)[:, None, None])
        mask = sum(masks[1:], masks[0]) if masks else None
        more_k, more_v = [k], [v]
        if self.bias_k is not None and self.bias_v is not None:
            more_k.append(self.bias_k.expand(batch, 1, -1))
            more_v.append(self.bias_v.expand(batch, 1, -1))
        if self.add_zero_attn:
            more_k.append(k.new_zeros(batch, 1, self.embed_dim))
            more_v.append(v.new_zeros(batch, 1, self.embed_dim))
        if len(more_k) > 1:
            k, v = torch.cat(more_k, 1), torch.cat(more_v, 1)
            mask = None if mask is None else F.pad(mask, (0, len(more_k) - 1))
        return k, v, mask

    def _mixed(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs (batch, target, size), and attention weights (batch, heads, target, source) if needed."""
        dropout = self.dropout if self.training else 0.0
        heads = self.num_heads, self.head_dim
        q, k, v = (x.reshape(*x.shape[:2], *heads).transpose(1, 2) for x in (q, k, v))
        if not need_weights:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
            return mixed.transpose(1, 2).flatten(2), None
        scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
        weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
        return (weights @ v).transpose(1, 2).flatten(2), weights


def _additive(mask: Tensor, name: str, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> Tensor:
    """A mask to be added to scores: minus infinity where a boolean mask is True, else its values."""
    if tuple(mask.shape) not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise RuntimeError(f"{name} has shape {tuple(mask.shape)}; it must be {wanted}")
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
    if not mask.is_floating_point():
        raise RuntimeError(f"{name} is {mask.dtype}; it must be torch.bool or floating-point")
    return mask.to(dtype)
