"""What ``diba.compress`` needs of diba.torch beyond its public functions."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import transformers

import diba.hf  # noqa: F401  # models of transformers with compressed layers can be saved and read
from diba.hf.compression import NEW
from diba.torch.conversion.convert import when_converted
from diba.torch.conversion.kept import kept_in
from diba.torch.conversion.report import forget_times, recipe_of, remember
from diba.torch.conversion.run import shown_to
from diba.torch.model.config import Config
from diba.torch.model.layers import layers_of
from diba.torch.model.selection import require, select
from diba.torch.model.swap import exchange_tied, unfused
from diba.torch.modules.kinds import replaceable
from diba.torch.modules.layer import Sizes
from diba.torch.modules.state import CodeSizes

from ..checkpoints.description import Recipe
from ..progress import reporting
from ..solvers.size import inner_dimension

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ..progress import ProgressOption

__all__ = [
    "Layer",
    "forget_times",
    "kept_in",
    "name_missing",
    "recipe_of",
    "shown_while_read",
    "unfused",
    "when_converted",
    "with_empty_layers",
]


class Layer(NamedTuple):
    """A layer that would be compressed: (m, n), and k; 0 where it gets codes."""

    shape: tuple[int, int]
    k: int


@contextlib.contextmanager
def shown_while_read(progress: ProgressOption) -> Iterator[None]:
    """A context in which the compression of models that are read is shown."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # there is one of ours
    with reporting(progress) as show:
        token = shown_to.set(show)
        try:
            yield
        finally:
            shown_to.reset(token)


def name_missing(model: Any, layers: Iterable[str]) -> None:
    """Say in the report that layers stay dense because they are not in the checkpoint."""
    recipe = recipe_of(model)
    left = {**recipe.left_dense, **dict.fromkeys(layers, NEW)}
    remember(model, dataclasses.replace(recipe, left_dense=left))


def with_empty_layers(model: Any, settings: Mapping[str, Any]) -> list[Layer]:
    """Put empty compressed layers into a model on the meta device, as a conversion would put full ones.

    Args:
        model: On the meta device; changed in place.
        settings: Fields of :class:`diba.torch.Config`, with ``bits_per_weight``.

    Returns:
        The layers that were put in; those that share a weight count once.

    Raises:
        ValueError: A setting names no layer, or nothing would be compressed.
    """
    config = Config.from_dict(settings)
    found = []
    with unfused(model):
        selection = select(model, config)
        require(selection.targets, selection.skipped)
        names = {layer.names[0] for layer in layers_of(model)}
        for target in selection.targets:
            chosen = target.settings
            sizes: Any
            if chosen.codes is None:
                k = inner_dimension(*target.shape, "bits_per_weight", chosen.bits_per_weight or 0.0)
                sizes = Sizes(target.shape, k, chosen.alphabet)
            else:
                k, sizes = 0, CodeSizes(target.shape, chosen.codes, chosen.group)
            kinds = [replaceable(module) for module in target.modules]
            made = [
                kind.empty(module, sizes)
                for kind, module in zip(kinds, target.modules, strict=True)
                if kind is not None
            ]
            exchange_tied(model, target.modules, made)
            found.append(Layer(target.shape, k))
        left = {each.name: each.reason for each in selection.skipped if each.name in names}
        remember(model, Recipe(settings=config.to_dict(), left_dense=left))
    return found
