"""Other libraries around diba's layers: what works, and errors that say what to do where it does not."""

from __future__ import annotations

import copy
import io

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.ao.quantization import quantize_dynamic  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import diba.torch  # noqa: E402
from diba.torch import DibaLinear  # noqa: E402

X = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))


def dense() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 32))


def packed(model: nn.Module | None = None, **settings) -> nn.Module:
    model = dense() if model is None else model
    diba.torch.convert(model, bits_per_weight=2, effort="fast", progress=False, **settings)
    return model


# ---------------------------------------------------------------- torch


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_scripting_names_what_works_instead(inside: bool) -> None:
    model = packed()
    with pytest.raises(TypeError, match=r"DibaLinear.*torch\.jit\.trace\(model, example\), torch\.export"):
        torch.jit.script(model if inside else model[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("gradients", [False, True])
def test_traced_models_are_saved_and_take_other_sizes(gradients: bool) -> None:
    model = packed()
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(model, X)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
        for x in (X, torch.cat([X, X]), X[None]):
            assert torch.equal(loaded(x), model(x))


def test_pruning_a_weight_is_refused_and_a_diagonal_is_pruned() -> None:
    layer = packed()[0]
    before, hooks = layer(X), len(layer._forward_pre_hooks)
    for attempt in (
        lambda: prune.l1_unstructured(layer, "weight", amount=0.5),
        lambda: prune.global_unstructured([(layer, "weight")], prune.L1Unstructured, amount=0.5),
    ):
        with pytest.raises(AttributeError, match=r"cannot be pruned.*diba.*before diba\.torch\.convert"):
            attempt()
    assert torch.equal(layer(X), before)
    assert len(layer._forward_pre_hooks) == hooks
    prune.l1_unstructured(layer, "d2", amount=0.5)
    assert (layer.d2 == 0).sum() == round(layer.k / 2)
    assert not torch.equal(layer(X), before)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantizing_what_is_left_leaves_factors_alone() -> None:
    model = packed(skip=["2"])
    mixed = quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    assert isinstance(mixed[0], DibaLinear)
    assert not isinstance(mixed[2], nn.Linear)
    assert torch.equal(mixed[0](X), model[0](X))


@pytest.mark.parametrize("strict", [True, False])
def test_dense_weights_are_not_loaded_into_factors_without_a_word(strict: bool) -> None:
    model = packed()
    with pytest.raises(
        RuntimeError, match=r"0\.weight is the weight of a dense layer.*before diba\.torch\.convert"
    ):
        model.load_state_dict(dense().state_dict(), strict=strict)
    state = packed().state_dict() | {"0.weight": torch.empty(0)}  # as checkpoints of diba.hf have it
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == ([], ["0.weight"])


# ---------------------------------------------------------------- accelerate

HOOK = r"0 has a hook of accelerate.*remove_hook_from_module\(model, recurse=True\)"


@pytest.fixture(params=["memory", "disk"])
def offload(request, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    if request.param == "memory":
        return accelerate.cpu_offload
    return lambda model: accelerate.disk_offload(model, str(tmp_path))


def test_dispatched_models_are_not_converted_before_their_hooks_are_gone(offload) -> None:
    from accelerate.hooks import remove_hook_from_module

    model = offload(dense())
    with pytest.raises(ValueError, match=HOOK):
        packed(model)
    with pytest.raises(ValueError, match=HOOK):
        diba.allocate(model, 2)
    assert type(model[0]) is type(model[2]) is nn.Linear
    remove_hook_from_module(model, recurse=True)
    assert torch.equal(packed(model)(X), packed()(X))


def test_compressed_models_are_offloaded_and_come_back(offload) -> None:
    from accelerate.hooks import remove_hook_from_module

    model = packed()
    expected = model(X)
    offload(model)
    assert model[0].d1.is_meta
    for _ in range(2):
        assert torch.equal(model(X), expected)
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=r"factors of 0 are on the meta device.*remove_hook_from_module"):
        diba.torch.retune(model, [X], loss=lambda m, x: m(x).square().mean(), progress=False)
    assert [p.requires_grad for p in model.parameters()] == before
    remove_hook_from_module(model, recurse=True)
    assert torch.equal(model(X), expected)
    diba.torch.retune(model, [X], loss=lambda m, x: m(x).square().mean(), progress=False)


def test_weights_that_stay_on_the_disk_are_named() -> None:
    with torch.device("meta"):
        model = dense()
    with pytest.raises(ValueError, match=r"meta device, without values.*without device_map"):
        packed(model)


def test_a_dispatch_to_one_device_is_no_obstacle() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.dispatch_model(dense(), {"": "cpu"})
    assert torch.equal(packed(model)(X), packed()(X))
    hooked = accelerate.dispatch_model(packed(), {"": "cpu"}, force_hooks=True)
    assert torch.equal(hooked(X), packed()(X))
    sizes = accelerate.utils.compute_module_sizes(packed())
    assert sizes[""] == sum(t.nbytes for t in packed().state_dict().values())


def test_prepared_models_train() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = packed()
    before = model[0].d1.detach().clone()
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.backward(prepared(X).square().sum())
    optimizer.step()
    assert not torch.equal(model[0].d1, before)
    assert accelerator.unwrap_model(prepared) is model
