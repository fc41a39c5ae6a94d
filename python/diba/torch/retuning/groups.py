"""Which parameters of a model train, in groups for any torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..._internal import check
from ..modules.layer import FactoredLayer

__all__ = ["Group", "grouped", "of_norms", "parameter_groups", "trainable", "typical_size"]

Group = dict[str, Any]

_SMALLEST_SCALE = 0.1  # of a bias, which may be all zeros
# All products with columns of 0/1 share a part, the mean of the bits: where the steps of many entries agree,
# as Adam's first ones do, it moves by far more than each of them. +-1 has no such part.
_BINARY_SCALE = 0.5


def trainable(model: nn.Module, biases: bool = True, norms: bool = False, lr: float = 0.002) -> list[Group]:
    """Freeze a model except for the diagonals of its factored layers, and group them for any torch optimizer.

    A layer's diagonals differ in size by orders (d1 ~ 0.01, d2 ~ 1), and Adam moves every entry by about its
    learning rate. So each group has ``lr`` times the median size of its parameters, rounded to a power of
    two: parameters of like size share a group. The median, for a few inputs that a calibration hardly saw
    can have entries of d3 a thousand times larger than all others. Diagonals around bits of 0/1 get half of
    that: such products share the mean of their bits, which moves with all entries at once.

    Args:
        model: ``requires_grad`` is set on all of its parameters, and stays so.
        biases: Also the biases of factored layers.
        norms: Also weights and biases of LayerNorm, RMSNorm, GroupNorm and batch normalisation.
        lr: Relative learning rate; 0.002 lets an entry change by about 0.2 % a step.

    Returns:
        Groups with ``params``, ``lr`` and ``scale`` (``lr`` over the relative one). A parameter that several
        layers share is there once.

    Raises:
        ValueError: the model has no factored layer, or ``lr`` is not above 0.

    Example:
        >>> optimizer = torch.optim.AdamW(trainable(model), weight_decay=0)  # doctest: +SKIP
    """
    groups = parameter_groups(model, biases=biases, norms=norms, lr=lr)
    model.requires_grad_(False)
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)
    return groups


def parameter_groups(model: nn.Module, *, biases: bool, norms: bool, lr: float) -> list[Group]:
    """The groups of ``trainable``; changes nothing."""
    sized: list[tuple[nn.Parameter | None, float]] = []
    for name, module in model.named_modules():
        if isinstance(module, FactoredLayer):
            if module.d1.is_meta:
                raise ValueError(
                    f"the factors of {name} are on the meta device, where accelerate keeps what it "
                    "offloads; load the model without device_map, or first call "
                    "accelerate.hooks.remove_hook_from_module(model, recurse=True)"
                )
            factor = _BINARY_SCALE if module.alphabet == "binary" else 1.0
            sized += [(d, factor * typical_size(d)) for d in module.diagonals()]
            sized += [(module.bias, typical_size(module.bias, _SMALLEST_SCALE))] if biases else []
    sized += of_norms(model) if norms else []
    if not any(isinstance(module, FactoredLayer) for module in model.modules()):
        raise ValueError(
            "model has no factored layer; it must have some: call diba.torch.convert(model) first"
        )
    return grouped(sized, lr)


def grouped(sized: Iterable[tuple[nn.Parameter | None, float]], lr: float) -> list[Group]:
    """Groups of the parameters of like size: (parameter, its size) -> ``lr`` times the size, nearly."""
    lr = check.number(lr, "lr", minimum=0, exclusive=True)
    by_scale: dict[float, list[nn.Parameter]] = {}
    seen: set[int] = set()
    for parameter, typical in sized:
        if parameter is not None and id(parameter) not in seen:
            seen.add(id(parameter))
            scale = 2.0 ** round(math.log2(typical)) if 0 < typical < math.inf else 1.0
            by_scale.setdefault(scale, []).append(parameter)
    return [
        {"params": params, "lr": lr * scale, "scale": scale} for scale, params in sorted(by_scale.items())
    ]


def typical_size(parameter: nn.Parameter | None, smallest: float = 0.0) -> float:
    """The median size of the entries that are not 0; ``smallest`` where that is more, or all are 0."""
    if parameter is None:
        return smallest
    sizes = parameter.detach().double().abs().flatten()
    sizes = sizes[sizes > 0]
    return max(sizes.median().item(), smallest) if len(sizes) else smallest


def of_norms(model: nn.Module) -> list[tuple[nn.Parameter | None, float]]:
    """(parameter, its size) of all normalisation layers."""
    norms = filter(_is_norm, model.modules())
    return [(p, typical_size(p, _SMALLEST_SCALE)) for norm in norms for p in norm.parameters(recurse=False)]


def _is_norm(module: nn.Module) -> bool:
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
    return isinstance(module, kinds) or type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
