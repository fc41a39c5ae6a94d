"""A calibration: for every layer the moments of its inputs and the gradients for its outputs; and its file.

The file (``_internal.tensor_files``): format "diba calibration", version 2. Metadata: ``layer.I``, the
name of layer I. Tensors: ``layers``, int64 (layers, 4), in each row which matrix of second moments is the
layer's, its size n, count and gradient_count; ``second.J``, float64 (n (n + 1) / 2), the lower triangle row
by row; ``mean.J``, float64 (n), where it is known; ``gradient.I``, float64 (m), for layers that have
gradients. Version 1 has no means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..._internal import check
from ..._internal.disk import open_regular, replace_file
from ..._internal.tensor_files import ChecksummedFile, Format, StoredTensor, encode
from .moments import Moments, check_moments, fault_of_gradient, fault_of_mean, fault_of_second

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..._internal.disk import PathLike

    Floats = NDArray[np.float64]

__all__ = ["Calibration", "decode"]

_FORMAT = Format("diba calibration", "a calibration", 2)


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

        Moments are weighted by their counts. Means and gradients are kept where both have them.

        Raises:
            TypeError: other is no calibration.
            ValueError: a layer's shapes differ.
        """
        check.instance(other, "other", Calibration, "use diba.torch.calibrate")
        shared: dict[tuple[int, ...], tuple[Floats, Floats | None]] = {}  # by several layers
        merged = {**self, **other}
        for name in self.keys() & other.keys():
            a, b = self[name], other[name]
            check.equal(b.second.shape, f"other[{name!r}].second.shape", a.second.shape, "shape here")
            pair = id(a.second), id(a.mean), a.count, id(b.second), id(b.mean), b.count
            if pair not in shared:
                known = a.mean is not None and b.mean is not None
                mean = _mean(a.mean, a.count, b.mean, b.count) if known else None
                shared[pair] = _mean(a.second, a.count, b.second, b.count), mean
            second, mean = shared[pair]
            gradient, outputs = None, 0
            if a.gradient_rms is not None and b.gradient_rms is not None:
                lengths = b.gradient_rms.shape, a.gradient_rms.shape
                check.equal(lengths[0], f"other[{name!r}].gradient_rms.shape", lengths[1], "shape here")
                outputs = a.outputs + b.outputs
                squares = _mean(a.gradient_rms**2, a.outputs, b.gradient_rms**2, b.outputs)
                gradient = np.sqrt(squares)
            merged[name] = Moments(second, a.count + b.count, gradient, outputs, mean)
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


def _mean(a: Any, weight_a: int, b: Any, weight_b: int) -> Any:
    return (a * weight_a + b * weight_b) / (weight_a + weight_b)


# ---------------------------------------------------------------- writing


def _encode(calibration: Calibration) -> Iterator[bytes | memoryview]:
    tensors: dict[str, StoredTensor] = {}
    rows, names, numbers = [], {}, dict[tuple[int, int], int]()
    for i, (name, moments) in enumerate(calibration.items()):
        pair = id(moments.second), id(moments.mean)
        check_moments(name, moments, pair in numbers)
        number = numbers.setdefault(pair, len(numbers))
        n = len(moments.second)
        names[f"layer.{i}"] = name
        rows.append((number, n, int(moments.count), int(moments.gradient_count)))
        make = partial(_triangle, moments.second)
        tensors.setdefault(f"second.{number}", StoredTensor("F64", (n * (n + 1) // 2,), make))
        for key, values in ((f"mean.{number}", moments.mean), (f"gradient.{i}", moments.gradient_rms)):
            if values is not None:
                tensors[key] = StoredTensor("F64", values.shape, partial(np.asarray, values))
    table = np.array(rows, np.int64).reshape(-1, 4)
    layers = StoredTensor("I64", table.shape, lambda: table)
    return encode(_FORMAT, names, {"layers": layers, **tensors})


def _triangle(second: Floats) -> Floats:
    return np.concatenate([row[: i + 1] for i, row in enumerate(second)])


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
        if signed.value("format_version") != "1" and f"mean.{number}" in signed.tensors:
            _check_entry(signed, f"mean.{number}", "F64", (n,))
            expected.add(f"mean.{number}")
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
    inputs: dict[int, tuple[Floats, Floats | None]] = {}
    found = {}
    for i, (name, (number, n, vectors, outputs)) in enumerate(zip(names, rows, strict=True)):
        where = f"layer {name[:100]!r}: tensor"
        if number not in inputs:
            second = _symmetric(signed.array(f"second.{number}"), n)
            _refuse(signed, f"{where} 'second.{number}'", fault_of_second(second))
            mean = signed.array(f"mean.{number}") if f"mean.{number}" in signed.tensors else None
            if mean is not None:
                _refuse(signed, f"{where} 'mean.{number}'", fault_of_mean(mean, second))
            inputs[number] = second, mean
        gradient = None
        if f"gradient.{i}" in signed.tensors:
            gradient = signed.array(f"gradient.{i}")
            _refuse(signed, f"{where} 'gradient.{i}'", fault_of_gradient(gradient))
        second, mean = inputs[number]
        found[name] = Moments(second, vectors, gradient, outputs, mean)
    return found


def _refuse(signed: ChecksummedFile, where: str, fault: str | None) -> None:
    if fault is not None:
        signed.fail(f"{where} {fault}")


def _symmetric(triangle: Floats, n: int) -> Floats:
    full = np.empty((n, n))
    begin = 0
    for i in range(n):
        full[i, : i + 1] = full[: i + 1, i] = triangle[begin : begin + i + 1]
        begin += i + 1
    return full
