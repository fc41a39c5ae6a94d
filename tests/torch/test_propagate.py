"""Compression in execution order: targets against closed forms from whole runs in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import tiny_models
from diba.torch.calibration import blocks, propagate
from diba.torch.calibration.collect import calibrate
from diba.torch.calibration.targets import correction
from diba.torch.modules.kinds import factored_matrix

EPS = 2.0**-23


def replace(model, name, change):
    """Put a copy of a layer in its place, its matrix times (1 + change) entry by entry, change around 0."""
    parent, _, last = name.rpartition(".")
    layer = copy.deepcopy(model.get_submodule(name))
    generator = torch.Generator().manual_seed(len(name))
    noise = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
    layer.weight = nn.Parameter(layer.weight.detach() * (1 + change * noise).to(layer.weight.dtype))
    setattr(model.get_submodule(parent), last, layer)


def each(factor):
    """What propagation calls, from a function of one layer."""

    def together(layers):
        for layer in layers:
            factor(layer.name, layer.matrix, layer.moments)

    return together


def matrices(model, names):
    return {name: factored_matrix(model.get_submodule(name)).detach().double().numpy() for name in names}


def moments_between(dense, model, name, batches):
    """E[x x~'] and E[x~ x~'] in float64, from whole runs; dense may be the recorded inputs by batch."""
    pairs = []
    for number, batch in enumerate(batches):
        known = dense[number] if isinstance(dense, list) else tiny_models.inputs(dense, [name], batch)
        seen = [known[name], tiny_models.inputs(model, [name], batch)[name]]
        mask = batch.get("attention_mask")
        pairs += [
            [tiny_models.rows(model.get_submodule(name), x, mask) for x in xs]
            for xs in zip(*seen, strict=True)
        ]
    X, Y = (torch.cat(parts).numpy() for parts in zip(*pairs, strict=True))
    return X.T @ Y / len(X), Y.T @ Y / len(Y), len(Y)


def share_of_diagonal(inputs, count):
    """The share of shrinkage in the solver, by its formula."""
    return max(0.1, inputs / (2 * (inputs + count)))


def in_float64(name):
    model, batches = tiny_models.build(name)
    doubled = [{k: v.double() if v.is_floating_point() else v for k, v in batch.items()} for batch in batches]
    return model.double(), doubled


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_targets_are_the_closed_form_for_the_inputs_of_the_moment(name):
    """Before every layer is replaced, its target is recomputed from the models as they are then."""
    model, batches = in_float64(name)
    dense, names, order = copy.deepcopy(model), tiny_models.dense_layers(model), []
    A = matrices(dense, names)
    recorded = [tiny_models.inputs(dense, names, batch) for batch in batches]

    def factor(layer, matrix, moments):
        C, seen, count = moments_between(recorded, model, layer, batches)
        power = seen.diagonal()  # inputs of less than a hundredth of the median count as if they had that
        extra = np.diag(np.maximum(0, 0.01 * np.median(power[power > 0]) - power))
        C, S = C + extra, seen + extra
        D, shrink = np.diag(S.diagonal()), share_of_diagonal(len(S), count)
        target = A[layer] @ ((1 - shrink) * C + shrink * D) @ np.linalg.inv((1 - shrink) * S + shrink * D)
        # models round to float32 inside here and there; the inverse magnifies that by 1 / shrink at most
        scale = np.sqrt(S.diagonal())
        tolerance = 100 * EPS / shrink * np.abs(A[layer] * scale).sum(1, keepdims=True) / scale
        assert (np.abs(matrix - target) <= tolerance).all()
        np.testing.assert_allclose(moments.second, seen, rtol=0, atol=100 * EPS * power.max())
        assert moments.count == count
        order.append(layer)
        replace(model, layer, 0.2)

    propagate.run(model, names, batches, each(factor))
    assert sorted(order) == sorted(names)
    assert all(model.get_submodule(layer) is not dense.get_submodule(layer) for layer in names)


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_an_exact_copy_leaves_targets_and_moments_as_they_were(name):
    model, batches = tiny_models.build(name)
    names = tiny_models.dense_layers(model)
    A, known = matrices(model, names), calibrate(model, batches)

    def factor(layer, matrix, moments):
        assert matrix.dtype == np.float32
        n = matrix.shape[1]
        scale = np.sqrt(moments.second.diagonal())
        # C and S~ are the same sums up to rounding; the inverse magnifies it by at most 1 / shrink
        tolerance = 2 * moments.count * EPS * n / 0.1 * np.abs(A[layer] * scale).max() / scale
        assert (np.abs(matrix - A[layer]) <= tolerance).all()
        bound = moments.count * EPS * np.outer(scale, scale)
        assert (np.abs(moments.second - known[layer].second) <= bound).all()
        assert moments.count == known[layer].count
        replace(model, layer, 0.0)

    propagate.run(model, names, batches, each(factor))


def record(model, names, batches, change=0.3, **options):
    """Name -> (target, moments), in the order of the calls."""
    found = {}

    def factor(layer, matrix, moments):
        found[layer] = matrix, moments
        if change:
            replace(model, layer, change)

    propagate.run(model, names, batches, each(factor), **options)
    return found


def test_layers_come_in_the_order_in_which_they_run():
    model, batches = tiny_models.build("whisper")
    order = list(record(model, sorted(tiny_models.dense_layers(model)), batches))
    assert order[:2] == ["model.encoder.conv1", "model.encoder.conv2"]
    assert order[-1] == "proj_out"
    inside = [name.split(".")[1] for name in order[2:-1]]
    assert inside == ["encoder"] * 12 + ["decoder"] * 20


def test_sequences_are_found():
    expected = {
        "bert": [["encoder.layer.0", "encoder.layer.1"]],
        "llama": [[f"model.layers.{i}" for i in range(3)]],
        "gpt2": [["transformer.h.0", "transformer.h.1"]],
        "whisper": [[f"model.{part}.layers.{i}" for i in range(2)] for part in ("encoder", "decoder")],
        "t5": [[f"{part}.block.{i}" for i in range(2)] for part in ("encoder", "decoder")],
        "mlp": [["0", "1", "2", "3", "4"]],
    }
    for name, sequences in expected.items():
        model, batches = tiny_models.build(name)
        layers = {layer: model.get_submodule(layer) for layer in tiny_models.dense_layers(model)}
        steps = blocks.plan(model, layers, batches).steps
        assert [[block.name for block in step] for step in steps if isinstance(step, tuple)] == sequences


def test_a_corrected_layer_serves_the_dense_output_better():
    """On the calibration inputs, A' x~ is nearer to A x than A x~ is: what the correction is for."""
    model, batches = in_float64("mlp")
    dense = copy.deepcopy(model)
    A = matrices(model, ["2"])["2"]
    replace(model, "0", 0.3)
    X, Y = (
        torch.cat([tiny_models.inputs(net, ["2"], batch)["2"][0] for batch in batches]).numpy()
        for net in (dense, model)
    )
    corrected = A + A @ correction(X.T @ Y / len(X), Y.T @ Y / len(Y), 0.0)
    plain, better = (np.linalg.norm(X @ A.T - Y @ B.T) for B in (A, corrected))
    least = np.linalg.norm(X @ A.T - Y @ np.linalg.lstsq(Y, X @ A.T, rcond=None)[0])
    assert better < 0.9 * plain
    np.testing.assert_allclose(better, least, rtol=1e-3)


@pytest.mark.parametrize("shrink", [0.0, 0.1])
def test_inputs_that_are_always_zero_and_inputs_in_few_dimensions(shrink):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((2, 3, 6))
    X[:, 2] = Y[:, 2] = 0
    change = correction(X.T @ Y, Y.T @ Y, shrink)
    assert np.isfinite(change).all()
    assert not change[:, 2].any()


class Blocks(nn.Module):
    """Blocks that are no sequence, in one way or another; an embedding before, an unused layer beside."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.embed = nn.Embedding(20, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))
        self.unused = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, ids):
        x = self.embed(ids)
        order = [2, 0, 1] if self.kind == "order" else [0, 1, 2]
        for number in order:
            if self.kind == "residual":
                x = x + self.blocks[number](x)
            elif self.kind == "in place":
                y = self.blocks[number](x)
                x.mul_(2)
                x = y.add_(1)
            elif self.kind == "twice":
                x = self.blocks[0](self.blocks[number](x))
            else:
                x = self.blocks[number](x)
        return self.head(x)


@pytest.mark.parametrize("kind", ["order", "residual", "in place", "twice"])
def test_what_is_no_sequence_is_run_as_a_whole(kind):
    torch.manual_seed(0)
    model = Blocks(kind).double().eval()
    names = ["blocks.0.0", "blocks.1.0", "blocks.2.0", "head"]
    check_targets(model, names, sequences=0)


def check_targets(model, names, sequences):
    """Whether the sequences are found, and targets are the closed form for the inputs of whole runs."""
    dense = copy.deepcopy(model)
    batches = [{"ids": torch.randint(20, (3, 5))} for _ in range(2)]
    layers = {name: model.get_submodule(name) for name in names}
    steps = blocks.plan(model, layers, batches).steps
    assert sum(isinstance(step, tuple) for step in steps) == sequences

    def factor(layer, matrix, moments):
        C, S, count = moments_between(dense, model, layer, batches)
        D = 0.1 * np.diag(S.diagonal())
        target = matrices(dense, [layer])[layer] @ (0.9 * C + D) @ np.linalg.inv(0.9 * S + D)
        np.testing.assert_allclose(matrix, target, rtol=0, atol=1e-5 * np.abs(target).max())
        assert moments.count == count
        replace(model, layer, 0.3)

    propagate.run(model, names, batches, each(factor))


def test_a_sequence_that_is_an_element_of_another_is_run_once():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    layers = [nn.Embedding(20, 6), inner, nn.Linear(6, 6), nn.Linear(6, 2)]
    check_targets(Named(*layers).double().eval(), ["1.0", "1.2", "2", "3"], sequences=1)


class Named(nn.Sequential):
    """Its input has a name."""

    def forward(self, ids):
        return super().forward(ids)


class Passing(nn.Module):
    """A block that gives more than its output, for the next block."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x, scale, trail=None):
        y = torch.tanh(self.linear(x))
        trail = y if trail is None else trail + y
        return x + scale * y + trail.mean(), {"trail": trail, "size": len(x)}


class Passed(Blocks):
    """Blocks that read what the block before has passed on; ``written``: which is written to between."""

    def __init__(self, kind):
        super().__init__(kind)
        self.blocks = nn.ModuleList(Passing() for _ in range(3))

    def forward(self, ids):
        x, trail, scale = self.embed(ids), None, torch.tensor(0.5)
        for block in self.blocks:
            x, more = block(x, scale, trail=trail)
            trail = more["trail"].add_(1) if self.kind == "written" else more["trail"]
        return self.head(x)


@pytest.mark.parametrize(("kind", "sequences"), [("passed", 1), ("written", 0)])
def test_values_that_blocks_pass_on_beside_their_outputs(kind, sequences):
    torch.manual_seed(0)
    names = [*(f"blocks.{i}.linear" for i in range(3)), "head"]
    check_targets(Passed(kind).double().eval(), names, sequences)


class InPlace(nn.Module):
    """A block that changes what it is given."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        x += self.linear(x)
        return x


def test_blocks_that_change_their_inputs_are_not_run_from_held_ones():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(InPlace(), InPlace()), nn.Linear(4, 2)).eval()
    batches = [torch.randn(5, 4) for _ in range(2)]
    names = ["0", "1.0.linear", "1.1.linear", "2"]
    layers = {name: model.get_submodule(name) for name in names}
    assert not any(isinstance(step, tuple) for step in blocks.plan(model, layers, batches).steps)
    kept = [batch.clone() for batch in batches]
    first = record(copy.deepcopy(model), names, batches)
    assert list(first) == names
    assert all(torch.equal(a, b) for a, b in zip(batches, kept, strict=True))


def test_embeddings_come_first_and_layers_that_never_run_last():
    torch.manual_seed(0)
    model = Blocks("plain")
    batches = [{"ids": torch.randint(20, (3, 5))}]
    A = matrices(model, ["embed", "unused"])
    found = record(model, ["unused", "head", "blocks.1.0", "embed"], batches)
    assert list(found) == ["embed", "blocks.1.0", "head", "unused"]
    for name in ("embed", "unused"):
        np.testing.assert_array_equal(found[name][0], A[name].astype(np.float32))
        assert found[name][1] is None


def test_the_dense_model_is_whole_again_where_one_layer_has_two_names():
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double().eval()
    )
    model[2] = model[0]
    dense, batches = copy.deepcopy(model), [{"input": torch.randn(9, 4).double()}]

    def factor(layer, matrix, moments):
        if layer == "4":
            C, S, _ = moments_between(dense, model, layer, batches)
            share = share_of_diagonal(4, 9)
            D = share * np.diag(S.diagonal())
            inverse = np.linalg.inv((1 - share) * S + D)
            target = matrices(dense, ["4"])["4"] @ ((1 - share) * C + D) @ inverse
            np.testing.assert_allclose(matrix, target, rtol=0, atol=1e-5 * np.abs(target).max())
        replace(model, layer, 0.3)
        model[2] = model[0]

    propagate.run(model, ["0", "4"], batches, each(factor))


class Experts(nn.Module):
    """Sends tokens where the layer before says."""

    def __init__(self):
        super().__init__()
        self.gate, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        y = self.gate(x)
        chosen = y[:, 0] > 0
        return torch.cat([self.a(y[chosen]), self.b(y[~chosen])])


def test_a_layer_that_gets_other_tokens_is_not_corrected():
    torch.manual_seed(0)
    model, x = Experts(), torch.randn(40, 4)
    A = matrices(model, ["a", "b"])
    found = record(model, ["gate", "a", "b"], [x], change=3.0)
    before, after = (int((net(x)[:, 0] > 0).sum()) for net in (Experts().gate, model.gate))
    assert found["a"][1].count == after != before
    for name in ("a", "b"):
        np.testing.assert_array_equal(found[name][0], A[name].astype(np.float32))


def test_a_loader_that_shuffles_gives_the_same():
    model, batches = tiny_models.build("bert")
    names = tiny_models.dense_layers(model)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, shuffle=True)
    results = [record(tiny_models.build("bert")[0], names, data, change=0.1) for data in (batches, loader)]
    for name in names:
        (first, moments), (second, other) = (result[name] for result in results)
        scale = np.sqrt(moments.second.diagonal())
        bound = 100 * EPS / 0.1 * np.abs(first * scale).sum(1, keepdims=True) / scale
        assert (np.abs(first - second) <= bound).all()
        assert moments.count == other.count


def test_gradients_come_from_the_calibration():
    model, batches = tiny_models.build("mlp")
    known = calibrate(model, batches, loss=lambda net, batch: net(**batch).square().mean())
    found = record(model, ["0", "2"], batches, calibration=known)
    assert all(moments.gradient_rms is known[name].gradient_rms for name, (_, moments) in found.items())


def test_the_model_is_left_whole_when_the_solver_fails():
    model, batches = tiny_models.build("bert")
    model.train()
    names = tiny_models.dense_layers(model)
    done = []

    def factor(layer, matrix, moments):
        if layer == "pooler.dense":
            raise RuntimeError("out of patience")
        replace(model, layer, 0.1)
        done.append((layer, model.get_submodule(layer)))

    with pytest.raises(RuntimeError, match="patience"):
        propagate.run(model, names, batches, each(factor))
    assert len(done) == 12
    assert all(model.get_submodule(name) is layer for name, layer in done)
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"names": ["nothing"]}, ValueError, "no module of the model"),
        ({"names": ["1"]}, ValueError, "'1', Tanh"),
        ({"batches": []}, ValueError, "batches is empty"),
        ({"batches": [{"input": torch.full((2, 12), torch.nan)}]}, ValueError, "layer '0' are not finite"),
        ({"solve": None}, TypeError, "solve is"),
        ({"model": None}, TypeError, "model is"),
    ],
)
def test_bad_arguments_are_refused(change, error, match):
    model, batches = tiny_models.build("mlp")
    arguments = {"model": model, "names": ["0"], "batches": batches, "solve": lambda *_: None, **change}
    with pytest.raises(error, match=match):
        propagate.run(**arguments)
