"""What layers that are trained with binary weights have in common, and the penalty for exceptions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..._internal import check
from ..._internal.apb_bytes import APB_TENSORS
from .forms import binarized, fitted, held_delta, share_outside
from .trained import TrainedLayer

__all__ = ["SCALES", "APBLayer", "check_share", "exception_penalty"]

SCALES = ("layer", "rows")


class APBLayer(TrainedLayer):
    """The base of :class:`APBLinear` and :class:`APBConv2d`: a latent weight that is binarized in use.

    The layer multiplies by ``alpha sign(w)`` where ``|w| <= alpha + delta``, and by w, an exception,
    elsewhere (arXiv 2306.08960). Three things are learned by any optimizer: the latent ``weight``, straight
    through the sign; ``log_alpha``; and, with ``learn_delta``, ``log_delta``. Logarithms keep both positive
    under any step, and make a step relative: one learning rate suits layers of all sizes. Weight decay
    should leave them out; they have one axis, like biases.

    Without ``learn_delta``, delta is not learned: it is always the one that leaves the wanted share of
    exceptions, so that the memory is known beforehand. With it, the share is where the loss puts it, and
    :func:`exception_penalty` says what an exception costs.

    Attributes:
        weight: The latent weight, of the shape of the dense layer's.
        log_alpha: The logarithm of alpha, (1,), or (m,) with ``scales="rows"``.
        log_delta: That of delta, (1,); None if delta is not learned.
        exceptions: The share of exceptions that is held, and may be set to another one at any time; or that
            learning began with.
    """

    log_alpha: nn.Parameter
    log_delta: nn.Parameter | None
    exceptions: float
    _last: Tensor | None = None
    _form = "apb"
    _diba_own = frozenset({"exceptions", "_last"})
    _tensors = frozenset({"log_alpha", "log_delta", *APB_TENSORS})

    def _binarize(self, exceptions: float, learn_delta: bool, scales: str) -> None:
        """Add the parameters; the dense layer's are there."""
        self.exceptions = check_share(exceptions)
        rows = self.weight.shape[0] if check.one_of(scales, "scales", SCALES) == "rows" else 1
        like: Any = {"device": self.weight.device, "dtype": self.weight.dtype}
        self.log_alpha = nn.Parameter(torch.zeros(rows, **like))
        self.register_parameter("log_delta", nn.Parameter(torch.zeros(1, **like)) if learn_delta else None)
        self.fit()

    @property
    def scales(self) -> str:
        """``"layer"``: one alpha; ``"rows"``: one for each row."""
        return "layer" if self.log_alpha.numel() == 1 else "rows"

    @property
    def alpha(self) -> Tensor:
        """The size of binarized weights, (1,) or (m,)."""
        return self.log_alpha.exp()

    @property
    def delta(self) -> Tensor:
        """How far beyond alpha weights are binarized; without axes."""
        if self.log_delta is not None:
            return self.log_delta.exp()[0]
        # The search for the border remembers the last one, which a traced program cannot.
        traced = torch.compiler.is_compiling()
        found = held_delta(
            self.matrix.detach(),
            self.alpha.detach()[:, None],
            self.exceptions,
            None if traced else self._last,
        )
        if not traced:
            self._last = found
        return found

    @property
    def share(self) -> float:
        """The share of weights that are exceptions now."""
        with torch.no_grad():
            return float(share_outside(self.matrix, self.alpha[:, None], self.delta))

    @torch.no_grad()
    def fit(self) -> None:
        """Set alpha and delta by least squares of the latent weight, with ``exceptions`` as the share."""
        if self.weight.is_meta:
            return
        alpha, delta = fitted(self.matrix, self.exceptions, self.scales == "rows")
        self.log_alpha.copy_(alpha.log()[:, 0])
        if self.log_delta is not None:
            # Nothing is learned from a delta of zero, whose logarithm has no gradient.
            self.log_delta.copy_(torch.maximum(delta, alpha.mean() / 64).log())

    def dense_weight(self) -> Tensor:
        """The weight that the layer multiplies by; differentiable in all that is learned."""
        return binarized(self.matrix, self.alpha[:, None], self.delta).view_as(self.weight)

    def __getstate__(self) -> dict[str, Any]:
        """The state without what only makes searches faster."""
        return {name: value for name, value in self.__dict__.items() if name != "_last"}

    def _begin(self) -> None:
        for name in ("log_alpha", "log_delta"):
            own = getattr(self, name)
            if own is not None:
                values = torch.zeros(own.shape, device=self.weight.device, dtype=self.weight.dtype)
                setattr(self, name, nn.Parameter(values, self.weight.requires_grad))
        self.fit()

    def _facts(self) -> str:
        learned = ", learn_delta=True" if self.log_delta is not None else ""
        rows = ", scales='rows'" if self.scales == "rows" else ""
        return f"exceptions={self.exceptions:g}{learned}{rows}"


def exception_penalty(model: nn.Module) -> Tensor:
    """The share of exceptions among all weights with a learned delta, to be added to a loss.

    Its value is exact. Its gradient goes to the deltas alone, through the weights near the border, so that
    the penalty decides how many exceptions there are, and the loss of the task all else.

    Args:
        model: A module with layers that have ``learn_delta=True``.

    Returns:
        The share, without axes. Multiply it by what an exception is worth:
        ``loss + 0.5 * exception_penalty(model)``.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: It has no layer whose delta is learned.
    """
    check.instance(model, "model", nn.Module, "use the torch model itself")
    layers = [x for x in model.modules() if isinstance(x, APBLayer) and x.log_delta is not None]
    if not layers:
        raise ValueError(
            "model has no layer whose delta is learned; use learn_delta=True, or leave the penalty out: the "
            "others hold their share of exceptions"
        )
    total = sum(layer.weight.numel() for layer in layers)
    parts = [
        share_outside(layer.matrix, layer.alpha[:, None], layer.delta) * (layer.weight.numel() / total)
        for layer in layers
    ]
    return torch.stack(parts).sum()


def check_share(exceptions: Any, name: str = "exceptions") -> float:
    """Require a share from 0 to below 1."""
    share = check.number(exceptions, name, minimum=0)
    if share >= 1:
        raise ValueError(f"{name} is {exceptions}; it must be a share below 1, such as 0.01")
    return float(share)
