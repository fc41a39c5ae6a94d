"""Replacing the dense layers of a model by layers that are trained with few bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from torch import nn

from ..._internal import check
from ..._internal.check import describe
from ...layers.config import Config, known_keys
from ..conversion.report import recipe_of, remember
from ..model.selection import check_weights, require, select
from ..model.swap import exchange
from ..modules.bitwise import check_bits
from .bitwise import BitConv2d, BitLinear
from .layer import SCALES, check_share
from .layers import APBConv2d, APBLinear
from .trained import TrainedLayer

if TYPE_CHECKING:
    from ..model.selection import Target

__all__ = ["binarize", "bitwise"]

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
    return _replaced(model, _APB, default, skip, layers, convolutions)


def bitwise(
    model: Model,
    activation_bits: int = 1,
    weight_bits: int = 1,
    *,
    skip: Sequence[str] = (),
    layers: Mapping[str, Mapping[str, Any] | None] | None = None,
    convolutions: bool = True,
) -> Model:
    """Replace linear layers and convolutions of a model by layers of few bits on both sides of the product.

    The layers are :class:`BitLinear` and :class:`BitConv2d`; they take the parameters of the dense ones and
    have no others, so that an optimizer made before goes on. Names and patterns select layers as
    :class:`diba.torch.Config` says. Other kinds of layers, and layers that share their weight, stay dense.
    Train the model, then call :func:`freeze`.

    Args:
        model: Any module; changed in place, after all arguments were checked.
        activation_bits: Bits of the inputs, 1 or 2.
        weight_bits: Bits of the weights, 1 or 2.
        skip: Names of layers that stay dense, often the first and the last.
        layers: Name -> dict of ``activation_bits`` and ``weight_bits`` for these layers, or None for layers
            that stay dense.
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
        >>> first, last = torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 2, 3)
        >>> model = torch.nn.Sequential(first, torch.nn.BatchNorm2d(16), torch.nn.Conv2d(16, 16, 3), last)
        >>> bitwise(model, 2, skip=["0", "3"])[2]
        BitConv2d(16, 16, kernel_size=(3, 3), stride=(1, 1), activation_bits=2, weight_bits=1)
    """
    default = {"activation_bits": activation_bits, "weight_bits": weight_bits}
    return _replaced(model, _BITWISE, default, skip, layers, convolutions)


# ---------------------------------------------------------------- what both have in common


class _Form(NamedTuple):
    """What replaces dense layers.

    Attributes:
        called: The function, for messages.
        missing: What other kinds of layers do not have.
        classes: Kind of a dense layer -> the class that replaces it.
        checks: Name of a setting -> its check, of a value and its name in messages.
    """

    called: str
    missing: str
    classes: Mapping[str, type[TrainedLayer]]
    checks: Mapping[str, Callable[[Any, str], Any]]

    def check(self, settings: Mapping[str, Any], where: str = "") -> None:
        """Refuse unknown or impossible settings; ``where``: the rule that has them."""
        known_keys(settings, tuple(self.checks), where or self.called)
        for name, value in settings.items():
            self.checks[name](value, f"{where}: {name}" if where else name)


def _replaced(
    model: Model, form: _Form, default: dict[str, Any], skip: Any, layers: Any, convolutions: bool
) -> Model:
    form.check(default)
    rules = {} if layers is None else layers
    config = _config(form, rules, skip, convolutions)
    found = select(model, config)
    chosen = [target for target in found.targets if target.kind in form.classes]
    left = {entry.name: entry.reason.partition("; tied=")[0] for entry in found.skipped}
    left |= {x.name: f"a {x.kind} has no {form.missing}" for x in found.targets if x not in chosen}
    if not any(isinstance(module, TrainedLayer) for module in model.modules()):
        require(chosen, [dataclasses.replace(entry, reason=left[entry.name]) for entry in found.skipped])
    check_weights(chosen)
    made = [
        form.classes[target.kind].from_dense(target.module, **default | _overrides(target, config, rules))
        for target in chosen
    ]
    for target, layer in zip(chosen, made, strict=True):
        exchange(model, target.module, layer)
    for name, module in model.named_modules():
        if isinstance(module, TrainedLayer):
            left.pop(name, None)
    remember(model, dataclasses.replace(recipe_of(model), left_dense=left))
    return model


def _config(form: _Form, rules: Any, skip: Any, convolutions: bool) -> Config:
    """A configuration that selects these layers; its other settings have no meaning here."""
    plain = rules
    if isinstance(rules, Mapping):
        for name, rule in rules.items():
            if isinstance(rule, Mapping):
                form.check(rule, f"layers[{name!r}]")
        plain = {name: {} if isinstance(rule, Mapping) else rule for name, rule in rules.items()}
    return Config(k=1, skip=skip, layers=plain, convolutions=convolutions)


def _overrides(target: Target, config: Config, rules: Mapping[str, Any]) -> dict[str, Any]:
    """What a rule for any name of a layer sets."""
    names = (target.name, *target.aliases)
    rule = next((found for name in names if (found := config.rule(name)) is not None), None)
    return dict(rules.get(rule or "") or {})


def _is_truth(value: Any, name: str) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {describe(value)}; it must be True or False")


_APB = _Form(
    "binarize",
    "binary form",
    {"Linear": APBLinear, "Conv2d": APBConv2d},
    {
        "exceptions": check_share,
        "learn_delta": _is_truth,
        "scales": partial(check.one_of, choices=SCALES),
    },
)
_BITWISE = _Form(
    "bitwise",
    "form of few bits on both sides",
    {"Linear": BitLinear, "Conv2d": BitConv2d},
    {"activation_bits": check_bits, "weight_bits": check_bits},
)
