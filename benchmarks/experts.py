#!/usr/bin/env python3
"""Mixtures of experts of transformers: what of them is compressed, and how well, beside separate nn.Linears.

    python benchmarks/experts.py --json benchmarks/results/experts.json

Small models with random weights of falling singular values. Each is compressed at 2 bits a weight, embeddings
too, saved and loaded; "equal" means to the last bit. Then the same expert matrices are put into ``nn.Linear``
layers of their own, which get the tokens that the dense model sends to that expert, gathered here by other
means, and are calibrated and compressed one by one. The error of both is that of an expert matrix's outputs
over all tokens it gets, relative to the outputs, as a mean of squares over all matrices.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import diba
import diba.hf
import diba.torch

SETTINGS: dict[str, Any] = {"bits_per_weight": 2.0, "effort": "fast", "embeddings": True, "progress": False}
COMMON = {
    "vocab_size": 256,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "num_experts_per_tok": 2,
}
LATENT = {
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 32,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral": ("Mixtral", {"intermediate_size": 128, "num_local_experts": 6, "num_key_value_heads": 2}),
    "Qwen3-MoE": (
        "Qwen3Moe",
        {"moe_intermediate_size": 96, "intermediate_size": 128, "num_experts": 8, "num_key_value_heads": 2}
        | {"head_dim": 32},
    ),
    "GPT-OSS": (
        "GptOss",
        {"intermediate_size": 128, "num_local_experts": 6, "num_key_value_heads": 2, "head_dim": 32},
    ),
    "DeepSeek-V3": (
        "DeepseekV3",
        {"intermediate_size": 128, "moe_intermediate_size": 96, "n_routed_experts": 8, "n_group": 2}
        | {"topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4}
        | LATENT,
    ),
}
BATCHES, TOKENS = 8, (8, 32)
BAR = 0.95


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    began = time.perf_counter()
    rows = [measure(name) for name in MODELS]
    report = {
        "machine": {"cpu": diba.info()["cpu"], "isa": diba.isa(), "torch": torch.__version__},
        "transformers": transformers.__version__,
        "load": os.getloadavg()[0],
        "bits_per_weight": SETTINGS["bits_per_weight"],
        "seconds": round(time.perf_counter() - began, 1),
        "rows": rows,
    }
    print(table(report))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    good = all(
        row["share"] >= BAR and row["reloaded_equal"] and row["error"] <= row["error_of_linears"]
        for row in rows
    )
    print(f"at least {BAR:.0%} compressed, reloaded bit for bit, no worse than nn.Linear: {good}")
    return 0 if good else 1


def measure(name: str) -> dict[str, Any]:
    model, batches, fresh = build(name)
    moments = diba.torch.calibrate(model, batches, progress=False)
    single, ordered = copy.deepcopy(model), copy.deepcopy(model)
    report = diba.torch.convert(single, calibration=moments, **SETTINGS)
    diba.torch.convert(ordered, batches=batches, **SETTINGS)
    vectors = expert_inputs(model, batches)
    with torch.no_grad():
        errors = {
            "error": mean_error(vectors, lambda layer, *_: single.get_submodule(layer).dense_weight()),
            "error_of_linears": mean_error(vectors, linear_weight),
        }
        dense = model(fresh).logits
        outputs = {
            f"logits_{kind}": relative(net(fresh).logits, dense)
            for kind, net in (("each_by_itself", single), ("in_order", ordered))
        }
        equal = torch.equal(reloaded(ordered)(fresh).logits, ordered(fresh).logits)
    print(f"{name}: done", file=sys.stderr)
    return {
        "model": name,
        "weights": report.matrix_weights,
        "share": report.weight_share,
        "expert_share": sum(x.weights for x in report.layers if ".experts." in x.name)
        / report.matrix_weights,
        "matrices_without_tokens": sum(not sum(map(len, x)) for x, _ in vectors.values()),
        "reloaded_equal": equal,
        **errors,
        **outputs,
    }


def build(name: str) -> tuple[Any, list[dict[str, Tensor]], Tensor]:
    """A dense model, batches, and tokens that are in none of them."""
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**COMMON, **settings)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(structured(parameter.shape))
    # Words of a text are not alike frequent: so are routed tokens.
    frequency = 1 / torch.arange(1, 254, dtype=torch.float64)
    drawn = torch.multinomial(frequency, (BATCHES + 1) * TOKENS[0] * TOKENS[1], replacement=True) + 3
    first, *others = drawn.view(BATCHES + 1, *TOKENS)
    return model, [{"input_ids": ids} for ids in others], first


def structured(shape: torch.Size) -> Tensor:
    """Matrices with singular values like 1 / sqrt(i), and outputs of size about 1."""
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    falling = torch.arange(1, s.shape[-1] + 1) ** -0.5
    matrix = (u * falling) @ v
    return matrix / matrix.square().mean().sqrt() * shape[-1] ** -0.5


def expert_inputs(model: Any, batches: list[dict[str, Tensor]]) -> dict[str, tuple[list[Tensor], Tensor]]:
    """Layer -> the vectors its expert gets in the dense model, by batch (count, n), and its matrix (m, n)."""
    calls: dict[str, list[Any]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: calls.setdefault(name, []).append(args))
        for name, module in model.named_modules()
        if name.endswith(".experts")
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for hook in hooks:
        hook.remove()
    found = {}
    for name, seen in calls.items():
        experts = model.get_submodule(name)
        for e in range(experts.num_experts):
            up, down = (w[e].detach() for w in (experts.gate_up_proj, experts.down_proj))
            up, down = (w.T if experts.is_transposed else w for w in (up, down))
            bias = experts.gate_up_proj_bias[e].detach() if experts.has_bias else None
            # In the order of ranks, as transformers gathers them: rounding then is the same, too.
            x = [tokens[torch.where(chosen.T.eq(e))[1]] for tokens, chosen, _ in seen]
            found[f"{name}.gate_up.{e}"] = x, up
            found[f"{name}.down.{e}"] = [experts._apply_gate(F.linear(y, up, bias)) for y in x], down
    return found


def linear_weight(layer: str, x: list[Tensor], matrix: Tensor) -> Tensor:
    """The matrix that a separate nn.Linear gets for these vectors."""
    model = nn.Sequential(nn.Linear(matrix.shape[1], matrix.shape[0], bias=False))
    model[0].weight.copy_(matrix)
    with torch.enable_grad():
        moments = diba.torch.calibrate(model, x, progress=False)
        diba.torch.convert(model, calibration=moments, **SETTINGS)
    return model[0].dense_weight()


def mean_error(vectors: dict[str, tuple[list[Tensor], Tensor]], weight: Any) -> float:
    """Mean over matrices of |A x - F x|^2 / |A x|^2, in float64; those without tokens have none."""
    errors = []
    for layer, (x, matrix) in vectors.items():
        tokens = torch.cat(x).double()
        if len(tokens):
            right = tokens @ matrix.double().T
            wrong = tokens @ weight(layer, x, matrix).double().T - right
            errors.append(float(wrong.square().sum() / right.square().sum()))
    return sum(errors) / len(errors)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def reloaded(model: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return type(model).from_pretrained(folder)


def table(report: dict[str, Any]) -> str:
    lines = [
        "| model | matrix weights | compressed | experts | error | as nn.Linear | reloaded equal |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {row['model']} | {row['weights']:,} | {row['share']:.1%} | {row['expert_share']:.1%} "
        f"| {row['error']:.5f} | {row['error_of_linears']:.5f} | {'yes' if row['reloaded_equal'] else 'no'} |"
        for row in report["rows"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
