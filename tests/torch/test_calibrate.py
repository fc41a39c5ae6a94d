"""Calibration against moments computed in float64 from inputs that hooks of the test record."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

import diba
import tiny_models
from diba.layers.config import Config
from diba.torch import Calibration, Moments
from diba.torch.calibration import propagate
from diba.torch.calibration.collect import calibrate
from diba.torch.modules import vectors
from diba.torch.retuning.batches import call, evaluating, repeatable, size

EPS = 2.0**-23


def reference(model, names, batches):
    """Name -> input vectors in float64, padding left out."""
    found = {name: [] for name in names}
    for batch in batches:
        mask = batch.get("attention_mask")
        for name, calls in tiny_models.inputs(model, names, batch).items():
            found[name] += [tiny_models.rows(model.get_submodule(name), x, mask) for x in calls]
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def check(moments, X):
    """Second moments within the rounding of float32 sums over len(X) products, taken about an origin."""
    assert moments.count == len(X)
    assert moments.second.dtype == np.float64
    np.testing.assert_array_equal(moments.second, moments.second.T)
    size = np.abs(X)
    far = size + size.mean(0) + size.max(0) / 256  # most that vectors are away from the origin
    bound = (len(X) + 2) * EPS * (far.T @ far) / len(X)
    assert (np.abs(moments.second - X.T @ X / len(X)) <= bound).all()


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_moments_are_those_of_the_recorded_inputs(name):
    model, batches = tiny_models.build(name)
    names = tiny_models.dense_layers(model)
    found = calibrate(model, batches, progress=False)
    assert list(found) == names
    for layer, X in reference(model, names, batches).items():
        check(found[layer], X)
        assert found[layer].gradient_rms is None


class Images(nn.Module):
    """As many patches as the text has tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.project = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, pixels):
        return self.project(self.embed(pixels.flatten(2).movedim(1, 2)))


class TextAndImages(nn.Module):
    def __init__(self):
        super().__init__()
        self.text, self.images, self.head = nn.Sequential(nn.Linear(4, 4)), Images(), nn.Linear(4, 2)

    def forward(self, embeds, pixels, attention_mask):
        return self.head(self.text(embeds) + self.images(pixels))


@pytest.mark.parametrize("by_order", [False, True])
def test_a_mask_of_tokens_is_not_for_patches_of_images(by_order):
    torch.manual_seed(0)
    model, mask = TextAndImages(), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {"embeds": torch.randn(2, 4, 4), "pixels": torch.randn(2, 3, 2, 2), "attention_mask": mask}
    if by_order:
        found = {}
        names = ["text.0", "images.embed", "images.project", "head"]
        propagate.run(
            model, names, [batch], lambda tasks: found.update({task.name: task.moments for task in tasks})
        )
    else:
        found = calibrate(model, [batch], loss=lambda net, batch: net(**batch).sum(), progress=False)
        assert found["images.project"].gradient_count == 8
        assert found["head"].gradient_count == 6
    counts = {name: moments.count for name, moments in found.items()}
    assert counts == {"text.0": 6, "images.embed": 8, "images.project": 8, "head": 6}


def test_layers_that_read_the_same_tensor_share_their_sums():
    model, batches = tiny_models.build("bert")
    found = calibrate(model, batches)
    query, key, dense = (
        found[f"encoder.layer.0.attention.{name}"].second
        for name in ("self.query", "self.key", "output.dense")
    )
    assert query is key
    assert query is not dense


class Sometimes(nn.Module):
    """Two layers that read one tensor in some batches only."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x, how):
        y = self.a(x)
        if how == "skip":
            return y
        return y + self.b(x if how == "same" else 2 * x) + (self.c(x) if how == "all" else 0)


@pytest.mark.parametrize("kinds", [("same", "other"), ("same", "skip"), ("skip", "same"), ("same", "all")])
def test_sums_are_kept_apart_where_layers_stop_reading_the_same_tensor(kinds):
    x = torch.arange(12.0).reshape(4, 3)
    found = calibrate(Sometimes(), [(x, kind) for kind in kinds])
    X = x.numpy().astype(np.float64)
    read = {
        "a": [X for _ in kinds],
        "b": [X if kind == "same" else 2 * X for kind in kinds if kind != "skip"],
        "c": [X for kind in kinds if kind == "all"],
    }
    for name, parts in read.items():
        if not parts:
            assert name not in found
            continue
        stacked = np.concatenate(parts)
        np.testing.assert_array_equal(found[name].second, stacked.T @ stacked / len(stacked))
        assert found[name].count == len(stacked)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1), "dilation": (1, 2)},
        {"kernel_size": (3, 2), "padding": "same", "dilation": (2, 1)},
        {"kernel_size": 3, "padding": "valid"},
        {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    ],
)
@pytest.mark.parametrize("Conv", [nn.Conv1d, nn.Conv2d])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_a_convolution_is_its_matrix_times_its_patches(Conv, options):
    if Conv is nn.Conv1d:
        options = {key: value[0] if isinstance(value, tuple) else value for key, value in options.items()}
    conv = Conv(3, 4, **options, bias=False)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        conv.weight.copy_(torch.randint(-3, 4, conv.weight.shape, generator=generator))
    x = torch.randint(-3, 4, (2, 3, 9, 7) if Conv is nn.Conv2d else (2, 3, 9), generator=generator).float()
    y = vectors.vectors(conv, x) @ conv.weight.detach().flatten(1).T
    expected = conv(x).detach()
    torch.testing.assert_close(y, vectors.output_rows(conv, expected), rtol=0, atol=0)
    one = vectors.vectors(conv, x[0]) @ conv.weight.detach().flatten(1).T
    torch.testing.assert_close(one, vectors.output_rows(conv, expected[0]), rtol=0, atol=0)


def test_patches_are_taken_evenly_where_there_are_very_many(monkeypatch):
    monkeypatch.setattr(vectors, "PATCHES", 100)
    conv = nn.Conv2d(1, 1, 1)
    x = torch.arange(2.0 * 50 * 40).reshape(2, 1, 50, 40)  # every patch is its own position
    positions = vectors.vectors(conv, x).flatten()
    assert torch.equal(positions, vectors.vectors(conv, x).flatten())
    assert 90 <= len(positions) <= 100
    gaps = torch.diff(positions, prepend=torch.tensor([-1.0]), append=torch.tensor([4000.0]))
    assert gaps.min() >= 1
    assert gaps.max() <= 3 * 4000 / 100
    columns = torch.unique(positions % 40)
    assert len(columns) > 30  # in step with the rows of 40, it would be a few


def test_second_moments_of_a_convolution_inside_a_model():
    conv = nn.Conv2d(2, 3, 3, padding=1)
    x = torch.randint(-3, 4, (2, 2, 5, 6)).float()
    found = calibrate(nn.Sequential(conv, nn.ReLU()), [x])["0"]
    X = nn.functional.unfold(x.double(), 3, padding=1).movedim(1, 2).flatten(0, 1).numpy()
    np.testing.assert_array_equal(found.second, X.T @ X / len(X))


@pytest.mark.parametrize("frozen", [False, True])
def test_gradient_rms_is_that_of_autograd(frozen):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)).double()
    model.requires_grad_(not frozen)
    batches = [(torch.randn(6, 5).double(), torch.randn(6, 3).double()) for _ in range(2)]

    def loss(net, batch):
        return (net(batch[0]) - batch[1]).square().mean()

    found = calibrate(model, batches, loss=loss)
    W, squares = model[2].weight.detach(), {"0": [], "2": []}
    for x, target in batches:
        before = model[0](x).detach()
        g2 = 2 * (model[2](before.clamp(min=0)).detach() - target) / target.numel()
        squares["2"].append(g2**2)
        squares["0"].append((g2 @ W * (before > 0)) ** 2)
    for name, parts in squares.items():
        expected = torch.cat(parts).mean(0).sqrt().numpy()
        np.testing.assert_allclose(found[name].gradient_rms, expected, rtol=1e-12)
    rows, columns = found["2"].importance
    np.testing.assert_allclose(rows, np.maximum(rows, 1e-3 * rows.max()))
    assert (columns > 0).all()
    assert all(p.grad is None and p.requires_grad is not frozen for p in model.parameters())


def test_gradients_of_padding_and_of_a_language_model():
    model, batches = tiny_models.build("llama")

    def loss(net, batch):
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return net(**batch, labels=labels, use_cache=False).loss

    found = calibrate(model, batches, loss=loss)
    outputs = []
    for batch in batches:
        hook = model.lm_head.register_forward_hook(
            lambda module, args, y: (y.retain_grad(), outputs.append(y))[1]
        )
        value = loss(model, batch)
        hook.remove()
        value.backward()
    kept = [y.grad[batch["attention_mask"].bool()] for y, batch in zip(outputs, batches, strict=True)]
    expected = torch.cat(kept).double().square().mean(0).sqrt().numpy()
    np.testing.assert_allclose(
        found["lm_head"].gradient_rms, expected, rtol=1e-4
    )  # two float32 backward passes
    assert all(moments.gradient_rms is not None for moments in found.values())


def test_modes_gradients_and_hooks_are_left_as_they_were():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 2))
    model[1].eval()
    model[2].weight.requires_grad_(False)
    model(torch.ones(1, 3)).sum().backward()
    model.register_forward_hook(lambda module, args, output: None)
    kept = model[0].weight.grad.clone()

    def state():
        modes = [module.training for module in model.modules()]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        return modes, hooks, [p.requires_grad for p in model.parameters()]

    before = state()
    x = torch.ones(2, 3)
    with torch.inference_mode():
        calibrate(model, [x], loss=lambda net, batch: net(batch).sum())
    assert state() == before
    with pytest.raises(ZeroDivisionError):
        calibrate(model, [x], loss=lambda net, batch: net(batch).sum() / (1 // 0))
    nn.init.constant_(model[0].bias, torch.inf)
    with pytest.raises(ValueError, match="'2' are not finite"):
        calibrate(model, [x])
    assert state() == before
    assert torch.equal(model[0].weight.grad, kept)


def test_inputs_that_are_not_finite_name_the_layer_and_the_batch():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"inputs of layer '0' are not finite in batch 1"):
        calibrate(model, [torch.ones(1, 3), torch.tensor([[1.0, torch.nan, 0.0]])])
    with pytest.raises(ValueError, match=r"gradients of the outputs of layer '.' in batch 0 are not finite"):
        calibrate(model, [torch.ones(1, 3)], loss=lambda net, x: (net(x) * 0).pow(0.5).sum())


@pytest.mark.parametrize(
    ("loss", "error", "match"),
    [
        (lambda net, x: 3.0, TypeError, "loss returned"),
        (lambda net, x: net(x), TypeError, "scalar"),
        (lambda net, x: net(x).sum().detach(), ValueError, "without gradient"),
        (lambda net, x: net(x).sum() * torch.inf, ValueError, "loss is"),
        ("mse", TypeError, "loss is"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss, error, match):
    with pytest.raises(error, match=match):
        calibrate(nn.Linear(3, 2), [torch.ones(1, 3)], loss=loss)


def test_reading_ends_after_enough_tokens():
    model, batches = nn.Linear(3, 2), [torch.ones(4, 3)] * 5
    assert calibrate(nn.Sequential(model), batches, tokens=9)["0"].count == 12
    with pytest.raises(ValueError, match="tokens is 0"):
        calibrate(model, batches, tokens=0)


class Endless:
    """Batches without a length."""

    def __iter__(self):
        return itertools.repeat(torch.ones(4, 3))


def test_progress_is_told_of_every_batch():
    for batches, total in (([torch.ones(4, 3)] * 3, 3), (Endless(), None)):
        seen = []
        calibrate(nn.Linear(3, 2), batches, tokens=12, progress=seen.append)
        assert [(state.task, state.done, state.total) for state in seen] == [
            ("calibrate", done, total) for done in range(4)
        ]
    with pytest.raises(TypeError, match="progress is 2"):
        calibrate(nn.Linear(3, 2), [torch.ones(4, 3)], progress=2)


def test_a_config_says_which_layers():
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    found = calibrate(model, [torch.ones(1, 64)], config=Config(bits_per_weight=2, skip=("1",)))
    assert list(found) == ["0", "2"]


def test_a_model_without_dense_layers_is_refused():
    with pytest.raises(ValueError, match="no dense layer"):
        calibrate(nn.Embedding(3, 2), [torch.tensor([1])])
    with pytest.raises(TypeError, match="model is"):
        calibrate("bert", [torch.tensor([1])])


# ---------------------------------------------------------------- files and merging


def test_a_saved_calibration_is_read_back_to_the_last_bit(tmp_path):
    model, batches = tiny_models.build("bert")
    found = calibrate(model, batches, loss=lambda net, batch: net(**batch).last_hidden_state.square().mean())
    found.save(tmp_path / "moments.safetensors")
    read = Calibration.load(tmp_path / "moments.safetensors")
    assert list(read) == list(found)
    assert repr(read) == repr(found)
    for name, moments in found.items():
        assert (read[name].count, read[name].outputs) == (moments.count, moments.outputs)
        assert read[name].second.tobytes() == moments.second.tobytes()
        gradient = moments.gradient_rms
        if gradient is None:
            assert read[name].gradient_rms is None  # the pooler, which this loss does not ask for
        else:
            assert read[name].gradient_rms.tobytes() == gradient.tobytes()
    names = [f"encoder.layer.1.attention.self.{name}" for name in ("query", "key")]
    assert read[names[0]].second is read[names[1]].second


def test_damaged_files_say_so(tmp_path, source_root):
    """Every kind of damage is in tests/corpus/calibration; here: file, layer and tensor are named."""
    from safetensors.numpy import save_file

    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(diba.FormatError, match="not a safetensors file"):
        Calibration.load(path)
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(
        diba.FormatError, match="is not a calibration: metadata 'format' is missing, expected"
    ):
        Calibration.load(path)
    with pytest.raises(FileNotFoundError):
        Calibration.load(tmp_path / "none")
    corpus = source_root / "tests" / "corpus" / "calibration" / "bad"
    for name, message in (
        ("nan", "layer 'layers.0.é': tensor 'second.0' has NaN or infinite entries"),
        (
            "negative-mean-square",
            "layer 'layers.0.é': tensor 'second.0' has negative entries on its diagonal",
        ),
        ("large-off-the-diagonal", "tensor 'second.0' has its largest entries off the diagonal"),
        (
            "negative-gradient",
            "layer 'layers.0.é': tensor 'gradient.0' has negative, NaN or infinite entries",
        ),
        ("count-zero", "layer 'layers.0.é': its row of tensor 'layers' is 0, 2, 0, 7; expected"),
        ("huge-size", "tensor 'second.0' has dtype and shape"),
        ("other-tensor", "tensor 'gradient.1' is unexpected, it belongs to no layer"),
    ):
        with pytest.raises(diba.FormatError, match=message) as caught:
            Calibration.load(corpus / name)
        assert str(caught.value).startswith(f"{corpus / name}: ")


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    path = tmp_path / "x"
    good = Moments(np.eye(2), 1)
    Calibration({"a": good}).save(path)
    before = path.read_bytes()
    skew = np.array([[1.0, 0.5], [0.25, 1.0]])
    for wrong, message in (
        (Moments(np.full((2, 2), np.nan), 1), "layer 'b': second has NaN"),
        (Moments(np.diag([1.0, -1.0]), 1), "layer 'b': second has negative entries on its diagonal"),
        (Moments(skew, 1), "layer 'b': second is not symmetric"),
        (
            Moments(np.eye(2, dtype=np.float32), 1),
            r"second is of float32, shape \(2, 2\); it must be a float64",
        ),
        (Moments(np.eye(2, 3), 1), r"second is of float64, shape \(2, 3\); it must be"),
        (Moments(np.eye(2), 0), "layer 'b': count is 0; it must be an integer of at least 1"),
        (Moments(np.eye(2), 1, np.array([-1.0]), 1), "layer 'b': gradient_rms has negative"),
        (Moments(np.eye(2), 1, np.ones((1, 1)), 1), "layer 'b': gradient_rms is of float64, shape"),
    ):
        with pytest.raises(ValueError, match=message):
            Calibration({"a": good, "b": wrong}).save(path)
        assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_reading_and_writing_take_little_memory(tmp_path):
    """Reading: the matrices and one triangle, half of one; writing: one triangle."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 300))
    seconds = [x.T @ x / k for k in (100, 200, 300)]
    path = tmp_path / "x"
    tracemalloc.start()
    try:
        Calibration({str(i): Moments(second, 300) for i, second in enumerate(seconds)}).save(path)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        read = Calibration.load(path)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    matrix = seconds[0].nbytes
    assert written < 2 * matrix
    assert peak < len(read) * matrix + 2 * path.stat().st_size / len(read)


def test_merging_is_calibrating_on_all_batches():
    model, batches = tiny_models.build("gpt2")

    def loss(net, batch):
        return net(**batch).logits.square().mean()

    whole = calibrate(model, batches, loss=loss)
    parts = [calibrate(model, [batch], loss=loss) for batch in batches]
    merged = parts[0].merge(parts[1])
    for name, moments in whole.items():
        assert (merged[name].count, merged[name].outputs) == (moments.count, moments.outputs)
        size = np.sqrt(moments.second.diagonal())
        # float32 sums of count products, about other origins
        bound = moments.count * EPS * size
        assert (np.abs(merged[name].second - moments.second) <= bound * size[:, None]).all()
        assert (np.abs(merged[name].mean - moments.mean) <= bound).all()
        np.testing.assert_allclose(merged[name].gradient_rms, moments.gradient_rms, rtol=1e-12)


def test_moments_that_layers_share_are_shared_after_merging():
    first, second = np.eye(2), 3 * np.eye(2)
    a = Calibration({"x": Moments(first, 3), "y": Moments(first, 3), "z": Moments(first, 1)})
    b = Calibration({name: Moments(second, 1) for name in a})
    merged = a.merge(b)
    assert merged["x"].second is merged["y"].second
    np.testing.assert_array_equal(merged["x"].second, 1.5 * np.eye(2))
    np.testing.assert_array_equal(merged["z"].second, 2 * np.eye(2))  # the same matrix, of fewer vectors


def test_merging_keeps_what_only_one_has_and_refuses_other_shapes():
    a = Calibration({"x": Moments(np.eye(2), 3), "y": Moments(np.eye(3), 1)})
    b = Calibration({"x": Moments(3 * np.eye(2), 1), "z": Moments(np.eye(4), 5)})
    merged = a.merge(b)
    assert set(merged) == {"x", "y", "z"}
    np.testing.assert_array_equal(merged["x"].second, 1.5 * np.eye(2))
    assert repr(merged) == "Calibration(3 layers, 1 to 5 input vectors each)"
    with pytest.raises(ValueError, match="shape"):
        a.merge(Calibration({"x": Moments(np.eye(3), 1)}))
    with pytest.raises(TypeError, match="other is"):
        a.merge({})


def test_layers_that_read_padding_only():
    """calibrate leaves them out; convert, which goes block by block, says which."""
    torch.manual_seed(0)
    model, mask = TextAndImages(), torch.zeros(2, 4, dtype=torch.long)
    batch = {"embeds": torch.randn(2, 4, 4), "pixels": torch.randn(2, 3, 2, 2), "attention_mask": mask}
    assert set(calibrate(model, [batch], progress=False)) == {"images.embed", "images.project"}
    with pytest.raises(ValueError, match="has read padding only; batches must have tokens that are none"):
        propagate.run(model, ["text.0", "head"], [batch], lambda tasks: None)


# ---------------------------------------------------------------- batches


class Takes(nn.Module):
    """Returns what it was called with."""

    def forward(self, a, b=None, use_cache=None):
        return a, b, use_cache


def test_how_a_model_is_called():
    x, y = torch.ones(1), torch.zeros(1)
    model = Takes()
    assert call(model, {"a": x, "b": y}) == (x, y, False)
    assert call(model, (x, y)) == (x, y, False)
    assert call(model, [x, y, True]) == (x, y, True)
    assert call(model, x) == (x, None, False)
    assert call(model, {"a": x, "use_cache": True}) == (x, None, True)
    with pytest.raises(TypeError, match="a batch is"):
        call(model, 3)


def test_batches_can_be_read_again():
    x = torch.ones(4, 2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=3)
    assert repeatable(loader) is loader
    assert size(loader) == 2
    held = repeatable(x[i : i + 1] for i in range(4))
    assert [len(list(held)), len(list(held))] == [4, 4]
    moments = calibrate(nn.Sequential(nn.Linear(2, 2)), ({"input": x} for _ in range(3)))
    assert moments["0"].count == 12


@pytest.mark.parametrize(
    ("batches", "error", "match"),
    [
        ([], ValueError, "batches is empty"),
        ((x for x in ()), ValueError, "batches is empty"),
        (torch.ones(2), TypeError, r"use \[batches\]"),
        ({"input_ids": torch.ones(2)}, TypeError, r"use \[batches\]"),
        (3, TypeError, "batches is"),
    ],
)
def test_what_is_no_batches_is_refused(batches, error, match):
    with pytest.raises(error, match=match):
        repeatable(batches)


def test_a_generator_too_large_to_hold_is_refused():
    batches = ({"a": [torch.ones(100)]} for _ in range(5))
    with pytest.raises(ValueError, match=r"first 3 batches.*DataLoader"):
        repeatable(batches, limit=1000)


def test_modules_that_come_while_evaluating_take_the_models_mode():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        model[0] = nn.Linear(2, 2).eval()
    assert all(module.training for module in model.modules())
