"""A folder that ``from_pretrained`` reads, exported to a folder with the model's file and the tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.folders import is_beside_weights, model_class
from .exporting import export

if TYPE_CHECKING:
    from collections.abc import Callable

    from .results import Exported

__all__ = ["MODEL", "export_folder", "written_folder"]

MODEL = "model.onnx"

_TEXTS = ("The rain stopped before noon, and the streets were dry by evening.", "She read the letter twice.")
_TOKENS = 12  # of an example without a tokenizer


def export_folder(source: str, out: str, **options: Any) -> Exported:
    """Export the model of a folder to ONNX; see :func:`written_folder` for the rest.

    Args:
        source: The folder, such as ``save_pretrained`` of a converted model wrote.
        out: The folder to write, made if it is not there.
        **options: See :func:`diba.onnx.export`.
    """
    return written_folder(source, out, lambda *given: export(*given, **options), MODEL)


def written_folder(
    source: str,
    out: str,
    write: Callable[[Any, dict[str, Any], Path], Exported],
    name: str,
    rows: int = 2,
    tokens: int | None = None,
) -> Exported:
    """Export the model of a folder; files of tokenizer, processor and configuration are copied.

    The model is read in float32, by the class that its configuration names. The example is two sentences of
    the tokenizer; without one, ids or an image or sound of the sizes in the configuration.

    Args:
        source: The folder to read.
        out: The folder to write, made if it is not there.
        write: Gets the model, the example and the path of its file.
        name: Of that file.
        rows: Of the example, 1 or 2.
        tokens: Most tokens of a row of the example.

    Raises:
        OSError: A folder cannot be read or written.
        ValueError: The configuration names no class of transformers, or has no sizes for an example.
    """
    folder, target = Path(source), Path(out)
    if not folder.is_dir():
        raise NotADirectoryError(20, "it must be a folder that from_pretrained reads", source)
    if target.exists() and folder.samefile(target):
        raise ValueError(f"the output {out} is the model's folder; name another one")
    model = _load(folder)
    given = {key: value[:rows] for key, value in _example(folder, model, tokens).items()}
    new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    try:
        done = write(model, given, target / name)
    except BaseException:
        if new and not any(target.iterdir()):
            target.rmdir()
        raise
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_beside_weights(path):
            shutil.copy(path, target / path.name)
    return done


def _load(folder: Path) -> Any:
    """The model, in float32 and in evaluation mode."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ValueError(
            f"reading {folder} needs {error.name}; use python -m pip install 'diba[hf,onnx]'"
        ) from error
    import diba.torch  # noqa: F401  # reads compressed models, where transformers does not find diba by itself

    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = model_class(transformers, config, folder)
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def _example(folder: Path, model: Any, tokens: int | None) -> dict[str, Any]:
    """Arguments of a call: two rows of tokens, images or sounds."""
    import torch

    config, main = model.config, model.main_input_name
    decoder = getattr(config, "is_encoder_decoder", False)
    given = _tokens(folder, config, tokens) if main == "input_ids" else {main: _signal(config, main)}
    if decoder:
        given["decoder_input_ids"] = torch.full((2, 3), config.decoder_start_token_id or 0)
    return given


def _tokens(folder: Path, config: Any, most: int | None) -> dict[str, Any]:
    """Two sentences, or ids in a row where there is no tokenizer."""
    import torch
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model", "tokenizer.model")
    if not any((folder / name).is_file() for name in names):
        count = min(_TOKENS, most or _TOKENS)
        ids = torch.arange(2 * count).reshape(2, count) % int(config.get_text_config().vocab_size)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    cut: dict[str, Any] = {} if most is None else {"truncation": True, "max_length": most}
    return dict(tokenizer(list(_TEXTS), padding=True, return_tensors="pt", **cut))


def _signal(config: Any, name: str) -> Any:
    """Random pixels or spectra of the sizes in a configuration."""
    import torch

    if name == "pixel_values" and hasattr(config, "image_size"):
        size = config.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        shape: tuple[int, ...] = (2, getattr(config, "num_channels", 3), height, width)
    elif name == "input_features" and hasattr(config, "num_mel_bins"):
        shape = (2, config.num_mel_bins, 2 * config.max_source_positions)
    else:
        raise ValueError(
            f"the model takes {name}, and its configuration has no sizes for an example; use diba.onnx.export"
        )
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
