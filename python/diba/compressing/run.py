"""Compress a model from a folder to a folder; a run that was stopped goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import diba
import diba.torch

from .._internal import check
from ..checkpoints.entries import format_bytes
from ..progress import check_progress
from . import card
from .fitted import fitted
from .models import forget_times, kept_in, shown_while_read
from .recipe import CompressSettings
from .source import Source
from .texts import digests
from .workplace import opened

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .._internal.disk import PathLike
    from ..checkpoints.report import Report
    from ..progress import ProgressOption
    from .workplace import Workplace

__all__ = ["Compressed", "compress"]


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """The result of :func:`diba.compressing.compress`; ``print`` shows a few lines.

    Attributes:
        path: The folder.
        settings: All settings: ``diba.compress(model, out, data=data, **settings)`` repeats the run.
        bytes: Of the files of weights.
        dense_bytes: Of those of the dense model, at its own dtype.
        bits_per_weight: Of the compressed layers.
        figures: What was measured on texts that nothing else has seen, dense and compressed; see ``judge``.
        seconds: Of the last run.
        retuning: The course of the losses, as :class:`Retuning` has them; None: nothing was retuned.
        report: Every layer; None where the folder was finished before.
    """

    path: Path
    settings: Mapping[str, Any]
    bytes: int
    dense_bytes: int
    bits_per_weight: float
    figures: Mapping[str, float]
    seconds: float
    retuning: Mapping[str, Any] | None = None
    report: Report | None = dataclasses.field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        sizes = f"{format_bytes(self.dense_bytes)} -> {format_bytes(self.bytes)}"
        lines = [f"{self.path}: {sizes}, {self.bits_per_weight:.2f} bits a weight in the compressed layers"]
        lines += card.figure_lines(self.figures)
        return "\n".join([*lines, f"{self.seconds:.0f} s"])


def compress(
    model: PathLike,
    out: PathLike,
    *,
    data: PathLike | None = None,
    recipe: str | None = None,
    threads: int | None = None,
    progress: ProgressOption = True,
    **settings: Any,
) -> Compressed:
    """Compress the model of a folder to another folder, which ``from_pretrained`` and ``diba export`` read.

    Without data, each weight is factored as it is read, so that never more than the compressed part, what
    stays dense and one weight are in memory. With data, layers are fitted in execution order to the inputs
    that they really get, block by block (``reconstruct``), and the diagonals of the whole model are trained
    at the end (``retune``), towards the dense model's answers.

    Everything that is finished is on the disk, in ``out/.diba``: layers, models after each block, the state
    of retuning every 100 steps. However a run ends, the same call goes on, and gives the same files of
    weights, byte for byte, on the same machine and with the same number of threads.

    Args:
        model: A folder that ``from_pretrained`` of transformers reads.
        out: A folder that is empty, not there, or that of the same call.
        data: Text: a ``.txt`` or ``.jsonl`` file (each line a string, or an object with one as ``"text"``),
            or a folder of them. Language models take all of it in windows, other models each line by itself.
            A sixteenth is held back to judge the result.
        recipe: Name of settings, one of ``diba.compressing.RECIPES``; None: the defaults.
        threads: Number of threads; None: torch's number.
        progress: True shows a bar, False nothing; a callable gets a :class:`diba.Progress`.
        **settings: Fields of :class:`diba.compressing.CompressSettings`, which take the place of the
            recipe's.

    Raises:
        TypeError: An argument is of the wrong kind, or a setting unknown.
        ValueError: A value is not possible; the model is of a kind that data cannot be read for; ``out``
            holds something else, with what differs.
        OSError: Something cannot be read or written, the disk is full, or another process is at work in
            ``out``. What was finished stays; the same call goes on.
        ImportError: transformers is missing.
    """
    chosen = CompressSettings.of(recipe, settings)
    check_progress(progress)
    texts = None if data is None else Path(check.path(data))
    target = Path(check.path(out))
    source = Source.at(check.path(model))
    if target.exists() and source.folder.samefile(target):
        raise ValueError(f"out {target} is the model's folder; name another one")
    identity = {
        "model": source.digests(),
        "data": {} if texts is None else digests(texts),
        "settings": chosen.to_dict(),
        "versions": {"diba": diba.__version__},
    }
    with opened(target, identity) as place, _threads(threads):
        if place.done is None:
            return _Run(source, chosen, place, texts, progress).run(identity)
        return Compressed(path=target, settings=chosen.to_dict(), **place.done)


@dataclass
class _Run:
    """A run that is not finished."""

    source: Source
    settings: CompressSettings
    place: Workplace
    texts: Path | None
    progress: ProgressOption

    def run(self, identity: Mapping[str, Any]) -> Compressed:
        began, report = time.perf_counter(), None
        facts = self.place.complete
        if facts is None:
            model, figures = self._plain() if self.texts is None else self._fitted(self.texts)
            report = diba.torch.report(model)
            facts = {"bits_per_weight": report.bits_per_weight, "figures": figures}
            facts["dense_bytes"] = self.source.bytes
            facts["retuning"] = self.place.noted("retuning")
            self.place.keep_result(lambda folder: self._save(model, folder, facts or {}), facts)
        facts = self.place.finish(identity, facts, time.perf_counter() - began)
        return Compressed(path=self.place.out, settings=self.settings.to_dict(), report=report, **facts)

    def _plain(self) -> tuple[Any, dict[str, float]]:
        """The model, factored while it is read."""
        with kept_in(self.place.layers), shown_while_read(self.progress):
            return self.source.compressed(self._config()), {}

    def _fitted(self, texts: Path) -> tuple[Any, dict[str, float]]:
        """The model, fitted to texts; and what it is on those that were held back."""
        return fitted(self.source, self.settings, self.place, texts, self.progress)

    def _config(self) -> dict[str, Any]:
        return self.settings.config(self.source.has_output_layer)

    def _save(self, model: Any, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write the result: no times, which would differ from run to run, and no wider than the dense one."""
        model.to(self.source.dtype)
        forget_times(model)
        model.save_pretrained(folder)
        self.source.copy_others(folder)
        card.write(folder, self.source, self.settings, facts, diba.torch.report(model))


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """A context with so many threads, of torch and of diba."""
    if count is None:
        yield
        return
    before = torch.get_num_threads(), diba.num_threads()
    check.positive_int(count, "threads")
    torch.set_num_threads(count)
    diba.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        diba.set_num_threads(before[1])
