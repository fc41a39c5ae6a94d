"""Reconstruction of blocks: straight-through stand-ins, stages that are undone, and whole conversions."""

from __future__ import annotations

import copy
import gc
import io
import signal
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import diba
import diba.torch
import tiny_models
from diba.checkpoints.blocks import blocks_from_json, blocks_to_json
from diba.torch.calibration import propagate, reconstruct
from diba.torch.calibration.blocks import plan, together
from diba.torch.calibration.held import Memory
from diba.torch.modules.kinds import compressed
from diba.torch.modules.layer import FactoredLayer
from diba.torch.reconstruction.block import BlockFit
from diba.torch.reconstruction.loss import Sample
from diba.torch.reconstruction.settings import BlockRecipe, Reconstruction
from diba.torch.reconstruction.straight import Straight, _packs, movable, packed_signs, stand_ins

N = 48


class Block(nn.Module):
    """A residual block with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(N), nn.Linear(N, 2 * N), nn.Linear(2 * N, N)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Model(nn.Module):
    """Three blocks between an embedding and a head that is compressed after them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, N)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(N, 16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture(scope="module")
def dense() -> Model:
    """Weights of falling singular values, as trained ones have."""
    torch.manual_seed(0)
    model = Model().eval()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                u, s, v = torch.linalg.svd(torch.randn_like(layer.weight), full_matrices=False)
                layer.weight.copy_(0.6 * u @ torch.diag(s / torch.arange(1, len(s) + 1) ** 0.7) @ v)
    return model


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 64, (8, 16), generator=generator) for _ in range(8)]


def converted(dense: nn.Module, batches: Any, **options: Any) -> Any:
    options = {"reconstruct": {"steps": 24, "tune_steps": 6}, "loss": diba.torch.fisher()} | options
    settings = {"bits_per_weight": 1.5, "effort": "fast", "seed": 3, "progress": False}
    return diba.torch.convert(copy.deepcopy(dense), batches=batches, **(settings | options))


def equal(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


# ---------------------------------------------------------------- straight-through


LAYERS = {
    "linear": (nn.Linear(13, 9), (4, 13)),
    "no bias": (nn.Linear(13, 9, bias=False), (2, 3, 13)),
    "convolution": (nn.Conv2d(3, 5, 3, stride=2, padding=1), (2, 3, 8, 8)),
    "one axis": (nn.Conv1d(3, 5, 3, dilation=2), (2, 3, 12)),
}


@pytest.mark.parametrize("alphabet", ["sign", "binary"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_stand_in_computes_what_its_layer_does(kind: str, alphabet: str) -> None:
    module, shape = copy.deepcopy(LAYERS[kind][0]).double(), LAYERS[kind][1]
    layer = compressed(module, k=6, alphabet=alphabet, effort="fast").double()
    x = torch.randn(shape, dtype=torch.float64)
    dense = layer.to_dense_module().double()
    torch.testing.assert_close(Straight(layer)(x), dense(x), rtol=1e-12, atol=1e-12)


def test_gradients_of_latents_are_those_of_the_entries() -> None:
    """Against autograd on a dense product of the same entries, in float64."""
    layer = compressed(nn.Linear(10, 7), k=5, alphabet="sign", effort="fast").double()
    stand_in, x = Straight(layer), torch.randn(6, 10, dtype=torch.float64)
    (stand_in(x) ** 2).sum().backward()
    left, right = (latent.detach().clone().requires_grad_() for latent in stand_in.latents)
    weight = torch.diag(layer.d1.detach()) @ left @ torch.diag(layer.d2.detach()) @ right
    weight = weight @ torch.diag(layer.d3.detach())
    ((x @ weight.T + layer.bias.detach()) ** 2).sum().backward()
    for latent, entries in zip(stand_in.latents, (left, right), strict=True):
        torch.testing.assert_close(latent.grad, entries.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alphabet", ["sign", "binary"])
def test_packed_signs_have_the_gradients_of_the_matrix(alphabet: Any, dtype: torch.dtype) -> None:
    """Against the float64 stand-in, which forms the matrix; 40 dB for products that round to integers."""
    torch.manual_seed(5)
    layer = compressed(nn.Linear(90, 70), k=40, alphabet=alphabet, effort="fast").to(dtype)
    exact = copy.deepcopy(layer).double()
    results = []
    for one in (layer, exact):
        torch.manual_seed(6)
        x = torch.randn(2, 50, 90).to(dtype).to(one.dtype).requires_grad_()
        stand_in = Straight(one)
        y = stand_in(x)
        assert y.dtype == one.dtype
        assert _packs(one, x) == (one is layer)
        (y.double() * torch.randn(2, 50, 70)).sum().backward()
        tensors = [y.detach(), x.grad, *(p.grad for p in stand_in.parameters())]
        results.append([t.double() for t in tensors])
    assert len(results[0]) == 2 + 2 + 4
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        noise = (found - expected).square().sum() / expected.square().sum()
        assert -10 * float(torch.log10(noise)) > 40


def test_a_layer_whose_input_needs_no_gradient_is_trained() -> None:
    stand_in = Straight(compressed(nn.Linear(10, 7), k=5, effort="fast"))
    x = torch.randn(6, 10)
    stand_in(x).sum().backward()
    assert x.grad is None
    assert all(latent.grad is not None for latent in stand_in.latents)


@pytest.mark.parametrize("shape", [(3, 8), (5, 13), (1, 1), (4, 65)])
def test_signs_are_packed_as_numpy_packs_them(shape: tuple[int, int]) -> None:
    values = torch.randn(shape)
    values[0, 0] = 0.0
    expected = np.packbits(values.numpy() >= 0, axis=1, bitorder="little")
    assert np.array_equal(packed_signs(values).numpy(), expected)


def test_bits_follow_their_latents_and_products_follow_the_bits() -> None:
    layer = compressed(nn.Linear(20, 12), k=9, effort="fast")
    x = torch.randn(3, 20)
    layer(x)  # packs the bits
    stand_in = Straight(layer)
    with torch.no_grad():
        for latent in stand_in.latents:
            latent[1::2, ::3].neg_()
    expected = stand_in(x).detach()
    flips, bits = stand_in.harden()
    assert flips == sum(latent[1::2, ::3].numel() for latent in stand_in.latents)
    assert bits == 12 * 9 + 9 * 20
    f = layer.factorization()
    allowed = np.stack([f.error_bound(row) for row in x.numpy()])
    exact = x.double() @ layer.dense_weight().T.double() + layer.bias
    assert (np.abs(exact.detach().numpy() - expected.numpy()) <= allowed + 1e-6).all()
    assert torch.equal(layer(x), copy.deepcopy(layer)(x))  # no packed bits from before


def test_stand_ins_leave_no_trace() -> None:
    block = Block()
    block.up = compressed(block.up, k=8, effort="fast")
    before, place = block.state_dict(), block.up
    with stand_ins(block, movable(block, set())):
        assert isinstance(block.up, Straight)
        assert block.up.in_features == N
    assert block.up is place
    assert block.state_dict().keys() == before.keys()


def test_shared_factors_keep_their_bits() -> None:
    block = Block()
    block.up = compressed(block.up, k=8, effort="fast")
    assert list(movable(block, set())) == ["up"]
    assert not movable(block, {id(block.up.b1)})  # another module uses them
    twins = nn.ModuleList([block.up, copy.deepcopy(block.up)])
    twins[1].b1 = twins[0].b1
    assert not movable(twins, set())


# ---------------------------------------------------------------- one block


def fit(
    settings: dict[str, Any], module: nn.Module | None = None, dense: nn.Module | None = None
) -> tuple[BlockFit, nn.Module]:
    torch.manual_seed(4)
    model = nn.Sequential(Block() if module is None else module)
    target = Block() if dense is None else dense
    basis = torch.randn(6, N)  # correlated inputs, which the plain objective of the factors did not know
    inputs = [torch.randn(8, 32, 6) @ basis for _ in range(6)]
    samples = [Sample(lambda block, x=x: block(x), target(x).detach()) for x in inputs]
    held_out = [False, False, True, False, False, True]
    return BlockFit(model, "0", samples, held_out, None, Reconstruction(**settings)), model


def test_a_stage_that_helps_is_kept_and_one_that_does_not_is_undone() -> None:
    found, model = fit({"tune_steps": 20, "tune_lr": 0.02})
    start, before = found.held_out_loss(), copy.deepcopy(model)
    found.tune()
    assert found.loss < start
    assert found.loss == found.held_out_loss()
    assert not equal(model, before)
    worse, model = fit({"tune_steps": 3, "tune_lr": 100.0})
    before = copy.deepcopy(model)
    worse.tune()
    assert equal(model, before)
    layer = model[0].up
    worse.correct([(layer, 50 * np.ones((2 * N, N), np.float32), np.ones(2 * N))])
    assert equal(model, before)
    assert (worse.corrected, worse.tuned, worse.groups) == (0, 0, 1)


def test_an_interrupted_stage_is_undone() -> None:
    found, model = fit({"tune_steps": 20})
    before = copy.deepcopy(model)

    def stop() -> None:
        raise KeyboardInterrupt

    found._on_step = stop
    with pytest.raises(KeyboardInterrupt):
        found.tune()
    assert equal(model, before)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_joint_training_lowers_the_held_out_loss_and_moves_bits() -> None:
    torch.manual_seed(7)
    dense = Block()
    block = copy.deepcopy(dense)
    for name in ("up", "down"):
        layer = compressed(getattr(block, name), bits_per_weight=2, alphabet="sign", effort="fast")
        setattr(block, name, layer)
    found, _ = fit({"steps": 40, "flips": 0.004}, block, dense)
    bits = [layer.b1.clone() for layer in (block.up, block.down)]
    recipe = found.finish()
    assert recipe.kept
    assert recipe.loss < recipe.loss_factored
    assert recipe.loss == pytest.approx(found.held_out_loss())
    moved = [not torch.equal(old, layer.b1) for old, layer in zip(bits, (block.up, block.down), strict=True)]
    assert recipe.flips > 0
    assert all(moved)


def test_of_layers_with_more_bits_fewer_flip_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step in which every latent would cross zero: the rate of a single step is the full one."""
    torch.manual_seed(7)
    dense = Block()
    block = copy.deepcopy(dense)
    block.up = compressed(block.up, k=16, effort="fast")  # 96 x 16 and 16 x 48 bits: 0.5 for each weight
    block.down = compressed(block.down, k=96, effort="fast")  # 48 x 96 and 96 x 96 bits: 3 for each weight
    flips: list[tuple[int, int]] = []
    harden = Straight.harden

    def counted(stand_in: Straight) -> tuple[int, int]:
        flips.append(harden(stand_in))
        return flips[-1]

    monkeypatch.setattr(Straight, "harden", counted)
    found, _ = fit({"steps": 1, "flips": 0.09, "reach": 1e9}, block, dense)
    found.finish()
    bits = 96 * 16 + 16 * 48, 48 * 96 + 96 * 96
    expected = round(0.09 * 96 * 16) + round(0.09 * 16 * 48), round(0.01 * 48 * 96) + round(0.01 * 96 * 96)
    assert flips == list(zip(expected, bits, strict=True))


def test_the_loss_is_the_one_that_is_stated() -> None:
    """Against NumPy in float64: channels by gradients, padding left out, large positions held back: one that
    is large in the dense model (0, 0), one that is so in the other alone (1, 0).
    """
    generator = np.random.default_rng(0)
    target, output = (generator.normal(size=(5, 7, N)) for _ in range(2))
    target[0, 0] *= 50
    output[1, 0] *= 1000
    mask = generator.random((5, 7)) < 0.7
    mask[:, 0] = True
    channels = generator.random(N) + 0.1
    w = channels / channels.mean()
    power, larger = target**2 @ w, np.maximum(target**2 @ w, output**2 @ w)
    median = np.sort(power.ravel())[
        (power.size - 1) // 2
    ]  # as torch: the lower one of two, over all positions
    trust, known = (np.minimum(1, median / of) for of in (larger, power))
    expected = (mask * trust * ((output - target) ** 2 @ w)).mean() / (mask * known * power).mean()
    model = nn.Sequential(Block())
    samples = [
        Sample(lambda block: torch.tensor(output), torch.tensor(target), (torch.tensor(mask),))
        for _ in range(2)
    ]
    found = BlockFit(model, "0", samples, [False, True], torch.tensor(channels), Reconstruction())
    assert found.held_out_loss() == pytest.approx(expected, rel=1e-5)  # float32 sums of N terms


# ---------------------------------------------------------------- whole models


def test_a_reconstructed_model_is_nearer_to_the_dense_one(dense: Model, batches: list[torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(9)
    unseen = torch.randint(0, 64, (64, 16), generator=generator)

    def error(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(unseen) - dense(unseen)).square().mean())

    plain = converted(dense, batches, reconstruct=None, skip=["head"])
    model = converted(dense, batches, reconstruct={"steps": 64, "tune_steps": 8}, skip=["head"])
    assert error(model) < 0.9 * error(plain)
    found = diba.torch.report(model)
    assert list(found.blocks) == ["blocks.0", "blocks.1", "blocks.2"]
    assert found.reconstruction == Reconstruction(steps=64, tune_steps=8).to_dict()
    assert all(block.loss <= block.loss_factored and block.groups == 2 for block in found.blocks.values())
    assert "3 blocks reconstructed" in str(found)
    assert all(layer.bits_per_weight <= 1.5 for layer in found.layers)  # diagonals still fit 16 bits
    assert found.to_dict()["blocks"]["blocks.0"]["groups"] == 2
    assert not diba.torch.report(plain).blocks


def test_same_bytes_again_and_with_a_teacher(dense: Model, batches: list[torch.Tensor]) -> None:
    """Copies of what was dense serve as well as the dense model itself; neither is changed."""
    before = copy.deepcopy(dense)
    teacher = copy.deepcopy(dense)
    models = [
        converted(dense, batches),
        converted(dense, batches),
        converted(dense, batches, teacher=teacher),
    ]
    assert equal(models[0], models[1])
    assert equal(models[0], models[2])
    assert equal(dense, before)
    assert equal(teacher, before)
    assert isinstance(models[0].head, FactoredLayer)


def test_one_block_is_reconstructed_between_dense_ones(dense: Model, batches: list[torch.Tensor]) -> None:
    model = converted(dense, batches, skip=["re:blocks.[02].*", "head"])
    assert list(diba.torch.report(model).blocks) == ["blocks.1"]
    for other in (0, 2):
        assert equal(model.blocks[other], dense.blocks[other])
    layers = {name: dense.get_submodule(name) for name in ("blocks.1.up", "blocks.1.down")}
    how = reconstruct.Reconstructing(Reconstruction(steps=5, tune_steps=3), lambda *_: None, lambda *_: None)
    steps = together(dense, plan(dense, layers, batches).steps)
    assert reconstruct.expected(dense, steps, len(batches), False, how)["steps"] == 5 + 2 * 3


@pytest.mark.parametrize("done", [1, 2])
def test_a_second_call_goes_on_after_a_block(dense: Model, batches: list[torch.Tensor], done: int) -> None:
    """After two of three, the one block that is left is fitted like the others."""
    whole = converted(dense, batches)
    model = copy.deepcopy(dense)

    class Enough(Exception):
        pass

    def stop(state: diba.Progress) -> None:
        if isinstance(state.detail, BlockRecipe) and state.item == f"blocks.{done - 1}":
            raise Enough

    options = {"bits_per_weight": 1.5, "effort": "fast", "seed": 3, "batches": batches}
    options |= {"reconstruct": {"steps": 24, "tune_steps": 6}, "loss": diba.torch.fisher(), "teacher": dense}
    with pytest.raises(Enough) as stopped:
        diba.torch.convert(model, progress=stop, **options)
    assert "goes on" in stopped.value.__notes__[0]
    assert list(diba.torch.report(model).blocks) == ["blocks.0", "blocks.1"][:done]
    diba.torch.convert(model, progress=False, **(options | {"loss": diba.torch.fisher()}))
    assert equal(model, whole)
    assert list(diba.torch.report(model).blocks) == ["blocks.0", "blocks.1", "blocks.2"]


def test_every_pass_over_the_batches_is_shown(
    dense: Model, batches: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the bar; the gradients of the loss come first, and take long."""
    shown: list[Any] = []
    monkeypatch.setattr(diba.progress, "_tqdm", lambda: None)
    monkeypatch.setattr(diba.progress, "_Lines", lambda: Shown(shown))
    converted(dense, batches, progress=True)
    items = [state.item for state in shown if isinstance(state.item, str)]
    assert items[:8] == [f"gradients of the loss, batch {number} of 8" for number in range(1, 9)]
    for expected in ("inputs of blocks.0, batch 8 of 8", "blocks.2, batch 1 of 8", "blocks.1"):
        assert expected in items
    assert items[-8:-1] == [f"inputs of head, batch {number} of 8" for number in range(2, 9)]


class Shown:
    """Keeps what would be printed."""

    def __init__(self, shown: list[Any]) -> None:
        self._shown = shown

    def __call__(self, state: Any) -> None:
        self._shown.append(state)

    def end(self) -> None:
        pass


@pytest.mark.parametrize("call", [5, 8 + 3])
def test_ctrl_c_ends_the_pass_that_is_running(dense: Model, batches: list[torch.Tensor], call: int) -> None:
    """A signal within the gradients of the loss, which come before all layers, and one after them."""
    model, calls = copy.deepcopy(dense), 0

    def interrupt(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1 + call:  # the first call looks for the order of the layers
            signal.raise_signal(signal.SIGINT)

    model.embed.register_forward_pre_hook(interrupt)
    options: dict[str, Any] = {"loss": diba.torch.fisher(), "reconstruct": True, "progress": False}
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have switched it off
    try:
        with pytest.raises(KeyboardInterrupt):
            diba.torch.convert(model, batches=batches, bits_per_weight=1.5, effort="fast", **options)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert calls == 1 + call


def test_convolutions_are_reconstructed() -> None:
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        for _ in range(3)
    ]
    model = nn.Sequential(*stages).eval()
    data = [torch.randn(4, 8, 6, 6) for _ in range(6)]
    settings = {"bits_per_weight": 3, "effort": "fast", "progress": False}
    diba.torch.convert(model, batches=data, reconstruct={"steps": 12, "tune_steps": 4}, **settings)
    blocks = diba.torch.report(model).blocks
    assert list(blocks) == ["0", "1", "2"]
    assert all(block.groups == 1 for block in blocks.values())


def test_t5_is_reconstructed() -> None:
    """Encoder and decoder; their first blocks compute what the others add to attention."""
    model, batches = tiny_models.build("t5")
    data = [{key: value.repeat(2, 1) for key, value in batch.items()} for batch in batches] * 2
    options: dict[str, Any] = {"loss": diba.torch.fisher(), "reconstruct": {"steps": 3, "tune_steps": 2}}
    diba.torch.convert(model, batches=data, bits_per_weight=4, effort="fast", progress=False, **options)
    found = diba.torch.report(model).blocks
    assert list(found) == [f"{part}.block.{i}" for part in ("encoder", "decoder") for i in range(2)]
    assert [block.groups for block in found.values()] == [4, 4, 7, 7]


# ---------------------------------------------------------------- memory


def open_files(folder: Path) -> list[str]:
    """Those that this process has open in a folder, also without a name."""
    links = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.exists()]
    return [str(link) for link in links if str(link).startswith(str(folder))]


def test_activations_in_a_file_give_the_same_bytes(
    dense: Model, batches: list[torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 6, "tune_steps": 2}
    whole = converted(dense, batches, reconstruct=settings)  # torch's first step of Adam makes a folder
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    memories: list[Memory] = []
    monkeypatch.setattr(propagate, "Memory", lambda limit: memories.append(Memory(limit)) or memories[-1])
    assert equal(converted(dense, batches, reconstruct=settings | {"memory": 2**16}), whole)
    (memory,) = memories
    rows = 8 * 8 * 16  # of all batches: at least inputs and outputs of N numbers
    assert 2 * rows * N * 4 - 2**16 < memory.file_bytes
    assert not list(tmp_path.iterdir())


def test_dense_weights_of_finished_blocks_are_let_go(dense: Model, batches: list[torch.Tensor]) -> None:
    model = copy.deepcopy(dense)
    layers = [weakref.ref(layer) for block in model.blocks for layer in (block.up, block.down)]
    alive = []

    def progress(state: diba.Progress) -> None:
        if isinstance(state.detail, BlockRecipe):
            gc.collect()
            alive.append(sum(layer() is not None for layer in layers))

    settings = {"steps": 2, "tune_steps": 2}
    options: dict[str, Any] = {"bits_per_weight": 1.5, "effort": "fast", "batches": batches}
    diba.torch.convert(model, reconstruct=settings, teacher=dense, progress=progress, **options)
    assert len(alive) == 3
    assert alive[1] <= 4  # those of the first block are gone: two a block
    assert alive[2] <= 2


def test_nothing_stays_of_a_file_after_an_interrupt_or_on_a_full_disk(
    dense: Model, batches: list[torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[list[str]] = []

    def stop(state: diba.Progress) -> None:
        seen.append(open_files(tmp_path))
        if isinstance(state.detail, BlockRecipe):
            raise KeyboardInterrupt

    options: dict[str, Any] = {"bits_per_weight": 1.5, "effort": "fast", "batches": batches}
    options["reconstruct"] = {"steps": 2, "tune_steps": 0, "memory": 0}
    with pytest.raises(KeyboardInterrupt):
        diba.torch.convert(copy.deepcopy(dense), progress=stop, **options)
    assert len(seen[-1]) == 1
    assert not open_files(tmp_path)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: io.FileIO("/dev/full", "r+"))
    model = copy.deepcopy(dense)
    with pytest.raises(OSError, match=r"No space left.*TMPDIR.*Reconstruction\.memory"):
        diba.torch.convert(model, progress=False, **options)
    assert equal(model, dense)


def test_a_model_without_a_sequence_of_blocks_is_told_of() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(N, N), nn.Linear(N, N)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x)))

    for model in (Two(), nn.Sequential(nn.Linear(N, N), nn.ReLU(), nn.Linear(N, N))):  # layers are no blocks
        with pytest.warns(UserWarning, match="no block was reconstructed"):
            converted(model, [torch.randn(8, N) for _ in range(4)])


# ---------------------------------------------------------------- bad input, and what is stored


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"reconstruct": True, "batches": None, "loss": None}, "reconstruct is given without batches"),
        (
            {"teacher": nn.Linear(2, 2), "batches": None, "reconstruct": None, "loss": None},
            "teacher is given",
        ),
        ({"reconstruct": {"step": 3}}, "unknown key 'step'.*did you mean 'steps'"),
        ({"reconstruct": {"held_out": 0.7}}, "held_out is 0.7; it must be at most 0.5"),
        ({"reconstruct": {"steps": -1}}, "steps is -1"),
        ({"reconstruct": {"memory": -1}}, "memory is -1"),
        ({"reconstruct": {"flips": 2}}, "flips is 2; it must be at most 1"),
        ({"batches": [torch.zeros(2, 3, dtype=torch.int64)]}, "batches has one batch; reconstruct needs"),
    ],
)
def test_bad_arguments(dense: Model, batches: Any, options: dict[str, Any], text: str) -> None:
    model = copy.deepcopy(dense)
    with pytest.raises(ValueError, match=text):
        converted(model, options.pop("batches", batches), **options)


def test_a_teacher_is_another_model(dense: Model, batches: Any) -> None:
    model = copy.deepcopy(dense)
    with pytest.raises(ValueError, match="teacher is the model itself"):
        diba.torch.convert(model, bits_per_weight=1, batches=batches, teacher=model)
    with pytest.raises(TypeError, match="reconstruct is"):
        converted(dense, batches, reconstruct=3)


@pytest.mark.parametrize("count", [2, 3, 8, 9, 100])
def test_held_out_batches_are_spread_and_leave_most(count: int) -> None:
    settings = Reconstruction()
    out = [number for number in range(count) if settings.is_held_out(number, count)]
    assert len(out) == max(1, round(count / 8)) < count
    gaps = np.diff([-1, *out, count - 1 if out[-1] == count - 1 else count])
    assert gaps[gaps > 0].max() - gaps[gaps > 0].min() <= count // len(out)


def test_blocks_are_stored_and_damage_is_noticed() -> None:
    block = BlockRecipe(loss_before=0.0, loss_factored=0.5, loss=0.25, groups=4, kept=True, flips=0.01)
    values = blocks_to_json({"model.layers.0": block})
    assert blocks_from_json(values, "config.json") == {"model.layers.0": block}
    for damaged in ("x", {"a": 1}, {"a": {}}, {"a": values["model.layers.0"] | {"loss": "0.25"}}):
        with pytest.raises(diba.FormatError, match=r"config\.json: blocks\["):
            blocks_from_json(damaged, "config.json")


def test_second_derivatives_are_those_of_the_loss() -> None:
    """Against the loss with one entry moved by 1 and by -1: exact, as it is quadratic in each entry."""
    torch.manual_seed(0)
    dense = nn.Linear(6, 5).double()
    model = nn.Sequential(compressed(copy.deepcopy(dense), k=4, alphabet="sign", effort="fast").double())
    inputs = [torch.randn(500, 6, dtype=torch.float64) for _ in range(9)]
    samples = [Sample(lambda block, x=x: block(x), dense(x).detach()) for x in inputs]
    held_out = [False] * 8 + [True]
    found = BlockFit(nn.Sequential(model), "0", samples, held_out, None, Reconstruction())
    with stand_ins(model, movable(model, set())) as [stand_in]:
        [square, _] = found._second_derivatives(stand_in.latents)
        layer, left, right = model[0]._layer[0], *(t.detach().clone() for t in stand_in.latents)
    trusts = found._loss_of._trusts

    @torch.no_grad()
    def loss(i: int, j: int, by: float) -> float:
        moved = left.clone()
        moved[i, j] += by
        matrix = layer.d1[:, None] * moved * layer.d2 @ right * layer.d3
        pairs = list(zip(samples[:8], inputs, strict=False))
        errors = [(x @ matrix.T + layer.bias - s.target).square().sum(1) for s, x in pairs]
        return float(sum((e * trusts[s]).mean() for e, (s, _) in zip(errors, pairs, strict=True))) / 8

    around = [[loss(i, j, 1) - 2 * loss(i, j, 0) + loss(i, j, -1) for j in range(4)] for i in range(5)]
    exact = torch.tensor(around, dtype=torch.float64) / found._loss_of.energy
    # Each estimate is a mean of 8 squares of sums of many independent terms. The mean of 4 or 5 of these has
    # a relative deviation of at most sqrt(2 / 8 / 4) = 0.25: four of them.
    for axis in (0, 1):
        ratio = square.mean(axis) / exact.mean(axis)
        assert float((ratio - 1).abs().max()) < 1
