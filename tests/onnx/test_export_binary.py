"""Exported layers of signs and exceptions, against dense products in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import diba
import diba.onnx
from diba.torch import DibaAPBConv2d, DibaAPBLinear
from exported import EPS

if TYPE_CHECKING:
    from pathlib import Path

FORMS = {"fast": {}, "exact": {"precision": "exact"}, "standard": {"standard": True}}


def linear(n: int, m: int, exceptions: float, scales: str, bias: bool = True) -> DibaAPBLinear:
    torch.manual_seed(n + m)
    return DibaAPBLinear.from_dense(nn.Linear(n, m, bias=bias), exceptions=exceptions, scales=scales)


def ran(model: nn.Module, x: torch.Tensor, path: Path, form: str, again: torch.Tensor) -> np.ndarray:
    """What the export gives for another number of vectors than it was made with."""
    done = diba.onnx.export(model.eval(), x, path, progress=False, **FORMS[form])
    [y] = diba.onnx.session(done.path).run(None, {"x" if x.dim() == 2 else "input": again.numpy()})
    return np.asarray(y)


def bound(f: diba.APB, rows: np.ndarray, form: str) -> np.ndarray:
    """The error of sums in float32 of n terms and a bias; in tables also half a step for every four columns.

    A step is at most the largest sum of four over 127, and there are tables for up to 64 columns more.
    """
    allowed = (f.shape[1] + 8) * EPS * (np.abs(rows) @ np.abs(f.to_dense().astype(np.float64)).T + 1)
    if form != "fast":
        return allowed
    steps = 4 * np.abs(rows).max(1, keepdims=True) / 127
    return allowed + np.abs(f.alpha) * steps / 2 * (f.shape[1] + 64) / 4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("n", "m", "exceptions", "scales"),
    [(70, 33, 0.05, "layer"), (300, 20, 0.01, "rows"), (64, 16, 0.0, "layer"), (5, 1, 1.0, "rows")],
)
def test_linear_layers(form: str, n: int, m: int, exceptions: float, scales: str, tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear(n, m, exceptions, scales)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    model = Model()
    x = torch.randn(7, n)
    y = ran(model, x[:2], tmp_path / "m.onnx", form, x)
    f, rows = model.layer.matrix(), x.numpy()
    wanted = rows.astype(np.float64) @ f.to_dense().astype(np.float64).T + model.layer.bias.detach().numpy()
    assert np.all(np.abs(y - wanted) <= bound(f, rows, form))


@pytest.mark.parametrize("form", FORMS)
def test_convolutions(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    layer = DibaAPBConv2d.from_dense(dense, exceptions=0.05)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return self.layer(input)

    x = torch.randn(3, 3, 9, 9)
    y = ran(Model(), x[:2], tmp_path / "m.onnx", form, x)
    weight = torch.from_numpy(layer.matrix().to_dense()).double().view(dense.weight.shape)
    wanted = nn.functional.conv2d(x.double(), weight, layer.bias.double(), stride=2, padding=1).detach()
    allowed = 2e-2 if form == "fast" else 40 * EPS
    assert np.linalg.norm(y - wanted.numpy()) <= allowed * np.linalg.norm(wanted.numpy())


def test_normalisations_become_part_of_convolutions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    conv = DibaAPBConv2d.from_dense(nn.Conv2d(3, 8, 3, bias=False), exceptions=0.05)
    norm = nn.BatchNorm2d(8)
    with torch.no_grad():
        for statistic in (norm.weight, norm.bias, norm.running_mean):
            statistic.uniform_(-2, 2)
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 9, 9)
    model = nn.Sequential(conv, norm).eval()
    done = diba.onnx.export(model, x, tmp_path / "m.onnx", precision="exact", progress=False)
    assert [node.op_type for node in onnx.load(done.path, load_external_data=False).graph.node] == ["Conv"]
    [y] = diba.onnx.session(done.path).run(None, {"input": x.numpy()})
    weight = torch.from_numpy(conv.matrix().to_dense()).double().view(8, 3, 3, 3)
    wanted = norm.double()(nn.functional.conv2d(x.double(), weight)).detach().numpy()
    # An alpha in float32 stays that, exceptions have 16 bits: 2^-11 of each.
    assert np.linalg.norm(y - wanted) <= 2**-10 * np.linalg.norm(wanted)


def test_shared_matrices_are_stored_once(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = linear(64, 64, 0.01, "layer")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).relu())

    done = diba.onnx.export(Twice().eval(), torch.randn(2, 64), tmp_path / "m.onnx", progress=False)
    assert done.data.read_bytes().count(b"diba apb") == 1


def test_damaged_matrices_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(linear(70, 33, 0.05, "layer"))
    done = diba.onnx.export(model.eval(), torch.randn(2, 70), tmp_path / "m.onnx", progress=False)
    whole = done.data.read_bytes()
    begin = whole.index(b'{"')  # the header of the file of the matrix
    end = whole.index(b"}}", begin) + 2
    random = np.random.default_rng(0)
    for at in (*random.integers(begin, end, 30), *random.integers(end, end + 300, 30)):
        done.path.write_bytes(
            whole[:at] + bytes([whole[at] ^ 1 << int(random.integers(8))]) + whole[at + 1 :]
        )
        with pytest.raises(RuntimeError, match="cannot load it"):
            diba.onnx.session(done.path, log_severity_level=4)
