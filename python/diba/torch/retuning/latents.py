"""How the latent numbers of bits move while bits are trained.

Every bit, as s = -1 or +1, has a latent number, which starts at s and gets the gradient g for s as it is
(straight-through: Bengio, Leonard and Courville, arXiv 1308.3432); where it crosses zero, the bit flips. A
flip changes the loss by ``-2 s g + 2 h``, with h the second derivative for the entry: it pays if
``s g / h > 1``. So latents move by g / h, not by the signs of Adam: entries for which much is at stake flip
first, and of those for which a flip would overshoot most stay. h is the diagonal of the Gauss-Newton matrix,
estimated by squared gradients of random signs or draws (Hutchinson) and smoothed: for a product it is nearly
the outer product of one number for each row and one for each column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ... import _core
from ..modules.state import as_numpy
from ..ops import operators as _ops  # noqa: F401  (registers torch.ops.diba)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LatentSteps", "sign_gradients"]

_MOMENTUM = 0.9
_EDGE = 1e-6  # where latents wait
_FARTHEST = 2.0  # latents stay within this, so that a bit that was right for long can still flip


def sign_gradients(
    x: Tensor, g: Tensor, diagonals: Sequence[Tensor], bits: Sequence[Tensor], sign: bool
) -> tuple[Tensor, Tensor]:
    """Gradients for the signs of both factors of a layer.

    ``P = D1 (G' X) D3`` is the gradient for ``B1 D2 B2``, so ``P B2' D2`` is that for B1 and ``D2 B1' P``
    that for B2: one product without bits, as large as the dense layer's own, and two with packed bits.

    Args:
        x: Inputs, shape (vectors, n), in the dtype of the diagonals.
        g: The gradient for the outputs, (vectors, m), in that dtype.
        diagonals: d1, d2 and d3.
        bits: b1 and b2.
        sign: Whether entries are -1 and 1; a step of an entry from 0 to 1 counts half as much.

    Returns:
        Shapes (m, k) and (k, n).
    """
    d1, d2, d3 = diagonals
    b1, b2 = bits
    weight, scale = (g * d1).T @ (x * d3), d2 if sign else d2 / 2
    left = torch.ops.diba.times_bits(weight, b2, d3.numel(), sign, False) * scale
    right = torch.ops.diba.times_bits(weight.T.contiguous(), b1, d2.numel(), sign, True) * scale
    return left, right.T.contiguous()


class LatentSteps:
    """Steps of the latents of one matrix by averaged gradients over second derivatives.

    Args:
        latents: Shape (rows, columns), entries of size 1; changed by :meth:`step`.
        square: Estimates of h, as ``latents``; only its means over rows and columns are used.
        reach: How far a latent moves in all steps if ``g / h`` is always 1.
        flips: Share of the entries that may flip in a step at the full rate: h knows nothing of the others,
            which lower the same error.
    """

    def __init__(self, latents: Tensor, square: Tensor, reach: float, flips: float) -> None:
        self._latents, self._reach, self._flips = latents, reach, flips
        self._rows, self._columns = _outer_inverse(square)
        self._mean = torch.zeros_like(latents)

    @classmethod
    def of(cls, latents: Tensor, state: Sequence[Tensor], reach: float, flips: float) -> LatentSteps:
        """Those that go on from a state."""
        found = cls(latents, torch.ones_like(latents), reach, flips)
        found._rows, found._columns, found._mean = (tensor.to(latents.device) for tensor in state)
        return found

    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        """All that later steps need beside the latents."""
        return self._rows, self._columns, self._mean

    @torch.no_grad()
    def step(self, gradient: Tensor | None, rate: float, share: float) -> Tensor:
        """Take a step.

        Args:
            gradient: As the latents; None: the average stays as it is.
            rate: Relative to the largest: fewer entries may flip at a small one.
            share: What this step takes of the whole way.

        Returns:
            The entries that crossed zero, int64, as ``row * columns + column``, rising: those that went
            farthest, where more would than may. The others wait before it.
        """
        way, most = share * self._reach, max(1, round(rate * self._flips * self._latents.numel()))
        return (self._compiled if self._is_plain() else self._torch)(gradient, way, most)

    def _is_plain(self) -> bool:
        latents = self._latents
        return latents.device.type == "cpu" and latents.dtype == torch.float32 and latents.is_contiguous()

    def _torch(self, gradient: Tensor | None, way: float, most: int) -> Tensor:
        latents = self._latents
        if gradient is not None:
            self._mean.lerp_(gradient, 1 - _MOMENTUM)
        upper = latents >= 0
        latents.addcmul_(self._mean * self._columns, self._rows, value=-way)
        crossed = upper.ne_(latents >= 0).view(-1).nonzero().view(-1)
        if len(crossed) > most:
            values = latents.view(-1)
            order = values[crossed].abs().argsort(descending=True, stable=True)
            waiting = crossed[order[most:]]
            values[waiting] = torch.where(values[waiting] < 0, _EDGE, -_EDGE).to(values.dtype)
            crossed = crossed[order[:most]].sort().values
        latents.clamp_(-_FARTHEST, _FARTHEST)
        return crossed

    def _compiled(self, gradient: Tensor | None, way: float, most: int) -> Tensor:
        """The same in one pass over the memory, and one over the entries that crossed."""
        crossed = _core.step_latents(
            as_numpy(self._latents),
            as_numpy(self._mean),
            as_numpy(self._rows.view(-1)),
            as_numpy(self._columns.view(-1)),
            None if gradient is None else as_numpy(gradient.to(self._mean).contiguous()),
            fresh=1 - _MOMENTUM,
            way=way,
            farthest=_FARTHEST,
            edge=_EDGE,
            most=most,
            threads=torch.get_num_threads(),
        )
        torch.autograd.graph.increment_version(self._latents)  # torch has not seen that they changed
        return torch.from_numpy(crossed)


def _outer_inverse(square: Tensor) -> tuple[Tensor, Tensor]:
    """1 / h of every entry, as (rows, 1) times (1, columns); 0 where nothing is known."""
    rows, columns, whole = square.mean(1, keepdim=True), square.mean(0, keepdim=True), square.mean()
    inverse = [torch.where(t > 0, 1 / t, 0.0) for t in (rows, columns)]
    return inverse[0] * whole, inverse[1]
