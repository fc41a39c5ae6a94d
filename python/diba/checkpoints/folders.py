"""Folders that ``from_pretrained`` reads: which files are weights, and of which class the model is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["WEIGHTS", "is_beside_weights", "model_class"]

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".data", ".gguf")
"""How the names of files of weights end."""


def is_beside_weights(path: Path) -> bool:
    """Whether a file is neither weights nor an index of them: tokenizer, configuration, licence."""
    return path.suffix not in WEIGHTS and not path.name.endswith(".index.json")


def model_class(transformers: Any, config: Any, folder: Path) -> Any:
    """The class that the model of a folder was saved from.

    Args:
        transformers: The library, which is not imported here.
        config: What it made of ``config.json``.
        folder: For messages.

    Raises:
        ValueError: The library has no such class.
    """
    named = list(getattr(config, "architectures", None) or [])
    found = getattr(transformers, named[0], None) if named else transformers.AutoModel
    if found is None:
        raise ValueError(
            f"{folder} names the class {named[0]}, which transformers {transformers.__version__} lacks; "
            "install the version that has it"
        )
    return found
