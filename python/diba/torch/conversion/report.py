"""The report and the description of a model, and the recipes that are stored on its modules for them."""

from __future__ import annotations

import dataclasses
import resource
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from ..._internal import check
from ...checkpoints.blocks import BlockRecipe
from ...checkpoints.description import Description, Recipe
from ...checkpoints.entries import LayerReport, Skipped, layer_reports
from ...checkpoints.facts import Facts, Retuning
from ...checkpoints.layers import LayerDescription, LayerRecipe
from ...checkpoints.report import Report
from ..model.layers import layers_of, named_layers
from ..model.sizes import skipped_weights, totals
from ..model.swap import unfused
from ..modules.apb import DibaAPBLayer
from ..modules.bitwise import DibaBitLayer
from ..modules.layer import FactoredLayer
from ..modules.state import CompressedLayer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..retuning.retune import RetuneReport

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
"""The reason given for a layer that could be compressed and that no conversion left out."""

_RECIPE, _PEAK = "_diba_recipe", "_diba_peak_bytes"  # attributes of modules, copied and pickled with them


def report(
    model: nn.Module, *, retuned: RetuneReport | None = None, figures: Mapping[str, float] | None = None
) -> Report:
    """Report what of a model is compressed, how well, and why the rest is not.

    The report is available at any time: for dense models, for models converted in one call or several, fully
    or partly, while a conversion is running, and for loaded, copied and unpickled models.

    Args:
        model: Any module. It is not changed; but modules with fused matrices, such as experts, are unfused
            and fused again, so the model must not run in another thread at the same time.
        retuned: What :func:`diba.torch.retune` returned, for the course of the losses in ``to_html``.
        figures: What was measured on data, by name, such as ``{"perplexity": 12.3}``.

    Returns:
        The report. Facts that the tensors do not contain (SNRs, objectives, times, settings, reasons) are
        stored with the model and in its checkpoints. Facts that were not stored are None, printed as "-".

    Raises:
        TypeError: ``model`` is not a module.

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
        reconstruction=recipe.reconstruction,
        blocks=recipe.blocks,
        facts=Facts(
            figures=dict(figures or {}),
            retuning=None if retuned is None else Retuning.of(retuned),
        ),
    )


def describe(model: nn.Module, recipe: Recipe | None = None) -> Description:
    """Describe the compressed layers of a model, each under all of its names.

    Args:
        model: Any module.
        recipe: How it was compressed; None: ``recipe_of(model)``.
    """
    layers: dict[str, LayerDescription] = {}
    owners: dict[int, str] = {}
    for name, layer in named_layers(model).items():
        owner = owners.setdefault(layer.identity, name)
        layers[name] = _described(layer, None if owner == name else owner)
    return Description(layers=layers, recipe=recipe_of(model) if recipe is None else recipe)


def report_of_layer(name: str, layer: CompressedLayer, tied: Iterable[str] = ()) -> LayerReport:
    """Report one layer, with the names of the layers that share its tensors."""
    described = {name: _described(layer, None)} | {other: _described(layer, name) for other in tied}
    [found] = layer_reports(Description(layers=described))
    return dataclasses.replace(found, name=name, tied=tuple(tied))


# ---------------------------------------------------------------- recipes stored on modules


def remember_layer(layer: nn.Module, recipe: LayerRecipe | None) -> None:
    """Store the recipe of a layer on the layer."""
    vars(layer)[_RECIPE] = recipe


def remember(model: nn.Module, recipe: Recipe, *, peak_bytes: int | None = None) -> None:
    """Store on a model how it was compressed."""
    vars(model)[_RECIPE] = recipe
    if peak_bytes is not None:
        vars(model)[_PEAK] = peak_bytes


def forget(model: nn.Module) -> None:
    """Remove all recipes from a model, which is dense again."""
    for module in model.modules():
        for name in (_RECIPE, _PEAK):
            vars(module).pop(name, None)


def forget_times(model: nn.Module) -> None:
    """Remove the times from all recipes of a model, which differ from run to run."""
    for module in model.modules():
        found = vars(module).get(_RECIPE)
        if isinstance(found, LayerRecipe):
            remember_layer(module, dataclasses.replace(found, seconds=None))
        elif isinstance(found, Recipe):
            blocks = {name: dataclasses.replace(block, seconds=0.0) for name, block in found.blocks.items()}
            remember(module, dataclasses.replace(found, seconds=None, blocks=blocks))


def recipe_of(model: nn.Module, prefix: str = "") -> Recipe:
    """How a model was compressed, from the recipes stored on it and on the modules in it.

    Args:
        model: Any module.
        prefix: Name of a module in it. If given, the recipe is that of this module, with names relative to
            it.
    """
    settings: Mapping[str, Any] | None = None
    how: Mapping[str, Any] | None = None
    left: dict[str, str] = {}
    blocks: dict[str, BlockRecipe] = {}
    seconds: float | None = None
    for name, module in model.named_modules():
        found = vars(module).get(_RECIPE)
        if isinstance(found, Recipe):
            settings = found.settings if settings is None else settings
            seconds = found.seconds if seconds is None else seconds
            how = found.reconstruction if how is None else how
            blocks = {_joined(name, own): block for own, block in found.blocks.items()} | blocks
            inner = {_joined(name, own): reason for own, reason in found.left_dense.items()}
            left = inner | left
    if prefix:
        begin = f"{prefix}."
        left = {name.removeprefix(begin): x for name, x in left.items() if name.startswith(begin)}
        blocks = {name.removeprefix(begin): x for name, x in blocks.items() if name.startswith(begin)}
    return Recipe(settings=settings, left_dense=left, seconds=seconds, reconstruction=how, blocks=blocks)


def peak_memory() -> int:
    """Peak resident memory of the process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---------------------------------------------------------------- details


def _described(layer: CompressedLayer, shared: str | None) -> LayerDescription:
    plain: dict[str, Any] = {
        "kind": layer.kind.name,
        "bias": layer.bias is not None,
        "bias_added": layer.bias_added,
        "dtype": str(layer.dtype).removeprefix("torch."),
        "shared": shared,
        "recipe": vars(layer).get(_RECIPE),
    }
    if isinstance(layer, FactoredLayer):
        shape = layer.d1.numel(), layer.d3.numel()
        facts: dict[str, Any] = {"k": layer.k, "alphabet": layer.alphabet}
        facts["diagonal_bits"] = layer.diagonal_bits
        return LayerDescription(shape=shape, **facts, **plain)
    if isinstance(layer, DibaAPBLayer):
        facts = {"alphas": layer.alpha.numel(), "entries": layer.entries}
        return LayerDescription(shape=layer.matrix_shape, diagonal_bits=layer.diagonal_bits, **facts, **plain)
    if isinstance(layer, DibaBitLayer):
        facts = {"weight_bits": layer.weight_bits, "activation_bits": layer.activation_bits}
        return LayerDescription(shape=layer.matrix_shape, diagonal_bits=layer.diagonal_bits, **facts, **plain)
    coded: Any = layer
    m, n = coded.weight_shape
    return LayerDescription(shape=(m, n), codes=coded.bits, group=coded.group, **plain)


def _skipped(model: nn.Module, known: Mapping[str, str]) -> list[Skipped]:
    """Everything that is not compressed, with the reasons of past conversions where they are known."""
    layers = layers_of(model)
    reasons = {
        id(layer.module): next((known[name] for name in layer.names if name in known), None)
        or layer.obstacle()
        or NOT_COMPRESSED
        for layer in layers
        if not isinstance(layer.module, CompressedLayer)
    }
    return skipped_weights(model, layers, reasons)


def _joined(module: str, own: str) -> str:
    return f"{module}.{own}" if module else own
