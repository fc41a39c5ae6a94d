"""A calibration: for every layer the second moments of its inputs and the gradients for its outputs.

Its file (``_internal.tensor_files``): format "diba calibration", version 1. Metadata: ``layer.I``, the
name of layer I. Tensors: ``layers``, int64 (layers, 4), in each row which matrix of second moments is the
layer's, its size n, count and gradient_count; ``second.J``, float64 (n (n + 1) / 2), the lower triangle row
by row; ``gradient.I``, float64 (m), for layers that have gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ..._internal import check
from ..._internal.disk import open_regular, replace_file
from ..._internal.tensor_files import ChecksummedFile, Format, StoredTensor, encode
from ...solvers.second_moments import input_scales

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..._internal.disk import PathLike

    Floats = NDArray[np.float64]

__all__ = ["Calibration", "Moments", "decode"]

_FORMAT = Format("diba calibration", "a calibration", 1)
_LARGEST = 2**63 - 1


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
        """Number of output vectors of the layer: ``gradient_count``, or ``count`` if that is 0."""
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
        """Combine the calibrations of two sets of batches; layers that only one has are kept unchanged.

        Moments are weighted by their counts. Gradients are kept where both have them.

        Raises:
            TypeError: other is no calibration.
            ValueError: a layer's shapes differ.
        """
        check.instance(other, "other", Calibration, "use diba.torch.calibrate")
        sums: dict[tuple[int, int, int, int], Floats] = {}  # of moments that several layers share
        merged = {**self, **other}
        for name in self.keys() & other.keys():
            a, b = self[name], other[name]
            check.equal(b.second.shape, f"other[{name!r}].second.shape", a.second.shape, "shape here")
            pair = id(a.second), a.count, id(b.second), b.count
            if pair not in sums:
                sums[pair] = _mean(a.second, a.count, b.second, b.count)
            gradient, outputs = None, 0
            if a.gradient_rms is not None and b.gradient_rms is not None:
                lengths = b.gradient_rms.shape, a.gradient_rms.shape
                check.equal(lengths[0], f"other[{name!r}].gradient_rms.shape", lengths[1], "shape here")
                outputs = a.outputs + b.outputs
                squares = _mean(a.gradient_rms**2, a.outputs, b.gradient_rms**2, b.outputs)
                gradient = np.sqrt(squares)
            merged[name] = Moments(sums[pair], a.count + b.count, gradient, outputs)
        return Calibration(merged)

    def save(self, path: PathLike) -> None:
        """Write a safetensors file that :meth:`load` reads back, equal to the last bit; whole or not at all.

        A shared array is stored once, the lower triangle of it: n (n + 1) / 2 float64.

        Raises:
            TypeError: ``path`` is no path.
            ValueError: moments that :meth:`load` would refuse, as NaN or a count of 0.
            OSError: the folder does not exist or cannot be written.
        """
        replace_file(check.path(path), _encode(self))

    @classmethod
    def load(cls, path: PathLike) -> Calibration:
        """Read what :meth:`save` wrote and verify everything that can be verified.

        Raises:
            diba.FormatError: not such a file, or a damaged one.
            OSError: the file cannot be read, or is no regular file.
        """
        name = check.path(path)
        with open_regular(name) as file:
            return decode(file, name)


def _mean(a: Floats, weight_a: int, b: Floats, weight_b: int) -> Floats:
    return (a * weight_a + b * weight_b) / (weight_a + weight_b)


# ---------------------------------------------------------------- what moments must be


def _fault_of_second(second: Floats) -> str | None:
    """What is wrong with a matrix of second moments, allowing for rounding; None: nothing."""
    diagonal = second.diagonal()
    if not np.isfinite(second).all():
        return "has NaN or infinite entries, expected finite numbers"
    if (diagonal < 0).any():
        return "has negative entries on its diagonal, expected means of squares"
    if max(second.max(), -second.min()) / 2 > diagonal.max():
        return "has its largest entries off the diagonal, expected second moments"
    return None


def _fault_of_gradient(gradient: Floats) -> str | None:
    if not np.isfinite(gradient).all() or (gradient < 0).any():
        return "has negative, NaN or infinite entries, expected root mean squares"
    return None


# ---------------------------------------------------------------- writing


def _encode(calibration: Calibration) -> Iterator[bytes | memoryview]:
    tensors: dict[str, StoredTensor] = {}
    rows, names, numbers = [], {}, dict[int, int]()
    for i, (name, moments) in enumerate(calibration.items()):
        _check_moments(name, moments, id(moments.second) in numbers)
        number = numbers.setdefault(id(moments.second), len(numbers))
        n = len(moments.second)
        names[f"layer.{i}"] = name
        rows.append((number, n, int(moments.count), int(moments.gradient_count)))
        make = partial(_triangle, moments.second)
        tensors.setdefault(f"second.{number}", StoredTensor("F64", (n * (n + 1) // 2,), make))
        gradient = moments.gradient_rms
        if gradient is not None:
            make = partial(np.asarray, gradient)
            tensors[f"gradient.{i}"] = StoredTensor("F64", gradient.shape, make)
    table = np.array(rows, np.int64).reshape(-1, 4)
    layers = StoredTensor("I64", table.shape, lambda: table)
    return encode(_FORMAT, names, {"layers": layers, **tensors})


def _triangle(second: Floats) -> Floats:
    return np.concatenate([row[: i + 1] for i, row in enumerate(second)])


def _check_moments(name: str, moments: Moments, seen: bool) -> None:
    """Refuse to write what could not be read again."""
    where = f"layer {name!r}: "
    check.integer(moments.count, f"{where}count", minimum=1, maximum=_LARGEST)
    check.integer(moments.gradient_count, f"{where}gradient_count", minimum=0, maximum=_LARGEST)
    second, gradient = moments.second, moments.gradient_rms
    if not seen:
        square = second.ndim == 2 and second.shape == second.T.shape and second.size
        if second.dtype != np.float64 or not square:
            found = f"{second.dtype}, shape {second.shape}"
            raise ValueError(f"{where}second is of {found}; it must be a float64 array of shape (n, n)")
        fault = _fault_of_second(second)
        if fault is None and not np.array_equal(second, second.T):
            fault = "is not symmetric"
        if fault is not None:
            raise ValueError(
                f"{where}second {fault}; calibrate again, on data and weights without such numbers"
            )
    if gradient is not None:
        if gradient.dtype != np.float64 or gradient.ndim != 1 or not gradient.size:
            found = f"{gradient.dtype}, shape {gradient.shape}"
            raise ValueError(f"{where}gradient_rms is of {found}; it must be a float64 array of shape (m,)")
        fault = _fault_of_gradient(gradient)
        if fault is not None:
            raise ValueError(f"{where}gradient_rms {fault}; calibrate again, with a loss that is finite")


# ---------------------------------------------------------------- reading


def decode(file: BinaryIO, name: str) -> Calibration:
    """Read an open file, or bytes in memory, as :meth:`Calibration.load` does; ``name`` is for messages."""
    signed = ChecksummedFile(file, name, _FORMAT)
    layers = signed.tensors.get("layers")
    count = layers.shape[0] if layers is not None and layers.shape else 0
    _check_entry(signed, "layers", "I64", (count, 4))
    names = [signed.value(f"layer.{i}") for i in range(count)]
    if len(set(names)) < count:
        signed.fail("two layers have the same name, expected each once")
    rows: list[list[int]] = signed.array("layers").tolist()
    sizes: dict[int, int] = {}
    for i, (number, n, vectors, outputs) in enumerate(rows):
        known = sizes.setdefault(number, n)
        if number not in range(len(sizes)) or n < 1 or n != known or vectors < 1 or outputs < 0:
            signed.fail(
                f"layer {names[i][:100]!r}: its row of tensor 'layers' is "
                f"{number}, {n}, {vectors}, {outputs}; expected a matrix's number, its size, a count "
                f"of at least 1 and one of at least 0"
            )
    expected = {"layers"}
    for number, n in sizes.items():
        _check_entry(signed, f"second.{number}", "F64", (n * (n + 1) // 2,))
        expected.add(f"second.{number}")
    for i in range(count):
        gradient = signed.tensors.get(f"gradient.{i}")
        if gradient is not None:
            _check_entry(signed, f"gradient.{i}", "F64", (max((1, *gradient.shape)),))
            expected.add(f"gradient.{i}")
    unexpected = signed.tensors.keys() - expected
    if unexpected:
        signed.fail(f"tensor {min(unexpected)[:40]!r} is unexpected, it belongs to no layer")
    return Calibration(_moments(signed, names, rows))


def _check_entry(signed: ChecksummedFile, key: str, dtype: str, shape: tuple[int, ...]) -> None:
    entry = signed.tensors.get(key)
    if entry is None:
        signed.fail(f"tensor {key!r} is missing")
    if (entry.dtype, entry.shape) != (dtype, shape):
        found = f"{entry.dtype[:40]}, {str(entry.shape)[:100]}"
        signed.fail(f"tensor {key!r} has dtype and shape {found}; expected {dtype}, {shape}")


def _moments(signed: ChecksummedFile, names: list[str], rows: list[list[int]]) -> dict[str, Moments]:
    seconds: dict[int, Floats] = {}
    found = {}
    for i, (name, (number, n, vectors, outputs)) in enumerate(zip(names, rows, strict=True)):
        where = f"layer {name[:100]!r}: tensor"
        if number not in seconds:
            seconds[number] = _symmetric(signed.array(f"second.{number}"), n)
            fault = _fault_of_second(seconds[number])
            if fault is not None:
                signed.fail(f"{where} 'second.{number}' {fault}")
        gradient = None
        if f"gradient.{i}" in signed.tensors:
            gradient = signed.array(f"gradient.{i}")
            fault = _fault_of_gradient(gradient)
            if fault is not None:
                signed.fail(f"{where} 'gradient.{i}' {fault}")
        found[name] = Moments(seconds[number], vectors, gradient, outputs)
    return found


def _symmetric(triangle: Floats, n: int) -> Floats:
    full = np.empty((n, n))
    begin = 0
    for i in range(n):
        full[i, : i + 1] = full[: i + 1, i] = triangle[begin : begin + i + 1]
        begin += i + 1
    return full
