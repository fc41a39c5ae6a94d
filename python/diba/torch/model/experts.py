"""The experts of transformers as separate linear layers.

transformers 5 keeps the matrices of all experts of a module in two parameters of three dimensions, and marks
such classes with ``use_experts_implementation``. A few attributes then determine what they compute, and they
are recognised by these; transformers is not imported.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..modules.dense import runs_its_class
from ..modules.vectors import mark
from .fused import Parallel, UnfusedModule, linear

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Experts"]

_FLAGS = ("has_bias", "is_transposed", "num_experts", "_apply_gate")
_LATE: list[Any] = []  # made on first use, because it imports torch's compiler


class Experts(UnfusedModule):
    """Experts that are called one by one, each with the tokens routed to it.

    The layers of expert e are ``gate_up[e]`` and ``down[e]`` (``up[e]`` and ``down[e]`` without a
    gate). Everything else, such as the activation, is taken from the fused module.
    """

    lists: tuple[tuple[str, str], ...]

    @classmethod
    def recognises(cls, module: nn.Module) -> bool:
        """Whether ``use_experts_implementation`` of transformers marks the class of a module."""
        forward = getattr(type(module), "forward", None)  # a scripted module's class has none
        code = getattr(forward, "__code__", None)
        if code is None or "experts_interface" not in code.co_freevars or not runs_its_class(module):
            return False
        m: Any = module
        if not all(hasattr(m, name) for name in _FLAGS) or getattr(m, "_is_expert_parallel", False):
            return False
        names = [name for _, name in _lists(m)]
        names += [f"{name}_bias" for name in names] if m.has_bias else []
        held = {name: p for name, p in m._parameters.items() if p is not None}
        return set(held) == set(names) and not m._buffers and _fits(m, [held[name] for name in names])

    @classmethod
    def from_fused(cls, module: nn.Module) -> Self:
        """Make separate layers that share the memory of the fused parameters."""
        self = cls(module)
        self.lists = _lists(module)
        m: Any = module
        for name, source in self.lists:
            matrices = getattr(m, source)
            biases = getattr(m, f"{source}_bias") if m.has_bias else [None] * m.num_experts
            layers = [
                linear(matrix, bias, matrices.requires_grad)
                for matrix, bias in zip(self.split(source, matrices.detach()), biases, strict=True)
            ]
            setattr(self, name, Parallel(layers))
        return self.train(module.training)

    def sources(self) -> dict[str, list[tuple[str, str]]]:
        """See :class:`UnfusedModule`."""
        found: dict[str, list[tuple[str, str]]] = {}
        for name, source in self.lists:
            count = len(getattr(self, name))
            found[source] = [(f"{name}.{e}", "weight") for e in range(count)]
            if self.fused.has_bias:
                found[f"{source}_bias"] = [(f"{name}.{e}", "bias") for e in range(count)]
        return found

    def join(self, name: str, tensors: list[Tensor]) -> Tensor:
        """See :class:`UnfusedModule`."""
        turned = self.fused.is_transposed and tensors[0].ndim == 2
        return torch.stack([t.T if turned else t for t in tensors])

    def split(self, name: str, tensor: Tensor) -> list[Tensor]:
        """See :class:`UnfusedModule`."""
        turned = self.fused.is_transposed and tensor.ndim == 3
        return list(tensor.transpose(1, 2) if turned else tensor)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """For every token, the sum of its experts' outputs times their weights.

        The arguments are those of the fused module: tokens (count, n), the experts chosen for every token
        (count, top k), and the weights of these experts (count, top k).
        """
        if kwargs:
            args = inspect.signature(self.fused.forward).bind(*args, **kwargs).args
        if torch.compiler.is_compiling():  # which experts run depends on the data: a graph break
            return _uncompiled()(self, *args)  # type: ignore[no-any-return]
        return self._sum(*args)

    def _sum(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        output = torch.zeros_like(tokens)
        first, down = (getattr(self, name) for name, _ in self.lists)
        for e in range(len(down)) if self.observed else torch.unique(chosen).tolist():
            if e < len(down):  # other numbers stand for "no expert"
                rank, token = torch.where(chosen.T.eq(e))
                result = self._expert(first[e], down[e], tokens[token], token, len(tokens))
                weighted = result * weights[token, rank, None]
                output.index_add_(0, token, weighted.to(output.dtype))
        return output

    def _expert(self, first: nn.Module, down: nn.Module, x: Tensor, token: Tensor, count: int) -> Tensor:
        fused = self.fused
        if self.observed:
            mark(x, token, count)
        hidden = first(x)
        hidden = fused._apply_gate(hidden) if getattr(fused, "has_gate", True) else fused.act_fn(hidden)
        if self.observed:
            mark(hidden, token, count)
        result: Tensor = down(hidden)
        return fused.post_expert_norm(result) if getattr(fused, "has_post_expert_norm", False) else result


def _uncompiled() -> Any:
    """``Experts._sum``, excluded from compilation."""
    if not _LATE:
        _LATE.append(torch.compiler.disable(Experts._sum))  # type: ignore[no-untyped-call]
    return _LATE[0]


def _lists(module: Any) -> tuple[tuple[str, str], ...]:
    """For the first and the second layer: name of the list of layers, name of the fused parameter.

    The lists are named differently from the experts in checkpoints that transformers converts, so that its
    conversion rules do not apply to them.
    """
    gated = getattr(module, "has_gate", True)
    return (("gate_up", "gate_up_proj") if gated else ("up", "up_proj")), ("down", "down_proj")


def _fits(module: Any, tensors: list[Tensor]) -> bool:
    """Whether the tensors (two matrices, then biases if there are any) have the shapes of experts."""
    first, down = tensors[:2]
    if first.ndim != 3 or down.ndim != 3 or not all(t.is_floating_point() for t in tensors):
        return False
    sides = slice(None, None, -1) if module.is_transposed else slice(None)
    (outer, n), (m, inner) = first.shape[1:][sides], down.shape[1:][sides]
    widths = (outer, m)[: len(tensors) - 2]
    return (
        bool(m == n and outer == inner * (2 if getattr(module, "has_gate", True) else 1) and inner)
        and all(len(t) == module.num_experts for t in tensors)
        and all(t.shape[1:] == (width,) for t, width in zip(tensors[2:], widths, strict=True))
    )
