"""Compress a model in place: factor the selected layers and replace them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from ..._internal import check
from ..._internal.machine import keeping_free_memory
from ...layers.config import Config
from ..calibration import propagate
from ..calibration.calibration import Calibration
from ..model.selection import check_weights
from ..model.swap import unfused
from ..reconstruction.settings import Reconstruction
from ..retuning.batches import repeatable, size
from ..retuning.losses import check_loss
from .report import recipe_of
from .run import Conversion
from .solving import moments_of, reads, unreached, warn_too_large, warn_unreached, warn_user

if TYPE_CHECKING:
    from ...progress import ProgressOption
    from ..calibration.moments import Moments
    from ..model.swap import UnfusedModel
    from ..retuning.losses import Loss

__all__ = ["convert", "when_converted"]

_PLAIN = (
    "they get objective 'plain', the error of their weights: give batches that reach them, or leave them "
    "dense with skip"
)

when_converted: list[Callable[[nn.Module], object]] = []
"""Functions that :func:`convert` calls with the model when its first layer was replaced and at the end.
``diba.hf`` registers one here, so that the model can be saved at any time."""

Model = TypeVar("Model", bound=nn.Module)


def convert(
    model: Model,
    config: Config | Mapping[str, Any] | None = None,
    *,
    calibration: Mapping[str, Moments] | None = None,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    reconstruct: Reconstruction | Mapping[str, Any] | bool | None = None,
    teacher: nn.Module | None = None,
    progress: ProgressOption = True,
    **settings: Any,
) -> Model:
    """Replace the dense layers of a model by factored layers, in place.

    Each layer is replaced as soon as its factors are ready, and its dense weight is freed. After an exception
    or Ctrl-C the model still works, with some layers replaced; a second call continues with the others. All
    arguments are checked before the first layer is replaced.

    Args:
        model: Any module that contains ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``,
            ``nn.Embedding`` or the ``Conv1D`` of transformers.
        config: A :class:`diba.torch.Config`, or a dict for ``Config.from_dict``; None: from ``settings``.
        calibration: Layer name -> moments of its inputs, from :func:`diba.torch.calibrate`. Layers that it
            did not reach get the plain objective, and a warning names them. Biases of the others are
            corrected, unless ``bias="keep"``; so they are with ``batches``.
        batches: Inputs of the model, see :func:`diba.torch.calibrate`; they are read several times. Layers
            are then compressed in execution order, each for the inputs that it gets from the layers
            compressed before it. Only gradients are then taken from ``calibration``.
        loss: ``loss(model, batch)`` for use with ``batches``, such as :func:`diba.torch.fisher`. Errors are
            weighted by its gradients in the dense model, for each input vector and each output. The batches
            must then be the same each time they are read.
        reconstruct: With ``batches``: fit every block of a sequence of blocks to the dense block while its
            layers are compressed, bits included; True, or a :class:`diba.torch.Reconstruction`. It takes
            several times as long as the factorizations, and is what improves models at 1 to 2 bits most.
            A part of the batches is held out and decides what is kept.
        teacher: With ``batches``: the dense model, ``copy.deepcopy(model)``, which is not changed. It is
            needed to go on with a model that an earlier call has compressed in part; otherwise it saves
            nothing but copies.
        progress: True shows a bar, False nothing. A callable gets a :class:`diba.Progress` at the start and
            after every layer, with its name as ``item``, its ``snr_db`` and its :class:`LayerReport` as
            ``detail``; and after every block that was reconstructed, with a :class:`BlockRecipe`. If the
            callable raises, the conversion ends.
        **settings: Fields of :class:`diba.torch.Config`, instead of ``config``.

    Returns:
        The same model. :func:`diba.torch.report` says what was compressed, how well, and why the rest was
        not.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A setting is unknown, out of range, names no layer of the model, or needs moments that are
            missing; a weight is not finite or has no values; or nothing would be compressed
            and nothing is compressed already.
        OSError: Activations take more than the memory allowed, and the temporary file for the rest cannot be
            made or the disk is full.
        KeyboardInterrupt: Promptly on Ctrl-C.

    Notes:
        Several layers are solved side by side where that is faster. The factors do not depend on this, nor on
        the number of threads, as long as NumPy's products do not.

    Example:
        >>> import torch
        >>> import diba.torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> model = convert(model, bits_per_weight=2, progress=False)
        >>> model[0]
        DibaLinear(in_features=64, out_features=64, bias=True, k=42, alphabet='sign', bits_per_weight=1.98)
    """
    chosen = _config(config, settings)
    check_loss(loss)
    if loss is not None and batches is None:
        raise ValueError("loss is given without batches, whose vectors it weights; give both or neither")
    how = Reconstruction.of(reconstruct)
    _check_data(model, batches, how, teacher)
    with (
        keeping_free_memory(),
        unfused(model) as parts,
        nullcontext() if teacher is None else unfused(teacher),
    ):
        _convert(model, chosen, calibration, batches, loss, how, teacher, progress, parts)
    return model


def _check_data(model: nn.Module, batches: Any, how: Reconstruction | None, teacher: Any) -> None:
    if teacher is not None:
        check.instance(teacher, "teacher", nn.Module, "use copy.deepcopy(model), before it is converted")
        if teacher is model:
            raise ValueError("teacher is the model itself, which is changed; it must be copy.deepcopy(model)")
    for name, value in (("reconstruct", how), ("teacher", teacher)):
        if value is not None and batches is None:
            raise ValueError(f"{name} is given without batches, which it needs: give both or neither")


def _convert(
    model: nn.Module,
    config: Config,
    calibration: Mapping[str, Moments] | None,
    batches: Iterable[Any] | None,
    loss: Loss | None,
    how: Reconstruction | None,
    teacher: nn.Module | None,
    progress: ProgressOption,
    parts: UnfusedModel,
) -> None:
    """Convert an unfused model, in which every matrix is in a separate layer."""
    run = Conversion(model, config, progress=progress, hooks=when_converted)
    targets = list(run.pending.values())
    check_weights(targets)
    if how is not None:
        batches = repeatable(batches)
        if size(batches) == 1:
            raise ValueError(
                "batches has one batch; reconstruct needs at least two, of which one is held out: cut it"
            )
    run.moments = moments_of(targets, calibration, required=batches is None)
    watched = [target for target in targets if target.settings.objective != "plain"]
    if batches is None and calibration is not None:
        warn_unreached(unreached(watched, run.moments), len(targets), _PLAIN)
    warn_too_large(targets)
    order, expected = list(run.pending), {target.name for target in watched if reads(target)}
    solved = [target.name for target in targets if target.settings.codes is None or target.name in expected]
    parts.forget(target.module for target in targets)  # their memory is freed as layers are replaced
    del targets, watched  # these lists would keep the dense layers alive
    try:
        with run:
            run.tell()
            if batches is None:
                run.independently()
            else:
                known = Calibration(run.moments)  # by the names of the targets
                if solved:
                    propagate.run(
                        model,
                        solved,
                        batches,
                        run.factor,
                        free_biases=run.free_biases,
                        calibration=known,
                        loss=loss,
                        reconstructing=None if how is None else run.reconstructing(how),
                        teacher=teacher,
                        on_batch=run.busy,
                        on_plan=run.plan,
                    )
                run.independently()  # layers with codes that no data are needed for
    except BaseException as error:
        error.add_note(
            f"diba.torch.convert has replaced {len(run.done)} of {len(order)} layers; the model works "
            "with them, and a second call goes on with the others"
        )
        raise
    if batches is not None:
        missed = [name for name in order if name in expected and run.done[name].objective == "plain"]
        warn_unreached(missed, len(order), _PLAIN)
    if how is not None and not recipe_of(model).blocks:
        warn_user(
            "no block was reconstructed: the model runs no sequence of blocks, other than single layers, of "
            "which each reads the output of the one before, and else the same arguments or more of it; "
            "its layers are compressed as without reconstruct"
        )


def _config(config: Any, settings: dict[str, Any]) -> Config:
    if config is not None and settings:
        raise ValueError(
            f"config and the keyword {next(iter(settings))!r} are both given; give one, or use "
            "dataclasses.replace(config, ...)"
        )
    if config is None or isinstance(config, Mapping):
        return Config.from_dict(settings if config is None else config)
    check.instance(config, "config", Config, "use diba.torch.Config(bits_per_weight=2)")
    return config  # type: ignore[no-any-return]
