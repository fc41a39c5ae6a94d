"""Folders that ``from_pretrained`` reads: which files are weights, and of which class the model is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..errors import FormatError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["WEIGHTS", "UnknownClass", "is_beside_weights", "json_object", "model_class", "weight_files"]

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".data", ".gguf")
"""How the names of files of weights end."""


class UnknownClass(ValueError):
    """A model is of a class that the library lacks."""


def is_beside_weights(path: Path) -> bool:
    """Whether a file is neither weights nor an index of them: tokenizer, configuration, licence."""
    return path.suffix not in WEIGHTS and not path.name.endswith(".index.json")


def weight_files(folder: Path, index: Path | None = None) -> list[Path]:
    """The safetensors files of a folder that its index names, or all if there is no index.

    Raises:
        OSError: There is none.
        FormatError: The index is damaged.
    """
    index = index or folder / "model.safetensors.index.json"
    if not index.is_file():
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise FileNotFoundError(f"{folder} has no safetensors file; give the folder of a checkpoint")
        return found
    names = json_object(index.read_bytes(), index).get("weight_map")
    if not isinstance(names, dict) or not all(type(name) is str for name in names.values()):
        raise FormatError(f"{index}: weight_map is missing or damaged; copy or download the checkpoint again")
    return [folder / name for name in sorted(set(names.values()))]


def json_object(data: bytes, path: Path) -> dict[str, Any]:
    """The object that a file of JSON holds.

    Raises:
        FormatError: It holds something else, or is damaged.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is no JSON ({error}); copy or download the checkpoint again") from None
    if not isinstance(found, dict):
        raise FormatError(f"{path}: is a {type(found).__name__}, expected an object: is it damaged?")
    return found


def model_class(transformers: Any, config: Any, folder: Path) -> Any:
    """The class that the model of a folder was saved from.

    Args:
        transformers: The library, which is not imported here.
        config: What it made of ``config.json``.
        folder: For messages.

    Raises:
        UnknownClass: The library has no such class.
    """
    named = list(getattr(config, "architectures", None) or [])
    found = getattr(transformers, named[0], None) if named else transformers.AutoModel
    if found is None:
        raise UnknownClass(
            f"{folder} names the class {named[0]}, which transformers {transformers.__version__} lacks; "
            "install the version that has it"
        )
    return found
