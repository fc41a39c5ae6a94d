"""The factored layers of a checkpoint, one entry each, and every check that it is whole.

A checkpoint holds, beside its dense tensors, ``<layer>.d1 .d2 .d3 .b1 .b2`` (shapes and packed rows as in
``files``; diagonals float32, or float64 of a layer in double precision) and an entry for each layer, plain
values for JSON::

    {"kind": class of the layer, "shape": [m, n], "k": k, "alphabet": "binary" or "sign", "bias": true or
     false, "crc32": {"d1": 8 hex digits over the tensor's bytes, ...}, "crc32_entry": over all other keys}

``"shared": name`` takes the place of ``crc32`` where the factors are those of another layer, saved once,
under its name. An entry in memory has no ``crc32``: values change. :func:`crc32_of_all` tells whether all
entries are there, :func:`crc32_of_names` whether all tensors are.

Nothing here knows torch or transformers; whoever reads a checkpoint calls :func:`check_entries`,
:func:`check_headers`, :func:`check_tensor`, in this order, and allocates nothing before the first two.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._internal.check import ALPHABETS
from .._internal.signed import crc32
from .._internal.storage import BITS, DIAGONALS
from ..errors import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Tensor",
    "check_all",
    "check_entries",
    "check_headers",
    "check_names",
    "check_tensor",
    "crc32_of_all",
    "crc32_of_names",
    "entry",
    "factored_in",
    "sealed",
]

_TENSORS = (*DIAGONALS, *BITS)
_LARGEST_SIZE = 2**40
_REQUIRED = {"kind", "shape", "k", "alphabet", "bias", "crc32_entry"}
_CRC = re.compile(r"[0-9a-f]{8}")


class Tensor(NamedTuple):
    """What the header of a safetensors file says of a tensor."""

    dtype: str
    shape: tuple[int, ...]


# ---------------------------------------------------------------- writing


def entry(
    name: str,
    kind: str,
    shape: tuple[int, int],
    k: int,
    alphabet: str,
    bias: bool,
    *,
    shared: str | None = None,
) -> dict[str, Any]:
    """The entry of the layer ``name``, without CRCs of its tensors."""
    plain = {"kind": kind, "shape": list(shape), "k": k, "alphabet": alphabet, "bias": bias}
    return _closed(name, plain if shared is None else {**plain, "shared": shared})


def sealed(name: str, layer: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The entry with the CRC of each of its tensors, ``"d1"`` to ``"b2"``, which can be loaded as they are.

    Raises:
        FormatError: a tensor could not be loaded: it is not finite, or has ones past its last column.
    """
    crcs = {own: crc32(np.ascontiguousarray(tensors[own]).data) for own in _TENSORS}
    result = _closed(name, {**layer, "crc32": crcs})
    for own in _TENSORS:
        check_tensor(name, result, own, tensors[own], "the model")
    return result


def crc32_of_all(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """8 hex digits over names and CRCs of checked entries, in whatever order they are."""
    pairs = sorted((name, layer["crc32_entry"]) for name, layer in entries.items())
    return crc32(json.dumps(pairs).encode())


# ---------------------------------------------------------------- reading


def crc32_of_names(names: Iterable[str]) -> str:
    """What tells whether the files still hold all tensors that were saved, dense ones among them."""
    return crc32(json.dumps(sorted(names)).encode())


def check_names(names: Iterable[str], crc32: Any, elsewhere: Iterable[str], where: str) -> None:
    """Require the tensors that were saved, by :func:`crc32_of_names`; None: it is not known.

    Args:
        names: Of all tensors in the files.
        crc32: Of those that were saved.
        elsewhere: Layers without a tensor of their name, to be named first.
        where: The folder, for messages.

    Raises:
        FormatError: some are missing, renamed, or new. Without it, transformers would fill what is missing
            with random numbers.
    """
    if crc32 is None or crc32 == crc32_of_names(names):
        return
    for layer in elsewhere:
        raise FormatError(f"{where}: {_short(layer)}.d1 is missing; copy or download the checkpoint again")
    raise FormatError(
        f"{where}: the files hold other tensors than were saved, some are missing or renamed: their names "
        "differ from crc32_names in config.json; copy or download the checkpoint again (after a change on "
        "purpose, remove crc32_names)"
    )


def check_all(value: Any, crc32: Any, where: str = "config.json") -> dict[str, dict[str, Any]]:
    """:func:`check_entries`, and that they are all that were written, by their :func:`crc32_of_all`."""
    entries = check_entries(value, where)
    if crc32 != crc32_of_all(entries):
        raise FormatError(
            f"{where}: some of the {len(entries)} entries in factors are missing or renamed: their CRC-32 "
            "differs from crc32_factors; copy or download the checkpoint again"
        )
    return entries


def check_entries(value: Any, where: str = "config.json") -> dict[str, dict[str, Any]]:
    """Require entries as :func:`entry` and :func:`sealed` make them; returns a copy.

    Raises:
        FormatError: they are damaged. The message names the layer.
    """
    if not isinstance(value, Mapping):
        what = "null" if value is None else f"a {type(value).__name__}"
        raise FormatError(
            f"{where}: factors is {what}; it must hold the entry of each factored layer, as save_pretrained "
            "writes it: is the checkpoint damaged?"
        )
    result: dict[str, dict[str, Any]] = {}
    for name, layer in value.items():
        _check_entry(name, layer, where)
        result[name] = {
            key: part.copy() if key in ("shape", "crc32") else part for key, part in layer.items()
        }
    for name, layer in result.items():
        if "shared" in layer:
            _check_shared(name, layer, result, where)
    return result


def check_headers(
    entries: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor], where: str
) -> set[str]:
    """Compare entries with what the headers of the files say, before anything of that size is made.

    Args:
        entries: Checked.
        tensors: Of all files of the checkpoint, by name.
        where: The folder, for messages.

    Returns:
        Layers of which there is no tensor at all under their name, which is so where a library has renamed
        them; their values are to be checked once they are loaded, by :func:`check_tensor`.

    Raises:
        FormatError: a tensor is missing, of another dtype or shape, or belongs to no entry.
    """
    elsewhere = set()
    for name, layer in entries.items():
        found = {own: tensors[key] for own in _TENSORS if (key := f"{name}.{own}") in tensors}
        if "shared" in layer:
            if found:
                raise FormatError(
                    f"{where}: {_short(name)}.{next(iter(found))} is there, but config.json says that the "
                    f"factors are those of {_short(layer['shared'])}: is the checkpoint damaged?"
                )
            continue
        if not found and f"{name}.weight" not in tensors:
            elsewhere.add(name)
            continue
        _check_shapes(name, layer, found, where)
        _check_bias(name, layer, tensors, where)
    _check_sizes(elsewhere, entries, tensors, where)
    _check_covered(entries, elsewhere, tensors, where)
    return elsewhere


def factored_in(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of layers whose factors are among the tensors, by their names and dtypes alone."""
    names = (key.removesuffix(".b1") for key, tensor in tensors.items() if tensor.dtype == "U8")
    return [name for name in names if all(f"{name}.{own}" in tensors for own in _TENSORS)]


def check_tensor(name: str, layer: Mapping[str, Any], own: str, values: NDArray[Any], where: str) -> None:
    """Check the values of one tensor of a layer, ``own`` from ``"d1"`` to ``"b2"``.

    Raises:
        FormatError: its shape, CRC, a number that is not finite, or a one past the last column.
    """
    key = f"{_short(name)}.{own}"
    if values.shape != _shapes(layer)[own] or values.dtype.kind != ("u" if own in BITS else "f"):
        raise FormatError(
            f"{where}: {key} is {values.dtype} of shape {values.shape}, expected "
            f"{'uint8' if own in BITS else 'float32'} of shape {_shapes(layer)[own]}"
        )
    expected = layer.get("crc32", {}).get(own)
    if expected is not None and crc32(np.ascontiguousarray(values).data) != expected:
        raise FormatError(
            f"{where}: {key} is missing or damaged: its CRC-32 differs from that in config.json; copy or "
            "download the checkpoint again"
        )
    if own in DIAGONALS and not np.isfinite(values).all():
        raise FormatError(f"{where}: {key} has NaN or infinite entries, expected finite numbers")
    used = (layer["k"] if own == "b1" else layer["shape"][1]) % 8
    if own in BITS and used and (values[:, -1] >> used).any():
        raise FormatError(f"{where}: {key} has ones past its last column, expected zeros")


# ---------------------------------------------------------------- details


def _closed(name: str, plain: dict[str, Any]) -> dict[str, Any]:
    return {**plain, "crc32_entry": _crc32_of_entry(name, plain)}


def _crc32_of_entry(name: str, layer: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in layer.items() if key != "crc32_entry"}
    return crc32(json.dumps([name, rest], sort_keys=True).encode())


def _shapes(layer: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    (m, n), k = layer["shape"], layer["k"]
    return {"d1": (m,), "d2": (k,), "d3": (n,), "b1": (m, -(-k // 8)), "b2": (k, -(-n // 8))}


def _short(name: str) -> str:
    """As it can be shown."""
    part = name if len(name) <= 120 else f"{name[:120]}..."
    return part if part.isprintable() else ascii(part)[1:-1]


def _check_entry(name: Any, layer: Any, where: str) -> None:
    if not isinstance(name, str) or not name:
        raise FormatError(f"{where}: factors has the key {str(name)[:200]!r}; it must be the name of a layer")
    here = f"{where}: factors[{_short(name)!r}]"
    keys = set(layer) if isinstance(layer, Mapping) else set()
    known = _REQUIRED | {"shared"} if "shared" in keys else _REQUIRED | {"crc32"}
    if not _REQUIRED <= keys <= known:
        raise FormatError(
            f"{here} must have {', '.join(sorted(_REQUIRED))}, and crc32 or shared: is it damaged, or "
            "written by another version of diba?"
        )
    for what, good in (
        ("kind", type(layer["kind"]) is str),
        ("shape", _is_list_of_sizes(layer["shape"])),
        ("k", _is_size(layer["k"])),
        ("alphabet", layer["alphabet"] in ALPHABETS if type(layer["alphabet"]) is str else False),
        ("bias", type(layer["bias"]) is bool),
        ("shared", type(layer.get("shared", "")) is str),
        ("crc32", "crc32" not in layer or _is_crcs(layer["crc32"])),
        ("crc32_entry", type(layer["crc32_entry"]) is str),
    ):
        if not good:
            raise FormatError(f"{here}: {what} is {repr(layer[what])[:100]}: is the checkpoint damaged?")
    if layer["crc32_entry"] != _crc32_of_entry(name, layer):
        raise FormatError(
            f"{here} is damaged: its CRC-32 differs from crc32_entry; copy or download the checkpoint again"
        )


def _check_shared(name: str, layer: dict[str, Any], entries: dict[str, Any], where: str) -> None:
    owner = entries.get(layer["shared"], {"shared": None})
    alike = all(owner.get(key) == layer[key] for key in ("shape", "k", "alphabet"))
    if "shared" in owner or not alike:
        raise FormatError(
            f"{where}: factors[{_short(name)!r}] shares those of {_short(layer['shared'])!r}, which has none "
            "of this size: is the checkpoint damaged?"
        )


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _LARGEST_SIZE


def _is_list_of_sizes(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and all(map(_is_size, value))


def _is_crcs(value: Any) -> bool:
    return (
        type(value) is dict
        and value.keys() == set(_TENSORS)
        and all(type(crc) is str and _CRC.fullmatch(crc) for crc in value.values())
    )


def _check_shapes(name: str, layer: Mapping[str, Any], found: dict[str, Tensor], where: str) -> None:
    for own, shape in _shapes(layer).items():
        key = f"{_short(name)}.{own}"
        if own not in found:
            raise FormatError(f"{where}: {key} is missing; copy or download the checkpoint again")
        dtypes = ("U8",) if own in BITS else ("F32", "F64")
        if found[own].dtype not in dtypes:
            raise FormatError(f"{where}: {key} is {_short(found[own].dtype)}, expected {' or '.join(dtypes)}")
        if tuple(found[own].shape) != shape:
            raise FormatError(
                f"{where}: {key} has shape {tuple(found[own].shape)}, expected {shape} from config.json, "
                f"where the layer is {' x '.join(map(str, layer['shape']))} with k = {layer['k']}: is the "
                "checkpoint damaged?"
            )


def _check_bias(name: str, layer: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> None:
    bias, key = tensors.get(f"{name}.bias"), f"{_short(name)}.bias"
    if layer["bias"] and bias is None:
        raise FormatError(f"{where}: {key} is missing; copy or download the checkpoint again")
    if bias is not None and (not layer["bias"] or tuple(bias.shape) != (layer["shape"][0],)):
        wanted = f"shape {(layer['shape'][0],)}" if layer["bias"] else "none"
        raise FormatError(f"{where}: {key} has shape {tuple(bias.shape)}, expected {wanted} from config.json")


def _check_sizes(
    names: set[str], entries: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor], where: str
) -> None:
    """Entries whose tensors are elsewhere may claim no more than all files hold."""
    there = sum(math.prod(tensor.shape) for tensor in tensors.values()) if names else 0
    for name in names:
        claimed = sum(map(math.prod, _shapes(entries[name]).values()))
        if claimed > there:
            raise FormatError(
                f"{where}: {_short(name)} is not in the files, which hold {there} numbers, and config.json "
                f"announces {claimed} for it: is the checkpoint damaged?"
            )


def _check_covered(
    entries: Mapping[str, Any], elsewhere: set[str], tensors: Mapping[str, Tensor], where: str
) -> None:
    """Every factored layer of the files must have an entry; renamed ones are known by their number only."""
    uncovered = [key for key in factored_in(tensors) if key not in entries]
    if len(uncovered) > len(elsewhere):
        raise FormatError(
            f"{where}: {_short(uncovered[0])} is factored in the files, and config.json has no entry for it "
            "in factors: is the checkpoint damaged?"
        )
