"""What layers read once others before them are compressed: inputs, their sums, and the target that follows.

A dense layer computes A x. Compressed, it is given x~ instead of x, for the layers before it are not exact
any more. With S~ = E[x~ x~'], C = E[x x~'], D the diagonal of S~ and s the share of shrinkage, the F with
the least

    (1 - s) E|A x - F x~|^2 + s tr((A - F) D (A - F)')

is the one that minimises ``tr((A' - F) Ss (A' - F)')`` up to a constant, where

    Ss = (1 - s) S~ + s D,    A' = A + (1 - s) A (C - S~) Ss^-1.

So a solver that is given A' and S~ and shrinks S~ by s, as ``diba.solve(covariance=(S~, s))`` does, works on
the first expression. A' is A where x~ = x. Source: the normal equations of that expression; the idea to
correct a layer's target for the error of earlier layers is that of GPTAQ (Li et al., arXiv 2504.02692).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...solvers.second_moments import shrunk
from ..modules.kinds import input_size
from ..modules.vectors import Products, input_of, marked, vectors
from ..retuning.batches import MasksOf, call, plain_grad
from .blocks import Group, first_tensor, is_cache

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["InputSums", "Item", "captured", "correction", "recorded", "run_block"]


# ---------------------------------------------------------------- what is read


@dataclass(frozen=True)
class Item:
    """What a block was called with: the tensor that goes from block to block, and the rest."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class _Stop(Exception):
    """Ends a run of which everything has been seen."""


def captured(model: nn.Module, block: str, batch: Any) -> Item | None:
    """What a block is called with, the model being run on a batch as far as that; None: it is not called.

    The layers of an expert may be such blocks, which only some batches reach.
    """
    found: list[Item] = []

    def take(module: nn.Module, args: Any, kwargs: Any) -> None:
        rest = tuple(None if is_cache(value) else value for value in args[1:])
        named = {key: None if is_cache(value) else value for key, value in kwargs.items()}
        found.append(Item(args[0], rest, named))
        raise _Stop

    hook = model.get_submodule(block).register_forward_pre_hook(take, with_kwargs=True)
    with _stopped(hook.remove):
        call(model, batch)
    return found[0] if found else None


def run_block(model: nn.Module, block: str, item: Item) -> Item:
    """What the next block is called with."""
    with plain_grad(False):
        output = first_tensor(model.get_submodule(block)(item.hidden, *item.args, **item.kwargs))
    if output is None:
        raise TypeError(f"block {block!r} returned no tensor, which it did when it was first called")
    return replace(item, hidden=output)


def recorded(
    model: nn.Module, run: Callable[[], Any], groups: Sequence[Group], masks: MasksOf, *, stop: bool
) -> tuple[list[list[Tensor]], Any]:
    """The input vectors of every group during a run, one tensor (count, n) a call, and the run's result.

    Args:
        model: The model that the names belong to.
        run: Runs the model or one block of it.
        groups: Groups whose first layers are watched.
        masks: Masks of the batch, see ``batches.token_masks``.
        stop: End the run (result None) once all calls that are expected have been seen.
    """
    seen: list[list[Tensor]] = [[] for _ in groups]
    result = None

    def take(number: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        seen[number].append(vectors(module, input_of(args, kwargs), masks(groups[number].names[0])))
        if stop and all(len(got) >= group.calls for got, group in zip(seen, groups, strict=True)):
            raise _Stop

    with ExitStack() as stack:
        hooks = []
        for number, group in enumerate(groups):
            module = model.get_submodule(group.names[0])
            assert input_size(module) is not None, "a group is read before it is replaced"
            hooks.append(module.register_forward_pre_hook(partial(take, number), with_kwargs=True))
        stack.enter_context(_stopped(*(hook.remove for hook in hooks)))
        result = run()
    return seen, result


@contextmanager
def _stopped(*removals: Callable[[], None]) -> Iterator[None]:
    """Without gradients, to the end or to _Stop; hooks are removed either way."""
    try:
        with plain_grad(False):
            yield
    except _Stop:
        pass
    finally:
        for remove in removals:
            remove()


# ---------------------------------------------------------------- sums over it


class InputSums:
    """S~ and C of one group, as they add up.

    Attributes:
        calls: Calls of the layers, in all batches.
    """

    def __init__(self, n: int) -> None:
        self._second, self._cross = Products(n), Products(n)
        self._weight = self._weight_squares = 0.0
        self._paired = True
        self._corrects = False
        self.calls = 0

    @property
    def count(self) -> int:
        """Vectors seen; of unequal weights, as many equal ones as would tell as much (Kish)."""
        if not self._weight_squares:
            return self._second.count
        return max(1, round(self._weight**2 / self._weight_squares))

    def add(
        self,
        now: Sequence[Tensor],
        before: Sequence[Tensor] | None,
        weights: Sequence[Tensor | None] | None = None,
    ) -> None:
        """Add the calls of one batch, and the same calls in the dense model if that is another one.

        Vectors that are marked (``vectors.mark``) are matched by their marks. One that the dense model sent
        to another expert is its own counterpart, of weight 1: its layer is asked for ``A x~``.

        Args:
            now: Input vectors of every call, shape (count, n).
            before: Those of the dense model.
            weights: Weights of the vectors of every call in the dense model, shape (count,); None: all alike.

        Raises:
            ValueError: weights and vectors of the dense model differ in number.
        """
        self.calls += len(now)
        weights = weights or [None] * len(now)
        weights = [_matched(w, x, torch.ones(len(x))) for w, x in zip(weights, now, strict=False)]
        if before is not None:
            before = [_matched(dense, x, x) for dense, x in zip(before, now, strict=False)]
        for x, w in zip(before or now, weights, strict=False):
            if w is not None and len(w) != len(x):
                raise ValueError(
                    f"its loss calls the model with {len(w)} vectors for a layer that in that batch has "
                    f"{len(x)}; it must call it with the batch as it is, and may leave out answers"
                )
        roots = [_roots(x, w) for x, w in zip(now, weights, strict=True)]
        scaled = [_scaled(x, root) for x, root in zip(now, roots, strict=True)]
        for x, root in zip(scaled, roots, strict=True):
            self._second.add(x, x)
            known = torch.ones(len(x)) if root is None else root
            self._weight += float(known.double().square().sum())
            self._weight_squares += float(known.double().square().square().sum())
        if before is None:
            return
        self._corrects = True
        # experts, not marked, are sent other tokens than in the dense model: then no x belongs to an x~
        self._paired = self._paired and [len(x) for x in now] == [len(x) for x in before]
        if self._paired:
            for x, dense, root in zip(scaled, before, roots, strict=True):
                self._cross.add(_scaled(dense, root), x)

    def second(self, name: str) -> NDArray[np.float64]:
        """S~, exactly symmetric."""
        if not self._second.count:
            raise ValueError(f"layer {name!r} has read padding only; batches must have tokens that are none")
        if not self._second.finite():
            raise ValueError(
                f"the inputs of layer {name!r} are not finite (or too large to square); they must be: look "
                f"for broken weights or data, or run the model in float32"
            )
        mean = self._second.mean()
        result: NDArray[np.float64] = ((mean + mean.T) / 2).numpy()
        return result

    def cross(self) -> NDArray[np.float64] | None:
        """C, None where it is S~ or unknown; a mean over the same pairs of vectors as S~."""
        if not (self._corrects and self._paired):
            return None
        result: NDArray[np.float64] = self._cross.mean().numpy()
        return result


def _matched(values: Tensor | None, x: Tensor, missing: Tensor) -> Any:
    """One of the values for every vector, by the marks of both, or what is to stand for missing ones."""
    if values is None or marked(values) is None or marked(x) is None:
        return values
    (theirs, count), (rows, _) = marked(values), marked(x)  # type: ignore[misc]
    at = torch.full((count,), -1, device=rows.device)
    at[theirs] = torch.arange(len(theirs), device=rows.device)
    found = at[rows] >= 0
    result = missing.to(values.dtype, copy=True)
    result[found.to(result.device)] = values[at[rows][found].to(values.device)]
    return result


def _roots(x: Tensor, weights: Tensor | None) -> Tensor | None:
    """Square roots of weights, shape (count, 1); None where they are unknown, or those of other vectors."""
    if weights is None or len(weights) != len(x):
        return None
    return weights.to(x).sqrt()[:, None]


def _scaled(x: Tensor, roots: Tensor | None) -> Tensor:
    return x if roots is None else x * roots


# ---------------------------------------------------------------- the target


def correction(C: NDArray[Any], S: NDArray[Any], shrink: float) -> NDArray[np.float64]:
    """The matrix T, shape (n, n), of ``A' = A + A T``.

    Args:
        C: E[x x~'], shape (n, n).
        S: E[x~ x~'], shape (n, n).
        shrink: Share of the diagonal in S.
    """
    scale = np.sqrt(S.diagonal())
    scale[scale == 0] = 1  # an input that is always 0 has no say: only its diagonal entry is not 0
    unit = shrunk(S, shrink) / np.outer(scale, scale)
    unit[np.diag_indices_from(unit)] += 1e-7  # where x~ has fewer dimensions than n and nothing is shrunk
    gap = (1 - shrink) * (C - S) / scale
    result: NDArray[np.float64] = np.linalg.solve(unit, gap.T).T / scale
    return result
