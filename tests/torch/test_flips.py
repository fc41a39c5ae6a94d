"""Bits that move: the flips themselves, the gradients that choose them, and what holds back the bad ones."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import diba
import diba.torch
from diba.torch.modules.linear import DibaLinear
from diba.torch.ops.reference import unpack
from diba.torch.retuning.flips import Flipper, Flips, flip
from diba.torch.retuning.latents import LatentSteps
from diba.torch.retuning.retune import bits_checksum, retune

ALPHABETS = pytest.mark.parametrize("alphabet", ["binary", "sign"])
M, K, N = 21, 13, 34  # no multiples of 8: rows of bits end within a byte


def make_layer(alphabet: Any, seed: int = 0) -> DibaLinear:
    """A layer in float64, whose products are exact up to rounding."""
    w = np.random.default_rng(seed).standard_normal((M, N)).astype(np.float32)
    f = diba.solve(w, k=K, alphabet=alphabet, effort="fast", threads=1)
    return DibaLinear.from_factorization(f, bias=torch.zeros(M)).double()


def entries(bits: Tensor, columns: int) -> Tensor:
    return unpack(bits, columns, False, torch.float64)


def padding(bits: Tensor, columns: int) -> Tensor:
    """The bits past the last column."""
    stored = unpack(bits, 8 * bits.shape[1], False, torch.float64)
    return stored[:, columns:]


def test_a_flip_changes_the_entries_asked_for_and_twice_is_nothing() -> None:
    layer = make_layer("binary")
    before, version = layer.b2.clone(), layer.b2._version
    chosen = torch.tensor(
        [0, 1, 7, 8, N - 1, N, 5 * N + 33, K * N - 1]
    )  # neighbours in one byte, ends of rows
    flip(layer.b2, chosen, N)
    changed = (entries(before, N) != entries(layer.b2, N)).flatten().nonzero().flatten()
    assert changed.tolist() == chosen.tolist()
    assert not padding(layer.b2, N).any()
    assert layer.b2._version > version  # the packed operators notice changes by it
    flip(layer.b2, chosen, N)
    assert torch.equal(layer.b2, before)


def test_no_entries_are_no_flip() -> None:
    layer = make_layer("sign")
    before = layer.b1.clone()
    flip(layer.b1, torch.empty(0, dtype=torch.int64), K)
    assert torch.equal(layer.b1, before)


@ALPHABETS
def test_gathered_gradients_are_those_of_dense_factors(alphabet: Any) -> None:
    """Against autograd with the entries of B1 and B2 as parameters; sums of at most 40 terms in float64."""
    layer = make_layer(alphabet)
    flipper = Flipper({"layer": layer}, Flips(), torch.Generator())
    flipper.begin([], 1.0)
    torch.manual_seed(0)
    x, weights = torch.randn(4, 10, N, dtype=torch.float64), torch.randn(M, dtype=torch.float64)
    with flipper.watch():
        (layer(x) * weights).tanh().sum().backward()
    sign = alphabet == "sign"
    b1 = unpack(layer.b1, K, sign, torch.float64).requires_grad_()
    b2 = unpack(layer.b2, N, sign, torch.float64).requires_grad_()
    y = (((x * layer.d3) @ b2.T * layer.d2) @ b1.T) * layer.d1
    (y * weights).tanh().sum().backward()
    turn = flipper._turn["layer"]
    for found, expected in ((turn.left.gradient, b1.grad), (turn.right.gradient, b2.grad)):
        assert expected is not None
        expected = expected if sign else expected / 2  # latents go from -1 to 1, twice as far
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13 * float(expected.abs().max()))


def test_watching_ends_with_the_context() -> None:
    layer = make_layer("sign")
    flipper = Flipper({"layer": layer}, Flips(), torch.Generator())
    flipper.begin([], 1.0)
    with flipper.watch():
        pass
    layer(torch.ones(1, N, dtype=torch.float64)).sum().backward()
    assert not flipper._turn["layer"].left.gradient.any()
    assert not layer._forward_hooks


@ALPHABETS
def test_damaged_bits_move_back(alphabet: Any) -> None:
    """The targets are a layer's own outputs, before some of its bits were flipped; the diagonals rest."""
    layer = make_layer(alphabet)
    model = nn.Sequential(layer)
    torch.manual_seed(0)
    batches = torch.randn(200, 32, N, dtype=torch.float64)
    with torch.no_grad():
        targets = layer(batches)
    for bits, columns in ((layer.b1, K), (layer.b2, N)):
        flip(bits, torch.randperm(len(bits) * columns)[:4], columns)
    before = copy.deepcopy(layer)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(model(batch[0]), batch[1])

    def error() -> float:
        with torch.no_grad():
            return loss(model, (batches, targets)).item()

    start = error()
    settings = Flips(flips=0.004, every=50)
    pairs = list(zip(batches, targets, strict=True))
    report = retune(model, pairs, loss, lr=1e-12, bits=settings, progress=False)
    changed = [
        int((entries(old, c) != entries(new, c)).sum())
        for old, new, c in ((before.b1, layer.b1, K), (before.b2, layer.b2, N))
    ]
    turns, kept = report.flip_turns, report.flip_turns_kept
    assert 0 < kept <= turns <= 4
    most = 200 * (1 + 2)  # one entry of B1 and two of B2 in a step
    assert 0 < sum(changed) <= report.flips["0"] <= most  # an entry may flip back in a later turn
    assert error() < 0.9 * start  # a wide margin: 0.75 and less, and 1 if nothing moved
    assert not padding(layer.b1, K).any()
    assert not padding(layer.b2, N).any()
    assert 0 < report.flip_seconds < report.seconds
    assert report.flip_bytes == 3 * 8 * (M + N) * K  # float64 here


def test_no_step_flips_more_than_its_share() -> None:
    layer = make_layer("sign")
    model = nn.Sequential(layer)
    before = [layer.b2.clone()]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        before.append(layer.b2.clone())
        return model(batch).square().mean()

    torch.manual_seed(0)
    x = torch.randn(64, N, dtype=torch.float64)
    retune(model, [x], loss, max_steps=8, lr=1e-12, bits=Flips(flips=0.02, reach=1e3), progress=False)
    most = round(0.02 * K * N)
    counts = [int((entries(a, N) != entries(b, N)).sum()) for a, b in pairwise(before[:9])]
    assert max(counts) == most  # more want to


def test_flips_that_help_nothing_are_undone() -> None:
    """A loss of constant value that has gradients all the same: bits flip, and none may stay so."""
    model = nn.Sequential(make_layer("sign"))
    before = bits_checksum(model)
    seen: set[int] = set()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        seen.add(bits_checksum(model))
        value = model(batch).square().sum()
        return value - value.detach()

    x = torch.ones(3, N, dtype=torch.float64)
    report = retune(
        model,
        [x],
        loss,
        max_steps=9,
        lr=1e-3,
        bits=Flips(every=3, reach=100.0),
        lr_scheduler="constant",
        progress=False,
    )
    assert len(seen) > 1
    assert (report.flip_turns, report.flip_turns_kept) == (3, 0)
    assert report.flips == {"0": 0}
    assert bits_checksum(model) == before


def test_an_interrupted_check_leaves_no_flips_behind() -> None:
    model = nn.Sequential(make_layer("sign"))
    before = bits_checksum(model)
    checks: list[int] = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            checks.append(bits_checksum(model))
            if checks[1:] and checks[-1] == before:  # with the bits of the start, the second half of a check
                raise KeyboardInterrupt
        return model(batch).square().mean()

    x = torch.ones(3, N, dtype=torch.float64)
    with pytest.raises(KeyboardInterrupt):
        retune(model, [x], loss, max_steps=9, bits=Flips(every=3, reach=100.0), progress=False)
    assert len(checks) == 3  # the first is from before the first step
    assert bits_checksum(model) == before
    assert not any(layer._forward_hooks for layer in model.modules())


def test_layers_take_turns() -> None:
    layers = {str(i): make_layer("sign", seed=i) for i in range(4)}
    flipper = Flipper(layers, Flips(layers=0.5, every=1), torch.Generator().manual_seed(0))
    seen: list[str] = []
    for _ in range(2):
        flipper.begin([], 1.0)
        seen += flipper._turn
        flipper.step(1.0)
        flipper.check(lambda: 1.0)
    assert sorted(seen) == ["0", "1", "2", "3"]


def test_few_latents_cross_in_a_step() -> None:
    """Those that go farthest; the others wait at zero, and cross when there is room."""
    latent = torch.tensor([[1.0, -1.0, 1.0, 1.0, -1.0, 1.0]])
    moves = LatentSteps(latent, torch.ones(1, 6), reach=1.0, flips=0.34)
    gradient = 10 * torch.tensor([[2.0, -1.5, 3.0, 0.1, 0.5, 1.2]])  # averaged with momentum 0.9
    assert moves.step(gradient, rate=1.0, share=1.0).tolist() == [0, 2]
    assert (latent < 0).tolist() == [[True, True, True, False, True, False]]
    assert latent[0, [1, 5, 3]].tolist() == pytest.approx([-1e-6, 1e-6, 0.9])
    assert moves.step(None, rate=0.1, share=0.1).tolist() == [1]  # the averages go on, and one may cross
    assert (latent < 0).tolist() == [[True, False, True, False, True, False]]


@pytest.mark.parametrize("given", [True, False])
def test_compiled_steps_are_those_of_torch(given: bool) -> None:
    """In float64, where torch takes the steps; six steps of four float32 roundings each."""
    torch.manual_seed(3)
    start, square = torch.randn(9, 70).sign(), torch.rand(9, 70)
    results = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(4)
        latents = start.to(dtype, copy=True)
        moves, version = LatentSteps(latents, square.to(dtype), reach=2.0, flips=0.05), latents._version
        crossed = set()
        for step in range(6):
            gradient = torch.randn(9, 70) * 3
            found = moves.step(gradient.to(dtype) if given or step == 0 else None, 1.0, 0.4)
            crossed |= {(step, int(entry)) for entry in found}
            assert len(found) <= round(0.05 * latents.numel())
        assert latents._version > version  # what was made of them is out of date
        results.append((latents.double(), moves.state()[2].double(), crossed))
    (latents, mean, crossed), (exact, exact_mean, others) = results
    assert crossed == others
    assert len(crossed) > 9
    torch.testing.assert_close(mean, exact_mean, rtol=0, atol=6 * 3e-7 * 10)
    torch.testing.assert_close(latents, exact, rtol=0, atol=6 * 4 * 6e-8 * 10)
    assert float(latents.abs().max()) <= 2


def test_nothing_moves_where_no_second_derivative_is_known() -> None:
    latent = torch.ones(2, 3)
    moves = LatentSteps(latent, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), reach=1.0, flips=1.0)
    assert moves.step(torch.full((2, 3), 100.0), rate=1.0, share=1.0).tolist() == [0, 2]
    assert latent[:, 1].tolist() == [1.0, 1.0]
    assert latent[1].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flips": 0}, "flips is 0; it must be a finite number above 0"),
        ({"flips": 2}, "flips is 2; it must be at most 1"),
        ({"layers": 1.5}, "layers is 1.5; it must be at most 1"),
        ({"every": 0}, "every is 0; it must be an integer of at least 1"),
        ({"reach": 0}, "reach is 0; it must be a finite number above 0"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Flips(**options)


def test_bits_flip_in_linear_layers_only() -> None:
    with pytest.raises(ValueError, match="bits is given and model has no DibaLinear"):
        retune(diba.torch.DibaEmbedding(8, 4, 2), [torch.ones(1, dtype=torch.int64)], bits="flip")
