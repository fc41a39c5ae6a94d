"""Exported layers against dense products in float64: by diba's library, and by ONNX alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.reference
import pytest
import torch
from torch import nn

import diba
import diba.onnx
import diba.torch
from arrays import random_factors
from diba.torch import DibaLinear
from exported import CONVOLUTIONS, EPS, Everything, as_rows, expected, inputs

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = ("binary", "signs", "rows", "tied", *CONVOLUTIONS)


@pytest.fixture(scope="module")
def model() -> Everything:
    return Everything().eval()


@pytest.fixture(scope="module", params=["library", "standard"])
def exported(request: Any, model: Everything, tmp_path_factory: Any) -> tuple[bool, diba.onnx.Exported]:
    """The model with all kinds of layers, exported from one batch size and length."""
    standard = request.param == "standard"
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    return standard, diba.onnx.export(model, inputs(2, 4), path, standard=standard, progress=False)


def results(done: diba.onnx.Exported, given: dict[str, Any]) -> dict[str, np.ndarray]:
    session = diba.onnx.session(done.path)
    names = [output.name for output in session.get_outputs()]
    feed = {name: value.numpy() for name, value in given.items()}
    return dict(zip(names, session.run(None, feed), strict=True))


@pytest.mark.parametrize(("batch", "length"), [(2, 4), (1, 1), (5, 9)])
def test_every_layer_is_within_its_bound(exported: Any, model: Any, batch: int, length: int) -> None:
    standard, done = exported
    given = inputs(batch, length, seed=batch)
    found = results(done, given)
    assert set(found) == set(LAYERS)
    for name, y in found.items():
        wanted, allowed = expected(model, name, given, quantized=not standard)
        assert np.all(np.abs(as_rows(name, y) - wanted) <= allowed), name


def test_standard_operators_compute_the_same_elsewhere(exported: Any, model: Any) -> None:
    standard, done = exported
    graph = onnx.load(done.path)
    domains = {node.domain for node in graph.graph.node}
    assert domains == ({""} if standard else {"", "diba"})
    if standard:
        given = inputs(3, 5, seed=7)
        evaluator = onnx.reference.ReferenceEvaluator(graph)
        outputs = evaluator.run(None, {name: value.numpy() for name, value in given.items()})
        for name, y in zip(evaluator.output_names, outputs, strict=True):
            wanted, allowed = expected(model, name, given, quantized=False)
            assert np.all(np.abs(as_rows(name, y) - wanted) <= allowed), name


def test_nodes_carry_names_and_factors(exported: Any, model: Any, tmp_path: Path) -> None:
    standard, done = exported
    graph = onnx.load(done.path).graph
    assert set(done.layers) == set(LAYERS)
    if standard:
        stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for name, f in model.factors.items():
            owner = name if f"{name}.b1" in stored else "tied"
            for bits, part in (("b1", f.b1), ("b2", f.b2)):
                packed = np.packbits(part > 0, axis=1, bitorder="little")
                np.testing.assert_array_equal(stored[f"{owner}.{bits}"], packed, strict=True)
        assert max(tensor.size for tensor in stored.values() if tensor.dtype == np.float32) <= 256 * 8
        return
    nodes = {node.name: node for node in graph.node if node.domain == "diba"}
    assert set(nodes) == set(LAYERS)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for name, node in nodes.items():
        path = tmp_path / f"{name}.diba"
        path.write_bytes(onnx.numpy_helper.to_array(tensors[node.input[1]]).tobytes())
        assert diba.load(path) == model.arrays(name).diba
    assert nodes["rows"].input[1] == nodes["tied"].input[1]  # shared factors are stored once
    given = {a.name: onnx.helper.get_attribute_value(a) for a in nodes["three"].attribute}
    assert given == {
        "out_channels": 6,
        "kernel_shape": [3, 3],
        "strides": [2, 1],
        "pads": [1, 2, 1, 2],
        "dilations": [1, 2],
        "precision": b"fast",
    }


def test_the_model_says_what_it_is(exported: Any) -> None:
    standard, done = exported
    graph = onnx.load(done.path, load_external_data=False)
    facts = {entry.key: entry.value for entry in graph.metadata_props}
    assert facts["diba.version"] == diba.__version__
    assert json.loads(facts["diba.recipe"])["standard"] is standard
    layers = json.loads(facts["diba.layers"])
    assert {name for layer in layers for name in (layer["name"], *layer["tied"])} == set(LAYERS)
    assert json.loads(facts["diba.data"])["bytes"] == done.data_bytes == done.data.stat().st_size
    assert graph.ir_version <= 9  # what the oldest onnxruntime reads
    assert not any(node.metadata_props for node in graph.graph.node)  # torch's stacks name folders
    shapes = {given.name: given.type.tensor_type.shape.dim for given in graph.graph.input}
    assert {name: [d.dim_param or d.dim_value for d in dims] for name, dims in shapes.items()} == {
        "x": ["batch", 5, 37],
        "ids": ["batch", "length"],
        "image": ["batch", 3, 9, 8],
        "sound": ["batch", 3, 15],
    }


def test_large_tensors_begin_at_pages(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(*(DibaLinear(900, 900, 500) for _ in range(2)), nn.Linear(900, 33))
    done = diba.onnx.export(layers, torch.randn(2, 900), tmp_path / "m.onnx", check=False, progress=False)
    tensors = onnx.load(done.path, load_external_data=False).graph.initializer
    places = [{entry.key: entry.value for entry in t.external_data} for t in tensors if t.external_data]
    assert {place["location"] for place in places} == {"m.onnx.data"}
    large = [int(place["offset"]) for place in places if int(place["length"]) >= 65536]
    assert len(large) == 3
    assert all(offset % 4096 == 0 for offset in large)
    assert all(int(place["offset"]) % 64 == 0 for place in places)


@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, standard: bool, tmp_path: Path) -> None:
    arrays = random_factors(21, 13, 37, "sign", 5)
    bias = torch.linspace(-2, 2, 21).to(dtype)

    class Half(nn.Module):  # NumPy has no bfloat16
        def __init__(self) -> None:
            super().__init__()
            self.layer = DibaLinear.from_factorization(arrays.diba, bias=bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.to(dtype)).float()

    x = torch.randn(4, 37, generator=torch.Generator().manual_seed(1)).to(dtype)
    done = diba.onnx.export(Half(), x.float(), tmp_path / "m.onnx", standard=standard, progress=False)
    [y] = diba.onnx.session(done.path).run(None, {"x": x.float().numpy()})
    rows = x.double().numpy()
    wanted = rows @ arrays.dense().T + bias.double().numpy()
    allowed = 64 * EPS * (np.abs(rows) @ arrays.magnitude().T + 2)
    if not standard:
        allowed += np.stack([arrays.diba.error_bound(row.astype(np.float32)) for row in rows])
    rounding = torch.finfo(dtype).eps / 2
    assert np.all(np.abs(y - wanted) <= allowed + rounding * (np.abs(wanted) + allowed))


def test_exact_products(tmp_path: Path) -> None:
    arrays = random_factors(48, 40, 64, "binary", 6)
    layer = DibaLinear.from_factorization(arrays.diba)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    done = diba.onnx.export(layer, x, tmp_path / "m.onnx", precision="exact", progress=False)
    [y] = diba.onnx.session(done.path).run(None, {"x": x.numpy()})
    rows = x.double().numpy()
    assert np.all(np.abs(y - rows @ arrays.dense().T) <= 120 * EPS * (np.abs(rows) @ arrays.magnitude().T))


class Normalised(nn.Module):
    """Convolutions with and without a bias, each with a normalisation that has learnt something."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for width, kernel, bias in ((16, 3, False), (24, 1, True)):
            self.layers.append(nn.LazyConv2d(width, kernel, bias=bias))
            self.layers.append(nn.BatchNorm2d(width, eps=0.01))
            self.layers.append(nn.ReLU())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


def test_normalisations_become_part_of_the_convolutions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, image = Normalised().train(), torch.randn(4, 5, 12, 12)
    with torch.no_grad():
        for _ in range(3):
            model(3 * torch.randn(4, 5, 12, 12) + 1)
        for layer in model.layers[1::3]:
            layer.weight.uniform_(-2, 2)
            layer.bias.uniform_(-2, 2)
    model = diba.torch.convert(model.eval(), k=40, effort="fast", progress=False)
    done = diba.onnx.export(model, image, tmp_path / "model.onnx", progress=False, precision="exact")
    graph = onnx.load(done.path, load_external_data=False).graph
    assert [node.op_type for node in graph.node] == ["Conv", "Relu", "Conv", "Relu"]
    (y,) = results(done, {graph.input[0].name: image}).values()
    wanted = image.double()
    for conv, norm in ((model.layers[0], model.layers[1]), (model.layers[3], model.layers[4])):
        weight = torch.tensor(conv.factorization().to_dense().astype(np.float64)).view(conv.weight_shape)
        bias = None if conv.bias is None else conv.bias.double()
        wanted = torch.relu(norm.double()(nn.functional.conv2d(wanted, weight, bias)))
    # Diagonals of 16 bits: 2^-11 of each row, twice.
    assert np.linalg.norm(y - wanted.detach().numpy()) <= 2**-10 * np.linalg.norm(wanted.detach().numpy())


@pytest.mark.parametrize("standard", [False, True])
def test_biases_that_were_added_are_exported(standard: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(24, 16, bias=False))
    x = torch.randn(40, 24) + 3
    diba.torch.convert(layers, batches=[x], bits_per_weight=3, bias="add", effort="fast", progress=False)
    done = diba.onnx.export(layers, x[:2], tmp_path / "m.onnx", standard=standard, progress=False)
    session = diba.onnx.session(done.path)
    [y] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    f, bias = layers[0].factorization(), layers[0].bias.detach().double().numpy()
    rows = x.double().numpy()
    wanted = rows @ f.to_dense().astype(np.float64).T + bias
    allowed = np.stack([f.error_bound(row) for row in x.numpy()])
    assert np.abs(bias).max() > 0
    assert np.all(np.abs(y - wanted) <= allowed + 64 * EPS * (np.abs(wanted) + np.abs(bias) + 1))
