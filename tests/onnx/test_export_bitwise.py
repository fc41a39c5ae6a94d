"""Exported layers of few bits on both sides, against the sums of whole numbers that they are defined by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import diba
import diba.onnx
from diba.torch import DibaBitConv2d, DibaBitLinear, bitwise, freeze

if TYPE_CHECKING:
    from pathlib import Path

FORMS = {"library": {}, "standard": {"standard": True}}
BITS = [(1, 1), (2, 1), (1, 2), (2, 2)]


def ran(model: nn.Module, x: torch.Tensor, path: Path, form: str, again: torch.Tensor) -> np.ndarray:
    """What the export gives for another number of vectors than it was made with."""
    done = diba.onnx.export(model.eval(), x, path, progress=False, **FORMS[form])
    [y] = diba.onnx.session(done.path).run(None, {"input": again.numpy()})
    return np.asarray(y)


def products(layer: DibaBitLinear | DibaBitConv2d, rows: np.ndarray) -> np.ndarray:
    """Rows (count, n) rounded and multiplied as docs/binary-networks.md says, in float64."""
    numbers, steps = diba.Levels.rounded(rows, layer.activation_bits)
    weight = layer.dense_weight().detach().flatten(1).double().numpy()
    bias = 0 if layer.bias is None else layer.bias.detach().double().numpy()
    return steps[:, None].astype(np.float64) * (numbers.to_dense() @ weight.T) + bias


def settled(x: torch.Tensor) -> torch.Tensor:
    """Vectors without numbers so near a threshold that the rounding of a step decides."""
    steps = torch.from_numpy(diba.Levels.rounded(x.flatten(0, -2).numpy(), 2)[1]).view(*x.shape[:-1], 1)
    near = ((x.abs() - 2 * steps).abs() < 1e-3 * steps) | (x.abs() < 1e-3 * steps)
    return torch.where(near, 3 * steps, x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("activation_bits", "weight_bits"), BITS)
@pytest.mark.parametrize(("n", "m", "bias"), [(70, 33, True), (300, 20, False), (1, 1, True)])
def test_linear_layers(
    form: str, activation_bits: int, weight_bits: int, n: int, m: int, bias: bool, tmp_path: Path
) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(n)
            self.layer = DibaBitLinear(
                n, m, activation_bits=activation_bits, weight_bits=weight_bits, bias=bias
            )

        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return self.layer(input)

    model, x = Model(), settled(torch.randn(7, n))
    x[3] = 0
    y = ran(model, x[:2], tmp_path / "m.onnx", form, x)
    wanted = products(model.layer, x.numpy())
    assert np.allclose(y, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    if form == "library":  # the same sums, and one rounding after the other: no bit differs
        with torch.no_grad():
            assert np.array_equal(y, model(x).numpy())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("activation_bits", "weight_bits"), BITS)
@pytest.mark.parametrize("padding_mode", ["zeros", "replicate"])
def test_convolutions(
    form: str, activation_bits: int, weight_bits: int, padding_mode: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    sizes = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "padding_mode": padding_mode}
    bits = {"activation_bits": activation_bits, "weight_bits": weight_bits}
    model = nn.Sequential(DibaBitConv2d(3, 8, (3, 2), **sizes, **bits))
    x = torch.randn(3, 3, 9, 8)
    y = ran(model, x[:2], tmp_path / "m.onnx", form, x)
    with torch.no_grad():
        wanted = model(x).numpy()
    if form == "library":
        assert np.array_equal(y, wanted)
    else:  # a step that is rounded otherwise may move a number to the next level, in one patch or two
        error = np.abs(y - wanted).max(1)
        assert np.quantile(error, 0.97) <= 1e-5 * np.abs(wanted).max()
    patches = nn.functional.unfold(
        nn.functional.pad(x, (2, 2, 1, 1), mode="constant" if padding_mode == "zeros" else padding_mode),
        (3, 2),
        dilation=(1, 2),
        stride=(2, 1),
    )
    rows = patches.movedim(1, 2).flatten(0, 1).numpy()
    expected = products(model[0], rows).reshape(3, -1, 8).swapaxes(1, 2).reshape(wanted.shape)
    assert np.allclose(wanted, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("form", FORMS)
def test_a_network_that_was_trained(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 24, 3, padding=1, padding_mode="replicate", bias=False),
        nn.BatchNorm2d(24),
        nn.Flatten(),
        nn.Linear(24 * 36, 32),
        nn.Linear(32, 10),
    )
    bitwise(model, 2, skip=["0", "6"])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(16, 3, 6, 6)), torch.randint(0, 10, (16,))).backward()
        optimizer.step()
    freeze(model.eval())
    x = torch.randn(16, 3, 6, 6)
    path = tmp_path / "m.onnx"
    y = ran(model, x[:2], path, form, x)
    with torch.no_grad():
        wanted = model(x).numpy()
    # Numbers beside a threshold may fall to either side of it, in few of the images.
    error = np.linalg.norm(y - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert np.median(error) < 1e-5
    assert error.max() < 0.2
    kinds = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    if form == "library":  # the normalisation is part of its convolution
        assert {"BitConv", "BitLinear"} <= set(kinds)
        assert "BatchNormalization" not in kinds
        assert path.with_name("m.onnx.data").stat().st_size < 24 * (16 * 9 + 36 * 32) / 8 + 8192


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    layer = DibaBitLinear(70, 9)
    done = diba.onnx.export(
        nn.Sequential(layer).eval(), torch.randn(2, 70), tmp_path / "m.onnx", progress=False
    )
    whole = onnx.load(done.path)

    def refused(message: str, tensor: str, values: np.ndarray | None = None, **attributes: int) -> None:
        changed = onnx.ModelProto()
        changed.CopyFrom(whole)
        [node] = changed.graph.node
        for attribute in node.attribute:
            if attribute.name in attributes:
                attribute.i = attributes[attribute.name]
        for i, initializer in enumerate(changed.graph.initializer):
            if values is not None and initializer.name.endswith(tensor):
                changed.graph.initializer[i].CopyFrom(onnx.numpy_helper.from_array(values, initializer.name))
        path = tmp_path / "changed.onnx"
        onnx.save(changed, path)
        with pytest.raises(RuntimeError, match=rf"diba::BitLinear.*{message}"):
            diba.onnx.session(path, log_severity_level=4)

    planes = layer.planes.numpy()
    tail = planes.copy()
    tail[0, 4, -1] |= 1 << 6
    refused("ones beyond column 70", "planes", tail)
    refused("planes has shape", "planes", planes[..., :-1])
    refused("planes has shape", "planes", np.repeat(planes, 3, axis=0))
    refused("scales has shape", "scales", np.ones(8, np.float32))
    refused("bias has shape", "bias", np.ones(8, np.float32))
    refused("activation_bits is 3; it must be 1 or 2", "", activation_bits=3)
    refused("in_features is 0; it must be from 1", "", in_features=0)
