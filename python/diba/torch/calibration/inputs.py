"""Inputs of layers after earlier layers were compressed: recording, and sums over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..modules.kinds import input_size
from ..modules.vectors import Products, input_of, marked, vectors
from ..retuning.batches import MasksOf
from .blocks import Group
from .stream import Stop, stopped

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["InputSums", "recorded"]


# ---------------------------------------------------------------- recording


def recorded(
    model: nn.Module, run: Callable[[], Any], groups: Sequence[Group], masks: MasksOf, *, stop: bool
) -> tuple[list[list[Tensor]], Any]:
    """Record the input vectors of every group during a run: one tensor (count, n) per call.

    Args:
        model: The model that the names belong to.
        run: Runs the model or one block of it.
        groups: Groups; the inputs of their first layers are recorded.
        masks: Masks of the batch, see ``batches.token_masks``.
        stop: End the run once all expected calls were recorded; the result of the run is then None.

    Returns:
        For each group its tensors; the result of the run.
    """
    seen: list[list[Tensor]] = [[] for _ in groups]
    result = None

    def take(number: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        seen[number].append(vectors(module, input_of(args, kwargs), masks(groups[number].names[0])))
        if stop and all(len(got) >= group.calls for got, group in zip(seen, groups, strict=True)):
            raise Stop

    with ExitStack() as stack:
        hooks = []
        for number, group in enumerate(groups):
            module = model.get_submodule(group.names[0])
            assert input_size(module) is not None, "a group is read before it is replaced"
            hooks.append(module.register_forward_pre_hook(partial(take, number), with_kwargs=True))
        stack.enter_context(stopped(*(hook.remove for hook in hooks)))
        result = run()
    return seen, result


# ---------------------------------------------------------------- sums


class InputSums:
    """Accumulates moments of one group: of its inputs x~, and of x in the dense model with x~.

    Attributes:
        calls: Number of calls of the layers, over all batches.
    """

    def __init__(self, n: int) -> None:
        self._second, self._cross = Products(n), Products(n)
        self._weight = self._weight_squares = 0.0
        self._paired = True
        self._corrects = False
        self.calls = 0

    @property
    def count(self) -> int:
        """Number of vectors; for unequal weights the effective sample size (Kish)."""
        if not self._weight_squares:
            return self._second.count
        return max(1, round(self._weight**2 / self._weight_squares))

    def add(
        self,
        now: Sequence[Tensor],
        before: Sequence[Tensor] | None,
        weights: Sequence[Tensor | None] | None = None,
    ) -> None:
        """Add the calls of one batch, with the corresponding calls in the dense model if it differs.

        Marked vectors (``vectors.mark``) are matched by their marks. A vector that the dense model sent to
        another expert is paired with itself, with weight 1: the layer should then compute ``A x~``.

        Args:
            now: Input vectors of every call, shape (count, n).
            before: Input vectors of every call in the dense model; None: the same as ``now``.
            weights: Weights of the vectors of every call in the dense model, shape (count,); None: all equal.

        Raises:
            ValueError: The number of weights and of vectors of the dense model differ.
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
        weights = [
            w if w is not None and len(w) == len(x) else None for x, w in zip(now, weights, strict=True)
        ]
        for x, w in zip(now, weights, strict=True):
            self._second.add(x, x, w)
            known = torch.ones(len(x)) if w is None else w
            self._weight += float(known.double().sum())
            self._weight_squares += float(known.double().square().sum())
        if before is None:
            return
        self._corrects = True
        # Unmarked vectors of experts may belong to other tokens than in the dense model: no pairs then.
        self._paired = self._paired and [len(x) for x in now] == [len(x) for x in before]
        if self._paired:
            for x, dense, w in zip(now, before, weights, strict=True):
                self._cross.add(dense, x, w)

    def second(self, name: str) -> NDArray[np.float64]:
        """S~ = E[x~ x~'], exactly symmetric."""
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

    def mean(self) -> NDArray[np.float64]:
        """E[x~]."""
        result: NDArray[np.float64] = self._second.means()[0].numpy()
        return result

    @property
    def _differs(self) -> bool:
        return self._corrects and self._paired

    def cross(self) -> NDArray[np.float64] | None:
        """C = E[x x~'] over the same pairs of vectors as S~; None if it equals S~ or is unknown."""
        result: NDArray[np.float64] | None = self._cross.mean().numpy() if self._differs else None
        return result

    def dense_mean(self) -> NDArray[np.float64]:
        """E[x] over the same pairs; E[x~] where C is None."""
        result: NDArray[np.float64] = self._cross.means()[0].numpy() if self._differs else self.mean()
        return result


def _matched(values: Tensor | None, x: Tensor, missing: Tensor) -> Any:
    """Match values to the vectors x by their marks; vectors without a value get that of ``missing``."""
    if values is None or marked(values) is None or marked(x) is None:
        return values
    (theirs, count), (rows, _) = marked(values), marked(x)  # type: ignore[misc]
    at = torch.full((count,), -1, device=rows.device)
    at[theirs] = torch.arange(len(theirs), device=rows.device)
    found = at[rows] >= 0
    result = missing.to(values.dtype, copy=True)
    result[found.to(result.device)] = values[at[rows][found].to(values.device)]
    return result
