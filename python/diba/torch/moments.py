"""What a calibration knows of every layer: second moments of its inputs, gradients of its outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

from .. import _check
from .._safetensors import read_header
from ..errors import FormatError
from ..solvers.covariance import input_scales

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["Calibration", "Moments"]

_KEY = "diba.calibration"


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of one layer's inputs x, as ``diba.solve(..., covariance=second)`` takes them.

    Attributes:
        second: The mean of x x', float64, shape (n, n), symmetric. Layers that always read the same tensor
            share one array; copy it before changing it.
        count: Input vectors the mean was taken over: tokens, or patches of a convolution.
        gradient_rms: Root mean square of dloss/dy for every output y, float64, shape (m,); None where no loss
            was given.
        gradient_count: Output vectors that mean was taken over, all positions of a convolution; 0 stands for
            ``count``.
    """

    second: Floats
    count: int
    gradient_rms: Floats | None = None
    gradient_count: int = 0

    @property
    def outputs(self) -> int:
        """How many vectors the layer made of these batches, as far as is known."""
        return self.gradient_count or self.count

    @property
    def importance(self) -> tuple[Floats | None, Floats]:
        """``(o, i)`` for ``diba.solve(..., importance=(o, i))``: RMS gradients, RMS inputs, all positive."""
        rows = self.gradient_rms
        if rows is not None:
            rows = np.maximum(rows, 1e-3 * np.sqrt(np.mean(rows**2))) if rows.any() else None
        return rows, input_scales(self.second)


class Calibration(Mapping[str, Moments]):
    """Moments by the name of the layer.

    Args:
        moments: Name -> :class:`Moments`.
    """

    def __init__(self, moments: Mapping[str, Moments]) -> None:
        self._moments = dict(moments)

    def __getitem__(self, name: str) -> Moments:
        return self._moments[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)

    def __repr__(self) -> str:
        counts = {moments.count for moments in self.values()} or {0}
        spread = f"{min(counts):,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"
        gradients = any(moments.gradient_rms is not None for moments in self.values())
        tail = ", with output gradients" if gradients else ""
        return f"Calibration({len(self)} layers, {spread} input vectors each{tail})"

    def merge(self, other: Calibration) -> Calibration:
        """The calibration of both sets of batches together; layers that only one has are kept as they are.

        Moments are weighted by their counts. Gradients are kept where both have them.

        Raises:
            TypeError: other is no calibration.
            ValueError: a layer's shapes differ.
        """
        _check.instance(other, "other", Calibration, "use diba.torch.calibrate")
        sums: dict[tuple[int, int], Floats] = {}
        merged = {**self, **other}
        for name in self.keys() & other.keys():
            a, b = self[name], other[name]
            _check.equal(b.second.shape, f"other[{name!r}].second.shape", a.second.shape, "shape here")
            pair = (id(a.second), id(b.second))
            if pair not in sums:
                sums[pair] = _mean(a.second, a.count, b.second, b.count)
            gradient, outputs = None, 0
            if a.gradient_rms is not None and b.gradient_rms is not None:
                lengths = b.gradient_rms.shape, a.gradient_rms.shape
                _check.equal(lengths[0], f"other[{name!r}].gradient_rms.shape", lengths[1], "shape here")
                outputs = a.outputs + b.outputs
                squares = _mean(a.gradient_rms**2, a.outputs, b.gradient_rms**2, b.outputs)
                gradient = np.sqrt(squares)
            merged[name] = Moments(sums[pair], a.count + b.count, gradient, outputs)
        return Calibration(merged)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that :meth:`load` reads back, equal to the last bit.

        A shared array is stored once, the lower triangle of it: n (n + 1) / 2 float64.
        """
        tensors: dict[str, NDArray[Any]] = {}
        layers: dict[str, dict[str, Any]] = {}
        numbers: dict[int, int] = {}
        for name, moments in self.items():
            number = numbers.setdefault(id(moments.second), len(numbers))
            n = len(moments.second)
            tensors.setdefault(f"second.{number}", moments.second[np.tril_indices(n)])
            if moments.gradient_rms is not None:
                tensors[f"gradient.{name}"] = moments.gradient_rms
            counts = {"count": moments.count, "gradient_count": moments.gradient_count}
            layers[name] = {"second": number, "n": n, **counts}
        save_file(tensors, _check.path(path), {_KEY: json.dumps(layers)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            FormatError: not such a file, or a damaged one.
            OSError: the file cannot be read.
        """
        name = _check.path(path)
        with Path(name).open("rb") as file:
            header = read_header(file, name)
        if _KEY not in header.metadata:
            raise FormatError(f"{name}: is not a calibration: its metadata has no key {_KEY!r}")
        tensors = load_file(name)
        try:
            layers = json.loads(header.metadata[_KEY])
            return cls(_read(layers, tensors))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"{name}: the calibration is damaged ({error!r})") from None


def _mean(a: Floats, weight_a: int, b: Floats, weight_b: int) -> Floats:
    result: Floats = (a * weight_a + b * weight_b) / (weight_a + weight_b)
    return result


def _read(layers: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> dict[str, Moments]:
    seconds: dict[int, Floats] = {}
    result = {}
    for name, entry in layers.items():
        number, n, count = int(entry["second"]), int(entry["n"]), int(entry["count"])
        if number not in seconds:
            seconds[number] = _symmetric(_floats(tensors[f"second.{number}"], n * (n + 1) // 2), n)
        gradient = tensors.get(f"gradient.{name}")
        if gradient is not None:
            gradient = _floats(gradient, len(gradient))
        result[name] = Moments(seconds[number], count, gradient, int(entry["gradient_count"]))
    return result


def _floats(values: NDArray[Any], length: int) -> Floats:
    if values.dtype != np.float64 or values.shape != (length,):
        raise ValueError(
            f"a tensor of {values.dtype}, shape {values.shape}; expected float64, shape {(length,)}"
        )
    return values


def _symmetric(triangle: Floats, n: int) -> Floats:
    full = np.zeros((n, n))
    full[np.tril_indices(n)] = triangle
    full.T[np.tril_indices(n)] = triangle
    return full
