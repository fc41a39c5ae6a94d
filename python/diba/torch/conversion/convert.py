"""Compress a model in place: solve every selected layer, put the factors where the dense weight was."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from ..._internal import check
from ..calibration.moments import Calibration
from ..model.config import Config
from ..model.selection import check_weights, require, select
from ..model.swap import unfused
from ..modules.layer import factored_layers
from ..retuning.losses import check_loss
from . import run as conversion
from .coverage import moments_of, reads, unreached, warn_unreached
from .report import LayerReport, Report

if TYPE_CHECKING:
    from ..calibration.moments import Moments
    from ..model.swap import UnfusedModel
    from ..retuning.losses import Loss

__all__ = ["convert", "meet_transformers"]

_PLAIN = (
    "of these the error of the weights is made small (objective 'plain' in the report): give batches that "
    "reach them, or leave them dense with skip"
)


def convert(
    model: nn.Module,
    config: Config | Mapping[str, Any] | None = None,
    *,
    calibration: Mapping[str, Moments] | None = None,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    progress: bool | Callable[[LayerReport, int, int], object] = True,
    **settings: Any,
) -> Report:
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
        progress: True shows a bar (with tqdm), False nothing; a callable takes ``(LayerReport, layers done,
            layers in all)`` after every layer, and what it raises ends the run.
        **settings: Arguments of :class:`diba.torch.Config`, instead of ``config``.

    Returns:
        The report: layers with their size, SNR and time, totals, and all other weights of the model: what
        was left as it was, its size and why. Its first line says how much of the model was compressed.

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
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> report = convert(model, bits_per_weight=2, progress=False)
        >>> [layer.k for layer in report.layers], [layer.name for layer in report.skipped]
        ([42], ['2'])
    """
    chosen = _config(config, settings)
    check_loss(loss)
    if loss is not None and batches is None:
        raise ValueError("loss is given without batches, whose vectors it is to weigh; give both or neither")
    with unfused(model) as parts:
        return _convert(model, chosen, calibration, batches, loss, progress, parts)


def _convert(
    model: nn.Module,
    config: Config,
    calibration: Mapping[str, Moments] | None,
    batches: Iterable[Any] | None,
    loss: Loss | None,
    progress: bool | Callable[[LayerReport, int, int], object],
    parts: UnfusedModel,
) -> Report:
    """The same for a model in which every matrix is in a layer of its own."""
    selection = select(model, config)
    require(selection.targets, selection.skipped)
    check_weights(selection.targets)
    moments = moments_of(selection.targets, calibration, required=batches is None)
    watched = [target for target in selection.targets if target.settings.objective != "plain"]
    if batches is None and calibration is not None:
        warn_unreached(unreached(watched, moments), len(selection.targets), _PLAIN)
    expected = {target.name for target in watched if reads(target)}
    begun = functools.partial(_prepare, model, config)  # the model may be saved at any time from then on
    run = conversion.Conversion(model, selection.targets, moments, config, progress, begun)
    order, skipped = [target.name for target in selection.targets], selection.skipped
    parts.forget(target.module for target in selection.targets)  # what is done shall be free
    del selection, watched  # the run has the dense layers; other lists of them would keep them alive
    try:
        if batches is None:
            run.independently()
        else:
            from ..calibration import propagate  # only now: it runs models

            known = Calibration(moments)  # by the names of the targets, whatever names it came with
            propagate.run(model, order, batches, run.factor, calibration=known, loss=loss)
    except BaseException as error:
        error.add_note(
            f"diba.torch.convert has replaced {len(run.reports)} of {len(order)} layers; the model works "
            "with them, and a second call goes on with the others"
        )
        raise
    finally:
        run.display.close()
        run.release()
        _prepare(model, config)
    if batches is not None:
        missed = [name for name in order if name in expected and run.reports[name].objective == "plain"]
        warn_unreached(missed, len(order), _PLAIN)
    return run.report(skipped)


def _prepare(model: nn.Module, config: Config) -> None:
    """Let the layers above, :mod:`diba.hf`, see to it that the model can be saved and loaded."""
    if factored_layers(model):
        for prepare in conversion.prepare:
            prepare(model, config)


def meet_transformers() -> None:
    """Import ``diba.hf``, the layer above, into a process with models of transformers, to be saved."""
    try:
        importlib.import_module("diba.hf")
    except Exception as error:  # transformers 4 first of all, and its import is not ours to end
        if not isinstance(error, ImportError):
            warnings.warn(f"diba.hf cannot be imported: {error!r}", stacklevel=2)
        conversion.prepare.append(functools.partial(_warn, str(error)))


def _warn(reason: str, model: nn.Module, config: Config) -> None:
    kind = sys.modules["transformers.modeling_utils"].PreTrainedModel
    if any(isinstance(module, kind) for module in model.modules()):
        text = f"save_pretrained of this model will not write what from_pretrained needs: {reason}"
        warnings.warn(text, stacklevel=4)


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
