"""Replacing the dense layers of a model by layers that are trained with binary weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from ..._internal import check
from ..._internal.check import describe
from ...layers.config import Config, known_keys
from ..conversion.report import recipe_of, remember
from ..model.selection import check_weights, require, select
from ..model.swap import exchange
from .layer import APBLayer, check_share
from .layers import APBConv2d, APBLinear

if TYPE_CHECKING:
    from ..model.selection import Target

__all__ = ["binarize"]

_CLASSES: dict[str, type[APBLinear | APBConv2d]] = {"Linear": APBLinear, "Conv2d": APBConv2d}
_SETTINGS = ("exceptions", "learn_delta", "scales")

Model = TypeVar("Model", bound=nn.Module)


def binarize(
    model: Model,
    exceptions: float = 0.01,
    *,
    learn_delta: bool = False,
    scales: str = "layer",
    skip: Sequence[str] = (),
    layers: Mapping[str, Mapping[str, Any] | None] | None = None,
    convolutions: bool = True,
) -> Model:
    """Replace the linear layers and convolutions of a model by layers with binary weights, to be trained.

    The layers are :class:`APBLinear` and :class:`APBConv2d`; they take the parameters of the dense ones, so
    that an optimizer made before goes on with these, but does not know alpha and delta: make it afterwards.
    Names and patterns select layers as :class:`diba.torch.Config` says. Other kinds of layers, and layers
    that share their weight, stay dense. Train the model, then call :func:`freeze`.

    Args:
        model: Any module; changed in place, after all arguments were checked.
        exceptions: The share of weights that stay exact, from 0 to below 1.
        learn_delta: Whether the share is learned, see :class:`APBLayer`.
        scales: ``"layer"`` or ``"rows"``: what shares an alpha.
        skip: Names of layers that stay dense, often the first and the last.
        layers: Name -> dict of ``exceptions``, ``learn_delta`` and ``scales`` for these layers, or None for
            layers that stay dense.
        convolutions: Whether ``nn.Conv2d`` are replaced.

    Returns:
        The same model. :func:`diba.torch.report` says why layers stay dense.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A setting is unknown, out of range, or names no layer of the model; a weight is not
            finite; or nothing would be replaced.

    Example:
        >>> import torch
        >>> import diba.torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> binarize(model, 0.02, skip=["2"])[0]
        APBLinear(in_features=64, out_features=64, bias=True, exceptions=0.02)
    """
    default = {"exceptions": exceptions, "learn_delta": learn_delta, "scales": scales}
    _check(default, "")
    rules: Any = {} if layers is None else layers
    config = _selecting(rules, skip, convolutions)
    found = select(model, config)
    chosen = [target for target in found.targets if target.kind in _CLASSES]
    left = {entry.name: entry.reason.partition("; tied=")[0] for entry in found.skipped}
    left |= {x.name: f"a {x.kind} has no binary form" for x in found.targets if x not in chosen}
    if not any(isinstance(module, APBLayer) for module in model.modules()):
        require(chosen, [dataclasses.replace(entry, reason=left[entry.name]) for entry in found.skipped])
    check_weights(chosen)
    for target in chosen:
        settings = default | _overrides(target, config, rules)
        exchange(model, target.module, _CLASSES[target.kind].from_dense(target.module, **settings))
    for name, module in model.named_modules():
        if isinstance(module, APBLayer):
            left.pop(name, None)
    remember(model, dataclasses.replace(recipe_of(model), left_dense=left))
    return model


def _selecting(rules: Any, skip: Sequence[str], convolutions: bool) -> Config:
    """A configuration that selects these layers; its other settings have no meaning here."""
    plain = rules
    if isinstance(rules, Mapping):
        for name, rule in rules.items():
            if isinstance(rule, Mapping):
                _check(rule, f"layers[{name!r}]")
        plain = {name: {} if isinstance(rule, Mapping) else rule for name, rule in rules.items()}
    return Config(k=1, skip=skip, layers=plain, convolutions=convolutions)


def _overrides(target: Target, config: Config, rules: Mapping[str, Any]) -> dict[str, Any]:
    """What a rule for any name of a layer sets."""
    names = (target.name, *target.aliases)
    rule = next((found for name in names if (found := config.rule(name)) is not None), None)
    return dict(rules.get(rule or "") or {})


def _check(settings: Mapping[str, Any], where: str) -> None:
    known_keys(settings, _SETTINGS, where or "binarize")
    for name, value in settings.items():
        what = f"{where}: {name}" if where else name
        if name == "exceptions":
            check_share(value, what)
        elif name == "scales":
            check.one_of(value, what, ("layer", "rows"))
        elif not isinstance(value, bool):
            raise TypeError(f"{what} is {describe(value)}; it must be True or False")
