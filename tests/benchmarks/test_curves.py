"""The curves benchmark: GPTQ, bytes, resumption, table and figure, on made-up models and results."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import diba.torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    Benchmark = Callable[[str], ModuleType]

M, N, GROUP = 5, 12, 4


# ---- GPTQ


def moments(n: int, seed: int = 0) -> torch.Tensor:
    """Second moments of inputs that depend on each other, float64."""
    x = np.random.default_rng(seed).standard_normal((8 * n, n))
    x = x + 2 * x[:, :1] + np.roll(x, 1, axis=1)
    return torch.from_numpy(x.T @ x / len(x))


def matrix() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((M, N))).float()


def values(codes: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, bits: int) -> torch.Tensor:
    """The matrix that codes stand for."""
    steps = codes.double() - (2**bits - 1) / 2
    return (steps * scale[..., None].double() + offset[..., None].double()).flatten(1)[:, :N]


@pytest.mark.parametrize("bits", [2, 3])
def test_without_correlation_gptq_rounds_to_the_nearest(benchmark: Benchmark, bits: int) -> None:
    gptq, rounding = benchmark("models.gptq"), benchmark("models.rounding")
    diagonal = torch.diag(torch.linspace(0.5, 3, N, dtype=torch.float64))
    found, expected = gptq.gptq(matrix(), diagonal, bits, GROUP), rounding.round_groups(matrix(), bits, GROUP)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("group", [GROUP, 5])  # the last group of 5 is smaller
def test_gptq_makes_up_for_errors_as_least_squares_would(benchmark: Benchmark, group: int) -> None:
    """What is left is at every step what minimises the error of the outputs, given what is rounded."""
    gptq, rounding = benchmark("models.gptq"), benchmark("models.rounding")
    bits, w, s = 2, matrix().double(), moments(N)
    h = s + gptq.DAMPING * s.diagonal().mean() * torch.eye(N, dtype=torch.float64)
    rounded, expected = torch.empty(M, 0, dtype=torch.float64), []
    for first in range(0, N, group):
        last = min(first + group, N)
        for j in range(first, last):
            now = w[:, j:].clone()
            if j:
                now += (w[:, :j] - rounded) @ h[:j, j:] @ torch.linalg.inv(h[j:, j:])
            if j == first:
                _, scale, offset = rounding.round_groups(now[:, : last - first].float(), bits, last - first)
            codes = ((now[:, 0] - offset[:, 0]) / scale[:, 0] + 1.5).round().clamp(0, 3)
            expected.append(codes)
            column = (codes - 1.5) * scale[:, 0].double() + offset[:, 0].double()
            rounded = torch.cat([rounded, column[:, None]], 1)
    codes, scale, offset = gptq.gptq(w.float(), s, bits, group)
    assert torch.equal(codes.flatten(1)[:, :N].double(), torch.stack(expected, 1))
    torch.testing.assert_close(values(codes, scale, offset, bits), rounded, rtol=1e-12, atol=0)


def test_outputs_are_closer_than_by_rounding(benchmark: Benchmark) -> None:
    gptq, rounding = benchmark("models.gptq"), benchmark("models.rounding")
    s = moments(N)
    errors = []
    for found in (gptq.gptq(matrix(), s, 3, GROUP), rounding.round_groups(matrix(), 3, GROUP)):
        difference = values(*found, 3) - matrix().double()
        errors.append(float((difference @ s * difference).sum()))
    assert errors[0] < errors[1]


class Net(nn.Module):
    """Blocks of one linear layer between an embedding and a normalisation."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 32)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(blocks)])
        self.norm = nn.LayerNorm(32)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def made(count: int = 6) -> list[dict[str, torch.Tensor]]:
    return [{"ids": torch.randint(0, 40, (4, 8))} for _ in range(count)]


def test_a_model_is_rounded_and_its_bytes_are_those_of_packed_codes(benchmark: Benchmark) -> None:
    gptq = benchmark("models.gptq")
    torch.manual_seed(0)
    model = Net().eval()
    bits = gptq.convert_gptq(model, diba.torch.Config(bits_per_weight=2), made(), 2, group=16)
    assert bits == 2 + 2 * 16 / 16
    diba.torch.convert(model, codes=8, embeddings=8, progress=False)
    matrices = 2 * 32 * 32 * 4 // 8
    biases_and_norm = 4 * (2 * 32 + 2 * 32)
    assert gptq.packed_bytes(model) == matrices + biases_and_norm + 40 * 32 + 4 * 40


# ---- llama.cpp


def test_importance_is_the_mean_square_of_inputs(benchmark: Benchmark) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    files = benchmark("models.llama_files")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "vocab_size": 40}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **sizes)).eval()
    batches = [{"input_ids": torch.randint(0, 40, (2, 8))} for _ in range(2)]
    found = files.importances(model, batches)
    assert len(found) == 2 * len(files.NAMES)
    first = model.model.layers[0].input_layernorm
    with torch.no_grad():
        inputs = torch.cat([first(model.model.embed_tokens(b["input_ids"])).flatten(0, 1) for b in batches])
    expected = inputs.double().square().mean(0).float().numpy()
    for name in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(found[f"blk.0.{name}.weight"], expected, rtol=1e-6)
    assert found["blk.1.ffn_down.weight"].shape == (48,)
    assert not any(module._forward_pre_hooks for module in model.modules())


# ---- diba


def task_of(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """Shared work on a tiny model."""
    shared, form = benchmark("models.shared"), benchmark("models.task")
    plan, work = benchmark("models.curves_plan"), benchmark("models.curves_work")

    def load() -> nn.Module:
        torch.manual_seed(0)
        return Net().eval()

    task = form.Task(
        name="tiny", title="Tiny", load=load, train=made, primary="loss", higher_is_better=False,
        metrics=lambda model: {"loss": 1.0}, loss="hidden",
    )  # fmt: skip
    torch.manual_seed(1)
    monkeypatch.setitem(shared._batches, "tiny", made())
    monkeypatch.setitem(shared._dense, "tiny", load().requires_grad_(False))
    recipe = plan.Recipe("tiny", calibration=4, steps=2, reconstruct={"steps": 2, "tune_steps": 1})
    return work.Work(task, recipe, folder, 1)


def test_a_stopped_conversion_goes_on_after_its_last_block(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan, module, arms = (benchmark(f"models.curves_{x}") for x in ("plan", "diba", "arms"))
    work, cell = task_of(benchmark, monkeypatch, tmp_path), plan.Cell("tiny", "diba", "2 bits")
    kept = module.keep

    def stopped(*arguments: Any) -> None:
        kept(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "keep", stopped)
    with pytest.raises(KeyboardInterrupt):
        arms.run(cell, work)
    model, facts = torch.load(tmp_path / "tiny-2-bits-0" / module.UNFINISHED, weights_only=False)
    assert [layer.name for layer in diba.torch.report(model).layers] == ["blocks.0.0"]
    assert not any(module._forward_pre_hooks for module in model.modules())
    monkeypatch.setattr(module, "keep", kept)
    result = arms.run(cell, work)
    assert result["seconds"] > facts["seconds"] > 0
    assert result["before_retuning"] == result["metrics"] == {"loss": 1.0}
    whole = tmp_path / "tiny-2-bits-0" / "model" / "model.safetensors"
    assert result["bytes"] == whole.stat().st_size
    assert not (tmp_path / "tiny-2-bits-0" / module.UNFINISHED).exists()
    assert vars(cell).items() <= result.items()


@pytest.mark.parametrize("by", ["fisher", "loss"])
def test_bits_may_be_shared_out_first(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by: str
) -> None:
    """Of two layers, the one that needs fewer bits gets fewer, in a model of those that were asked for."""
    plan, module, facts = (benchmark(f"models.curves_{x}") for x in ("plan", "diba", "work"))
    work = task_of(benchmark, monkeypatch, tmp_path)
    work.recipe = dataclasses.replace(work.recipe, shared=by)
    dense = benchmark("models.shared")._dense["tiny"]
    weight = dense.blocks[1][0].weight
    with torch.no_grad():
        weight.copy_(torch.outer(weight[0], weight[1]).sign())  # of rank 1: few bits are enough
    work.task = dataclasses.replace(work.task, load=lambda: copy.deepcopy(dense))
    result = module.converted(plan.Cell("tiny", "diba", "2 bits"), work, facts.Clock())
    first, second = (layer for layer in diba.torch.report(result["model"]).layers if layer.k)
    assert first.k > second.k
    assert first.bits_per_weight + second.bits_per_weight <= 4  # as many weights each, 2 bits on average
    assert f"bits shared out by {by}" in result["recipe"]


def test_a_table_may_be_rounded_when_all_else_is_converted(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The table at the end is the dense one in 4 bits, all else as beside a table of 8."""
    plan, module, facts = (benchmark(f"models.curves_{x}") for x in ("plan", "diba", "work"))
    work = task_of(benchmark, monkeypatch, tmp_path)
    work.recipe = dataclasses.replace(work.recipe, table_last=2)
    monkeypatch.setattr(
        diba.torch, "retune", lambda *_, **__: SimpleNamespace(loss_before=1.0, loss_after=1.0)
    )
    forms = "2 bits", "2 bits, table of 4"
    wide, late = (module.converted(plan.Cell("tiny", "diba", form), work, facts.Clock()) for form in forms)
    small = work.task.load()
    diba.torch.convert(small, bits_per_weight=2, embeddings=4, progress=False)
    tables, others = small.table.state_dict(), wide["model"].state_dict()
    for name, tensor in late["model"].state_dict().items():
        expected = tables[name.removeprefix("table.")] if name.startswith("table.") else others[name]
        assert torch.equal(tensor, expected), name
    assert late["bytes"] < wide["bytes"]
    assert "table of 8 bits was rounded to 4" in late["recipe"]
    assert "rounded" not in wide["recipe"]


def test_other_settings_are_not_gone_on_with(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module, errors = benchmark("models.curves_diba"), benchmark("common")
    module.keep(tmp_path, Net(), {"about": {"batches": 3}})
    with pytest.raises(errors.BenchmarkError, match=r"unfinished\.pt was made by .*3.*--keep"):
        module.unfinished(tmp_path, {"batches": 4})
    assert module.unfinished(tmp_path / "none", {}) is None


# ---- plan, table, figure


def test_every_cell_has_a_key_of_its_own_and_a_maker(benchmark: Benchmark) -> None:
    plan, arms = benchmark("models.curves_plan"), benchmark("models.curves_arms")
    for quick in (False, True):
        found = [cell for task in plan.RECIPES for cell in plan.cells(plan.recipe_of(task, quick), 3)]
        assert len({cell.key for cell in found}) == len(found)
        assert {cell.arm for cell in found} == set(arms.ARMS)
        assert all(cell.bits > 0 for cell in found if cell.arm in ("diba", "GPTQ"))
    whole, small = (
        plan.Cell("smollm2", "diba", "1.5 bits"),
        plan.Cell("smollm2", "diba", "3 bits, table of 4"),
    )
    assert {whole, small} <= set(plan.cells(plan.recipe_of("smollm2", False), 1))
    assert [(cell.bits, cell.table) for cell in (whole, small)] == [(1.5, 8), (3, 4)]


def report() -> dict[str, Any]:
    rows = [
        ("dense", "float16", 270, 31.4, None),
        ("llama.cpp", "Q2_K", 88, 37.4, None),
        ("diba", "2 bits", 55, 47.0, 52.0),
        ("GPTQ", "2 bits", 60, 90.0, 200.0),
    ]
    cells = {}
    for arm, form, size, perplexity, before in rows:
        for seed in range(2 if arm == "diba" else 1):
            cells[f"smollm2 | {arm} | {form} | {seed}"] = {
                "task": "smollm2", "title": "SmolLM2", "arm": arm, "form": form, "seed": seed,
                "bytes": size * 1e6, "bits": 2.5 if arm == "GPTQ" else None, "seconds": 120.0,
                "cpu_seconds": 180.0, "metrics": {"news_perplexity": perplexity + 2 * seed, "news_nats": 1.0},
                "before_retuning": {"news_perplexity": before} if before else None, "recipe": "",
                "primary": "news_perplexity", "higher_is_better": False,
            }  # fmt: skip
    return {"machine": {"diba": "1", "cpu": "a cpu", "isa": "avx2"}, "quick": False, "cells": cells}


def test_the_table_marks_what_nothing_smaller_beats(benchmark: Benchmark) -> None:
    lines = benchmark("models.curves_table").table(report()).splitlines()
    assert "| diba | 2 bits |  | **55.0** | 48.0 ± 1.0 | 52.0 ± 0.0 | 3.0 |" in lines
    assert "| GPTQ | 2 bits | 2.50 | 60.0 | 90.0 | 200.0 | 3.0 |" in lines
    assert "| llama.cpp's file | Q2_K |  | **88.0** | 37.4 |  | 3.0 |" in lines
    assert lines.index("SmolLM2:") < lines.index("| dense | float16 |  | **270.0** | 31.4 |  | 3.0 |")


def test_the_figure_is_drawn(benchmark: Benchmark, tmp_path: Path) -> None:
    benchmark("models.curves_figure").draw(report(), [tmp_path / "a.svg"])
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "SmolLM2" in text
    assert "MB on disk" in text
