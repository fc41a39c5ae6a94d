"""Compress a model from a folder to a folder; a run that was stopped goes on."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import diba
import diba.torch

from .._internal import check
from ..checkpoints.entries import format_bytes
from ..progress import check_progress
from . import card, judge
from .models import forget_times, kept_in, name_missing, recipe_of, shown_while_read, when_converted
from .recipe import CompressSettings
from .source import Source
from .texts import digests, text_batches
from .workplace import opened

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .._internal.disk import PathLike
    from ..checkpoints.report import Report
    from ..progress import ProgressOption
    from .workplace import Workplace

__all__ = ["Compressed", "compress"]

KEPT_EVERY = 100  # steps of retuning
_CONVERTED, _RETUNED = "converted", "retuned"  # stages whose end is kept
_HELD_BACK = 16  # of so many batches one judges the result


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
        report: Every layer; None where the folder was finished before.
    """

    path: Path
    settings: Mapping[str, Any]
    bytes: int
    dense_bytes: int
    bits_per_weight: float
    figures: Mapping[str, float]
    seconds: float
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
            model, figures = self._plain() if self.texts is None else self._with_data(self.texts)
            report = diba.torch.report(model)
            facts = {"bits_per_weight": report.bits_per_weight, "figures": figures}
            facts["dense_bytes"] = self.source.bytes
            self.place.keep_result(lambda folder: self._save(model, folder, facts or {}), facts)
        facts = self.place.finish(identity, facts, time.perf_counter() - began)
        return Compressed(path=self.place.out, settings=self.settings.to_dict(), report=report, **facts)

    def _plain(self) -> tuple[Any, dict[str, float]]:
        """The model, factored while it is read."""
        with kept_in(self.place.layers), shown_while_read(self.progress):
            return self.source.compressed(self._config()), {}

    def _with_data(self, texts: Path) -> tuple[Any, dict[str, float]]:
        """The model, fitted to texts and retuned; and what it is on those that were held back."""
        settings, place = self.settings, self.place
        batches = text_batches(self.source, texts, settings)
        held_back = max(1, len(batches) // _HELD_BACK)
        judging, batches = batches[:held_back], batches[held_back:]
        seen, others = batches[: settings.batches], batches[settings.batches :]
        dense, missing = self.source.dense_and_missing()
        model = copy.deepcopy(dense) if place.part is None else self.source.read(place.part)
        if place.stage is None:
            with kept_in(place.layers), _blocks_kept(model, place):
                diba.torch.convert(
                    model,
                    self._fitted_config(dense, missing),
                    batches=seen,
                    loss=diba.torch.fisher(seed=settings.seed),
                    reconstruct=self._reconstruction(),
                    teacher=dense,
                    progress=self.progress,
                )
            name_missing(model, missing)
            place.keep(model.save_pretrained, _CONVERTED)
        if settings.retune and place.stage == _CONVERTED:
            diba.torch.retune(
                model,
                [*others, *seen],
                teacher=dense,
                norms=True,
                max_steps=settings.retune,
                seed=settings.seed,
                checkpoint=place.training,
                every=KEPT_EVERY,
                progress=self.progress,
            )
            place.keep(model.save_pretrained, _RETUNED)
        return model, judge.figures(dense, model, judging, self.source.is_causal)

    def _reconstruction(self) -> dict[str, Any] | None:
        steps = self.settings.reconstruct
        return {"steps": steps, "seed": self.settings.seed} if steps else None

    def _fitted_config(self, dense: Any, missing: list[str]) -> dict[str, Any]:
        """The settings of layers; those that are not in the files stay as they are, and dense."""
        config = self._config()
        known = [name for name in missing if isinstance(dense.get_submodule(name), nn.Linear)]
        return {**config, "skip": [*config["skip"], *(name for name in known if name not in config["skip"])]}

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
def _blocks_kept(model: Any, place: Workplace) -> Iterator[None]:
    """A context in which a conversion of the model has it kept after every block."""
    known = len(recipe_of(model).blocks)

    def after_change(changed: Any) -> None:
        nonlocal known
        count = len(recipe_of(model).blocks) if changed is model else known
        if count > known:
            known = count
            place.keep(model.save_pretrained)

    when_converted.append(after_change)
    try:
        yield
    finally:
        when_converted.remove(after_change)


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
