"""The language model that is exported: read from a folder or given, with its tokenizer."""

from __future__ import annotations

import contextlib
import copy
import errno
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from .._internal.check import describe
from ..torch.modules.linear import DibaLinear

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Source", "factored_head", "load"]


@dataclass(frozen=True)
class Source:
    """A language model and its tokenizer, as transformers has them."""

    model: Any
    tokenizer: Any

    def describe(self, folder: Path) -> None:
        """Save what the model builder reads beside weights: configuration, sampling, tokenizer."""
        config = copy.deepcopy(self.model.config)
        config.architectures = [type(self.model).__name__]
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # the builder sees dense layers
        config.save_pretrained(folder)
        if getattr(self.model, "generation_config", None) is not None:
            self.model.generation_config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load(model: Any, tokenizer: Any) -> Source:
    """The model and tokenizer that the arguments of an export name.

    Raises:
        OSError: A folder does not exist, or holds no model.
        TypeError: The model is neither a folder nor a model of transformers.
        ValueError: There is no tokenizer, or the model generates no text.
    """
    if isinstance(model, (str, Path)):
        folder = Path(model)
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(folder))
        tokenizer = folder if tokenizer is None else tokenizer
        with _no_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model = loaded.eval()
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model is {describe(model)}; it must be a folder or a causal language model of transformers"
        )
    whole: Any = model
    if not whole.can_generate() or whole.get_output_embeddings() is None:
        raise ValueError(
            f"model is a {type(model).__name__}, which generates no text; it must be a causal language "
            "model: use diba.onnx.export for others"
        )
    if tokenizer is None:
        raise ValueError("tokenizer is missing; give the tokenizer of the model, or the folder it is in")
    if isinstance(tokenizer, (str, Path)):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    return Source(model, tokenizer)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Context manager: transformers shows no progress of its own."""
    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


@contextlib.contextmanager
def factored_head(model: Any, bits: float) -> Iterator[None]:
    """Context manager: a dense output layer is a factored one, at so many bits per weight."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        yield
        return
    model.set_output_embeddings(DibaLinear.from_dense(head, bits_per_weight=bits, effort="fast"))
    try:
        yield
    finally:
        model.set_output_embeddings(head)
