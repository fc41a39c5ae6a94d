"""What a decoder reads: texts that are given, or what the dense model itself answers."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from .batches import Made

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..source import Source
    from .batches import Batch

__all__ = ["answered", "decoder_inputs", "takes_decoder_inputs"]

_ROOM = 8  # tokens that a model puts before an answer


def answered(
    source: Source,
    batches: Sequence[Batch],
    dense: Any,
    most: int,
    known: list[list[list[int]]],
    after_batch: Callable[[], object] = lambda: None,
) -> Sequence[Batch]:
    """The batches with inputs of the decoder, for models that take them: the dense model's own answers.

    They are found greedily, token by token. Batches that have such inputs stay as they are, and so do those
    of models that cannot generate.

    Args:
        source: The model.
        batches: Its batches.
        dense: The dense model.
        most: Most tokens of an answer.
        known: Answers to the first batches, by batch and row; the others are added.
        after_batch: Called whenever one was added.
    """
    if not takes_decoder_inputs(source) or "decoder_input_ids" in batches[0] or not dense.can_generate():
        return batches
    limit = getattr(source.config, "max_target_positions", None)
    most = most if limit is None else min(most, limit - _ROOM)
    for number in range(len(known), len(batches)):
        found = dense.generate(**batches[number], do_sample=False, num_beams=1, max_new_tokens=most)
        known.append([[int(token) for token in row] for row in found])
        after_batch()

    def make(number: int) -> Batch:
        return batches[number] | decoder_inputs(source.config, known[number])

    return Made(range(len(batches)), make)


def takes_decoder_inputs(source: Source) -> bool:
    """Whether the model has a decoder that reads tokens beside its input."""
    return "decoder_input_ids" in inspect.signature(source.kind.forward).parameters


def decoder_inputs(config: Any, rows: Sequence[Sequence[int]]) -> Batch:
    """Rows of tokens as inputs of a decoder: from its start token to the last one before the end."""
    start, end = config.decoder_start_token_id, config.eos_token_id
    ends = set(end) if isinstance(end, (list, tuple)) else {end}
    cut = [_between(list(row), start, ends) for row in rows]
    length = max(map(len, cut))
    pad = config.pad_token_id or 0
    ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in cut])
    counts = torch.tensor([len(row) for row in cut])
    return {
        "decoder_input_ids": ids,
        "decoder_attention_mask": (torch.arange(length) < counts[:, None]).long(),
    }


def _between(row: list[int], start: int, ends: set[int]) -> list[int]:
    row = row[1:] if row and row[0] == start else row
    stop = next((i for i, token in enumerate(row) if token in ends), len(row))
    return [start, *row[:stop]]
