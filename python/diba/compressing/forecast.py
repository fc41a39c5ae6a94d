"""What a compression would do: every layer, the file, time and memory, without reading a weight."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import diba
import diba.torch

from .._internal import check, storage
from ..checkpoints.entries import format_bytes
from ..checkpoints.facts import Facts
from .models import Layer, with_empty_layers
from .recipe import CompressSettings
from .source import Source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._internal.disk import PathLike
    from ..checkpoints.report import Report

__all__ = ["Plan", "plan"]

_TRIED = 1536  # most rows and columns of a matrix that is factored to know the time
_SOLVER_BYTES = 18.0  # of a solve, for each entry of its matrices (m, k), (k, n) and (k, k), as measured
_CODES_SECONDS = 6e-8  # of an entry that gets codes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What :func:`diba.compressing.compress` would do without data; ``print`` shows it.

    Attributes:
        settings: All settings.
        report: Every layer with its k and size, and what stays dense, and why; nothing is measured.
        bytes: Of the file of weights.
        dense_bytes: Of the files of the dense model.
        seconds: Of the factorizations, from short trials on this machine; None if they were not asked for.
        memory_bytes: At the peak, beyond an interpreter with torch and transformers; the mapped files of the
            dense model are part of it.
        snr_db: Of random matrices of the same shapes, the mean over the trials; those of trained models are
            easier. None if nothing was tried.
    """

    settings: Mapping[str, Any]
    report: Report
    bytes: int
    dense_bytes: int
    seconds: float | None
    memory_bytes: int
    snr_db: float | None

    def __str__(self) -> str:
        lines = [
            self.report.table(),
            "",
            f"file: {format_bytes(self.dense_bytes)} -> {format_bytes(self.bytes)}",
        ]
        if self.seconds is not None:
            minutes = f" ({self.seconds / 60:.0f} min)" if self.seconds >= 90 else ""
            lines.append(f"time without data: about {self.seconds:.0f} s{minutes}")
        lines.append(f"memory: {format_bytes(self.memory_bytes)} beside torch and transformers")
        if self.snr_db is not None:
            lines.append(
                f"SNR: {self.snr_db:.1f} dB for random matrices of these shapes, more for trained ones"
            )
        return "\n".join(lines)

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
        model: A folder that ``from_pretrained`` of transformers reads; of it ``config.json`` is read.
        recipe: See :func:`diba.compressing.compress`.
        threads: Number of threads of the trials; None: torch's number.
        trials: Whether to factor a random matrix of every shape (smaller where it has more than 1,536 rows or
            columns) to know time and SNR, which takes up to a minute.
        **settings: See :func:`diba.compressing.compress`.

    Raises:
        TypeError, ValueError, OSError, ImportError: As for :func:`diba.compressing.compress`.
    """
    chosen = CompressSettings.of(recipe, settings)
    source = Source.at(check.path(model))
    empty = source.empty()
    layers = with_empty_layers(empty, chosen.config(source.has_output_layer))
    empty.to(source.dtype)
    report = _at_16_bits(diba.torch.report(empty))
    seconds = snr = None
    if trials:
        count = torch.get_num_threads() if threads is None else check.positive_int(threads, "threads")
        seconds, snr = _tried(layers, chosen, count)
    return Plan(
        settings=chosen.to_dict(),
        report=report,
        bytes=_file_bytes(empty),
        dense_bytes=source.bytes,
        seconds=seconds,
        memory_bytes=source.bytes + report.bytes_after + max(map(_memory, layers), default=0),
        snr_db=snr,
    )


def _at_16_bits(report: Report) -> Report:
    """The report with diagonals counted at 16 bits an entry, as those of solves are: empty ones say 32."""
    layers = [
        dataclasses.replace(layer, bits_per_weight=storage.bits_per_weight(*layer.shape, layer.k, 16))
        if layer.k
        else layer
        for layer in report.layers
    ]
    return dataclasses.replace(report, layers=tuple(layers))


def _memory(layer: Layer) -> int:
    """Bytes of the work on one layer: its weight as it was read and in float32, and what the solver holds."""
    m, n, k = *layer.shape, layer.k
    return 8 * m * n + int(_SOLVER_BYTES * (m * k + k * n + k * k))


def _tried(layers: list[Layer], settings: CompressSettings, threads: int) -> tuple[float, float | None]:
    """Seconds of all layers, and the mean SNR, from one trial of every shape, shrunk if it is large."""
    seconds, snrs = 0.0, []
    for (shape, k), count in Counter((layer.shape, layer.k) for layer in layers).items():
        if not k:
            seconds += count * shape[0] * shape[1] * _CODES_SECONDS
            continue
        shrink = max(1.0, max(shape) / _TRIED)
        m, n = (max(8, round(side / shrink)) for side in shape)
        matrix = np.random.default_rng(0).standard_normal((m, n), dtype=np.float32)
        began = time.perf_counter()
        options: dict[str, Any] = {"alphabet": settings.alphabet, "effort": settings.effort}
        f = diba.solve(matrix, k=max(1, round(k / shrink)), threads=threads, **options)
        took = time.perf_counter() - began
        scale = shape[0] * shape[1] * k / (m * n * f.k)
        seconds += count * took * scale
        snrs += [f.snr_db(matrix)] * count
    return seconds, float(np.mean(snrs)) if snrs else None


def _file_bytes(model: Any) -> int:
    """Bytes of the safetensors files of the model, header included."""
    unique: dict[int, tuple[str, torch.Tensor]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in model.state_dict():
        owner, _, own = name.rpartition(".")
        value = getattr(modules[owner], own)  # the object itself, which tied layers share
        unique.setdefault(id(value), (name, value))
    header, end = {}, 0
    for name, value in unique.values():
        header[name] = {
            "dtype": "F32",
            "shape": list(value.shape),
            "data_offsets": [end, end := end + value.nbytes],
        }
    return end + len(json.dumps(header, separators=(",", ":"))) + 8
