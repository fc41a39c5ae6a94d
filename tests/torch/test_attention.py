"""nn.MultiheadAttention in parts: the same numbers as torch's own, and back again."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from diba.layers.config import Config  # noqa: E402
from diba.torch.calibration.collect import calibrate  # noqa: E402
from diba.torch.conversion.convert import convert  # noqa: E402
from diba.torch.conversion.report import report  # noqa: E402
from diba.torch.model.attention import Attention  # noqa: E402
from diba.torch.model.selection import targets  # noqa: E402
from diba.torch.model.swap import fuse, unfuse, unfused  # noqa: E402
from diba.torch.modules.layer import FactoredLayer  # noqa: E402

# Sums of at most 2^5 terms, one after another in six places, on numbers that cancel to no less than 2^-8.
TOLERANCE = 2.0**-52 * 2**5 * 6 * 2**8
FAST = {"bits_per_weight": 4, "method": "greedy", "effort": "fast", "threads": 1, "progress": False}
NAMES = ["q_proj", "k_proj", "v_proj", "out_proj"]


def attention(**settings: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    made = nn.MultiheadAttention(16, 4, **settings).double().eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)  # biases too
    return made


def inputs(layer: nn.MultiheadAttention, kind: str) -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(1)

    def made(length: int, size: int) -> Any:
        shape = (length, size) if kind == "unbatched" else (2, length, size)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return x if kind == "unbatched" or layer.batch_first else x.transpose(0, 1)

    if kind == "self":
        x = made(5, 16)
        return x, x, x
    return made(5, 16), made(6, layer.kdim), made(6, layer.vdim)


def close(found: Any, expected: Any) -> None:
    assert (found is None) == (expected is None)
    if expected is not None:
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


SETTINGS = [
    {},
    {"batch_first": True},
    {"bias": False, "batch_first": True},
    {"add_bias_kv": True},
    {"add_zero_attn": True, "batch_first": True},
    {"add_bias_kv": True, "add_zero_attn": True},
    {"kdim": 8, "vdim": 12, "batch_first": True},
]


KINDS = ("self", "cross", "unbatched")
CASES = [(s, kind) for s in SETTINGS for kind in KINDS if kind != "self" or "kdim" not in s]


@pytest.mark.parametrize(("settings", "kind"), CASES, ids=str)
def test_the_numbers_are_those_of_torch(settings: dict[str, Any], kind: str) -> None:
    layer = attention(**settings)
    part = Attention.from_fused(layer)
    q, k, v = inputs(layer, kind)
    source, batch = (5 if kind == "self" else 6), (1 if kind == "unbatched" else 2)
    padding = torch.zeros(batch, source, dtype=torch.bool)
    padding[-1, 4:] = True
    hidden = torch.ones(5, source, dtype=torch.bool).triu(1)
    values = torch.randn(batch * 4, 5, source, dtype=torch.float64)
    for attn_mask, mask in itertools.product((None, hidden, values), (None, padding)):
        if attn_mask is not None and mask is not None and attn_mask.dtype != mask.dtype:
            mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask, -torch.inf)
        mask = mask[0] if mask is not None and kind == "unbatched" else mask
        for need_weights, average in ((False, True), (True, True), (True, False)):
            options = {
                "key_padding_mask": mask,
                "attn_mask": attn_mask,
                "need_weights": need_weights,
                "average_attn_weights": average,
            }
            with torch.no_grad():
                expected, found = layer(q, k, v, **options), part(q, k, v, **options)
            close(found[0], expected[0])
            close(found[1], expected[1])
    with torch.no_grad():
        close(
            part(q, k, v, attn_mask=hidden, is_causal=True)[0],
            layer(q, k, v, attn_mask=hidden, is_causal=True)[0],
        )


def test_gradients_are_those_of_torch() -> None:
    layer = attention(add_bias_kv=True)
    part = Attention.from_fused(copy.deepcopy(layer))
    q, k, v = (x.clone().requires_grad_() for x in inputs(layer, "cross"))
    expected = torch.autograd.grad(layer(q, k, v)[0].sin().sum(), [q, k, v, *layer.parameters()])
    found = torch.autograd.grad(part(q, k, v)[0].sin().sum(), [q, k, v])
    for mine, theirs in zip(found, expected[:3], strict=True):
        close(mine, theirs)
    part(q, k, v)[0].sin().sum().backward()
    grads = dict(zip(dict(layer.named_parameters()), expected[3:], strict=True))
    for name, places in part.sources().items():
        parts = [getattr(part.get_submodule(own), which).grad for own, which in places]
        close(part.join(name, parts), grads[name])
    close(part.bias_k.grad, grads["bias_k"])


def test_masks_of_other_shapes_or_types_are_refused() -> None:
    part = Attention.from_fused(attention(batch_first=True))
    q, k, v = inputs(part.fused, "cross")
    with pytest.raises(
        RuntimeError, match=r"attn_mask has shape \(6, 5\); it must be \(5, 6\) or \(8, 5, 6\)"
    ):
        part(q, k, v, attn_mask=torch.zeros(6, 5, dtype=torch.bool))
    with pytest.raises(RuntimeError, match=r"key_padding_mask has shape \(1, 6\); it must be \(2, 6\)"):
        part(q, k, v, key_padding_mask=torch.zeros(1, 6, dtype=torch.bool))
    with pytest.raises(RuntimeError, match=r"attn_mask is torch\.int64"):
        part(q, k, v, attn_mask=torch.zeros(5, 6, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="give both"):
        part(q, k, v, is_causal=True)


def test_dropout_takes_part_in_training_alone() -> None:
    part = Attention.from_fused(attention(dropout=0.5))
    x = inputs(part.fused, "self")
    for need_weights in (False, True):
        assert torch.equal(part(*x, need_weights=need_weights)[0], part(*x, need_weights=need_weights)[0])
        part.train()
        assert not torch.equal(part(*x, need_weights=need_weights)[0], part(*x, need_weights=need_weights)[0])
        part.eval()


class Net(nn.Module):
    """Self-attention and attention to something else, the first under two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.MultiheadAttention(16, 2, batch_first=True)
        self.again = self.first
        self.second = nn.MultiheadAttention(16, 2, kdim=8, vdim=8, batch_first=True)

    def forward(self, x: Any, memory: Any) -> Any:
        x = x + self.first(x, x, x, need_weights=False)[0]
        x = x + self.again(x, x, x)[0]
        return x + self.second(x, memory, memory)[0]


def batches() -> list[tuple[Any, Any]]:
    torch.manual_seed(1)
    return [(torch.randn(3, 5, 16), torch.randn(3, 4, 8)) for _ in range(2)]


def test_taking_apart_for_a_while_leaves_no_trace() -> None:
    model = Net()
    model.first.in_proj_bias.requires_grad_(False)
    calls: list[str] = []
    handle = model.first.register_forward_hook(lambda *args: calls.append("first"))
    before = {name: (parameter, parameter._version) for name, parameter in model.named_parameters()}
    modules = dict(model.named_modules(remove_duplicate=False))
    names = [target.name for target in targets(model, Config(k=4))]
    assert names == [f"{owner}.{name}" for owner in ("first", "second") for name in NAMES]
    moments = calibrate(model, batches(), progress=False)
    assert list(moments) == names
    assert len(calls) == 2 * len(batches())  # hooks are called by what stands for the module
    with unfused(model):
        assert model.first is model.again
        assert isinstance(model.first, Attention)
        assert [p.requires_grad for p in model.first.q_proj.parameters()] == [True, False]
        shared = model.first.k_proj.weight.untyped_storage().data_ptr()
    assert shared == model.first.in_proj_weight.untyped_storage().data_ptr()
    assert dict(model.named_modules(remove_duplicate=False)) == modules
    assert all(p is before[name][0] for name, p in model.named_parameters())
    assert len(before) == len(list(model.parameters()))
    handle.remove()
    assert not model.first._forward_hooks


@pytest.mark.parametrize("calibrated", [False, True])
def test_conversion_replaces_the_projections(calibrated: bool) -> None:
    model = Net()
    dense = copy.deepcopy(model)
    data = {"batches": batches()} if calibrated else {}
    made = report(convert(model, skip=["second.k_proj"], **FAST, **data))
    assert [layer.name for layer in made.layers] == [
        name for name in (f"{o}.{n}" for o in ("first", "second") for n in NAMES) if name != "second.k_proj"
    ]
    assert {layer.objective for layer in made.layers} == {"covariance" if calibrated else "plain"}
    assert all(isinstance(model.get_submodule(layer.name), FactoredLayer) for layer in made.layers)
    kept = model.second.k_proj.weight
    assert torch.equal(kept, dense.second.k_proj_weight)
    assert "first.q_proj.b1" in model.state_dict()
    assert "first.in_proj_weight" not in model.state_dict()
    out = model(*batches()[0])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(*batches()[0]), out)
    other = Net()
    convert(other, skip=["second.k_proj"], **FAST)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(*batches()[0]), out)


def test_what_has_no_factors_is_put_together_again() -> None:
    model = Net()
    dense = copy.deepcopy(model)
    first = list(model.first.parameters())

    def stop(state: Any) -> None:
        if state.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(model, layers={r"re:first.*": None}, **FAST | {"progress": stop})
    assert [type(module) for module in (model.first, model.second)] == [nn.MultiheadAttention, Attention]
    assert all(a is b for a, b in zip(model.first.parameters(), first, strict=True))
    assert torch.isfinite(model(*batches()[0])).all()
    convert(model, **FAST)
    for part in (model.first, model.second):
        assert all(isinstance(part.get_submodule(name), FactoredLayer) for name in NAMES)
    for part in (model.first, model.second):
        for name in NAMES:
            setattr(part, name, part.get_submodule(name).to_dense_module())
    weights = [model.first.get_submodule(name).weight for name in NAMES]
    fuse(model)
    assert dict(model.named_parameters()).keys() == dict(dense.named_parameters()).keys()
    assert torch.equal(model.first.in_proj_weight, torch.cat(weights[:3]))
    assert torch.equal(model.first.out_proj.weight, weights[3])
    assert torch.equal(model.first.in_proj_bias, dense.first.in_proj_bias)


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"kdim": 12, "vdim": 20}])
def test_fused_tensors_are_split_as_they_are_joined(settings: dict[str, Any]) -> None:
    fused = attention(**settings)
    part = Attention.from_fused(fused)
    for name, sources in part.sources().items():
        tensors = [part.get_parameter(f"{layer}.{own}") for layer, own in sources]
        whole = part.join(name, tensors)
        assert torch.equal(whole, fused.get_parameter(name))
        assert all(map(torch.equal, part.split(name, whole), tensors))
    assert part.sources().keys() == dict(fused.named_parameters()).keys()


def test_only_attention_that_is_torchs_own_is_taken_apart() -> None:
    class Other(nn.MultiheadAttention):
        pass

    patched, pruned = nn.MultiheadAttention(16, 2), nn.MultiheadAttention(16, 2)
    patched.forward = lambda *args: args  # type: ignore[method-assign]
    nn.utils.parametrizations.weight_norm(pruned, "in_proj_weight")
    assert not unfuse(nn.ModuleList([Other(16, 2), patched, pruned]))
    assert len(unfuse(nn.ModuleList([nn.MultiheadAttention(16, 2)]))) == 1
