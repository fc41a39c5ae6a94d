"""Whether an exported language model gives the scores that the model gives in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .checking import allowed, refuse_wrong
from .places import acting
from .results import Difference, ExportError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from .genai_source import Source
    from .places import Place

__all__ = ["check"]

_TEXT = (
    "The rain stopped before noon, and the streets were dry by evening. She read the letter twice, put it "
    "down, and walked to the window."
)
_SHORTEST, _LONGEST = 8, 32  # tokens of a prompt


def check(folder: Path, source: Source, places: Sequence[Place], tolerance: float | None) -> list[Difference]:
    """Run an exported model in onnxruntime-genai and compare its scores with PyTorch's.

    Prompts of several lengths go through it whole, and a text token by token, which reads the cache of keys
    and values. The yardstick is that of :func:`diba.onnx.checking.check`; medians are compared, because a
    deep model of few bits makes a large error of a small one at some tokens and not at others.

    Raises:
        ExportError: The scores differ by more than is allowed.
    """
    model = source.model
    text = torch.tensor(source.tokenizer(_TEXT)["input_ids"] * _LONGEST)[None, :_LONGEST]
    ids = text % model.config.vocab_size
    room = max(_LONGEST, getattr(model.config, "sliding_window", None) or 0)  # of the cache, at least
    run, exact = (_wanted(model, places, how, ids) for how in ("run", "exact"))
    tokens = ids[0].numpy().astype(np.int32)
    lengths = range(_SHORTEST, _LONGEST + 1, 2)
    ways = {"whole prompts": [[tokens[:n]] for n in lengths], "token by token": [list(tokens[:, None])]}
    found = []
    for name, rows in _scores(folder, ways, room).items():
        ends = [n - 1 for n in lengths] if name == "whole prompts" else slice(None)
        error, noise = _distance(rows, exact[ends]), _distance(run[ends], exact[ends])
        most = allowed(noise) if tolerance is None else tolerance
        found.append(Difference("logits", f"{len(rows)} tokens, {name}", error, noise, most))
    refuse_wrong(found)
    return found


def _scores(
    folder: Path, ways: dict[str, list[list[NDArray[np.int32]]]], room: int
) -> dict[str, NDArray[np.float64]]:
    """Scores of the next token after each part of some texts, for each way to cut them."""
    import onnxruntime_genai as genai

    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ways}
    try:
        model = genai.Model(str(folder))
        for name, parts in ((name, parts) for name, texts in ways.items() for parts in texts):
            parameters = genai.GeneratorParams(model)
            parameters.set_search_options(max_length=room + 1, batch_size=1)
            generator = genai.Generator(model, parameters)
            for part in parts:
                generator.append_tokens(part)
                found[name].append(np.array(generator.get_logits(), np.float64).ravel())
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise ExportError(f"onnxruntime-genai cannot run the exported model: {told}") from error
    return {name: np.stack(rows) for name, rows in found.items()}


@torch.no_grad()
def _wanted(model: Any, places: Sequence[Place], how: str, ids: torch.Tensor) -> NDArray[np.float64]:
    """Scores after each token, shape (tokens, vocabulary)."""
    with acting(places, how):
        logits = model(input_ids=ids, use_cache=False).logits[0]
    wanted: NDArray[np.float64] = logits.double().cpu().numpy()
    return wanted


def _distance(y: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """The median over rows of |y - wanted| / |wanted|."""
    return float(np.median(np.linalg.norm(y - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)))
