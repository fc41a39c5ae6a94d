"""Answers: the tensors of a model's output that losses compare, and what their numbers mean."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Answer", "answers", "choices", "field", "positions"]

_BESIDE_LOGITS = ("mc_logits", "pred_boxes", "pred_masks")
"""Further answers of models with several heads, besides ``logits``."""

_EMBEDS = re.compile(r"(^|_)(embeds|embedding|embeddings)$")
_HIDDEN = ("last_hidden_state", "hidden_states", "decoder_hidden_states")
_NO_ANSWERS = re.compile(r"loss|attention|past_key_values|hidden_states|input_ids|mask$|cache")


class Answer(NamedTuple):
    """One tensor of an output.

    Attributes:
        name: Its name in the output; empty if the output is a tensor.
        values: The tensor.
        kind: ``"classes"``: logits of classes along the last axis, one of which is right. ``"labels"``:
            logits of labels, each of which is right or wrong. ``"features"``: any other numbers.
    """

    name: str
    values: Tensor
    kind: Literal["classes", "labels", "features"]


def answers(output: Any, model: nn.Module, features: bool) -> list[Answer]:
    """Find the answers in an output.

    - If the output is a tensor: logits, or features if asked for.
    - ``logits``, else all whose names end with ``_logits``; beside them ``mc_logits``, ``pred_boxes`` and
      ``pred_masks``. Classes lie along the last axis, along axis 1 of images (four axes or more). Masks, and
      all logits of a model for several labels at once, are labels. One number alone is a feature.
    - Where there are none: all whose names end with ``_embeds`` or ``_embedding(s)``, else
      ``last_hidden_state`` or the last of ``hidden_states``; with ``features`` the other way about. Else the
      first tensor of a tuple, else what outputs inside of this one have, else the only tensor there is.

    Raises:
        ValueError: The answer cannot be determined.
    """
    if isinstance(output, Tensor):
        return [_read("", output, model, features)]
    found = _answers(output, model, features)
    if found:
        return found
    known = [name for name, value in _fields(output) if isinstance(value, Tensor)]
    if "logits" in known and features:
        raise ValueError(
            f"the output of {type(model).__name__} is {type(output).__name__} without hidden states; put "
            "output_hidden_states=True into the batch"
        )
    sizes = [f"{name!r} {tuple(v.shape)}" for name, v in _fields(output) if isinstance(v, Tensor)][:8]
    raise ValueError(
        f"the output of {type(model).__name__} is {type(output).__name__} with "
        f"{', '.join(sizes) or 'no tensors'}, and which is its answer is not known; say so with forward=, a "
        "function of model and batch that returns one tensor: loss=diba.torch.distillation(teacher, "
        "forward=...) or loss=diba.torch.fisher(forward=...)"
    )


def _answers(output: Any, model: nn.Module, features: bool) -> list[Answer]:
    parts = dict(_fields(output))
    tensors = {name: v for name, v in parts.items() if isinstance(v, Tensor) and v.is_floating_point()}
    if not features:
        one = "logits" in tensors
        names = [
            name
            for name in tensors
            if name in _BESIDE_LOGITS or (name == "logits" if one else name.endswith("_logits"))
        ]
        if names:
            return [_read(name, tensors[name], model, False) for name in names]
    embeds = {name: v for name, v in tensors.items() if _EMBEDS.search(name)}
    hidden = next((parts[name] for name in _HIDDEN if name in parts and parts[name] is not None), None)
    hidden = hidden[-1] if isinstance(hidden, (tuple, list)) and hidden else hidden
    states = {"last_hidden_state": hidden} if isinstance(hidden, Tensor) else {}
    chosen = (states or embeds) if features else (embeds or states)
    if not chosen and type(output) in (tuple, list):
        chosen = dict([(name, v) for name, v in tensors.items() if v.ndim][:1])
    if not chosen:
        inner = [
            answer._replace(name=f"{name}.{answer.name}")
            for name, value in parts.items()
            if isinstance(value, Mapping) or (dataclasses.is_dataclass(value) and not isinstance(value, type))
            for answer in _answers(value, model, features)
        ]
        if inner:
            return inner
        chosen = {name: v for name, v in tensors.items() if v.ndim and not _NO_ANSWERS.search(name)}
        if len(chosen) > 1 or (features and "logits" in tensors):
            return []
    return [Answer(name, v, "features") for name, v in chosen.items()]


def _fields(output: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of a mapping, a tuple, a dataclass, or any other object."""
    if isinstance(output, Mapping):
        yield from ((str(name), value) for name, value in output.items())
    elif isinstance(output, (tuple, list)):
        names = getattr(output, "_fields", range(len(output)))
        yield from ((str(name), value) for name, value in zip(names, output, strict=True))
    else:
        yield from getattr(output, "__dict__", {}).items()


def _read(name: str, values: Tensor, model: nn.Module, features: bool) -> Answer:
    """Determine the kind of a tensor."""
    config = getattr(model, "config", None)
    if features or name == "pred_boxes" or values.ndim == 0:
        return Answer(name, values, "features")
    if "mask" in name or _many_labels(config):
        return Answer(name, values, "labels")
    if values.ndim > 3 and values.shape[-1] != getattr(config, "vocab_size", None):
        values = values.movedim(1, -1)
    return Answer(name, values, "classes" if values.shape[-1] > 1 else "features")


def _many_labels(config: Any) -> bool:
    """Whether logits go through a sigmoid each: several labels at once, or detection by focal loss."""
    several = getattr(config, "problem_type", None) == "multi_label_classification"
    return several or any(hasattr(config, name) for name in ("focal_alpha", "focal_loss_alpha"))


def choices(answer: Answer) -> Tensor:
    """Logits with the alternatives along the last axis; for labels these are right and wrong."""
    if answer.kind == "labels":
        return torch.stack([answer.values, torch.zeros_like(answer.values)], -1)
    return answer.values


def positions(batch: Any, values: Tensor, model: nn.Module) -> Any:
    """An index of the positions of an answer (all axes but the last) that are compared.

    These are the positions where ``attention_mask`` (of the decoder if there is one) is 1, else those where
    ``labels`` are not -100, if one of them has the shape of the positions; else all positions.
    """
    shape = values.shape[:-1]
    masks = [("decoder_attention_mask", 0), ("labels", -100)]
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        masks.insert(0, ("attention_mask", 0))
    for name, unused in masks:
        mask = field(batch, name)
        if isinstance(mask, Tensor) and mask.shape == shape and len(shape) > 1:
            counted = mask != unused
            return (
                ... if bool(counted.all()) else counted.to(values.device)
            )  # an index would copy all of them
    return ...


def field(output: Any, name: str) -> Any:
    """The value of that name in a mapping or another object; None if there is none."""
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
