"""Weights of vectors and outputs from the gradients of a loss: what they are, and what they are good for."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diba
import diba.torch
import tiny_models
from diba.solvers.second_moments import shrinkage
from diba.torch.calibration import propagate
from diba.torch.calibration.sensitivity import LEAST, Sensitivity, measure
from diba.torch.modules.vectors import mark, marked
from diba.torch.retuning.batches import digest


def square(model: nn.Module, batch: Tensor) -> Tensor:
    """The squares of the outputs, those of the first rows counted most."""
    scale = torch.arange(len(batch), 0, -1)[:, None]
    return (scale * model(batch)).square().sum()


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8)).double()


def gradients(model: nn.Sequential, batch: Tensor, name: str) -> np.ndarray:
    """Gradients of the loss at a layer's outputs, by autograd on the outputs themselves."""
    hidden = batch
    for index, module in enumerate(model):
        hidden = module(hidden)
        if str(index) == name:
            hidden = y = hidden.detach().requires_grad_()
    scale = torch.arange(len(batch), 0, -1)[:, None]
    return torch.autograd.grad((scale * hidden).square().sum(), y)[0].numpy()


def test_weights_are_the_gradients_of_rows_and_columns() -> None:
    model = perceptron()
    batches = [torch.randn(n, 12).double() for n in (6, 3)]
    found = measure(model, {"0": model[0], "2": model[2]}, batches, square)
    for name in ("0", "2"):
        g = [gradients(model, batch, name) ** 2 for batch in batches]
        total = np.concatenate(g).sum() / 9
        for batch, squares in zip(batches, g, strict=True):
            expected = np.sqrt(squares.sum(1) / total) + LEAST
            weights = found.weights(digest(batch), [name], 0)
            assert weights is not None
            np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
        np.testing.assert_allclose(found.outputs(name), np.sqrt(np.concatenate(g).mean(0)), rtol=1e-12)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_weights_of_a_batch_lie_together_and_progress_is_told() -> None:
    """Many small tensors among the large ones of the passes would cut the heap into pieces."""
    model, batches, told = perceptron(), [torch.randn(n, 12).double() for n in (6, 3)], list[int]()
    layers = {"0": model[0], "2": model[2]}
    found = measure(model, layers, batches, square, after_batch=told.append)
    assert told == [1, 2]
    places = {
        weights.untyped_storage().data_ptr()
        for batch in found._vectors.values()
        for weights in batch.values()
    }
    assert len(places) == 2


def test_what_runs_again_gives_the_same_gradients_and_holds_less() -> None:
    """Of three blocks only the inputs are held, and their insides while their own gradients are made."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 5)) for _ in range(3)))
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    batches, blocks, held = [torch.randn(n, 5) for n in (6, 3)], ["0", "1", "2"], list[int]()

    def held_too(model: nn.Module, batch: Tensor) -> Tensor:
        kept = list[Tensor]()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            value = square(model, batch)
        held.append(sum(x.shape == (len(batch), 4) for x in kept))
        return value

    held_all = measure(model, layers, batches, held_too, blocks).state()
    again = measure(model, layers, batches, held_too, blocks, blocks).state()
    for one, other in ((held_all, again), (again["channels"], held_all["channels"])):
        assert list(one) == list(other)
    assert all(torch.equal(again["outputs"][name], held_all["outputs"][name]) for name in layers)
    assert all(torch.equal(again["channels"][name], held_all["channels"][name]) for name in blocks)
    for mine, other in zip(again["vectors"], held_all["vectors"], strict=True):
        assert mine[:3] == other[:3]
        assert torch.equal(mine[3], other[3])
    assert held == [3, 3, 0, 0]
    assert all("forward" not in vars(block) for block in model)


def test_packed_weights_still_tell_whose_they_are() -> None:
    """Experts get some of the tokens; the marks of their vectors match them to those of other passes."""
    found, rows = Sensitivity(), torch.tensor([4, 1, 2])
    found.add(b"batch", "expert", 0, torch.ones(3, 5).double(), mark(torch.rand(3).double(), rows, 6))
    found.pack(b"batch")
    weights = found.weights(b"batch", ["expert"], 0)
    assert weights is not None
    known = marked(weights)
    assert known is not None
    assert known[0].tolist() == rows.tolist()
    assert known[1] == 6


def test_layers_of_one_input_are_weighed_by_all_their_outputs() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(4, 3), nn.Linear(4, 5), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.a(x), self.b(x), self.unused(x).detach()], 1)

    torch.manual_seed(0)
    model, x = Fork(), torch.randn(7, 4)
    layers = dict(model.named_children())
    found = measure(model, layers, [x], square)
    both = found.weights(digest(x), ["a", "b", "unused"], 0)
    y = model(x).detach()[:, :8]
    expected = (2 * torch.arange(7, 0, -1)[:, None] ** 2 * y).double().square().sum(1)
    expected = (expected / expected.mean()).sqrt() + LEAST
    assert both is not None
    np.testing.assert_allclose(both.numpy(), expected.numpy(), rtol=1e-5)
    assert found.weights(digest(x), ["unused"], 0) is None
    assert found.outputs("unused") is None


@pytest.mark.parametrize("readers", [["up_proj", "gate_proj"], ["lm_head"]])  # in a block, and outside
def test_layers_get_moments_with_the_weights_of_their_vectors(readers: list[str]) -> None:
    model, batches = tiny_models.build("llama")
    loss = diba.torch.fisher()
    names = tiny_models.dense_layers(model)
    layers = {name: model.get_submodule(name) for name in names}
    known = measure(model, layers, batches, diba.torch.fisher())
    name = next(name for name in names if name.endswith(readers[0]))
    inputs: list[Tensor] = []
    hook = layers[name].register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    for batch in batches:
        with torch.no_grad():
            model(**batch)
    hook.remove()
    total, weight, squares, vectors = 0.0, 0.0, 0.0, 0
    group = [name.replace(readers[0], reader) for reader in readers]
    for batch, x in zip(batches, inputs, strict=True):
        mask = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones(x.shape[:2]).bool()
        rows = x[mask].double().numpy()
        w = known.weights(digest(batch), group, 0)
        assert w is not None
        w = w.double().numpy()
        total = total + (rows * w[:, None]).T @ rows
        weight, squares, vectors = weight + w.sum(), squares + (w**2).sum(), vectors + len(w)
    given: dict[str, Any] = {}

    def factor(wanted: Any) -> None:  # leaves all layers dense: inputs stay those of the dense model
        given.update({layer.name: layer for layer in wanted})

    propagate.run(model, names, batches, factor, loss=loss)
    moments = given[name].moments
    expected = total / weight
    np.testing.assert_allclose(moments.second, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert moments.count == round(weight**2 / squares)
    np.testing.assert_allclose(moments.gradient_rms, known.outputs(name), rtol=1e-12)
    np.testing.assert_array_equal(given[name].matrix, layers[name].weight.detach().numpy())


def test_what_the_loss_looks_at_is_kept_better() -> None:
    """Inputs from two spaces, orthogonal; the loss looks at the answers to the rarer ones only."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 80), nn.ReLU(), nn.Linear(80, 64))
    rotation = torch.linalg.qr(torch.randn(96, 96))[0]
    loud, quiet = torch.randn(900, 48) @ rotation[:48], torch.randn(100, 48) @ rotation[48:]
    batches = [torch.cat([loud[i::4], quiet[i::4]]) for i in range(4)]

    loss = diba.torch.fisher(features=True, forward=lambda model, batch: model(batch)[225:])

    def error(**options: Any) -> float:
        other = copy.deepcopy(model)
        settings = {"bits_per_weight": 2, "alphabet": "sign", "effort": "fast", "progress": False}
        diba.torch.convert(other, batches=batches, **settings, **options)
        with torch.no_grad():
            return float((other(quiet) - model(quiet)).square().sum())

    assert error(loss=loss) < 0.7 * error()


def test_batches_must_be_the_same_again_and_a_loss_needs_them() -> None:
    model, rng = perceptron(), torch.Generator().manual_seed(0)

    class Fresh:
        def __iter__(self) -> Any:
            return iter([torch.randn(5, 12, generator=rng).double()])

    with pytest.raises(ValueError, match=r"not the same when they are read again"):
        diba.torch.convert(model, k=4, batches=Fresh(), loss=square, progress=False)
    assert isinstance(model[0], nn.Linear)
    some, part = [torch.randn(5, 12).double()], lambda model, batch: square(model, batch[:2])
    with pytest.raises(ValueError, match=r"calls the model with 2 vectors .* in that batch has 5"):
        diba.torch.convert(model, k=4, batches=some, loss=part, progress=False)
    with pytest.raises(ValueError, match="loss is given without batches"):
        diba.torch.convert(model, bits_per_weight=2, loss=square)
    with pytest.raises(TypeError, match=r"loss is .*'mse'"):
        diba.torch.convert(model, bits_per_weight=2, batches=[torch.zeros(2, 12).double()], loss="mse")  # type: ignore[arg-type]
    broken = [torch.full((2, 12), math.inf).double()]
    with pytest.raises(ValueError, match=r"loss is nan in batch 0"):
        measure(model, {"0": model[0]}, broken, square)


def test_equal_weights_count_every_vector() -> None:
    assert shrinkage(384, 16_000) == 0.1
    assert shrinkage(384, 128) == 384 / 1024
