"""Recordings of speech, or of other sounds: WAV files, with transcripts beside them or without."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from . import wav
from .answers import decoder_inputs, takes_decoder_inputs
from .batches import Made, read_processor
from .texts import tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..recipe import CompressSettings
    from ..source import Source
    from .batches import Batch

__all__ = ["recording_batches"]

_MOST_SECONDS = 30.0  # of a piece: what Whisper hears at once


class _Piece(NamedTuple):
    """A stretch of a file, and the tokens that are said in it."""

    path: Path
    start: float
    seconds: float
    tokens: tuple[int, ...] | None


def recording_batches(source: Source, files: Sequence[Path], settings: CompressSettings) -> Made:
    """Batches of ``settings.rows`` recordings of about one length, in pieces of at most 30 seconds.

    Where a decoder is to write them down, ``NAME.txt`` beside ``NAME.wav`` has its text, for all files or
    none.

    Raises:
        ValueError: A file is no WAV file of PCM samples, or its text is missing; the model has no feature
            extractor, or no tokenizer for texts.
    """
    extractor = _extractor(source)
    wanted = takes_decoder_inputs(source)
    texts = [path for path in files if wanted and path.with_suffix(".txt").is_file()]
    if texts and len(texts) < len(files):
        bare = next(path for path in files if path not in texts)
        raise ValueError(f"{bare} has no {bare.stem}.txt beside it, and {texts[0]} has; give all or none")
    tokenizer = tokenizer_of(source) if texts else None
    pieces = [piece for path in files for piece in _pieces(source, path, tokenizer)]
    pieces.sort(key=lambda piece: -piece.seconds)
    rows = settings.rows
    groups = [pieces[i : i + rows] for i in range(0, len(pieces) - rows + 1, rows)]
    return Made(groups, partial(_batch, source, extractor))


def _pieces(source: Source, path: Path, tokenizer: Any) -> list[_Piece]:
    length = wav.length_of(path)
    tokens = None
    if tokenizer is not None:
        if length > _MOST_SECONDS:
            raise ValueError(
                f"{path} has a text and {length:.0f} seconds; with texts it must have at most "
                f"{_MOST_SECONDS:.0f}: cut both"
            )
        text = path.with_suffix(".txt").read_text("utf-8").strip()
        tokens = tuple(tokenizer(text)["input_ids"])
    count = max(1, round(length / _MOST_SECONDS + 0.4999))  # all of one length
    return [_Piece(path, i * length / count, length / count, tokens) for i in range(count)]


def _batch(source: Source, extractor: Any, pieces: Sequence[_Piece]) -> Batch:
    rate = extractor.sampling_rate
    sounds = [wav.read(piece.path, rate, piece.start, piece.seconds) for piece in pieces]
    options: dict[str, Any] = {"sampling_rate": rate, "return_tensors": "pt"}
    if source.kind.main_input_name == "input_values":
        options["padding"] = True  # to the longest; features for Whisper always have 30 seconds
    made = dict(extractor(sounds, **options))
    said = [piece.tokens for piece in pieces]
    return made | (decoder_inputs(source.config, said) if None not in said else {})  # type: ignore[arg-type]


def _extractor(source: Source) -> Any:
    from transformers import AutoFeatureExtractor

    return read_processor(AutoFeatureExtractor.from_pretrained, source, "recordings", "feature extractor")
