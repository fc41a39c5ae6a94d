"""A compression whose model is in memory: with data, or of files that do not tell its layers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

import diba
import diba.torch

from ..progress import reporting
from . import card
from .fitted import fitted
from .models import forget_times, kept_in, one_bar, shown_while_read
from .stages import Stages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ..checkpoints.report import Report
    from ..progress import ProgressOption
    from .data.kinds import Data
    from .recipe import CompressSettings
    from .source import Source
    from .workplace import Workplace

__all__ = ["from_model"]


def from_model(
    source: Source,
    settings: CompressSettings,
    place: Workplace,
    data: Data | None,
    threads: int | None,
    progress: ProgressOption,
) -> tuple[dict[str, Any], Report]:
    """Make the result and keep it in the workplace; returns facts about it, and its report."""
    with _threads(threads), one_bar(), reporting(progress) as show:
        if data is None:
            stages = Stages(show, {"convert": 0.95, "write": 0.05})
            with stages.stage("convert") as heard, kept_in(place.layers), shown_while_read(heard):
                model = source.compressed(settings.config(source.has_output_layer))
            figures: dict[str, float] = {}
        else:
            stages = Stages(show)
            model, figures = fitted(source, settings, place, data, stages)
        report = diba.torch.report(model)
        facts = {"bits_per_weight": report.bits_per_weight, "figures": figures, "dense_bytes": source.bytes}
        facts["retuning"] = place.noted("retuning")

        def save(folder: Path) -> dict[str, Any]:
            _save(model, folder, source, settings, facts)
            return facts

        with stages.stage("write"):
            place.keep_result(save)
        stages.end()
    return facts, report


def _save(
    model: Any, folder: Path, source: Source, settings: CompressSettings, facts: Mapping[str, Any]
) -> None:
    """Write the result: no times, which would differ from run to run, and no wider than the dense one."""
    model.to(source.dtype)
    forget_times(model)
    model.save_pretrained(folder)
    source.copy_others(folder)
    card.write(folder, source, settings, facts, diba.torch.report(model))


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """A context with so many threads, of torch and of diba."""
    if count is None:
        yield
        return
    before = torch.get_num_threads(), diba.num_threads()
    torch.set_num_threads(count)
    diba.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        diba.set_num_threads(before[1])
