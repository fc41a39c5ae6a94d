"""Experts of transformers as layers: the same numbers as theirs, calibrated, saved and loaded."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import tiny_experts
from diba.layers.config import Config
from diba.torch.allocation.allocate import allocate
from diba.torch.calibration.collect import calibrate
from diba.torch.calibration.inputs import InputSums
from diba.torch.conversion.convert import convert
from diba.torch.conversion.report import report
from diba.torch.model.experts import Experts
from diba.torch.model.selection import select, targets
from diba.torch.model.swap import unfuse, unfused
from diba.torch.modules.layer import FactoredLayer
from diba.torch.modules.vectors import mark, marked
from diba.torch.retuning.curvature import fisher

FAST = {"bits_per_weight": 3, "method": "greedy", "effort": "fast", "threads": 1}
IDS = torch.arange(3, 19).reshape(2, 8)
MATRICES = {"gate_up_proj": "gate_up", "down_proj": "down"}


def fused(model: Any) -> dict[str, Any]:
    """The experts of a model as transformers has them."""
    return {name: module for name, module in model.named_modules() if name.endswith(".experts")}


def batch(seed: int = 0, padding: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 7 - padding :] = 0
    return {"input_ids": torch.randint(3, 60, (3, 7), generator=generator), "attention_mask": mask}


@pytest.fixture(scope="module", params=tiny_experts.NAMES)
def model(request: Any) -> Any:
    return tiny_experts.build(request.param)


# ---------------------------------------------------------------- the same numbers


def test_the_numbers_and_gradients_are_those_of_transformers(model: Any) -> None:
    theirs = copy.deepcopy(model).double()
    ours = copy.deepcopy(theirs)
    assert len(unfuse(ours)) == len(fused(theirs)) > 0
    losses = [net(IDS, labels=IDS).loss for net in (theirs, ours)]
    # GPT-OSS adds its biases apart from the product: rounded once more, in a sum of at most 64 terms.
    assert abs(losses[0] - losses[1]) <= 2.0**-52 * 2**12 * abs(losses[0])
    for loss in losses:
        loss.backward()
    for name, experts in fused(theirs).items():
        part: Any = ours.get_submodule(name)
        for parameter, places in part.sources().items():
            found = [getattr(part.get_submodule(layer), own).grad for layer, own in places]
            found = [torch.zeros_like(part.down[0].weight) if g is None else g for g in found]
            expected = getattr(experts, parameter).grad
            error = (part.join(parameter, found) - expected).abs().max()
            assert error <= 2.0**-52 * 2**16 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_without_tokens_and_batches_of_any_size(model: Any, dtype: Any) -> None:
    for experts in fused(copy.deepcopy(model).to(dtype)).values():
        part = Experts.from_fused(experts)
        names = list(inspect.signature(experts.forward).parameters)
        for count, chosen in ((1, [[2, 0]]), (4, [[1, 1]] * 4), (0, np.zeros((0, 2)))):
            x = torch.randn(count, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
            chosen = torch.tensor(np.asarray(chosen), dtype=torch.long)
            weights = torch.full(chosen.shape, 0.5, dtype=dtype)
            with torch.no_grad():
                expected = experts(x, chosen, weights)
                found = part(x, chosen, weights)
                named = part(x, **{names[2]: weights, names[1]: chosen})
            part.observed = True
            with torch.no_grad():
                watched = part(x, chosen, weights)
            assert found.dtype == dtype
            for other in (named, watched):
                assert torch.equal(found, other)
            eps = torch.finfo(dtype).eps
            if count:
                assert (found - expected).abs().max() <= 2**4 * eps * expected.abs().max()
        assert part(x, chosen, weights).shape == (0, 32)


def test_numbers_past_the_last_expert_stand_for_none(model: Any) -> None:
    """As where experts are spread over processes: the same as weights of 0."""
    experts = next(iter(fused(model).values()))
    part = Experts.from_fused(experts)
    none = experts.num_experts
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    chosen = torch.tensor([[0, none], [none, none], [1, 2]])
    weights = torch.full(chosen.shape, 0.5)
    with torch.no_grad():
        expected = experts(x, chosen.where(chosen < none, 0), weights.where(chosen < none, 0))
        found = part(x, chosen, weights)
    assert (found - expected).abs().max() <= 2**4 * 2.0**-23 * expected.abs().max()
    assert not found[1].any()


def test_a_compiled_model_computes_the_same() -> None:
    model = tiny_experts.build("qwen3_moe")
    convert(model, **FAST, progress=False)
    experts = model.model.layers[0].mlp.experts
    x, chosen = torch.randn(5, 32), torch.tensor([[0, 1], [2, 0], [1, 3], [3, 2], [0, 3]])
    weights = torch.full((5, 2), 0.5)
    with torch.no_grad():
        compiled = torch.compile(lambda *args: 2 * experts(*args), backend="eager")
        assert torch.equal(compiled(x, chosen, weights), 2 * experts(x, chosen, weights))


def test_other_forms_stay_as_they_are() -> None:
    model = tiny_experts.build("mixtral")

    class Plain(nn.Module):  # three dimensions, and no form that is known
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.zeros(2, 8, 4))
            self.down_proj = nn.Parameter(torch.zeros(2, 4, 4))
            self.num_experts = 2

    model.own = Plain()
    first, second = fused(model).values()
    spoilt = {name: copy.deepcopy(first) for name in ("whole", "flag", "shared", "flat", "halves")}
    assert Experts.recognises(spoilt.pop("whole"))
    del spoilt["flag"].has_bias
    spoilt["shared"]._is_expert_parallel = True  # each process has some of them
    spoilt["flat"].down_proj = nn.Parameter(torch.zeros(3, 4))
    spoilt["halves"].down_proj = nn.Parameter(first.down_proj.long(), requires_grad=False)
    assert not any(map(Experts.recognises, spoilt.values()))
    first.register_buffer("scale", torch.ones(2))
    second.forward = lambda *args: args[0]
    names = [target.name for target in targets(model, Config(k=2))]
    assert not any("experts" in name or name.startswith("own") for name in names)
    left = {layer.name for layer in select(model, Config(k=2)).skipped}
    assert {"own.gate_up_proj", "own.down_proj", "model.layers.0.mlp.experts.gate_up_proj"} <= left


# ---------------------------------------------------------------- calibration


def test_moments_are_those_of_the_tokens_each_expert_gets(model: Any) -> None:
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    batches = [batch(0), batch(1, padding=5)]
    moments = calibrate(model, batches, progress=False)
    assert before == {name: id(parameter) for name, parameter in model.named_parameters()}
    assert all(name in moments or "experts" in name for name in moments)
    for name, experts in fused(model).items():
        calls: list[Any] = []
        hook = experts.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(args))
        with torch.no_grad():
            for data in batches:
                model(**data)
        hook.remove()
        for e in range(experts.num_experts):
            kept = [
                x[(chosen == e).any(1) & data["attention_mask"].flatten().bool()]
                for (x, chosen, _), data in zip(calls, batches, strict=True)
            ]
            rows = torch.cat(kept).double().numpy()
            layer = f"{name}.gate_up.{e}"
            if not len(rows):
                assert layer not in moments
                continue
            assert moments[layer].count == moments[f"{name}.down.{e}"].count == len(rows)
            # float32 sums of at most 2^6 products
            error = np.abs(moments[layer].second - rows.T @ rows / len(rows)).max()
            assert error <= 2.0**-23 * 2**6 * (rows**2).mean(0).max()


def test_vectors_are_matched_with_those_the_dense_model_sends() -> None:
    generator = torch.Generator().manual_seed(0)
    dense, now = (torch.randn(6, 4, generator=generator) for _ in range(2))
    weight = torch.rand(6, generator=generator) + 0.5
    theirs, ours = torch.tensor([5, 0, 2]), torch.tensor([0, 1, 5])  # tokens of an expert, then and now
    sums = InputSums(4)
    sums.add([mark(now[ours], ours, 6)], [mark(dense[theirs], theirs, 6)], [mark(weight[theirs], theirs, 6)])
    counterpart = {0: dense[0], 1: now[1], 5: dense[5]}
    weights = {0: weight[0], 1: torch.tensor(1.0), 5: weight[5]}
    total = sum(weights.values())
    second = sum(weights[t] * torch.outer(now[t], now[t]) for t in counterpart) / total
    cross = sum(weights[t] * torch.outer(x, now[t]) for t, x in counterpart.items()) / total
    # float32, three terms
    np.testing.assert_allclose(sums.second("e"), second, rtol=0, atol=2.0**-23 * 2**4 * float(second.max()))
    np.testing.assert_allclose(sums.cross(), cross, rtol=0, atol=2.0**-23 * 2**4 * float(second.max()))
    assert marked(mark(now, ours, 6))[1] == 6


@pytest.mark.parametrize("loss", [None, fisher()], ids=["plain", "fisher"])
def test_experts_are_compressed_for_the_inputs_that_they_get(model: Any, loss: Any) -> None:
    changed = copy.deepcopy(model)
    batches = [batch(0), batch(1)]
    made = report(convert(changed, batches=batches, loss=loss, progress=False, **FAST))
    moments = calibrate(model, batches, progress=False)
    for layer in made.layers:
        if "experts" in layer.name:
            assert isinstance(changed.get_submodule(layer.name), FactoredLayer)
            if layer.objective == "plain":  # no token in the dense model, or none by now
                assert layer.output_snr_db is None
    seen = [x for x in made.layers if "experts" in x.name and x.objective == "covariance"]
    assert len(seen) > len([name for name in moments if "experts" in name]) // 2
    assert torch.isfinite(changed(IDS).logits).all()


def test_bits_are_shared_out_between_experts() -> None:
    model = tiny_experts.build("mixtral")
    skip = ["lm_head", r"re:.*self_attn.*", r"re:.*layers\.0.*"]
    allocation = allocate(model, 2.0, config=Config(skip=skip, **FAST), sizes=(0.5, 1.0))
    assert {f"model.layers.1.mlp.experts.{e}" for e in ("down.2", "gate_up.0")} <= set(allocation.k)
    rules = {name: {"k": k} for name, k in allocation.k.items()}
    made = report(convert(model, layers=rules, skip=skip, progress=False, **FAST))
    assert {layer.name: layer.k for layer in made.layers} == dict(allocation.k)


# ---------------------------------------------------------------- in place, and undone


def test_memory_of_the_fused_weights_is_freed_and_an_interrupted_call_goes_on(
    model: Any, tmp_path: Any
) -> None:
    changed = copy.deepcopy(model)
    storages = [
        getattr(experts, name).untyped_storage()._weak_ref()
        for experts in fused(changed).values()
        for name in MATRICES
    ]

    def stop(state: Any) -> None:
        if "experts" in (state.item or ""):
            changed.save_pretrained(tmp_path)  # some parts still share the memory of the whole
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(changed, progress=stop, **FAST)
    parts = [module for module in changed.modules() if isinstance(module, Experts)]
    assert len(parts) == 1
    assert not any(part.observed for part in parts)
    for parameter in parts[0].parameters():  # no tensor shares its memory, as a checkpoint must not
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
    saved = type(model).from_pretrained(tmp_path).state_dict()
    now = changed.state_dict()
    assert saved.keys() == now.keys()
    assert all(torch.equal(saved[name], now[name]) for name in now)
    convert(changed, progress=False, **FAST)
    assert all(torch.UntypedStorage._expired(storage) for storage in storages)
    whole = copy.deepcopy(model)
    made = report(convert(whole, progress=False, **FAST))
    assert torch.equal(whole(IDS).logits, changed(IDS).logits)
    for twin in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert torch.equal(twin(IDS).logits, whole(IDS).logits)
    named = model.named_parameters()
    matrices = sum(p.numel() for n, p in named if p.ndim > 1 and not n.endswith("_bias"))
    embeddings = model.get_input_embeddings().weight.numel()
    routers = sum(m.weight.numel() for n, m in model.named_modules() if n.endswith(("gate", "router")))
    assert sum(layer.weights for layer in made.layers) == matrices - embeddings - routers


def test_experts_that_a_rule_leaves_out_stay_fused(model: Any) -> None:
    changed = copy.deepcopy(model)
    before = {name: id(p) for name, p in changed.named_parameters() if ".mlp.experts." in name}
    made = report(convert(changed, skip=[r"re:.*\.experts\..*"], progress=False, **FAST))
    after = {name: id(p) for name, p in changed.named_parameters()}
    assert {name: after[name] for name in before} == before
    left = [x for x in made.skipped if ".experts." in x.name and x.reason.startswith("left out")]
    assert len(left) == sum(2 * experts.num_experts for experts in fused(model).values())


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_loads_to_the_same_outputs(model: Any, tmp_path: Any) -> None:
    from diba.hf import DibaConfig

    partly = model.config.model_type in ("gpt_oss", "qwen3_moe")  # some experts dense, others not
    skip = [r"re:.*\.down\.1"] if partly else []
    model.save_pretrained(tmp_path / "dense")
    changed = copy.deepcopy(model)
    convert(changed, skip=skip, progress=False, **FAST)
    outputs = changed(IDS).logits
    changed.save_pretrained(tmp_path / "packed", max_shard_size="20KB")
    again, info = type(model).from_pretrained(tmp_path / "packed", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(again(IDS).logits, outputs)
    base = transformers.AutoModel.from_pretrained(tmp_path / "packed")
    assert torch.equal(base(IDS)[0], changed.model(IDS)[0])
    config = DibaConfig(skip=skip, **FAST)
    loaded, info = type(model).from_pretrained(
        tmp_path / "dense", quantization_config=config, output_loading_info=True
    )
    assert not any(info.values())
    assert torch.equal(loaded(IDS).logits, outputs)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(type(model).from_pretrained(tmp_path / "again")(IDS).logits, outputs)
    factors = {name: again.get_submodule(name).dense_weight() for name in info_names(again)}
    dense = again.dequantize()
    assert {n: p.shape for n, p in dense.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    for name, experts in fused(dense).items():
        for source, own in MATRICES.items():
            for e, matrix in enumerate(getattr(experts, source)):
                known = factors.get(f"{name}.{own}.{e}")
                expected = getattr(model.get_submodule(name), source)[e] if known is None else known
                turned = known is not None and experts.is_transposed
                assert torch.equal(matrix.T if turned else matrix, expected)


def info_names(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, FactoredLayer)]


def test_a_model_in_parts_keeps_hooks_modes_and_wishes(model: Any) -> None:
    changed = copy.deepcopy(model).train()
    calls: list[int] = []
    for experts in fused(changed).values():
        experts.down_proj.requires_grad_(False)
        experts.register_forward_hook(lambda *args: calls.append(1))
    with unfused(changed):
        changed(IDS)
        for module in changed.modules():
            if isinstance(module, Experts):
                assert module.training
                assert module.num_experts == len(module.down)  # its settings are read through it
                assert not hasattr(module, "gate_up_proj")
                assert not any(layer.weight.requires_grad for layer in module.down)
                assert all(layer.weight.requires_grad for layer in module.gate_up)
    assert len(calls) == len(fused(changed))
