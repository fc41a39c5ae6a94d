"""What sessions cost in memory: factors are packed once in a process, and the file's bytes are given back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import numpy as np
from onnx import TensorProto, external_data_helper, helper, numpy_helper

import diba
from diba import file_format
from run_python import python

LAYERS, SIZE = 48, 2048

MEASURE = """
import sys
import numpy as np
import onnxruntime
import diba
from diba.onnx.library import library_path, share_packed_bits

def resident():
    pages = open("/proc/self/statm").read().split()[1]
    return int(pages) * 4096

def session():
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    options.intra_op_num_threads = 1
    made = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    made.run(None, {"x": np.ones((1, 2048), np.float32)})
    return made

share_packed_bits()
kept = [session()]  # of a small model: what onnxruntime itself takes
sys.argv.pop(1)
sizes = [resident()]
for _ in range(2):
    kept.append(session())
    sizes.append(resident())
layers = [diba.load(path) for path in sys.argv[2:]]
sizes.append(resident())
for layer in layers:
    layer.linear(np.ones((1, 2048), np.float32))
sizes.append(resident())
print(*sizes)
"""


def save(folder: Path, layers: list[diba.Factorization], name: str) -> Path:
    """A model of layers one after another, their factors in a file of their own."""
    nodes, constants = [], []
    for i, f in enumerate(layers):
        data = np.frombuffer(file_format.encode(file_format.StoredFactors(*f._parts())), np.uint8)
        tensor = numpy_helper.from_array(data, f"factors{i}")
        external_data_helper.set_external_data(tensor, f"{name}.data")
        constants.append(tensor)
        inputs, outputs = ["x" if i == 0 else f"h{i}", f"factors{i}"], [f"h{i + 1}"]
        nodes.append(helper.make_node("Linear", inputs, outputs, domain="diba", out_features=[SIZE]))
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", SIZE])],
        [helper.make_tensor_value_info(f"h{len(layers)}", TensorProto.FLOAT, None)],
        constants,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("diba", 1)]
    path = folder / f"{name}.onnx"
    external_data_helper.write_external_data_tensors(
        made := helper.make_model(graph, opset_imports=opsets, ir_version=9), str(folder)
    )
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_packed_once_and_nothing_else_stays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = []
    for _ in range(LAYERS):
        d1, d2, d3 = rng.random((3, SIZE), dtype=np.float32) / 30
        rows = rng.integers(0, 256, (2, SIZE, SIZE // 8), dtype=np.uint8)
        b1, b2 = (diba.BitMatrix.from_packed_rows(bits, SIZE, "sign") for bits in rows)
        layers.append(diba.Factorization(d1, b1, d2, b2, d3))
    paths = []
    for i, f in enumerate(layers):
        paths.append(tmp_path / f"{i}.safetensors")
        f.save(paths[-1])
    small, large = save(tmp_path, layers[:1], "small"), save(tmp_path, layers, "large")
    done = python(MEASURE, str(small), str(large), *map(str, paths))
    assert done.returncode == 0, done.stderr
    before, one, two, loaded, packed = map(int, done.stdout.split())
    factors = (LAYERS - 1) * SIZE * SIZE * 2 / 8  # those of the small model are there already
    assert one - before <= 1.3 * factors
    assert two - one <= 0.15 * factors  # a second session shares them
    assert packed - loaded <= 0.15 * factors  # and so does the process itself
