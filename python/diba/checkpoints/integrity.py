"""The files of a checkpoint, and all checks that they are complete and undamaged.

To read a checkpoint, make a :class:`Description` from its ``config.json`` and a :class:`Stored` from its
files, and call :func:`check_stored` and :func:`check_names` before any memory is allocated. :func:`inspect`
does all of this and reports the contents.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from .._internal import check, disk, tensor_files
from ..errors import FormatError
from .description import Description, crc32_of_names
from .entries import Skipped, in_order, layer_reports
from .facts import Facts
from .folders import json_object, weight_files
from .layers import APB, BITWISE, CODES, FLOATS, TENSORS, readable
from .report import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from .._internal.disk import PathLike
    from .layers import LayerDescription

__all__ = [
    "Stored",
    "Tensor",
    "check_headers",
    "check_names",
    "check_stored",
    "checked",
    "factored_in",
    "inspect",
    "report_of",
]


class Tensor(NamedTuple):
    """Dtype and shape of a tensor, from the header of a safetensors file."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values; entries of a dtype that is not known, as F8_E4M3, take one."""
        return math.prod(self.shape) * int(tensor_files.DTYPES.get(self.dtype, "|u1")[2:])


class _Place(NamedTuple):
    file: str
    entry: tensor_files.TensorEntry


class Stored:
    """The tensors in the files of a checkpoint.

    Args:
        files: Name of a file, for messages -> function that opens it.
        where: Name of the folder, for messages.

    Attributes:
        tensors: All tensors by name, from the headers.
        where: Name of the folder.

    Raises:
        FormatError: a file is damaged, or two of them hold the same tensor.
    """

    def __init__(self, files: Mapping[str, Callable[[], BinaryIO]], where: str = "the checkpoint") -> None:
        self.tensors: dict[str, Tensor] = {}
        self.where = where
        self._files = files
        self._places: dict[str, _Place] = {}
        for file, opened in files.items():
            with opened() as stream:
                header = tensor_files.read_header(stream, file)
            for name, tensor in header.tensors.items():
                if name in self.tensors:
                    known = Path(self._places[name].file).name
                    raise FormatError(f"{file}: tensor {name[:200]!r} is in {known}, too; expected once")
                self.tensors[name] = Tensor(tensor.dtype, tensor.shape)
                self._places[name] = _Place(file, tensor)

    @classmethod
    def at(cls, paths: Iterable[str]) -> Stored:
        """Open the safetensors files among these paths; others are ignored."""
        known = [path for path in paths if path.endswith(".safetensors")]
        files = {path: functools.partial(disk.open_regular, path) for path in known}
        return cls(files, str(Path(known[0]).parent) if known else "the checkpoint")

    def array(self, name: str) -> NDArray[Any]:
        """The values of one tensor."""
        file, entry = self._places[name]
        with self._files[file]() as stream:
            return tensor_files.read_array(stream, entry, file)


def check_stored(layers: Mapping[str, LayerDescription], stored: Stored) -> set[str]:
    """Check all factors in the files against the description, one tensor at a time.

    Returns:
        Layers that the files do not have under their names; they must be checked once they are loaded.

    Raises:
        FormatError: the checkpoint is damaged; the message names the layer and the tensor.
    """
    elsewhere = check_headers(layers, stored.tensors, stored.where)
    for name, layer in layers.items():
        if layer.shared is None and name not in elsewhere:
            for own in layer.tensors:
                layer.check_tensor(name, own, stored.array(f"{name}.{own}"), stored.where)
    return elsewhere


def check_headers(
    layers: Mapping[str, LayerDescription], tensors: Mapping[str, Tensor], where: str
) -> set[str]:
    """Compare a description with the headers of the files, before memory is allocated.

    Args:
        layers: The description's.
        tensors: All that the files of the checkpoint hold, by name.
        where: The folder, for messages.

    Returns:
        Layers of which the files have no tensor under their name, because a library has renamed them; their
        values must be checked once they are loaded.

    Raises:
        FormatError: a tensor is missing, of another dtype or shape, or belongs to no layer.
    """
    elsewhere = set()
    for name, layer in layers.items():
        found = {own: tensors[key] for own in layer.tensors if (key := f"{name}.{own}") in tensors}
        if layer.shared is not None:
            if found:
                raise FormatError(
                    f"{where}: {readable(name)}.{next(iter(found))} is there, but config.json says that the "
                    f"factors are those of {readable(layer.shared)}: is the checkpoint damaged?"
                )
            continue
        if not found and f"{name}.weight" not in tensors:
            elsewhere.add(name)
            continue
        _check_shapes(name, layer, found, where)
        _check_bias(name, layer, tensors, where)
    _check_sizes(elsewhere, layers, tensors, where)
    # Every factored layer in the files must be described; of renamed ones only the number is known.
    uncovered = [name for name in factored_in(tensors) if name not in layers]
    if len(uncovered) > len(elsewhere):
        raise FormatError(
            f"{where}: {readable(uncovered[0])} is factored in the files, and config.json has no entry for "
            "it in factors: is the checkpoint damaged?"
        )
    return elsewhere


def check_names(names: Iterable[str], crc32: Any, elsewhere: Iterable[str], where: str) -> None:
    """Require exactly the tensors that were saved, by :func:`crc32_of_names`.

    Args:
        names: Names of all tensors in the files.
        crc32: Checksum of the names that were saved; None: unknown, nothing is checked.
        elsewhere: Layers without a tensor under their name; the message names the first of them.
        where: The folder, for messages.

    Raises:
        FormatError: some are missing, renamed, or new. Without it, transformers would fill what is missing
            with random numbers.
    """
    if crc32 is None or crc32 == crc32_of_names(names):
        return
    for layer in elsewhere:
        raise FormatError(
            f"{where}: the tensors of {readable(layer)} are missing; copy or download the checkpoint again"
        )
    raise FormatError(
        f"{where}: the files hold other tensors than were saved, some are missing or renamed: their names "
        "differ from crc32_names in config.json; copy or download the checkpoint again (after a change on "
        "purpose, remove crc32_names)"
    )


def factored_in(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the layers whose factors or codes are among the tensors, by the tensors' names and dtypes."""
    found = []
    for last, own in (("b1", TENSORS), ("codes", CODES[:2]), ("signs", APB[:3]), ("planes", BITWISE)):
        names = (key.removesuffix(f".{last}") for key, tensor in tensors.items() if tensor.dtype == "U8")
        found += [name for name in names if all(f"{name}.{each}" in tensors for each in own)]
    return found


# ---------------------------------------------------------------- a whole folder


def inspect(folder: PathLike) -> Report:
    """Check all files of a transformers checkpoint and report its contents, without torch.

    Args:
        folder: A folder written by ``save_pretrained``, with ``config.json`` and safetensors files.

    Returns:
        The report of the model. The files do not tell the kinds of dense layers ("-"), and buffers count as
        parameters.

    Raises:
        FormatError: the checkpoint is damaged. The message names the file, or the layer and the tensor.
        OSError: a file cannot be read, or there is none.
    """
    description, stored = checked(folder)
    facts = Facts.of_folder(Path(check.path(folder)))
    return dataclasses.replace(report_of(description, stored.tensors), facts=facts)


def checked(folder: PathLike) -> tuple[Description, Stored]:
    """The description, its layers by name, and the tensors of a checkpoint, all files checked.

    Errors as for :func:`inspect`.
    """
    place = Path(check.path(folder))
    with disk.open_regular(str(place / "config.json")) as stream:
        config = json_object(stream.read(), place / "config.json")
    found = config.get("quantization_config", {})
    ours = isinstance(found, dict) and found.get("quant_method") == "diba"
    description = Description.from_dict(found, str(place / "config.json")) if ours else Description()
    stored = Stored.at(map(str, weight_files(place)))
    elsewhere = check_stored(description.layers, stored)
    check_names(stored.tensors, description.crc32_names, elsewhere, stored.where)
    layers = sorted(description.layers.items(), key=lambda item: in_order(item[0]))
    return dataclasses.replace(description, layers=dict(layers)), stored


def report_of(description: Description, tensors: Mapping[str, Tensor]) -> Report:
    """The report of a model by its description and all of its tensors."""
    layers = layer_reports(description)
    own = description.tensors
    dense = [name for name in tensors if name not in own]
    diagonals = sum(
        math.prod(layer.shapes[own])
        for layer in description.layers.values()
        if layer.shared is None
        for own in layer.tensors
        if own in FLOATS
    )
    plain = sum(math.prod(tensors[name].shape) for name in dense)
    added = {f"{name}.bias" for name, layer in description.layers.items() if layer.bias_added} & {*dense}
    return Report(
        layers=layers,
        skipped=tuple(_left(description, tensors, dense)),
        parameters_before=sum(math.prod(tensors[name].shape) for name in dense if name not in added)
        + sum(layer.weights for layer in layers),
        parameters_after=plain + diagonals,
        bytes_before=sum(tensors[name].nbytes for name in dense if name not in added)
        + sum(layer.dense_bytes for layer in layers),
        bytes_after=sum(tensor.nbytes for tensor in tensors.values()),
        seconds=description.recipe.seconds,
        settings=description.recipe.settings,
        reconstruction=description.recipe.reconstruction,
        blocks=description.recipe.blocks,
    )


def _left(description: Description, tensors: Mapping[str, Tensor], names: list[str]) -> Iterator[Skipped]:
    reasons = description.recipe.left_dense
    for name in names:
        tensor = tensors[name]
        if len(tensor.shape) >= 2:
            layer = name.removesuffix(".weight")
            reason = reasons.get(layer, reasons.get(name, "dense"))
            yield Skipped(layer, "-", reason, tensor.shape, math.prod(tensor.shape), tensor.nbytes)


# ---------------------------------------------------------------- headers


def _check_shapes(name: str, layer: LayerDescription, found: dict[str, Tensor], where: str) -> None:
    for own, shape in layer.shapes.items():
        key = f"{readable(name)}.{own}"
        if own not in found:
            raise FormatError(f"{where}: {key} is missing; copy or download the checkpoint again")
        dtypes = ("F32", "F64") if own in FLOATS else ("U8",)
        if found[own].dtype not in dtypes:
            raise FormatError(
                f"{where}: {key} is {readable(found[own].dtype)}, expected {' or '.join(dtypes)}"
            )
        size = f"{layer.codes} bits an entry" if layer.codes else f"k = {layer.k}"
        size = f"{layer.entries} exceptions" if layer.alphas else size
        size = f"weights of {layer.weight_bits} bits" if layer.weight_bits else size
        if tuple(found[own].shape) != shape:
            raise FormatError(
                f"{where}: {key} has shape {tuple(found[own].shape)}, expected {shape} from config.json, "
                f"where the layer is {' x '.join(map(str, layer.shape))} with {size}: is the "
                "checkpoint damaged?"
            )


def _check_bias(name: str, layer: LayerDescription, tensors: Mapping[str, Tensor], where: str) -> None:
    bias, key = tensors.get(f"{name}.bias"), f"{readable(name)}.bias"
    if layer.bias and bias is None:
        raise FormatError(f"{where}: {key} is missing; copy or download the checkpoint again")
    if bias is not None and (not layer.bias or tuple(bias.shape) != (layer.shape[0],)):
        wanted = f"shape {(layer.shape[0],)}" if layer.bias else "none"
        raise FormatError(f"{where}: {key} has shape {tuple(bias.shape)}, expected {wanted} from config.json")


def _check_sizes(
    names: set[str], layers: Mapping[str, LayerDescription], tensors: Mapping[str, Tensor], where: str
) -> None:
    """Require that layers not found by name are no larger than all files together."""
    there = sum(math.prod(tensor.shape) for tensor in tensors.values()) if names else 0
    for name in names:
        claimed = sum(map(math.prod, layers[name].shapes.values()))
        if claimed > there:
            raise FormatError(
                f"{where}: {readable(name)} is not in the files, which hold {there} numbers, and config.json "
                f"announces {claimed} for it: is the checkpoint damaged?"
            )
