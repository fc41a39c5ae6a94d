"""The description of one compressed layer: its sizes, its checksums, how it was made; and its JSON form."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal import apb_bytes, storage
from .._internal.codes import STEP_MAX, code_bits, group_count, row_bytes
from .._internal.storage import BITS, DIAGONALS
from .._internal.tensor_files import crc32
from ..errors import FormatError
from .values import ADDED, CRC, DTYPE, GOOD, from_json, is_number, readable, to_json

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

    from .._internal.check import Alphabet

__all__ = [
    "APB",
    "BITWISE",
    "CODES",
    "FLOATS",
    "TENSORS",
    "LayerDescription",
    "LayerRecipe",
    "from_json",
    "is_number",
    "readable",
]

TENSORS = (*DIAGONALS, *BITS)
CODES = ("d1", "codes", "steps")
APB = apb_bytes.APB_TENSORS
BITWISE = ("scale", "planes")
FLOATS = (*DIAGONALS, "alpha", "scale")
"""Tensors of floating-point numbers; the others are uint8."""

_SOME = {"columns", "values"}  # missing without exceptions
# tensors of factors, of 4-bit and of 8-bit codes, of binary weights with and without exceptions
_FORMS = set(TENSORS), set(CODES), set(CODES[:2]), set(APB), set(APB) - _SOME, set(BITWISE)
OBJECTIVES = ("plain", "importance", "covariance")
_REQUIRED = {"kind", "shape", "bias", "dtype", "crc32_entry"}
_FACTORS, _CODES = {"k", "alphabet", "diagonal_bits"}, {"codes", "group"}
_BITWISE = {"weight_bits", "activation_bits", "diagonal_bits"}
_BINARY = {"alphas", "entries", "diagonal_bits"}


@dataclass(frozen=True, kw_only=True)
class LayerRecipe:
    """How a layer was compressed; None where unknown.

    Attributes:
        objective: What was minimised: ``"plain"``, ``"importance"`` or ``"covariance"``.
        snr_db: SNR of the weights against the dense ones, in dB, when the layer was compressed.
        output_snr_db: SNR of the outputs under the calibration's input moments.
        seconds: Time of the solve.
        bias_corrected: Whether the bias was corrected, or added, for the error of the mean output.
    """

    objective: str | None = None
    snr_db: float | None = None
    output_snr_db: float | None = None
    seconds: float | None = None
    bias_corrected: bool | None = None


@dataclass(frozen=True, kw_only=True)
class LayerDescription:
    """The description of one layer with factors, with codes, or with binary weights and exceptions.

    Attributes:
        kind: Kind of the dense layer it replaced: ``"Linear"``, ``"Conv1D"`` (of transformers), ``"Conv1d"``,
            ``"Conv2d"`` or ``"Embedding"``.
        shape: (m, n) of its matrix.
        k: Inner dimension; 0 without factors.
        alphabet: ``"binary"`` or ``"sign"``; None without factors.
        codes: Bits of an entry, 8 or 4; 0 without codes.
        group: Entries that share a step, with 4 bits.
        alphas: Magnitudes of binary weights, 1 or m; 0 for other layers.
        entries: Exceptions from binary weights.
        weight_bits: 1 or 2 where the inputs, too, have few bits; 0 for other layers.
        activation_bits: Bits of these inputs.
        bias: Whether it has a bias.
        bias_added: Whether the dense layer had none.
        dtype: Dtype of the dense weight, as ``"float32"``.
        diagonal_bits: 16 if 16-bit floats hold every diagonal, or alpha, exactly, else 32.
        shared: Name of the layer whose factors it shares.
        crc32: Name of a tensor -> its CRC-32 as 8 hex digits, for a layer in a checkpoint.
        recipe: How it was compressed; None if unknown.
    """

    kind: str
    shape: tuple[int, int]
    bias: bool
    bias_added: bool = False
    k: int = 0
    alphabet: Alphabet | None = None
    codes: int = 0
    group: int = 32
    alphas: int = 0
    entries: int = 0
    weight_bits: int = 0
    activation_bits: int = 0
    dtype: str = "float32"
    diagonal_bits: int = 32
    shared: str | None = None
    crc32: Mapping[str, str] | None = None
    recipe: LayerRecipe | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the layer's tensors, without the bias."""
        return tuple(self.shapes)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of these tensors."""
        (m, n), k = self.shape, self.k
        if self.codes:
            steps = {"steps": (m, group_count(n, self.group))} if self.codes == 4 else {}
            return {"d1": (m,), "codes": (m, row_bytes(n, self.codes)), **steps}
        if self.alphas:
            return apb_bytes.apb_shapes(m, n, self.alphas, self.entries)
        if self.weight_bits:
            return {"scale": (m,), "planes": (self.weight_bits, m, -(-n // 8))}
        return {"d1": (m,), "d2": (k,), "d3": (n,), "b1": (m, -(-k // 8)), "b2": (k, -(-n // 8))}

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight: diagonals of factors at ``diagonal_bits``, d1 of codes at 32."""
        if self.codes:
            return code_bits(*self.shape, self.codes, self.group) / math.prod(self.shape)
        if self.alphas:
            bits = apb_bytes.apb_bits(*self.shape, self.alphas, self.entries, self.diagonal_bits)
            return bits / math.prod(self.shape)
        if self.weight_bits:
            return self.weight_bits + self.diagonal_bits / self.shape[1]
        return storage.bits_per_weight(*self.shape, self.k, self.diagonal_bits)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the dense weight."""
        found = DTYPE.fullmatch(self.dtype)
        assert found is not None, "checked"
        return math.prod(self.shape) * int(found[1]) // 8

    def bytes(self, diagonal_bits: int) -> int:
        """Bytes of the tensors, with rows of whole bytes; an entry of a diagonal has ``diagonal_bits``."""
        if self.codes:
            return code_bits(*self.shape, self.codes, self.group) // 8
        if self.alphas or self.weight_bits:
            sizes = {own in FLOATS: 0 for own in self.shapes}
            for own, shape in self.shapes.items():
                sizes[own in FLOATS] += math.prod(shape)
            return sizes[False] + diagonal_bits * sizes[True] // 8
        (m, n), k = self.shape, self.k
        return sum(math.prod(self.shapes[own]) for own in BITS) + diagonal_bits * (m + k + n) // 8

    def sealed(self, name: str, tensors: Mapping[str, NDArray[Any]]) -> Self:
        """Add the CRCs of the tensors, after checking that they can be loaded again.

        Raises:
            FormatError: A tensor has entries that are not finite, or ones past its last column.
        """
        crcs = {own: crc32(np.ascontiguousarray(tensors[own]).data) for own in self.tensors}
        result = dataclasses.replace(self, crc32=crcs)
        for own in self.tensors:
            result.check_tensor(name, own, tensors[own], "the model")
        if self.codes:
            return result
        fit = all(storage.fits_16(tensors[own]) for own in self.tensors if own in FLOATS)
        return dataclasses.replace(result, diagonal_bits=16 if fit else 32)

    def check_tensor(self, name: str, own: str, values: NDArray[Any], where: str) -> None:
        """Check the values of one of the tensors of the layer ``name``.

        Raises:
            FormatError: Its dtype, shape or CRC is wrong, an entry is not finite, or a one is past the last
                column.
        """
        key, shape = f"{readable(name)}.{own}", self.shapes[own]
        packed = own not in FLOATS
        if values.shape != shape or values.dtype.kind != ("u" if packed else "f"):
            raise FormatError(
                f"{where}: {key} is {values.dtype} of shape {values.shape}, expected "
                f"{'uint8' if packed else 'float32'} of shape {shape}"
            )
        expected = None if self.crc32 is None else self.crc32[own]
        if expected is not None and crc32(np.ascontiguousarray(values).data) != expected:
            raise FormatError(
                f"{where}: {key} is missing or damaged: its CRC-32 differs from that in config.json; copy or "
                "download the checkpoint again"
            )
        if not packed and not np.isfinite(values).all():
            raise FormatError(f"{where}: {key} has NaN or infinite entries, expected finite numbers")
        wrong = apb_bytes.problem(own, values, self.shape[1], self.entries) if self.alphas else None
        if wrong is not None:
            raise FormatError(f"{where}: {key} has {wrong}: is it damaged?")
        used = (self.k if own == "b1" else self.shape[1]) % 8
        if own in (*BITS, "planes") and used and (values[..., -1] >> used).any():
            raise FormatError(f"{where}: {key} has ones past its last column, expected zeros")
        unused = own == "codes" and self.codes == 4 and self.shape[1] % 2 == 1
        if unused and (values[:, -1] >> 4 != 8).any():
            raise FormatError(f"{where}: {key} has codes past its last column, expected zeros")
        if own == "steps" and (np.abs(values.astype(np.int16) - 128) > STEP_MAX).any():
            raise FormatError(
                f"{where}: {key} has steps beyond {128 - STEP_MAX} to {128 + STEP_MAX}: is it damaged?"
            )

    # ------------------------------------------------------------ JSON

    def to_dict(self, name: str) -> dict[str, Any]:
        """The entry of the layer ``name`` as plain values for JSON, with a CRC of all of them."""
        plain: dict[str, Any] = {
            "kind": self.kind,
            "shape": list(self.shape),
            "bias": ADDED if self.bias_added else self.bias,
            "dtype": self.dtype,
        }
        plain |= {key: getattr(self, key) for key in sorted(_own(lambda key: bool(getattr(self, key))))}
        if self.shared is not None:
            plain["shared"] = self.shared
        if self.crc32 is not None:
            plain["crc32"] = dict(self.crc32)
        if self.recipe is not None:
            plain["recipe"] = {key: to_json(x) for key, x in dataclasses.asdict(self.recipe).items()}
        return {**plain, "crc32_entry": _crc32_of_entry(name, plain)}

    @classmethod
    def from_dict(cls, name: Any, values: Any, where: str) -> Self:
        """Read a layer from its entry.

        Raises:
            FormatError: The entry is damaged; the message names the layer.
        """
        if not isinstance(name, str) or not name:
            raise FormatError(
                f"{where}: factors has the key {str(name)[:200]!r}; it must be the name of a layer"
            )
        here = f"{where}: factors[{readable(name)!r}]"
        keys = set(values) if isinstance(values, Mapping) else set()
        required = _REQUIRED | _own(keys.__contains__)
        known = required | {"recipe", "shared" if "shared" in keys else "crc32"}
        if not required <= keys <= known:
            raise FormatError(
                f"{here} must have {', '.join(sorted(required))}, and crc32 or shared: is it damaged, or "
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
        own |= {"bias": own["bias"] is not False, "bias_added": own["bias"] == ADDED}
        if "crc32" in own:
            own["crc32"] = dict(own["crc32"])
        if "recipe" in own:
            own["recipe"] = LayerRecipe(**{key: from_json(x) for key, x in own["recipe"].items()})
        result = cls(**{**own, "shape": tuple(own["shape"])})
        if result.alphas not in (0, 1, result.shape[0]) or result.entries > math.prod(result.shape):
            raise FormatError(f"{here}: alphas or entries do not fit the shape: is the checkpoint damaged?")
        if result.crc32 is not None and result.crc32.keys() != set(result.tensors):
            raise FormatError(f"{here}: crc32 is of other tensors: is the checkpoint damaged?")
        return result


# ---------------------------------------------------------------- checks


def _own(has: Callable[[str], bool]) -> set[str]:
    """The keys of an entry that depend on how the layer is stored; ``has``: whether it has a key."""
    marked = {"codes": _CODES, "alphas": _BINARY, "weight_bits": _BITWISE}
    return next((own for key, own in marked.items() if has(key)), _FACTORS)


def _crc32_of_entry(name: str, entry: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in entry.items() if key != "crc32_entry"}
    return crc32(json.dumps([name, rest], sort_keys=True).encode())


def _is_recipe(value: Any) -> bool:
    if type(value) is not dict or not value.keys() <= {f.name for f in dataclasses.fields(LayerRecipe)}:
        return False
    objective = value.get("objective")
    known = objective is None or (type(objective) is str and objective in OBJECTIVES)
    numbers = [number for key, number in value.items() if key not in ("objective", "bias_corrected")]
    corrected = value.get("bias_corrected")
    return known and (corrected is None or type(corrected) is bool) and all(map(is_number, numbers))


def _is_crcs(value: Any) -> bool:
    return (
        type(value) is dict
        and set(value) in _FORMS
        and all(type(crc) is str and CRC.fullmatch(crc) for crc in value.values())
    )


_GOOD: dict[str, Callable[[Any], bool]] = {**GOOD, "crc32": _is_crcs, "recipe": _is_recipe}
