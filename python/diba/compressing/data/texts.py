"""Texts: files of text, and of lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..recipe import CompressSettings
    from ..source import Source
    from .batches import Batch

__all__ = ["check_tokens", "text_batches", "texts_of", "tokenizer_of"]


def text_batches(source: Source, files: Sequence[Path], settings: CompressSettings) -> list[Batch]:
    """All batches of the texts.

    Models that predict each token from those before get the texts one after another, in windows of
    ``settings.tokens``; what is left over is dropped. Others get each line by itself, cut at that length,
    with others of about its own length.

    Raises:
        OSError: A file cannot be read.
        ValueError: It is no text; the model has no tokenizer, or takes fewer tokens.
    """
    check_tokens(source, settings.tokens)
    tokenizer = tokenizer_of(source)
    texts = list(texts_of(files))
    return (_windows if source.is_causal else _rows)(tokenizer, texts, settings)


def check_tokens(source: Source, tokens: int) -> None:
    """Require that the model takes texts of so many tokens."""
    most = getattr(source.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise ValueError(f"tokens is {tokens}, and the model takes at most {most}; give fewer")


def tokenizer_of(source: Source) -> Any:
    """The model's tokenizer.

    Raises:
        ValueError: It has none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.folder)
    except Exception as error:
        raise ValueError(f"data has texts, and {source.folder} has no tokenizer ({error})") from error


def _windows(tokenizer: Any, texts: list[str], settings: CompressSettings) -> list[Batch]:
    import torch

    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = [i for text in texts for i in (*tokenizer(text, verbose=False)["input_ids"], *end)]
    length = settings.tokens
    rows = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    return [{"input_ids": rows[i : i + settings.rows]} for i in range(0, len(rows), settings.rows)]


def _rows(tokenizer: Any, texts: list[str], settings: CompressSettings) -> list[Batch]:
    if tokenizer.pad_token is None:
        raise ValueError("the tokenizer has no token to fill rows up with; set its pad_token and save it")
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    lines.sort(key=lambda line: (len(line), line))
    made = []
    for first in range(0, len(lines), settings.rows):
        part = lines[first : first + settings.rows]
        made.append(
            dict(
                tokenizer(
                    part, padding=True, truncation=True, max_length=settings.tokens, return_tensors="pt"
                )
            )
        )
    return made


def texts_of(files: Sequence[Path]) -> Iterator[str]:
    """The texts of files: a whole one, or each line of JSON.

    Raises:
        OSError: A file cannot be read.
        ValueError: It is no text.
    """
    for path in files:
        try:
            content = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text in UTF-8 ({error})") from error
        if path.suffix == ".txt":
            yield content
        else:
            yield from (
                _record(path, i, line) for i, line in enumerate(content.splitlines(), 1) if line.strip()
            )


def _record(path: Path, number: int, line: str) -> str:
    """The text of a line of JSON."""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: is no JSON ({error})") from error
    text = found.get("text") if isinstance(found, dict) else found
    if not isinstance(text, str):
        raise ValueError(f'{path}, line {number}: has no text; it must be a string, or have one as "text"')
    return text
