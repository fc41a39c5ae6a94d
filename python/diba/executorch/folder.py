"""A folder that ``from_pretrained`` reads, exported to a folder with a program of ExecuTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._internal import check
from ..onnx.folder import written_folder
from .exporting import export

if TYPE_CHECKING:
    from pathlib import Path

    from ..onnx.results import Exported

__all__ = ["MODEL", "export_folder"]

MODEL = "model.pte"

_LENGTH = 128


def export_folder(
    source: str, out: str, *, length: int | None = None, batch: int = 1, **options: Any
) -> Exported:
    """Export the model of a folder to a program; files of tokenizer and configuration are copied.

    Args:
        source: The folder, such as ``save_pretrained`` of a converted model wrote.
        out: The folder to write, made if it is not there.
        length: Most tokens of a text; None: 128, or as many as the model has positions.
        batch: Most rows of a call; 1: it is always one.
        **options: See :func:`diba.executorch.export`.

    Raises:
        OSError: A folder cannot be read or written.
        ValueError: A size is not possible, or ``length`` is given for a model that takes no tokens.
    """
    check.positive_int(batch, "batch")
    if length is not None:
        check.positive_int(length, "length")
    rows = min(batch, 2)

    def write(model: Any, example: dict[str, Any], path: Path) -> Exported:
        largest = {} if rows == 1 else {"batch": batch}
        if model.main_input_name == "input_ids":
            largest["length"] = length or _longest(model.config)
        elif length is not None:
            raise ValueError(f"length is {length}; the model takes {model.main_input_name}, leave it out")
        return export(model, example, path, largest=largest, **options)

    return written_folder(source, out, write, MODEL, rows=rows, tokens=length)


def _longest(config: Any) -> int:
    return min(_LENGTH, getattr(config.get_text_config(), "max_position_embeddings", _LENGTH))
