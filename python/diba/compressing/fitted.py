"""A model fitted to data: converted block by block, retuned, and judged on data held back."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import diba.torch

from .._internal.machine import give_back_free_memory
from ..checkpoints.facts import Retuning
from ..solvers.size import no_size_warning
from . import judge
from .data.answers import answered
from .data.batches import picked
from .models import (
    gradients_kept_at,
    kept_in,
    name_missing,
    of_one_block,
    recipe_of,
    separate,
    sharing,
    trainings_kept_in,
    when_converted,
)
from .stages import fitted_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .data.batches import Batch
    from .data.kinds import Data
    from .recipe import CompressSettings
    from .source import Source
    from .stages import Stages
    from .workplace import Workplace

__all__ = ["fitted"]

KEPT_EVERY = 100  # steps of retuning
KEPT_SECONDS = 20.0  # of training a block
_CONVERTED, _RETUNED = "converted", "retuned"  # stages whose end is kept
_HELD_BACK = 16  # of so many batches one judges the result
_NUMBERS = 512  # of an image or a sound, a rough guess


def fitted(
    source: Source, settings: CompressSettings, place: Workplace, data: Data, stages: Stages
) -> tuple[Any, dict[str, float]]:
    """The model, converted for data and retuned, and its figures on data that were held back.

    Goes on from what the workplace has of it.
    """
    earlier = place.noted("stages")
    if earlier is not None:
        stages.expect(**earlier)
    with stages.stage("load", "model and data"):
        batches = data.batches()
        dense, missing = source.dense_and_missing()
        used = _Used(source, batches, settings, dense, place)
        model = sharing(dense) if place.part is None else source.read(place.part)
    if earlier is None:
        stages.expect(_seconds(source, settings, dense, used))
    config = _config(source, settings, dense, missing)
    if settings.shares_bits:
        config["layers"] = _allocated(config, settings, dense, used.seen, place, stages)
    if place.stage is None:
        with (
            stages.stage("convert", rest=True) as progress,
            no_size_warning() if settings.shares_bits else contextlib.nullcontext(),
            kept_in(place.layers),
            gradients_kept_at(place.gradients),
            trainings_kept_in(place.block, KEPT_SECONDS),
            _blocks_kept(model, place, stages),
        ):
            diba.torch.convert(
                model,
                config,
                batches=used.seen,
                loss=diba.torch.fisher(seed=settings.seed),
                reconstruct=_reconstruction(settings),
                teacher=dense,
                progress=progress,
            )
        give_back_free_memory()
        place.note("stages", stages.kept())
        name_missing(model, missing)
        place.keep(model.save_pretrained, _CONVERTED)
    if settings.retune and place.stage == _CONVERTED:
        separate(model, dense)  # norms are trained
        with stages.stage("retune") as progress, of_one_block(model, dense, used.seen):
            course = diba.torch.retune(
                model,
                used.all,
                teacher=dense,
                norms=True,
                max_steps=settings.retune,
                seed=settings.seed,
                checkpoint=place.training,
                every=KEPT_EVERY,
                progress=progress,
            )
        place.note("stages", stages.kept())
        place.note("retuning", Retuning.of(course).to_dict())
        place.keep(model.save_pretrained, _RETUNED)
    with stages.stage("measure"):
        counted = stages.counted("measure", used.judging, 3 if source.is_causal else 1)
        return model, judge.figures(dense, model, counted, source.is_causal)


def _seconds(source: Source, settings: CompressSettings, dense: nn.Module, used: _Used) -> dict[str, float]:
    """Estimated seconds of all stages."""
    tables = {id(m.weight) for m in dense.modules() if isinstance(m, nn.Embedding)}
    sizes = [_tokens(batch) for batch in used.seen[:8]]
    return fitted_seconds(
        parameters=sum(p.numel() for p in dense.parameters() if p.ndim > 1 and id(p) not in tables),
        tokens=sum(sizes) / len(sizes),
        width=getattr(source.config.get_text_config(), "hidden_size", 512),
        batches=(len(used.seen), len(used.judging)),
        settings=settings,
        size=source.bytes,
    )


def _tokens(batch: Batch) -> float:
    """About how many vectors go through the layers; of images and sounds hundreds of numbers are one."""
    tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    return max(x.numel() / (_NUMBERS if x.is_floating_point() else 1) for x in tensors)


class _Used:
    """The batches of a run.

    Attributes:
        judging: Those that nothing else sees.
        seen: Those that compression sees.
        all: Those of retuning: first others, as many as it has steps, then the same.
    """

    def __init__(
        self,
        source: Source,
        batches: Sequence[Batch],
        settings: CompressSettings,
        dense: Any,
        place: Workplace,
    ) -> None:
        judging = max(1, len(batches) // _HELD_BACK)
        end = min(judging + settings.batches, len(batches))
        last = min(end + settings.retune, len(batches))
        known = place.noted("answers") or []
        made = answered(
            source,
            picked(batches, range(last)),
            dense,
            settings.tokens,
            known,
            lambda: place.note("answers", known),
        )
        if place.part is None:
            for _ in made:  # what cannot be read is an error now, not in an hour
                pass
        self.judging, self.seen = made[:judging], made[judging:end]
        self.all = picked(made, [*range(end, last), *range(judging, end)])


def _reconstruction(settings: CompressSettings) -> dict[str, Any] | None:
    return {"steps": settings.reconstruct, "seed": settings.seed} if settings.reconstruct else None


def _config(source: Source, settings: CompressSettings, dense: Any, missing: list[str]) -> dict[str, Any]:
    """The settings of layers; those that are not in the files stay as they are, and dense."""
    config = settings.config(source.has_output_layer)
    known = [name for name in missing if isinstance(dense.get_submodule(name), nn.Linear)]
    return {**config, "skip": [*config["skip"], *(name for name in known if name not in config["skip"])]}


def _allocated(
    config: dict[str, Any],
    settings: CompressSettings,
    dense: Any,
    batches: Sequence[Batch],
    place: Workplace,
    stages: Stages,
) -> dict[str, dict[str, int]]:
    """Name of a layer -> its k, chosen once, for the errors of outputs weighted by gradients."""
    known = place.noted("allocation")
    if known is None:
        with stages.stage("allocate") as progress:
            chosen, loss = diba.torch.Config(**config), diba.torch.fisher(seed=settings.seed)
            calibration = diba.torch.calibrate(dense, batches, config=chosen, loss=loss, progress=False)
            found = diba.torch.allocate(
                dense, settings.bits, config=chosen, calibration=calibration, progress=progress
            )
        known = {name: int(k) for name, k in sorted(found.k.items())}  # the order in which they are read
        place.note("allocation", known)
        place.note("stages", stages.kept())
    return {name: {"k": k} for name, k in known.items()}


@contextlib.contextmanager
def _blocks_kept(model: Any, place: Workplace, stages: Stages) -> Iterator[None]:
    """A context in which a conversion of the model has it kept after every block."""
    known = len(recipe_of(model).blocks)

    def after_change(changed: Any) -> None:
        nonlocal known
        count = len(recipe_of(model).blocks) if changed is model else known
        if count > known:
            known = count
            place.keep(model.save_pretrained)
            place.note("stages", stages.kept())

    when_converted.append(after_change)
    try:
        yield
    finally:
        when_converted.remove(after_change)
