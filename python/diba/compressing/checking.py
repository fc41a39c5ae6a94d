"""What a compressed folder is: whole, as it was written, how far from the dense model, how good on texts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import diba.torch

from .._internal import check
from .._internal.snr import snr_db
from ..checkpoints.facts import Facts
from ..errors import FormatError
from . import judge
from .files import sha256_of
from .models import unfused
from .recipe import CompressSettings
from .source import Source
from .texts import text_batches
from .workplace import DONE

if TYPE_CHECKING:
    from .._internal.disk import PathLike
    from ..checkpoints.report import Report

__all__ = ["evaluate", "verify"]


def verify(folder: PathLike, *, against: PathLike | None = None) -> Report:
    """Check a compressed folder, and measure it against the dense model.

    Files of weights must have the digests that ``diba.compress`` wrote, where it made the folder; sizes,
    checksums and values of factors are checked as they are read; every other tensor must be finite.

    Args:
        folder: A folder that ``save_pretrained`` or ``diba.compress`` wrote.
        against: Folder of the dense model; None: SNRs are those that were recorded.

    Returns:
        The report of the model; with ``against``, its SNRs are measured now, after all training.

    Raises:
        diba.FormatError: Something is damaged; the message names it.
        ValueError: The model is not compressed, or ``against`` is another model.
        OSError: A folder cannot be read.
    """
    path = Path(check.path(folder))
    source = Source.any(path)
    for name, digest in _digests(path).items():
        if not (path / name).is_file() or sha256_of(path / name) != digest:
            raise FormatError(f"{path / name} is not what diba.compress wrote: its SHA-256 differs")
    model = source.read(path)
    report = dataclasses.replace(diba.torch.report(model), facts=Facts.of_folder(path))
    if not report.layers:
        raise ValueError(f"{path} is a dense model; it must be one that diba has compressed")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise FormatError(f"{path}: {name} has entries that are not finite")
    if against is None:
        return report
    snrs = _snrs(model, Source.at(check.path(against)).dense(), report)
    layers = [dataclasses.replace(layer, snr_db=snrs[layer.name]) for layer in report.layers]
    return dataclasses.replace(report, layers=tuple(layers))


def evaluate(
    folder: PathLike, data: PathLike, *, against: PathLike | None = None, **settings: Any
) -> dict[str, float]:
    """Measure a model on texts, compressed or not.

    Args:
        folder: A folder that ``from_pretrained`` reads.
        data: Texts, see :func:`diba.compressing.compress`; all of them are used.
        against: Folder of the dense model, which is measured beside it; only language models can do without.
        **settings: ``tokens``, ``rows`` and ``seed`` of :class:`CompressSettings`.

    Returns:
        Figures by name, see ``judge``.

    Raises:
        TypeError, ValueError, OSError: As for :func:`diba.compressing.compress`; or ``against`` is missing.
    """
    source = Source.any(Path(check.path(folder)))
    if against is None and not source.is_causal:
        raise ValueError(
            f"{source.kind.__name__} has no loss of its own; give against, the folder of the dense model"
        )
    chosen = CompressSettings.of(None, settings)
    batches = text_batches(source, Path(check.path(data)), chosen)
    model = source.read(source.folder)
    dense = model if against is None else Source.any(Path(check.path(against))).dense()
    figures = judge.figures(dense, model, batches, source.is_causal)
    return figures if against is not None else {k: v for k, v in figures.items() if k != "perplexity_dense"}


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of files by name, as ``diba.compress`` wrote them; empty for other folders."""
    try:
        found: dict[str, str] = json.loads((folder / DONE).read_text())["files"]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{folder / DONE} is damaged ({error})") from error
    return found


@torch.no_grad()
def _snrs(model: Any, dense: Any, report: Report) -> dict[str, float]:
    """SNR of the weights of every compressed layer against the dense model."""
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
