"""Texts as batches of a model: what ``--data`` names."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .recipe import CompressSettings
    from .source import Source

__all__ = ["digests", "text_batches"]

_KINDS = (".txt", ".jsonl")
_LEAST = 4  # batches: of them one is held out


def text_batches(source: Source, data: Path, settings: CompressSettings) -> list[dict[str, Any]]:
    """All batches of the texts, in an order that the seed gives.

    Models that predict each token from those before get the texts one after another, in windows of
    ``settings.tokens``; what is left over is dropped. Others get each line by itself, cut at that length,
    with others of about its own length.

    Raises:
        OSError: A file cannot be read.
        ValueError: It is no text, or there is too little of it; the model is of another kind, or has no
            tokenizer.
    """
    from transformers import AutoTokenizer

    if getattr(source.config, "is_encoder_decoder", False) or source.kind.main_input_name != "input_ids":
        raise ValueError(
            f"data is text, and {source.kind.__name__} takes more than tokens, or others; leave data out, or "
            "give its batches to diba.torch.convert and diba.torch.retune"
        )
    most = getattr(source.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and settings.tokens > most:
        raise ValueError(f"tokens is {settings.tokens}, and the model takes at most {most}; give fewer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder)
    except Exception as error:
        raise ValueError(f"data is text, and {source.folder} has no tokenizer ({error})") from error
    texts = list(_texts(data))
    made = _windows(tokenizer, texts, settings) if source.is_causal else _rows(tokenizer, texts, settings)
    if len(made) < _LEAST:
        raise ValueError(
            f"{data} makes {len(made)} batches of {settings.rows} rows; there must be at least {_LEAST}, and "
            "hundreds are better: give more text, or fewer rows or tokens"
        )
    random.Random(settings.seed).shuffle(made)
    return made


def digests(data: Path) -> dict[str, str]:
    """SHA-256 of the files of texts, by name."""
    return {path.name: sha256_of(path) for path in _files(data)}


def _windows(tokenizer: Any, texts: list[str], settings: CompressSettings) -> list[dict[str, Any]]:
    import torch

    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = [i for text in texts for i in (*tokenizer(text, verbose=False)["input_ids"], *end)]
    length = settings.tokens
    rows = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    return [{"input_ids": rows[i : i + settings.rows]} for i in range(0, len(rows), settings.rows)]


def _rows(tokenizer: Any, texts: list[str], settings: CompressSettings) -> list[dict[str, Any]]:
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


def _files(data: Path) -> list[Path]:
    if data.is_dir():
        found = sorted(path for path in data.iterdir() if path.suffix in _KINDS and path.is_file())
        if not found:
            raise ValueError(f"{data} has no file that ends in {' or '.join(_KINDS)}")
        return found
    if data.suffix not in _KINDS:
        raise ValueError(f"{data} ends in {data.suffix or 'nothing'}; it must end in {' or '.join(_KINDS)}")
    return [data]


def _texts(data: Path) -> Iterator[str]:
    for path in _files(data):
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
