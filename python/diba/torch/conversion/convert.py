"""Compress a model in place: solve every selected layer, put the factors where the dense weight was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from ..._internal import check
from ..calibration.moments import Calibration
from ..model.config import Config
from ..model.selection import check_weights
from ..model.swap import unfused
from ..retuning.losses import check_loss
from .run import Conversion
from .solving import moments_of, reads, unreached, warn_unreached

if TYPE_CHECKING:
    from ...progress import ProgressOption
    from ..calibration.moments import Moments
    from ..model.swap import UnfusedModel
    from ..retuning.losses import Loss

__all__ = ["convert", "when_converted"]

_PLAIN = (
    "of these the error of the weights is made small (objective 'plain' in the report): give batches that "
    "reach them, or leave them dense with skip"
)

when_converted: list[Callable[[nn.Module], object]] = []
"""Called by :func:`convert` with a model that has factored layers, when the first is replaced and at the end:
layers above register here what lets the model be saved at any time."""

Model = TypeVar("Model", bound=nn.Module)


def convert(
    model: Model,
    config: Config | Mapping[str, Any] | None = None,
    *,
    calibration: Mapping[str, Moments] | None = None,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    progress: ProgressOption = True,
    **settings: Any,
) -> Model:
    """Replace the dense layers of a model by layers with binary factors, in place.

    Each layer is replaced as soon as its factors are ready, and its dense weight is then free. After an
    exception or Ctrl-C the model works, with the layers done so far replaced; converting it again goes on
    with the others. Everything that can be checked is checked before the first layer is touched.

    Args:
        model: Any module on the CPU with ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``, ``nn.Embedding`` or
            transformers' ``Conv1D`` in it.
        config: What to do; a dict is read by ``Config.from_dict``. Or give the settings as keywords.
        calibration: Layer name -> moments of its inputs, from :func:`diba.torch.calibrate`. Layers that it
            did not reach are named in a warning and get the plain objective; so with ``batches``.
        batches: What the model is called with, repeatable. Layers are then compressed in the order in which
            they run, each for the inputs that the compressed layers before it leave; ``calibration`` then
            gives only gradients of outputs.
        loss: With ``batches``, ``loss(model, batch)``, such as :func:`diba.torch.fisher`: its gradients in
            the dense model say how much each input vector and each output matters, and errors count
            accordingly. Batches must then be the same every time they are read.
        progress: True shows a bar, False nothing; a callable takes a :class:`diba.Progress` at the start and
            after every layer, with its name as ``item``, its ``snr_db`` and its :class:`LayerReport` as
            ``detail``. What it raises ends the run.
        **settings: Arguments of :class:`diba.torch.Config`, instead of ``config``.

    Returns:
        The same model. :func:`diba.torch.report` tells what was compressed, how well, and why the rest was
        not.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a setting is unknown or out of range, names no layer of the model, needs moments that are
            not there; a weight is not finite, not on the CPU, or has no values; or nothing would be
            compressed, and nothing is already.
        KeyboardInterrupt: promptly on Ctrl-C.

    Notes:
        Several layers are solved side by side where that is faster. Their number and the threads change no
        factor; with moments as far as NumPy's own products do not depend on threads.

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
        raise ValueError("loss is given without batches, whose vectors it is to weigh; give both or neither")
    with unfused(model) as parts:
        _convert(model, chosen, calibration, batches, loss, progress, parts)
    return model


def _convert(
    model: nn.Module,
    config: Config,
    calibration: Mapping[str, Moments] | None,
    batches: Iterable[Any] | None,
    loss: Loss | None,
    progress: ProgressOption,
    parts: UnfusedModel,
) -> None:
    """The same for a model in which every matrix is in a layer of its own."""
    run = Conversion(model, config, progress=progress, hooks=when_converted)
    targets = list(run.pending.values())
    check_weights(targets)
    run.moments = moments_of(targets, calibration, required=batches is None)
    watched = [target for target in targets if target.settings.objective != "plain"]
    if batches is None and calibration is not None:
        warn_unreached(unreached(watched, run.moments), len(targets), _PLAIN)
    order, expected = list(run.pending), {target.name for target in watched if reads(target)}
    parts.forget(target.module for target in targets)  # what is done shall be free
    del targets, watched  # the run has the dense layers; other lists of them would keep them alive
    try:
        with run:
            run.tell()
            if batches is None:
                run.independently()
            else:
                from ..calibration import propagate  # only now: it runs models

                known = Calibration(run.moments)  # by the names of the targets, whatever names it came with
                propagate.run(model, order, batches, run.factor, calibration=known, loss=loss)
    except BaseException as error:
        error.add_note(
            f"diba.torch.convert has replaced {len(run.done)} of {len(order)} layers; the model works "
            "with them, and a second call goes on with the others"
        )
        raise
    if batches is not None:
        missed = [name for name in order if name in expected and run.done[name].objective == "plain"]
        warn_unreached(missed, len(order), _PLAIN)


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
