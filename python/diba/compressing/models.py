"""What ``diba.compress`` needs of diba.torch beyond its public functions."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import torch
import transformers

import diba.hf  # noqa: F401  # models of transformers with compressed layers can be saved and read
from diba.hf.compression import NEW
from diba.layers.config import Config
from diba.torch.calibration.blocks import in_sequence
from diba.torch.calibration.dense import separate, sharing
from diba.torch.calibration.kept import gradients_kept_at
from diba.torch.conversion.convert import when_converted
from diba.torch.conversion.kept import kept_in
from diba.torch.conversion.report import describe, forget_times, recipe_of, remember
from diba.torch.conversion.run import shown_to
from diba.torch.model.layers import layers_of
from diba.torch.model.selection import require, select
from diba.torch.model.swap import exchange_tied, unfused
from diba.torch.modules.kinds import replaceable
from diba.torch.modules.layer import Sizes
from diba.torch.modules.state import CodeSizes
from diba.torch.reconstruction.kept import trainings_kept_in
from diba.torch.retuning.batches import running_again

from .._internal.snr import snr_db
from ..checkpoints.description import Recipe
from ..layers.tensors import FileMatrix, FileTensor
from ..progress import reporting
from ..solvers.size import inner_dimension
from .outline import Outline, Weight

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from diba.torch.model.selection import Target

    from ..checkpoints.layers import LayerDescription
    from ..checkpoints.report import Report
    from ..progress import ProgressOption

__all__ = [
    "forget_times",
    "gradients_kept_at",
    "kept_in",
    "name_missing",
    "of_one_block",
    "one_bar",
    "outlined",
    "recipe_of",
    "separate",
    "sharing",
    "shown_while_read",
    "snrs_of_modules",
    "trainings_kept_in",
    "when_converted",
]

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@contextlib.contextmanager
def one_bar() -> Iterator[None]:
    """A context in which transformers shows no bars: there is one of ours."""
    logging: Any = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def shown_while_read(progress: ProgressOption) -> Iterator[None]:
    """A context in which the compression of models that are read is shown."""
    with reporting(progress) as show:
        token = shown_to.set(show)
        try:
            yield
        finally:
            shown_to.reset(token)


def of_one_block(
    model: Any, dense: Any, batches: Iterable[Mapping[str, Any]]
) -> contextlib.AbstractContextManager[None]:
    """A context in which training takes the memory of one block's activations, not of all.

    Args:
        model: A compressed model.
        dense: The model that it was made of, where the blocks are found.
        batches: What both take; the first ones are read.
    """
    return running_again(model, in_sequence(dense, batches))


def name_missing(model: Any, layers: Iterable[str]) -> None:
    """Say in the report that layers stay dense because they are not in the checkpoint."""
    recipe = recipe_of(model)
    left = {**recipe.left_dense, **dict.fromkeys(layers, NEW)}
    remember(model, dataclasses.replace(recipe, left_dense=left))


def outlined(
    model: Any, settings: Mapping[str, Any], tensors: Mapping[str, FileTensor] | None
) -> Outline | str:
    """What a model of transformers will be: compressed layers are put into it, as a conversion would.

    Args:
        model: On the meta device, of the dtype of the result; changed in place.
        settings: Fields of :class:`diba.torch.Config`, with ``bits_per_weight``.
        tensors: Those of the dense model's files; None: the outline is to tell names and sizes only.

    Returns:
        The outline; or why the files do not tell it: they do not have the tensors as the model has them.

    Raises:
        ValueError: A setting names no layer, or nothing would be compressed.
    """
    config = Config.from_dict(settings)
    dtype = model.dtype
    with unfused(model) as apart:
        selection = select(model, config)
        require(selection.targets, selection.skipped)
        names = {layer.names[0] for layer in layers_of(model)}
        found = [(target, _put_in(model, target)) for target in selection.targets]
        left = {each.name: each.reason for each in selection.skipped if each.name in names}
        recipe = Recipe(settings=config.to_dict(), left_dense=left)
        model.to(dtype)
        layers = describe(model, recipe).layers
        if tensors is None:
            tensors = _as_described(model, found)
        elif apart.parts:
            return "it has fused matrices, which files hold in other ways"
        return _matched(model, found, layers, recipe, tensors)


def _as_described(model: Any, found: list[tuple[Target, int]]) -> dict[str, FileTensor]:
    """Tensors as the files of a model would have them, with names and sizes only."""
    every = {name: (_DTYPES[x.dtype], tuple(x.shape)) for name, x in model.state_dict().items()}
    dtype = _DTYPES[model.dtype]
    for target, _ in found:
        every[f"{target.name}.weight"] = dtype, target.shape[:: -1 if target.kind == "Conv1D" else 1]
    return {name: FileTensor("", name, kind, shape, 0) for name, (kind, shape) in every.items()}


def _put_in(model: Any, target: Target) -> int:
    """Replace the dense layers of a target by empty ones; returns k, 0 for codes."""
    chosen, k = target.settings, 0
    sizes: Any
    if chosen.codes is None:
        k = inner_dimension(*target.shape, "bits_per_weight", chosen.bits_per_weight or 0.0)
        sizes = Sizes(target.shape, k, chosen.alphabet)
    else:
        sizes = CodeSizes(target.shape, chosen.codes, chosen.group)
    kinds = [replaceable(module) for module in target.modules]
    pairs = zip(kinds, target.modules, strict=True)
    exchange_tied(model, target.modules, [kind.empty(module, sizes) for kind, module in pairs if kind])
    return k


def _matched(
    model: Any,
    found: list[tuple[Target, int]],
    layers: Mapping[str, LayerDescription],
    recipe: Recipe,
    tensors: Mapping[str, FileTensor],
) -> Outline | str:
    """Find the tensors of a model with empty layers in the files of the dense one."""
    by_target = {name: pair for pair in found for name in (pair[0].name, *pair[0].aliases, *pair[0].tied)}
    weights = {}
    for name in [name for name, layer in layers.items() if layer.shared is None]:
        target, k = by_target[name]
        names = (name, target.name, *target.aliases, *target.tied)
        tensor = next((tensors[key] for each in names if (key := f"{each}.weight") in tensors), None)
        weight = None if tensor is None else _weight(name, tensor, target, k)
        if weight is None:
            return f"the weight of {name} is not in them under its name"
        weights[name] = weight
    inside = {f"{name}.{each}" for name in layers for each in layers[name].tensors}
    dense: dict[str, FileTensor] = {}
    known: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if name in inside or id(value) in known:
            continue
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != tuple(value.shape) or tensor.dtype != _DTYPES.get(value.dtype):
            return f"{name} is not in them as the model has it"
        dense[name] = tensor
        known.add(id(value))
    return Outline(
        layers=layers,
        weights=weights,
        dense=dense,
        guarded=frozenset(layers),
        recipe=recipe,
    )


def _weight(name: str, tensor: FileTensor, target: Target, k: int) -> Weight | None:
    """The weight of a layer in a file; None: the file has another shape."""
    found = FileMatrix.of(name, tensor, target.shape, target.kind)
    if found is None:
        return None
    return Weight(name, tensor, target.shape, found.turned, settings=target.settings, k=k)


@torch.no_grad()
def snrs_of_modules(model: Any, source: Any, report: Report) -> dict[str, float]:
    """SNR of the weights of every compressed layer against the dense model of a source, both in memory.

    Raises:
        ValueError: The dense model has no layer of that name and shape.
    """
    dense = source.dense()
    found = {}
    with unfused(dense):
        known = dict(dense.named_modules())
        for layer in report.layers:
            weight = getattr(known.get(layer.name), "weight", None)
            own = model.get_submodule(layer.name).to_dense_module().weight.double()
            if not isinstance(weight, torch.Tensor) or weight.shape != own.shape:
                raise ValueError(f"against has no {layer.name} of that shape; it must be the dense model")
            error = float((weight.double() - own).square().sum())
            found[layer.name] = snr_db(float(weight.double().square().sum()), error)
    return found
