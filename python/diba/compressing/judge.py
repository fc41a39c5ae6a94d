"""What a compressed model is beside the dense one, on batches that nothing else has seen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from diba.torch.retuning.batches import call
from diba.torch.retuning.outputs import answers, positions

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["figures"]


@torch.no_grad()
def figures(dense: Any, model: Any, batches: Sequence[dict[str, Any]], causal: bool) -> dict[str, float]:
    """Figures by name.

    Language models: perplexity, of the dense and the compressed model. Others: relative error of the answers
    (logits, embeddings or last hidden states) at the positions that count; where they tell classes, the share
    of them whose top class is that of the dense model.
    """
    if causal:
        found = {
            name: math.exp(min(_mean_nats(each, batches), 700.0))
            for name, each in (("perplexity_dense", dense), ("perplexity", model))
        }
        return {**found, "tokens_judged": float(sum(int(_counted(batch).sum()) for batch in batches))}
    power = error = 0.0
    same = count = 0
    for batch in batches:
        pairs = zip(*(answers(call(each, batch), each, False) for each in (dense, model)), strict=True)
        for one, other in pairs:
            chosen = positions(batch, one.values, model)
            a, b = one.values[chosen].double(), other.values[chosen].double()
            power += float(a.square().sum())
            error += float((a - b).square().sum())
            if one.kind == "classes":
                same += int((a.argmax(-1) == b.argmax(-1)).sum())
                count += a[..., 0].numel()
    result = {"relative_error": math.sqrt(error / power) if power else math.nan}
    return {**result, "agreement": same / count, "answers_judged": float(count)} if count else result


def _mean_nats(model: Any, batches: Sequence[dict[str, Any]]) -> float:
    total = count = 0.0
    for batch in batches:
        ids, counted = batch["input_ids"], _counted(batch)[:, 1:]
        logits = call(model, batch).logits[:, :-1][counted].float()
        losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:][counted], reduction="sum")
        total, count = total + float(losses), count + int(counted.sum())
    return total / count


def _counted(batch: dict[str, Any]) -> torch.Tensor:
    """Where tokens are no padding."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
