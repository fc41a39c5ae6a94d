"""ADMM in PyTorch: the steps that compiled code takes, results as good, clear errors; on torch's CPU."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import diba
import diba.solvers
import diba.torch
from diba.cli import main
from diba.solvers import device as steps
from diba.solvers.admm import Admm
from diba.solvers.device import DeviceAdmm, DeviceMetric
from diba.solvers.metric import Metric, MetricAdmm
from run_python import python

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def gaussian(m: int, n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((m, n), dtype=np.float32)


def moments(n: int) -> NDArray[np.float64]:
    """With a few large eigenvalues, as inputs of layers have, and a diagonal of ones."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((3 * n, n)) @ (np.eye(n) + rng.standard_normal((n, n)) * rng.random(n)[:, None])
    S = X.T @ X
    return S / np.sqrt(np.outer(S.diagonal(), S.diagonal()))


def runs(outputs: bool, k: int, balance: float, outer: Any) -> tuple[Admm, Admm]:
    """The same run in compiled code and in torch."""
    A = gaussian(40, 56) / 4
    if outputs:
        C = moments(56)
        compiled: Admm = MetricAdmm(Metric(C), A, k, 3, balance, 1, outer=outer)
        return compiled, DeviceAdmm("cpu", DeviceMetric(C, "cpu"), A, k, 3, balance, outer=outer)
    return Admm(A, k, 3, balance, 1, outer=outer), DeviceAdmm("cpu", None, A, k, 3, balance, outer=outer)


@pytest.mark.parametrize("fixed", [False, True], ids=["fitted", "kept"])
@pytest.mark.parametrize("balance", [0.0, 0.1])
@pytest.mark.parametrize("k", [17, 60], ids=["one by one", "both at once"])
@pytest.mark.parametrize("outputs", [False, True], ids=["weights", "outputs"])
def test_it_takes_the_steps_of_compiled_code(outputs: bool, k: int, balance: float, fixed: bool) -> None:
    """From the same variables, a step differs only by what compiled code rounds to 8 bits."""
    outer = None
    if fixed:
        d1, d3 = (np.abs(gaussian(1, count, 5)[0]) for count in (40, 56))
        outer = d1 / np.linalg.norm(d1), d3 / np.linalg.norm(d3)
    compiled, torchs = runs(outputs, k, balance, outer)
    assert torchs.energy == pytest.approx(compiled.energy, rel=1e-5)
    assert (torchs.first_penalty, torchs.sequential) == (compiled.first_penalty, compiled.sequential)
    turns = compiled.sequential  # the right side then steps from a left one that has rounded already
    for penalty in (0.1, 0.2, 0.4, 0.9):
        for run in (compiled, torchs):
            run._step((penalty,), 1, False)
        assert torchs.objective == pytest.approx(compiled.objective, rel=1e-2 if turns else 1e-4)
        for side, other in ((compiled.left, torchs.left), (compiled.right, torchs.right)):
            assert np.mean((side.dense() < 0) != other.negative.numpy()) < (0.06 if turns else 0.015)
            assert apart(side.state, other.state) < (0.2 if turns else 0.03)
            assert apart(side.column_norms(), other.column_norms()) < (0.03 if turns else 0.01)
            assert apart(side.scale, other.scale) < (0.06 if turns else 0.01)
            if fixed:
                assert np.array_equal(side.scale, other.scale)
            take_over(side, other)
    for run in (compiled, torchs):
        run._step((1.0,), 1, True)  # measures, and moves nothing
    assert torchs.objective == pytest.approx(compiled.objective, rel=1e-5)
    one, other = (f.factors("sign") for f in (compiled, torchs))
    assert [type(x) for x in one] == [type(x) for x in other]


def apart(one: NDArray[Any], other: torch.Tensor) -> float:
    return float(np.linalg.norm(one - other.numpy()) / np.linalg.norm(one))


def take_over(side: Any, other: Any) -> None:
    """Give a side in torch the variables of one in compiled code."""
    for name in ("state", "scale", "inner", "norms", "_solution", "_eigen_state"):
        if hasattr(side, name):
            setattr(other, name, torch.from_numpy(getattr(side, name).copy()))
    other.negative = torch.from_numpy(side.dense() < 0)
    other.X = torch.where(other.negative, -1.0, 1.0) * other.scale[:, None]
    other._changed()


@pytest.mark.parametrize("outputs", [False, True], ids=["weights", "outputs"])
@pytest.mark.parametrize("alphabet", ["sign", "binary"])
@pytest.mark.parametrize("bits", [0.8, 2.0])
def test_results_are_as_good(bits: float, alphabet: Any, outputs: bool) -> None:
    """The means over seeds are as near as the spread from seed to seed lets them be."""
    A = gaussian(64, 96)
    given: dict[str, Any] = {"covariance": moments(96)} if outputs else {}

    def snr(seed: int, device: str | None) -> float:
        seen: list[diba.Progress] = []
        options = {"alphabet": alphabet, "effort": "fast", "bits_per_weight": bits, "threads": 1}
        diba.solve(A, seed=seed, device=device, progress=seen.append, **options, **given)
        return float(seen[-1].snr_db or 0.0)

    compiled, torchs = ([snr(seed, device) for seed in range(4)] for device in (None, "cpu"))
    spread = np.std([*compiled, *torchs], ddof=1)
    assert abs(np.mean(compiled) - np.mean(torchs)) < 4 * spread / 2 + 0.01


def test_the_same_seed_gives_the_same_factors() -> None:
    A = gaussian(48, 40)
    one, same, other = (
        diba.solve(A, k=20, effort="fast", device="cpu", seed=seed).to_dense() for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_sizes_importance_limits_and_nothing() -> None:
    A = gaussian(40, 48)
    f = diba.solve(A, snr_db=4.0, effort="fast", device=torch.device("cpu"))
    assert f.snr_db(A) >= 4
    o, i = np.linspace(1, 3, 40), np.linspace(2, 1, 48)
    weighted = diba.solve(A, k=16, importance=(o, i), effort="fast", device="cpu", alphabet="sign")
    plain = diba.solve(A, k=16, effort="fast", device="cpu", alphabet="sign")

    def error(f: diba.Factorization) -> float:
        return float(np.square(o[:, None] * (A - f.to_dense()) * i).sum())

    assert error(weighted) < error(plain)
    assert not diba.solve(np.zeros((9, 8)), k=3, device="cpu").to_dense().any()
    assert np.isfinite(diba.solve(A, k=16, time_limit=0.0, device="cpu").to_dense()).all()


def test_it_is_shown_and_stops() -> None:
    class Enough(Exception):
        pass

    seen: list[diba.Progress] = []

    def progress(state: diba.Progress) -> None:
        seen.append(state)
        if state.done == 30:
            raise Enough

    with pytest.raises(Enough):
        diba.solve(gaussian(64, 64), k=32, device="cpu", effort="fast", progress=progress)
    assert [state.done for state in seen] == list(range(31))
    assert seen[-1].snr_db is not None
    assert seen[0].snr_db is not None
    assert seen[-1].snr_db > seen[0].snr_db


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"device": "gpu"}, ValueError, r"device is 'gpu', which torch .* cannot use here \("),
        ({"device": "cuda:77"}, ValueError, r"device is 'cuda:77', which torch .* cannot use here"),
        ({"device": "meta"}, ValueError, r"device is 'meta', which torch .* cannot use here"),
        ({"device": 0}, TypeError, r"device is 0 \(int\); it must be the name of a device of torch"),
        ({"device": ""}, TypeError, "device is ''"),
        ({"device": "cpu", "method": "greedy"}, ValueError, "on a device it must be 'auto' or 'admm'"),
        ({"device": "cpu", "method": "dbf", "alphabet": "sign"}, ValueError, "on a device it must be"),
    ],
)
def test_bad_devices(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        diba.solve(np.eye(8), k=4, **options)


def test_nothing_to_do_on_a_device() -> None:
    A = gaussian(16, 16)
    f = diba.solve(A, k=4, effort="fast")
    with pytest.raises(ValueError, match="init is given, from which no ADMM is run"):
        diba.solve(A, init=f, device="cpu")


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "diba.solvers.device")
    monkeypatch.delattr(diba.solvers, "device")
    with pytest.raises(
        ImportError, match=r"device is 'cuda', which needs PyTorch; use python -m pip install"
    ):
        diba.solve(np.eye(8), k=4, device="cuda")


def test_torch_is_imported_for_devices_only() -> None:
    code = "import sys, numpy, diba; diba.solve(numpy.eye(8), k=4{}); print('torch' in sys.modules)"
    assert python(code.format("")).stdout == "False\n"


def test_a_full_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(steps.DeviceSide, "advance", full)
    with pytest.raises(
        MemoryError, match=r"device 'cpu' has too little memory for a 64 x 64 matrix with k = 32"
    ):
        diba.solve(gaussian(64, 64), k=32, device="cpu", effort="fast")


# ---------------------------------------------------------------- where it is passed on


def test_layers_of_a_model_and_the_command(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.ReLU(), torch.nn.Linear(48, 32))
    expected = diba.solve(
        model[0].weight.detach(), bits_per_weight=2, alphabet="sign", effort="fast", device="cpu", threads=1
    )
    with pytest.raises(ValueError, match="device is 'gpu'"):
        diba.torch.convert(model, bits_per_weight=2, device="gpu", progress=False)
    assert isinstance(model[0], torch.nn.Linear)
    diba.torch.convert(model, bits_per_weight=2, effort="fast", device="cpu", threads=1, progress=False)
    weight = model[0].to_dense_module().weight.detach()
    assert torch.allclose(weight, torch.from_numpy(expected.to_dense()), rtol=1e-5, atol=1e-7)
    assert diba.SolveOptions(device=torch.device("cuda", 1)).device == "cuda:1"  # type: ignore[arg-type]
    assert dataclasses.asdict(diba.SolveOptions())["device"] is None
    np.save(tmp_path / "A.npy", gaussian(24, 24))
    command = ["solve", str(tmp_path / "A.npy"), "--k", "8", "--effort", "fast", "--device"]
    assert main([*command, "cpu", "-o", str(tmp_path / "a.diba")]) == 0
    assert main([*command, "gpu", "-o", str(tmp_path / "b.diba")]) == 2
