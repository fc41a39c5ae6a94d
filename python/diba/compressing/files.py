"""The model to compress as tensors in files, with or without a folder around them, and without its code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diba_autoload import LOCK, LOCKED

from .._internal.codes import COLUMNS_MAX
from .._internal.disk import replace_file
from ..checkpoints.description import Recipe, config_of, crc32_of_names
from ..checkpoints.entries import first_names
from ..checkpoints.folders import WEIGHTS, is_beside_weights, json_object
from ..checkpoints.layers import LayerDescription
from ..layers.config import Config
from ..layers.tensors import FLOATS, FileTensor, tensors_at
from ..solvers.size import inner_dimension
from .outline import Outline, Weight

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..checkpoints.description import Description
    from ..layers.config import Settings
    from .recipe import CompressSettings

__all__ = ["FileSource", "complete", "sha256_of"]

_WRITTEN = {"config.json", "README.md"}  # by the compressed model
_BLOCK = 2**20
_TABLE = re.compile(r"(\w+_)?(embed|embedding|embeddings|embed_tokens|embed_positions|wte|wpe)|shared")
_HEAD = re.compile(r"lm_head|embed_out|output_projection")
_LOSSLESS = 8  # bits of a table that, for all that is known, may be multiplied by as well

_USAGE = """\
import diba.torch

model = ...  # the dense model, made by its own code
diba.torch.load(model, "FOLDER")"""


@dataclass(frozen=True)
class FileSource:
    """Tensors in files.

    Attributes:
        path: A folder, a safetensors file, an index of such files, or an npz.
        note: Why its layers are known by name only; "": there is no config.json.
    """

    path: Path
    note: str = ""

    @classmethod
    def by_name(cls, path: Path, note: str = "") -> FileSource:
        """Look at a path.

        Raises:
            OSError: There is nothing, or nothing that has weights.
            FormatError: A file is damaged.
            ValueError: The model is compressed already, or the file of another kind.
        """
        source = FileSource(path, note)
        if not path.exists():
            raise FileNotFoundError(2, "there is no such file or folder", str(path))
        if "quantization_config" in source.json:
            raise ValueError(
                f"{path} is quantized already, as its config.json says; it must be the dense model"
            )
        source.tensors  # noqa: B018  # what cannot be read is an error now
        return source

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def title(self) -> str:
        """What it is, for the record."""
        return "tensors by name"

    @property
    def library(self) -> str:
        """The library that reads the result."""
        return "diba"

    @property
    def usage(self) -> str:
        """How the result is read."""
        return _USAGE

    @cached_property
    def tensors(self) -> dict[str, FileTensor]:
        """All tensors by name."""
        return tensors_at(self.path)

    @cached_property
    def json(self) -> dict[str, Any]:
        """What ``config.json`` says; empty if there is none."""
        file = self.path / "config.json"
        return json_object(file.read_bytes(), file) if file.is_file() else {}

    def outline(self, settings: CompressSettings, *, files: bool = True) -> Outline | str:
        """What a compression by these settings gives, by names and shapes of the tensors.

        A matrix ``<layer>.weight``, or one of any other name, is taken for that of a linear layer; for that
        of an embedding or of an output layer if the last part of the name says so.

        Raises:
            ValueError: A setting names no layer, or nothing would be compressed.
        """
        del files
        config = Config.from_dict(settings.config(True))
        names = {name.removesuffix(".weight"): name for name in self.tensors}
        twice = Counter(name.removesuffix(".weight") for name in self.tensors)
        matrices = {
            layer: self.tensors[name] for layer, name in names.items() if _is_matrix(self.tensors[name])
        }
        unknown = config.unmatched(matrices)
        if unknown:
            raise ValueError(f"{unknown[0]!r} in skip names no matrix; they are {_first(matrices)}")
        found: dict[str, tuple[Weight, LayerDescription]] = {}
        left = {}
        for layer, tensor in matrices.items():
            one = "another tensor has its name" if twice[layer] > 1 else self._layer(layer, tensor, config)
            if isinstance(one, str):
                left[layer] = one
            else:
                found[layer] = one
        if not found:
            raise ValueError(
                f"nothing of {self.path} would be compressed: "
                + (
                    "; ".join(f"{layer}: {why}" for layer, why in list(left.items())[:3])
                    or "it has no matrix"
                )
            )
        deep = (name.removesuffix(".weight") for name, x in self.tensors.items() if len(x.shape) > 2)
        more = dict.fromkeys(deep, "has more than two dimensions")
        compressed = {weight.tensor.name for weight, _ in found.values()}
        return Outline(
            layers={layer: description for layer, (_, description) in found.items()},
            weights={layer: weight for layer, (weight, _) in found.items()},
            dense={name: tensor for name, tensor in self.tensors.items() if name not in compressed},
            guarded=frozenset(layer for layer in found if names[layer] != layer),
            recipe=Recipe(settings=config.to_dict(), left_dense=left | more),
        )

    def _layer(self, name: str, tensor: FileTensor, config: Config) -> tuple[Weight, LayerDescription] | str:
        """What becomes of a matrix; or why it stays as it is."""
        settings, last = config.settings(name), name.rpartition(".")[2]
        if settings is None:
            return f"left out by {config.rule(name)!r}"
        m, n = tensor.shape
        head, table = _HEAD.fullmatch(last) is not None, _TABLE.fullmatch(last) is not None
        codes: Any = config.head if head else config.embeddings if table else settings.codes
        if table and not head and codes in (None, False):
            return f"embeddings={codes}"
        codes = _LOSSLESS if codes == "auto" else codes
        bias = self.tensors.get(f"{name}.bias")
        facts: dict[str, Any] = {"kind": "Embedding" if table and not head else "Linear", "shape": (m, n)}
        facts |= {"bias": bias is not None and bias.shape == (m,), "dtype": _DTYPES[tensor.dtype]}
        if codes is not None:
            if n > COLUMNS_MAX:
                return f"its rows have {n} entries, codes at most {COLUMNS_MAX}"
            settings = _coded(settings, codes)
            return (
                Weight(name, tensor, (m, n), settings=settings, k=0),
                LayerDescription(**facts, codes=codes, group=settings.group),
            )
        try:
            k = inner_dimension(m, n, "bits_per_weight", settings.bits_per_weight or 0.0)
        except ValueError as error:
            return str(error)
        weight = Weight(name, tensor, (m, n), settings=settings, k=k)
        return weight, LayerDescription(**facts, k=k, alphabet=settings.alphabet)

    def write_config(self, folder: Path, description: Description, names: Iterable[str]) -> None:
        """Write ``config.json`` of the compressed model: that of the dense one, and what is compressed.

        Args:
            folder: Of the model.
            description: With its checksums.
            names: Of all its tensors.
        """
        values = {**self.json, "quantization_config": config_of(description)}
        (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
        complete(folder / "config.json", names)

    @property
    def bytes(self) -> int:
        """Bytes of the files of weights."""
        return sum(path.stat().st_size for path in self._weights())

    def digests(self) -> dict[str, str]:
        """SHA-256 of what the result depends on: weights and configuration, by name."""
        names = {path for path in self._files() if path.suffix in WEIGHTS or path.name.endswith(".json")}
        names |= set(self._weights())
        return {str(path.relative_to(self.folder)): sha256_of(path) for path in sorted(names)}

    def copy_others(self, folder: Path) -> None:
        """Copy the files of tokenizer, processor, generation and licence to a folder."""
        for path in self._files():
            name = path.relative_to(self.folder)
            hidden = any(part.startswith(".") for part in name.parts)
            if not is_beside_weights(path) or hidden or str(name) in _WRITTEN:
                continue
            target = folder / name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)

    def _files(self) -> Iterator[Path]:
        """The files of the folder; none for a file by itself."""
        if self.path.is_dir():
            yield from (path for path in sorted(self.path.rglob("*")) if path.is_file())

    def _weights(self) -> list[Path]:
        if self.path.is_dir():
            return [path for path in self.path.iterdir() if path.suffix in WEIGHTS]
        return sorted({Path(tensor.path) for tensor in self.tensors.values()})


def complete(path: Path, names: Iterable[str]) -> None:
    """Add to a ``config.json`` what makes readers without diba refuse it, and the checksum of names.

    Args:
        path: The file.
        names: Of all tensors of the model.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"]["crc32_names"] = crc32_of_names(names)
    text = json.dumps({**config, LOCK: LOCKED}, indent=2, sort_keys=True) + "\n"  # as transformers has it
    replace_file(path, text.encode())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def _is_matrix(tensor: FileTensor) -> bool:
    return len(tensor.shape) == 2 and tensor.dtype in FLOATS


def _coded(settings: Settings, bits: Any) -> Settings:
    return dataclasses.replace(settings, codes=bits, objective="plain")


def _first(names: Iterable[str]) -> str:
    return first_names(list(names)) or "none"
