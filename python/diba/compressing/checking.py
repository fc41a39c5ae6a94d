"""What a compressed folder is: whole, as it was written, how far from the dense model, how good on texts."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal import check
from ..checkpoints import integrity
from ..checkpoints.facts import Facts
from ..errors import FormatError
from ..layers.solved import pieces
from ..layers.stored import snr_of, stored_layer
from ..layers.tensors import FLOATS, FileMatrix, FileTensor, tensors_at
from .files import sha256_of
from .recipe import CompressSettings
from .source import Source, source_at
from .workplace import DONE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._internal.disk import PathLike
    from ..checkpoints.description import Description
    from ..checkpoints.integrity import Stored
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
    for name, digest in _digests(path).items():
        if not (path / name).is_file() or sha256_of(path / name) != digest:
            raise FormatError(f"{path / name} is not what diba.compress wrote: its SHA-256 differs")
    description, stored = integrity.checked(path)
    report = integrity.report_of(description, stored.tensors)
    report = dataclasses.replace(report, facts=Facts.of_folder(path))
    if not report.layers:
        raise ValueError(f"{path} is a dense model; it must be one that diba has compressed")
    for name, tensor in tensors_at(path).items():
        _require_finite(path, name, tensor)
    if against is None:
        return report
    dense = source_at(Path(check.path(against)))
    snrs = _snrs(description, stored, dense.tensors)
    if snrs is None:
        from .models import snrs_of_modules

        snrs = snrs_of_modules(Source.any(path).read(path), dense, report)
    layers = [dataclasses.replace(layer, snr_db=snrs[layer.name]) for layer in report.layers]
    return dataclasses.replace(report, layers=tuple(layers))


def evaluate(
    folder: PathLike, data: PathLike, *, against: PathLike | None = None, **settings: Any
) -> dict[str, float]:
    """Measure a model on data, compressed or not.

    Args:
        folder: A folder that ``from_pretrained`` reads.
        data: See :func:`diba.compressing.compress`; all of them are used.
        against: Folder of the dense model, which is measured beside it; only language models can do without.
        **settings: ``tokens``, ``rows`` and ``seed`` of :class:`CompressSettings`.

    Returns:
        Figures by name, see ``judge``.

    Raises:
        TypeError, ValueError, OSError: As for :func:`diba.compressing.compress`; or ``against`` is missing.
    """
    from . import judge
    from .data.answers import answered
    from .data.kinds import Data

    source = Source.any(Path(check.path(folder)))
    if against is None and not source.is_causal:
        raise ValueError(
            f"{source.kind.__name__} has no loss of its own; give against, the folder of the dense model"
        )
    chosen = CompressSettings.of(None, settings)
    batches = Data.at(source, Path(check.path(data)), chosen).batches()
    model = source.read(source.folder)
    dense = model if against is None else Source.any(Path(check.path(against))).dense()
    heard = answered(source, batches, dense, chosen.tokens, [])
    figures = judge.figures(dense, model, heard, source.is_causal)
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


def _require_finite(path: Path, name: str, tensor: FileTensor) -> None:
    if tensor.dtype not in FLOATS or not tensor.shape:
        return
    for rows in pieces(tensor.shape[0], math.prod(tensor.shape[1:])):
        if not np.isfinite(tensor.array(rows.start, rows.stop)).all():
            raise FormatError(f"{path}: {name} has entries that are not finite")


def _snrs(
    description: Description, stored: Stored, dense: Mapping[str, FileTensor]
) -> dict[str, float] | None:
    """SNR of every compressed layer against the dense weights of its name, by all names that share it.

    None: the dense files have other names.

    Raises:
        ValueError: A dense weight has another shape.
    """
    found: dict[str, float] = {}
    for owner, names in description.sharing.items():
        layer = description.layers[owner]
        keys = [key for name in names for key in (f"{name}.weight", name)]
        tensor = next((dense[key] for key in keys if key in dense), None)
        if tensor is None:
            return None
        matrix = FileMatrix.of(owner, tensor, layer.shape, layer.kind)
        if matrix is None:
            raise ValueError(f"against has no {owner} of that shape; it must be the dense model")
        snr = snr_of(stored_layer(stored, owner, layer), matrix)
        found |= dict.fromkeys(names, snr)
    return found
