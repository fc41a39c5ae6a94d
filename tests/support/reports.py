"""Made-up reports of compressed models: whole ones, small ones, and those of hostile names."""

from __future__ import annotations

import math
from typing import Any

from diba.checkpoints.blocks import BlockRecipe
from diba.checkpoints.entries import LayerReport, Skipped
from diba.checkpoints.facts import Facts, Retuning
from diba.checkpoints.report import Report

__all__ = ["HOSTILE", "layer", "report"]

HOSTILE = '</script><img src=x onerror="document.title=1">&amp;\'{0}'


def layer(name: str, i: int = 0, **changes: Any) -> LayerReport:
    """A layer whose numbers differ from those of others."""
    facts: dict[str, Any] = {
        "kind": "Linear", "shape": (64 + i, 32), "k": 20 + i % 7, "alphabet": "sign",
        "bits_per_weight": 1 + (i % 5) / 10, "dense_bytes": 128 * (64 + i), "memory_bytes": 900 + i,
        "file_bytes": 600 + i, "objective": "plain", "snr_db": 5 + math.sin(i),
        "output_snr_db": 7 + math.cos(i), "seconds": 1.5 + i,
    }  # fmt: skip
    return LayerReport(name, **{**facts, **changes})


def report(blocks: int = 6, /, **changes: Any) -> Report:
    """A report with everything in it: two layers a block, an embedding with codes, dense layers, losses."""
    names = [
        f"model.layers.{i // 2}.{('self_attn.q_proj', 'mlp.down_proj')[i % 2]}" for i in range(2 * blocks)
    ]
    embedding = layer(
        "model.embed_tokens", kind="Embedding", k=0, alphabet="int8", snr_db=40.0, tied=("lm_head",)
    )
    layers = (embedding, *(layer(name, i) for i, name in enumerate(names)))
    losses = tuple(None if i == 5 else 2.0 / (1 + i / 20) for i in range(96))
    facts: dict[str, Any] = {
        "layers": layers,
        "skipped": (
            Skipped("model.odd", "Linear", "left out by 'odd'", (3, 4), 12, 48),
            Skipped("model.positions", "Embedding", "bits_per_weight is 1, too small", (9, 32), 288, 1152),
        ),
        "parameters_before": 10**6,
        "parameters_after": 10**4,
        "bytes_before": sum(x.dense_bytes for x in layers) + 5000,
        "bytes_after": sum(x.memory_bytes for x in layers) + 5000,
        "seconds": 75.0,
        "peak_bytes": 2 * 10**9,
        "settings": {"bits_per_weight": 1.0, "skip": ["odd"]},
        "reconstruction": {"steps": 256},
        "blocks": {
            f"model.layers.{i}": BlockRecipe(
                loss_before=0.01 * i, loss_factored=0.3 + 0.02 * i, loss=0.1 + 0.02 * i,
                groups=4, corrected=3, tuned=2, flips=0.02, kept=i % 3 > 0, seconds=9.0,
            )
            for i in range(blocks)
        },
        "facts": Facts(
            name="small model", settings={"bits": 1.0}, files=(10**6, 10**5),
            figures={"perplexity": 21.5, "perplexity_dense": 17.25, "tokens_judged": 4096.0},
            retuning=Retuning(losses=losses, loss_before=2.0, loss_after=0.5),
        ),
    }  # fmt: skip
    return Report(**{**facts, **changes})
