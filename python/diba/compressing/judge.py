"""What a compressed model is beside the dense one, on batches that nothing else has seen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["figures"]


@torch.no_grad()
def figures(
    dense: Any, model: Any, batches: Sequence[dict[str, torch.Tensor]], causal: bool
) -> dict[str, float]:
    """Figures by name.

    Language models: perplexity, of the dense and the compressed model. Others: relative error of the last
    hidden states (or of the logits, where there are none) at the tokens that count.
    """
    if causal:
        found = {
            name: math.exp(min(_mean_nats(each, batches), 700.0))
            for name, each in (("perplexity_dense", dense), ("perplexity", model))
        }
        return {**found, "tokens_judged": float(sum(batch["input_ids"].numel() for batch in batches))}
    power = error = 0.0
    for batch in batches:
        a, b = (_answer(each, batch) for each in (dense, model))
        power += float(a.double().square().sum())
        error += float((a.double() - b.double()).square().sum())
    return {"relative_error": math.sqrt(error / power) if power else math.nan}


def _mean_nats(model: Any, batches: Sequence[dict[str, torch.Tensor]]) -> float:
    total = count = 0.0
    for batch in batches:
        ids = batch["input_ids"]
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
        )
        total, count = total + float(losses), count + ids[:, 1:].numel()
    return total / count


def _answer(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    output = model(**batch)
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None:
        return torch.as_tensor(output.logits).float()
    return torch.as_tensor(hidden[batch["attention_mask"].bool()]).float()
