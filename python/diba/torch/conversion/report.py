"""What a model holds now, and how it was made: its description, its report, and what both remember."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from ..._internal import check
from ...checkpoints.description import Description, Recipe
from ...checkpoints.entries import LayerReport, Skipped, layer_reports
from ...checkpoints.layers import LayerDescription, LayerRecipe
from ...checkpoints.report import Report
from ..model.accounts import skipped_weights, totals
from ..model.layers import layers_of, named_layers
from ..model.swap import unfused
from ..modules.layer import FactoredLayer

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "LayerReport",
    "Report",
    "describe",
    "forget",
    "peak_memory",
    "recipe_of",
    "remember",
    "remember_layer",
    "report",
    "report_of_layer",
]

NOT_COMPRESSED = "not compressed"
"""The reason of a layer that could be, and that no conversion left out."""

_RECIPE, _PEAK = "_diba_recipe", "_diba_peak_bytes"  # attributes of modules: copied and pickled with them


def report(model: nn.Module) -> Report:
    """What of a model is compressed, how well, and why the rest is not.

    It can be had at any time, for dense models and for converted ones: in one call or several, in part or
    while it goes on; for loaded, copied and unpickled ones, whatever put their layers in.

    Args:
        model: Any module. Nothing in it is changed; modules with fused matrices, as experts, are taken apart
            and put together again, so it must not run in another thread meanwhile.

    Returns:
        The report. What the tensors do not tell (SNRs, objectives, times, settings, the reasons of a
        conversion) is kept with the model and in its checkpoints; what nobody knows any more is None, and
        "-" in print.

    Raises:
        TypeError: ``model`` is no module.

    Example:
        >>> import torch
        >>> import diba.torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> model = diba.torch.convert(model, bits_per_weight=2, progress=False)
        >>> found = report(model)
        >>> [layer.k for layer in found.layers], [layer.name for layer in found.skipped]
        ([42], ['2'])
    """
    check.instance(model, "model", nn.Module, "use the torch model itself")
    recipe = recipe_of(model)
    with unfused(model):
        description = describe(model, recipe)
        skipped = tuple(_skipped(model, recipe.left_dense))
        count = totals(model)
    return Report(
        layers=layer_reports(description),
        skipped=skipped,
        parameters_before=count.dense_parameters,
        parameters_after=count.parameters,
        bytes_before=count.dense_bytes,
        bytes_after=count.bytes,
        seconds=recipe.seconds,
        peak_bytes=max((vars(m).get(_PEAK, 0) for m in model.modules()), default=0) or None,
        settings=recipe.settings,
    )


def describe(model: nn.Module, recipe: Recipe | None = None) -> Description:
    """The description of a model with factored layers, each under all of its names.

    Args:
        model: Any module.
        recipe: How it was made; None: :func:`recipe_of` the model.
    """
    layers: dict[str, LayerDescription] = {}
    owners: dict[int, str] = {}
    for name, layer in named_layers(model).items():
        owner = owners.setdefault(id(layer.b1), name)
        layers[name] = _described(layer, None if owner == name else owner)
    return Description(layers=layers, recipe=recipe_of(model) if recipe is None else recipe)


def report_of_layer(name: str, layer: FactoredLayer, tied: Iterable[str] = ()) -> LayerReport:
    """The report of one layer, with the names of those that share its factors."""
    described = {name: _described(layer, None)} | {other: _described(layer, name) for other in tied}
    [found] = layer_reports(Description(layers=described))
    return dataclasses.replace(found, name=name, tied=tuple(tied))


# ---------------------------------------------------------------- what is remembered


def remember_layer(layer: nn.Module, recipe: LayerRecipe | None) -> None:
    """Keep with a layer what its factors do not tell."""
    vars(layer)[_RECIPE] = recipe


def remember(
    model: nn.Module,
    recipe: Recipe,
    *,
    peak_bytes: int | None = None,
) -> None:
    """Keep with a model how it was made."""
    vars(model)[_RECIPE] = recipe
    if peak_bytes is not None:
        vars(model)[_PEAK] = peak_bytes


def forget(model: nn.Module) -> None:
    """The model is dense again: nobody remembers anything else."""
    for module in model.modules():
        for name in (_RECIPE, _PEAK):
            vars(module).pop(name, None)


def recipe_of(model: nn.Module, prefix: str = "") -> Recipe:
    """How a model was made, by what is remembered with it and with the modules in it.

    Args:
        model: Any module.
        prefix: Name of a module in it: the recipe is of that one, with its own names.
    """
    settings: Mapping[str, Any] | None = None
    left: dict[str, str] = {}
    seconds: float | None = None
    for name, module in model.named_modules():
        found = vars(module).get(_RECIPE)
        if isinstance(found, Recipe):
            settings = found.settings if settings is None else settings
            seconds = found.seconds if seconds is None else seconds
            inner = {_joined(name, own): reason for own, reason in found.left_dense.items()}
            left = inner | left
    if prefix:
        begin = f"{prefix}."
        left = {name.removeprefix(begin): x for name, x in left.items() if name.startswith(begin)}
    return Recipe(settings=settings, left_dense=left, seconds=seconds)


def peak_memory() -> int | None:
    """Largest resident memory of the process so far, in bytes."""
    try:
        import resource
    except ImportError:  # not POSIX
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---------------------------------------------------------------- details


def _described(layer: FactoredLayer, shared: str | None) -> LayerDescription:
    m, n = layer.d1.numel(), layer.d3.numel()
    return LayerDescription(
        kind=layer.kind.name,
        shape=(m, n),
        k=layer.k,
        alphabet=layer.alphabet,
        bias=layer.bias is not None,
        dtype=str(layer.dtype).removeprefix("torch."),
        diagonal_bits=layer.diagonal_bits,
        shared=shared,
        recipe=vars(layer).get(_RECIPE),
    )


def _skipped(model: nn.Module, known: Mapping[str, str]) -> list[Skipped]:
    """Everything that is not compressed, with the reasons of past conversions where they are known."""
    layers = layers_of(model)
    reasons = {
        id(layer.module): next((known[name] for name in layer.names if name in known), None)
        or layer.obstacle()
        or NOT_COMPRESSED
        for layer in layers
        if not isinstance(layer.module, FactoredLayer)
    }
    return skipped_weights(model, layers, reasons)


def _joined(module: str, own: str) -> str:
    return f"{module}.{own}" if module else own
