"""The description of a compressed model: its layers, their sizes and checksums, and how they were made.

A checkpoint has it in ``config.json`` under ``quantization_config``, plain values for JSON: the settings of
the conversion, and ::

    "factors": {name: {"kind": "Linear", "shape": [m, n], "k": k, "alphabet": "binary" or "sign",
                       "bias": true or false, "dtype": of the dense weight, "diagonal_bits": 16 or 32,
                       "recipe": {"objective": ..., "snr_db": ..., "output_snr_db": ..., "seconds": ...},
                       "crc32": {"d1": 8 hex digits over the tensor's bytes, ...},
                       "crc32_entry": over all other keys}}
    "crc32_factors": over the names and CRCs of all entries
    "crc32_names": over the names of all tensors in the files
    "left_dense": {name: why the layer stayed dense}
    "seconds": of the whole conversion

``"shared": name`` takes the place of ``crc32`` where the factors are those of another layer, saved once,
under its name; a layer in memory has neither. ``recipe`` may be missing, or parts of it be null: then nobody
knows.

Nothing here knows torch or transformers. ``stored`` compares a description with the files of a checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal import storage
from .._internal.check import ALPHABETS
from .._internal.signed import crc32
from .._internal.storage import BITS, DIAGONALS
from ..errors import FormatError

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

    from .._internal.check import Alphabet

__all__ = [
    "FORMAT_VERSION",
    "TENSORS",
    "Description",
    "LayerDescription",
    "LayerRecipe",
    "Recipe",
    "crc32_of_names",
    "readable",
]

FORMAT_VERSION = 1
"""Of a checkpoint: tensors ``<layer>.d1 .d2 .d3 .b1 .b2 .bias`` and an empty ``<layer>.weight`` for each
layer of its description."""

TENSORS = (*DIAGONALS, *BITS)
OBJECTIVES = ("plain", "importance", "covariance")
_LARGEST_SIZE = 2**40
_REQUIRED = {"kind", "shape", "k", "alphabet", "bias", "dtype", "diagonal_bits", "crc32_entry"}
_CRC = re.compile(r"[0-9a-f]{8}")
_DTYPE = re.compile(r"b?float(8|16|32|64)\w*")
_OWN_KEYS = {"quant_method", "format_version", "modules_to_not_convert"}  # beside settings and description


@dataclass(frozen=True, kw_only=True)
class LayerRecipe:
    """What the factors of a layer do not tell; None where nobody knows.

    Attributes:
        objective: What was minimised: ``"plain"``, ``"importance"`` or ``"covariance"``.
        snr_db: Of the weights against the dense ones, in dB, when the layer was compressed.
        output_snr_db: Of the outputs under the calibration's input moments.
        seconds: Time of the solve.
    """

    objective: str | None = None
    snr_db: float | None = None
    output_snr_db: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class LayerDescription:
    """One layer with factors.

    Attributes:
        kind: Of the dense layer it stands for: ``"Linear"``, ``"Conv1D"`` (of transformers), ``"Conv1d"``,
            ``"Conv2d"`` or ``"Embedding"``.
        shape: (m, n) of its matrix.
        k: Inner dimension.
        alphabet: ``"binary"`` or ``"sign"``.
        bias: Whether it has one.
        dtype: Of the dense weight, as ``"float32"``.
        diagonal_bits: 16 where 16-bit floats hold every diagonal exactly, else 32.
        shared: Name of the layer whose factors it shares.
        crc32: Tensor -> 8 hex digits, of a layer in a checkpoint.
        recipe: How it was made; None where nobody knows.
    """

    kind: str
    shape: tuple[int, int]
    k: int
    alphabet: Alphabet
    bias: bool
    dtype: str = "float32"
    diagonal_bits: int = 32
    shared: str | None = None
    crc32: Mapping[str, str] | None = None
    recipe: LayerRecipe | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors ``d1`` to ``b2``."""
        (m, n), k = self.shape, self.k
        return {"d1": (m,), "d2": (k,), "d3": (n,), "b1": (m, -(-k // 8)), "b2": (k, -(-n // 8))}

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight, diagonals counted at ``diagonal_bits``."""
        return storage.bits_per_weight(*self.shape, self.k, self.diagonal_bits)

    @property
    def weight_bytes(self) -> int:
        """Of the dense weight."""
        found = _DTYPE.fullmatch(self.dtype)
        assert found is not None, "checked"
        return math.prod(self.shape) * int(found[1]) // 8

    def bytes(self, diagonal_bits: int) -> int:
        """Of the factors: rows of whole bytes, and diagonals of so many bits an entry."""
        (m, n), k = self.shape, self.k
        return sum(math.prod(self.shapes[own]) for own in BITS) + diagonal_bits * (m + k + n) // 8

    def sealed(self, name: str, tensors: Mapping[str, NDArray[Any]]) -> Self:
        """With the CRC of each of its tensors, ``"d1"`` to ``"b2"``, which can be loaded as they are.

        Raises:
            FormatError: a tensor could not be loaded: it is not finite, or has ones past its last column.
        """
        crcs = {own: crc32(np.ascontiguousarray(tensors[own]).data) for own in TENSORS}
        result = dataclasses.replace(self, crc32=crcs)
        for own in TENSORS:
            result.check_tensor(name, own, tensors[own], "the model")
        fit = all(storage.fits_16(tensors[own]) for own in DIAGONALS)
        return dataclasses.replace(result, diagonal_bits=16 if fit else 32)

    def check_tensor(self, name: str, own: str, values: NDArray[Any], where: str) -> None:
        """Check the values of one tensor, ``own`` from ``"d1"`` to ``"b2"``, of the layer ``name``.

        Raises:
            FormatError: its shape, CRC, a number that is not finite, or a one past the last column.
        """
        key, shape = f"{readable(name)}.{own}", self.shapes[own]
        if values.shape != shape or values.dtype.kind != ("u" if own in BITS else "f"):
            raise FormatError(
                f"{where}: {key} is {values.dtype} of shape {values.shape}, expected "
                f"{'uint8' if own in BITS else 'float32'} of shape {shape}"
            )
        expected = None if self.crc32 is None else self.crc32[own]
        if expected is not None and crc32(np.ascontiguousarray(values).data) != expected:
            raise FormatError(
                f"{where}: {key} is missing or damaged: its CRC-32 differs from that in config.json; copy or "
                "download the checkpoint again"
            )
        if own in DIAGONALS and not np.isfinite(values).all():
            raise FormatError(f"{where}: {key} has NaN or infinite entries, expected finite numbers")
        used = (self.k if own == "b1" else self.shape[1]) % 8
        if own in BITS and used and (values[:, -1] >> used).any():
            raise FormatError(f"{where}: {key} has ones past its last column, expected zeros")

    # ------------------------------------------------------------ JSON

    def to_dict(self, name: str) -> dict[str, Any]:
        """The entry of the layer ``name``: plain values, and the CRC of all of them."""
        plain: dict[str, Any] = {
            "kind": self.kind,
            "shape": list(self.shape),
            "k": self.k,
            "alphabet": self.alphabet,
            "bias": self.bias,
            "dtype": self.dtype,
            "diagonal_bits": self.diagonal_bits,
        }
        if self.shared is not None:
            plain["shared"] = self.shared
        if self.crc32 is not None:
            plain["crc32"] = dict(self.crc32)
        if self.recipe is not None:
            plain["recipe"] = {key: _to_json(x) for key, x in dataclasses.asdict(self.recipe).items()}
        return {**plain, "crc32_entry": _crc32_of_entry(name, plain)}

    @classmethod
    def from_dict(cls, name: Any, values: Any, where: str) -> Self:
        """A layer from its entry.

        Raises:
            FormatError: it is damaged. The message names the layer.
        """
        if not isinstance(name, str) or not name:
            raise FormatError(
                f"{where}: factors has the key {str(name)[:200]!r}; it must be the name of a layer"
            )
        here = f"{where}: factors[{readable(name)!r}]"
        keys = set(values) if isinstance(values, Mapping) else set()
        known = _REQUIRED | {"recipe", "shared" if "shared" in keys else "crc32"}
        if not _REQUIRED <= keys <= known:
            raise FormatError(
                f"{here} must have {', '.join(sorted(_REQUIRED))}, and crc32 or shared: is it damaged, or "
                "written by another version of diba?"
            )
        for key, good in _GOOD.items():
            if key in keys and not good(values[key]):
                raise FormatError(f"{here}: {key} is {repr(values[key])[:100]}: is the checkpoint damaged?")
        if values["crc32_entry"] != _crc32_of_entry(name, values):
            raise FormatError(
                f"{here} is damaged: its CRC-32 differs from crc32_entry; copy or download the checkpoint "
                "again"
            )
        own = {key: value for key, value in values.items() if key != "crc32_entry"}
        if "crc32" in own:
            own["crc32"] = dict(own["crc32"])
        if "recipe" in own:
            own["recipe"] = LayerRecipe(**{key: _from_json(x) for key, x in own["recipe"].items()})
        return cls(**{**own, "shape": tuple(own["shape"])})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model was compressed, as far as its layers do not tell; None where nobody knows.

    Attributes:
        settings: Of the last conversion: fields of ``diba.torch.Config``.
        left_dense: Layer -> why it was left as it was.
        seconds: Time of all conversions.
    """

    settings: Mapping[str, Any] | None = None
    left_dense: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Description:
    """All that is known of a compressed model without its tensors.

    Attributes:
        layers: Name -> layer with factors.
        recipe: How they were made.
        crc32_names: Of the tensors that were saved; None where it is not known.
    """

    layers: Mapping[str, LayerDescription] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=Recipe)
    crc32_names: str | None = None

    def crc32_factors(self) -> str:
        """8 hex digits over names and CRCs of all layers, in whatever order they are."""
        return crc32_of_entries({name: layer.to_dict(name) for name, layer in self.layers.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; :meth:`from_dict` takes them back."""
        result = dict(self.recipe.settings or {})
        if self.layers:
            factors = {name: layer.to_dict(name) for name, layer in self.layers.items()}
            result |= {"factors": factors, "crc32_factors": crc32_of_entries(factors)}
        more = {"crc32_names": self.crc32_names, "seconds": self.recipe.seconds}
        result |= {key: value for key, value in more.items() if value is not None}
        if self.recipe.left_dense:
            result["left_dense"] = dict(self.recipe.left_dense)
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config.json", *, whole: bool = True) -> Self:
        """A description from the values of :meth:`to_dict`; other keys are settings.

        Args:
            values: ``quantization_config``.
            where: Of the file, for messages.
            whole: Whether ``factors`` must be all that were written, by ``crc32_factors``.

        Raises:
            FormatError: they are damaged. The message names the layer.
        """
        settings = {key: value for key, value in values.items() if key not in _OWN_KEYS}
        crc, names = (settings.pop(key, None) for key in ("crc32_factors", "crc32_names"))
        found = "factors" in settings
        factors = settings.pop("factors", {})  # None is no default here, but a value that was lost
        layers = _layers(factors, where)
        if found and whole and crc != crc32_of_entries(factors):
            raise FormatError(
                f"{where}: some of the {len(layers)} entries in factors are missing or renamed: their CRC-32 "
                "differs from crc32_factors; copy or download the checkpoint again"
            )
        left, seconds = settings.pop("left_dense", {}), settings.pop("seconds", None)
        if not isinstance(left, Mapping) or not all(type(x) is str for pair in left.items() for x in pair):
            raise FormatError(f"{where}: left_dense is {repr(left)[:100]}: is the checkpoint damaged?")
        if not _is_number(seconds):
            raise FormatError(f"{where}: seconds is {repr(seconds)[:100]}: is the checkpoint damaged?")
        recipe = Recipe(settings=settings or None, left_dense=dict(left), seconds=_from_json(seconds))
        return cls(layers=layers, recipe=recipe, crc32_names=names)


def crc32_of_names(names: Iterable[str]) -> str:
    """What tells whether the files still hold all tensors that were saved, dense ones among them."""
    return crc32(json.dumps(sorted(names)).encode())


def crc32_of_entries(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """8 hex digits over names and CRCs of checked entries, in whatever order they are."""
    pairs = sorted((name, entry["crc32_entry"]) for name, entry in entries.items())
    return crc32(json.dumps(pairs).encode())


def readable(name: str) -> str:
    """A name as it can be shown."""
    part = name if len(name) <= 120 else f"{name[:120]}..."
    return part if part.isprintable() else ascii(part)[1:-1]


# ---------------------------------------------------------------- details


def _crc32_of_entry(name: str, entry: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in entry.items() if key != "crc32_entry"}
    return crc32(json.dumps([name, rest], sort_keys=True).encode())


def _layers(factors: Any, where: str) -> dict[str, LayerDescription]:
    if not isinstance(factors, Mapping):
        what = "null" if factors is None else f"a {type(factors).__name__}"
        raise FormatError(
            f"{where}: factors is {what}; it must hold the entry of each factored layer, as save_pretrained "
            "writes it: is the checkpoint damaged?"
        )
    layers = {name: LayerDescription.from_dict(name, entry, where) for name, entry in factors.items()}
    for name, layer in layers.items():
        if layer.shared is not None:
            owner = layers.get(layer.shared)
            facts = ("shape", "k", "alphabet")
            alike = owner is not None and all(getattr(owner, x) == getattr(layer, x) for x in facts)
            if owner is None or owner.shared is not None or not alike:
                raise FormatError(
                    f"{where}: factors[{readable(name)!r}] shares those of {readable(layer.shared)!r}, which "
                    "has none of this size: is the checkpoint damaged?"
                )
    return layers


def _to_json(value: Any) -> Any:
    """JSON has no infinity: an exact fit has the SNR "inf"."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any) -> Any:
    return float(value) if value in ("inf", "-inf") else value


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _LARGEST_SIZE


def _is_number(value: Any) -> bool:
    finite = type(value) in (int, float) and abs(value) < _LARGEST_SIZE
    return value is None or finite or (type(value) is str and value in ("inf", "-inf"))


def _is_recipe(value: Any) -> bool:
    if type(value) is not dict or not value.keys() <= {f.name for f in dataclasses.fields(LayerRecipe)}:
        return False
    objective = value.get("objective")
    known = objective is None or (type(objective) is str and objective in OBJECTIVES)
    return known and all(_is_number(number) for key, number in value.items() if key != "objective")


def _is_crcs(value: Any) -> bool:
    return (
        type(value) is dict
        and value.keys() == set(TENSORS)
        and all(type(crc) is str and _CRC.fullmatch(crc) for crc in value.values())
    )


_GOOD: dict[str, Callable[[Any], bool]] = {
    "kind": lambda x: type(x) is str,
    "shape": lambda x: type(x) is list and len(x) == 2 and all(map(_is_size, x)),
    "k": _is_size,
    "alphabet": lambda x: type(x) is str and x in ALPHABETS,
    "bias": lambda x: type(x) is bool,
    "dtype": lambda x: type(x) is str and _DTYPE.fullmatch(x) is not None,
    "diagonal_bits": lambda x: type(x) is int and x in (16, 32),
    "shared": lambda x: type(x) is str,
    "crc32": _is_crcs,
    "recipe": _is_recipe,
    "crc32_entry": lambda x: type(x) is str,
}
