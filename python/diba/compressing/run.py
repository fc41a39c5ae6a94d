"""Compress a model from a folder to a folder; a run that was stopped goes on."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diba

from .._internal import check
from ..checkpoints.entries import format_bytes
from ..progress import check_progress, reporting
from ..solvers.stages import check_device
from .card import figure_lines
from .files import FileSource
from .outline import Outline
from .plain import Workers, solve_weights, write_result
from .recipe import CompressSettings
from .source import Source, source_at
from .stages import Stages, plain_seconds
from .workplace import begun_in, opened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor

    from .._internal.disk import PathLike
    from ..checkpoints.report import Report
    from ..progress import ProgressOption
    from .data.kinds import Data
    from .files import FileSource
    from .workplace import Workplace

__all__ = ["Compressed", "compress", "compress_shard", "merge"]

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
        figures: What was measured on data that nothing else has seen, dense and compressed; see ``judge``.
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
        lines += figure_lines(self.figures)
        return "\n".join([*lines, f"{self.seconds:.0f} s"])


def compress(
    model: PathLike,
    out: PathLike,
    *,
    data: PathLike | None = None,
    recipe: str | None = None,
    threads: int | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: ProgressOption = True,
    **settings: Any,
) -> Compressed:
    """Compress the model of a folder to another folder, which ``from_pretrained`` and ``diba export`` read.

    Without data, the weights are factored one by one from the files, and the result is written tensor by
    tensor: the model is never in memory. With data, layers are fitted in execution order to the inputs
    that they really get, block by block (``reconstruct``), and the diagonals of the whole model are trained
    at the end (``retune``), towards the dense model's answers.

    Everything that is finished is on the disk, in ``out/.diba``: layers, the training of a block every 20
    seconds, models after each block, the state of retuning every 100 steps. However a run ends, the same call
    goes on, and gives the same files of weights, byte for byte, on the same machine and with the same number
    of threads.

    Args:
        model: A folder that ``from_pretrained`` of transformers reads. Without data also tensors without a
            model's code: a safetensors file, the index of several, a folder of them, or an npz. Layers are
            then known by the names and shapes of tensors; see ``docs/compress``.
        out: A folder that is empty, not there, or that of the same call.
        data: A file or folder of what the model takes. Texts: ``.txt``, or ``.jsonl`` (each line a string, or
            an object with one as ``"text"``), which language models take in windows, others line by line.
            Images, also in folders of classes. Recordings: ``.wav``, for models that write them down with
            ``NAME.txt`` beside ``NAME.wav`` or without. Anything else: a script, ``.py``, with a function
            ``batches(model_folder)`` that yields dicts of the model's arguments, the same ones each time.
            A sixteenth is held back to judge the result.
        recipe: Name of settings, one of ``diba.compressing.RECIPES``; None: the defaults.
        threads: Number of threads, of every worker; None: torch's number with data, else that of diba, shared
            out between the workers.
        workers: Without data: number of processes that solve weights; None: this one. Scripts need the
            guard ``if __name__ == "__main__":``, as for all of multiprocessing.
        executor: Without data: a ``concurrent.futures.Executor`` that solves weights, such as
            ``dask.distributed.Client(...).get_executor()``. Its workers must see ``model`` and ``out`` under
            the same names; weights and factors go through these files. The result is the same.
        progress: True shows a bar, False nothing; a callable gets a :class:`diba.Progress`.
        **settings: Fields of :class:`diba.compressing.CompressSettings`, which take the place of the
            recipe's.

    Raises:
        TypeError: An argument is of the wrong kind, or a setting unknown.
        ValueError: A value is not possible; the model is of a kind that data cannot be read for; workers are
            given and cannot help; ``out`` holds something else, with what differs.
        OSError: Something cannot be read or written, the disk is full, or another process is at work in
            ``out``. What was finished stays; the same call goes on.
        ImportError: transformers is missing; or torch, which a device needs.
    """
    chosen = CompressSettings.of(recipe, settings)
    check_progress(progress)
    given = None if data is None else Path(check.path(data))
    source, target, identity, read = _task(model, out, given, chosen)
    who = Workers(threads=threads, count=workers, executor=executor)
    with opened(target, identity, source.path) as place:
        if place.done is None:
            return _Run(source, chosen, place, read, progress, who).run(identity)
        return Compressed(path=target, settings=chosen.to_dict(), **place.done)


def compress_shard(
    model: PathLike,
    out: PathLike,
    shard: tuple[int, int],
    *,
    recipe: str | None = None,
    threads: int | None = None,
    progress: ProgressOption = True,
    **settings: Any,
) -> int:
    """Do one of several shares of the work of :func:`compress` without data, for machines without a network.

    Shares are about equal. They can be done at the same time, in one folder that all machines see or in
    folders of their own; then :func:`merge` makes the model.

    Args:
        model: See :func:`compress`, as for all others.
        out: The folder; several shares may be at work in it.
        shard: (i, n): the i-th of n, i from 1.
        recipe: A name of settings.
        threads: Number of threads.
        progress: As for :func:`compress`.
        **settings: As for :func:`compress`.

    Returns:
        How many layers are missing in the folder now.

    Raises:
        TypeError, ValueError, OSError: As for :func:`compress`.
    """
    chosen = CompressSettings.of(recipe, settings)
    source, target, identity, _ = _task(model, out, None, chosen)
    who = Workers(threads=threads, shard=shard)
    with opened(target, identity, source.path, shared=True) as place, reporting(progress) as show:
        return 0 if place.done is not None else solve_weights(_outline(source, chosen), place, who, show)


def merge(
    out: PathLike,
    parts: Sequence[PathLike] = (),
    *,
    model: PathLike | None = None,
    progress: ProgressOption = True,
) -> Compressed:
    """Make the model from the shares that :func:`compress_shard` did.

    Args:
        out: The folder of the model; it may be that of the shares.
        parts: Folders of other shares, whose layers are copied; a layer that is missing everywhere is solved
            here.
        model: The dense model; None: it is where the shares found it.
        progress: As for :func:`compress`.

    Raises:
        ValueError: A folder is of another run, with what differs, or of none.
        OSError: Something cannot be read or written.
    """
    target, others = Path(check.path(out)), [Path(check.path(part)) for part in parts]
    begun = next((found for folder in (target, *others) if (found := begun_in(folder)) is not None), None)
    if begun is None:
        raise ValueError(f"{target} has no run in it; give the folders that diba compress --shard wrote")
    chosen, dense = CompressSettings(**begun[0]), begun[1] if model is None else model
    source, _, identity, _ = _task(dense, target, None, chosen)
    with opened(target, identity, source.path) as place:
        if place.done is not None:
            return Compressed(path=target, settings=chosen.to_dict(), **place.done)
        for other in others:
            if not (target.exists() and other.samefile(target)):
                place.take_layers(other, identity)
        return _Run(source, chosen, place, None, progress, Workers()).run(identity)


def _task(
    model: PathLike, out: PathLike, data: Path | None, settings: CompressSettings
) -> tuple[FileSource, Path, dict[str, Any], Data | None]:
    """The source and the target of a run, what its result depends on, and its data."""
    target, source = Path(check.path(out)), source_at(Path(check.path(model)))
    if target.exists() and source.folder.samefile(target):
        raise ValueError(f"out {target} is the model's folder; name another one")
    if settings.allocate and data is None:
        raise ValueError("allocate is True and there are no data, which say what layers are worth; give data")
    if settings.device is not None:
        check_device(settings.device)  # now, and not after an hour
    read = None if data is None else _data(source, data, settings)
    identity = {
        "model": source.digests(),
        "data": {} if read is None else read.digests(),
        "settings": settings.to_dict(),
        "versions": {"diba": diba.__version__, "layers of": source.title},
    }
    return source, target, identity, read


def _data(source: FileSource, path: Path, settings: CompressSettings) -> Data:
    """The data of a run, which need the code of the model."""
    if not isinstance(source, Source):
        why = source.note or "there is no config.json beside the weights"
        raise ValueError(f"data needs the code of the model, and {why}; leave data out")
    from .data.kinds import Data

    return Data.at(source, path, settings)


def _outline(source: FileSource, settings: CompressSettings) -> Outline:
    """The outline of a model whose weights can be solved elsewhere."""
    found = source.outline(settings)
    if isinstance(found, str):
        raise ValueError(f"the files of {source.path} do not tell its layers: {found}; leave workers out")
    return found


@dataclass
class _Run:
    """A run that is not finished."""

    source: FileSource
    settings: CompressSettings
    place: Workplace
    data: Data | None
    progress: ProgressOption
    workers: Workers

    def run(self, identity: Mapping[str, Any]) -> Compressed:
        began, report = time.perf_counter(), None
        facts = self.place.complete
        if facts is None:
            outline = None if self.data is not None else self.source.outline(self.settings)
            if isinstance(outline, Outline):
                facts, report = self._from_files(outline)
            else:
                facts, report = self._from_model(outline)
        facts = self.place.finish(identity, facts, time.perf_counter() - began)
        return Compressed(path=self.place.out, settings=self.settings.to_dict(), report=report, **facts)

    def _from_files(self, outline: Outline) -> tuple[dict[str, Any], Report]:
        """The result, made weight by weight."""
        made: list[Report] = []

        def save(folder: Path) -> dict[str, Any]:
            facts, report = write_result(folder, self.source, outline, self.place, self.settings)
            made.append(report)
            return facts

        with reporting(self.progress) as show:
            stages = Stages(show, plain_seconds(outline.weights.values(), self.source.bytes))
            with stages.stage("compress") as heard:
                solve_weights(outline, self.place, self.workers, heard if callable(heard) else None)
            with stages.stage("write"):
                facts = self.place.keep_result(save)
            stages.end()
        return facts, made[0]

    def _from_model(self, why: str | None) -> tuple[dict[str, Any], Report]:
        """The result, from a model in memory; ``why`` says what the files do not tell, without data."""
        if not self.workers.here:
            reason = "data are given, and each block needs those before it" if why is None else why
            raise ValueError(f"workers, executor and shards cannot help: {reason}; leave them out")
        from .in_memory import from_model

        assert isinstance(self.source, Source), "tensors by name have an outline, and take no data"
        threads = self.workers.threads
        return from_model(self.source, self.settings, self.place, self.data, threads, self.progress)
