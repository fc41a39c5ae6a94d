"""What a compression would do: every layer, the file, time and memory, without reading a weight."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import diba

from .. import runtime
from .._internal import check
from .._internal.codes import code_bits
from ..checkpoints.entries import format_bytes
from ..checkpoints.facts import Facts
from ..layers.config import Config
from ..layers.solved import CODED_ENTRIES
from .outline import Outline
from .recipe import CompressSettings
from .solving import ROWS_FOR_THREADS
from .source import source_at
from .writing import file_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from .._internal.disk import PathLike
    from ..checkpoints.report import Report
    from ..progress import Progress
    from .outline import Weight

__all__ = ["Plan", "plan"]

_TRIED = 1536  # most rows and columns of a matrix that is factored whole to know the time
_SHRUNK, _STEPS = 512, 6  # of a larger one: its size to know the SNR, and steps to know the time
_SOLVER_BYTES = 18.0  # of a solve, for each entry of its matrices (m, k), (k, n) and (k, k), as measured
_CODES_SECONDS = 6e-8  # of an entry that gets codes
_MUCH = 0.25  # of a file, for tables that could be smaller
_AROUND = 8_000_000  # bytes of threads, their stacks, and what is imported while work goes on
_CODES_BYTES = 40  # for each entry that gets codes at once


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What :func:`diba.compressing.compress` would do without data; ``print`` shows it.

    Attributes:
        settings: All settings.
        report: Every layer with its k and size, and what stays dense, and why; nothing is measured.
        bytes: Of the file of weights.
        dense_bytes: Of the files of the dense model.
        seconds: Of the factorizations, from short trials on this machine; None if they were not asked for.
        memory_bytes: At the peak, beyond an interpreter with diba, and with transformers where it has the
            class of the model.
        snr_db: Of random matrices of the same shapes, the mean over the trials; those of trained models are
            easier. None if nothing was tried.
        note: Why layers are known by names of tensors only, or why the files do not tell them; "": neither.
    """

    settings: Mapping[str, Any]
    report: Report
    bytes: int
    dense_bytes: int
    seconds: float | None
    memory_bytes: int
    snr_db: float | None
    note: str = ""

    def __str__(self) -> str:
        lines = [
            self.report.table(),
            "",
            f"file: {format_bytes(self.dense_bytes)} -> {format_bytes(self.bytes)}",
        ]
        lines += self._tables()
        if self.seconds is not None:
            minutes = f" ({self.seconds / 60:.0f} min)" if self.seconds >= 90 else ""
            lines.append(f"time without data: about {self.seconds:.0f} s{minutes}")
        lines.append(f"memory: {format_bytes(self.memory_bytes)} beside the interpreter")
        if self.snr_db is not None:
            lines.append(
                f"SNR: {self.snr_db:.1f} dB for random matrices of these shapes, more for trained ones"
            )
        if self.note:
            lines.append(f"note: {self.note}")
        return "\n".join(lines)

    def _tables(self) -> list[str]:
        """How much smaller tables of 8 bits could be, if they are much of the file."""
        shapes = [layer.shape for layer in self.report.layers if layer.alphabet == "int8"]
        now, small = (sum(code_bits(*shape, bits, Config.group) for shape in shapes) // 8 for bits in (8, 4))
        if now < _MUCH * self.bytes:
            return []
        other = f"{format_bytes(small)} with --embeddings 4 --head 4"
        return [f"of it in embeddings and output layers of 8 bits: {format_bytes(now)}; {other}"]

    def to_html(self, path: PathLike | None = None, *, title: str | None = None) -> str:
        """:meth:`diba.torch.Report.to_html`, with the time, the memory and the SNR that are expected."""
        known = {"seconds": self.seconds, "memory_bytes": self.memory_bytes, "snr_db": self.snr_db}
        facts = Facts(
            settings=self.settings,
            files=(self.dense_bytes, self.bytes),
            forecast={name: float(value) for name, value in known.items() if value is not None},
        )
        return dataclasses.replace(self.report, facts=facts).to_html(path, title=title)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        own = {name: value for name, value in vars(self).items() if name != "report"}
        return {**own, "settings": dict(self.settings), "report": self.report.to_dict()}


def plan(
    model: PathLike,
    *,
    recipe: str | None = None,
    threads: int | None = None,
    trials: bool = True,
    **settings: Any,
) -> Plan:
    """Say what :func:`diba.compressing.compress` would do without data, without reading a weight.

    Args:
        model: See :func:`diba.compressing.compress`; of its weights, the headers of files are read.
        recipe: See :func:`diba.compressing.compress`.
        threads: Number of threads of the trials; None: ``diba.num_threads()``.
        trials: Whether to factor a random matrix of every shape to know time and SNR, which takes up to a
            minute. Of one with more than 1,536 rows or columns it is a few steps, and a smaller matrix.
        **settings: See :func:`diba.compressing.compress`.

    Raises:
        TypeError, ValueError, OSError, ImportError: As for :func:`diba.compressing.compress`.
    """
    chosen = CompressSettings.of(recipe, settings)
    source = source_at(Path(check.path(model)))
    outline = source.outline(chosen)
    note = outline if isinstance(outline, str) else ""
    if isinstance(outline, str):
        outline = source.outline(chosen, files=False)
    assert isinstance(outline, Outline)
    count = runtime.num_threads() if threads is None else check.positive_int(threads, "threads")
    weights = list(outline.weights.values())
    seconds, snr = _tried(weights, chosen, count) if trials else (None, None)
    report = outline.report()
    memory = _memory_of_all(weights, count)
    if note:  # the model is in memory, and so are its files
        memory += source.bytes + report.bytes_after
    return Plan(
        settings=chosen.to_dict(),
        report=report,
        bytes=file_bytes(outline),
        dense_bytes=source.bytes,
        seconds=seconds,
        memory_bytes=memory,
        snr_db=snr,
        note=source.note or note,
    )


def _memory_of_all(weights: list[Weight], threads: int) -> int:
    """Bytes at the peak: of the largest layer, or of as many as are solved side by side, and around them."""
    small = sorted((_memory(w) for w in weights if min(w.shape) < ROWS_FOR_THREADS), reverse=True)
    together = sum(small[: max(1, threads)])
    return _AROUND + max(together, max((_memory(weight) for weight in weights), default=0))


def _memory(weight: Weight) -> int:
    """Bytes of the work on one layer: its weight as it was read and in float32, and what the solver holds."""
    (m, n), k = weight.shape, weight.k
    if not k:
        return min(m * n, CODED_ENTRIES) * _CODES_BYTES + m * n
    return 8 * m * n + int(_SOLVER_BYTES * (m * k + k * n + k * k))


def _tried(weights: list[Weight], settings: CompressSettings, threads: int) -> tuple[float, float | None]:
    """Seconds of all layers, and the mean SNR, from a trial of every shape; of large ones from steps."""
    seconds, snrs = 0.0, []
    for (shape, k), count in Counter((weight.shape, weight.k) for weight in weights).items():
        if not k:
            seconds += count * shape[0] * shape[1] * _CODES_SECONDS
            continue
        options: dict[str, Any] = {
            "alphabet": settings.alphabet,
            "effort": settings.effort,
            "threads": threads,
        }
        shrink = 1.0 if max(shape) <= _TRIED else max(shape) / _SHRUNK
        m, n = (max(8, round(side / shrink)) for side in shape)
        matrix = _random(m, n)
        began = time.perf_counter()
        f = diba.solve(matrix, k=max(1, round(k / shrink)), **options)
        took = time.perf_counter() - began
        seconds += count * (took if shrink == 1 else _announced(_random(*shape), k, options))
        snrs += [f.snr_db(matrix)] * count
    return seconds, float(np.mean(snrs)) if snrs else None


def _announced(matrix: NDArray[np.float32], k: int, options: dict[str, Any]) -> float:
    """Seconds that a solve announces after its first steps, with which it ends."""
    found: list[float] = []

    def show(state: Progress) -> None:
        if state.done and state.remaining is not None:
            found.append(state.elapsed + state.remaining)
            if len(found) == _STEPS:
                raise _Enough

    with contextlib.suppress(_Enough):
        diba.solve(matrix, k=k, progress=show, **options)
    return found[-1] if found else 0.0


class _Enough(Exception):
    """Ends a solve."""


def _random(m: int, n: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((m, n), dtype=np.float32)
