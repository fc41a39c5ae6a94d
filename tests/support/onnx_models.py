"""Models of one operator each, and what convolutions multiply; for tests in several runtimes."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import diba
from arrays import random_factors
from diba import file_format
from diba._internal.codes import Codes

FLOAT, HALF, BFLOAT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


def file_bytes(f: diba.Factorization) -> np.ndarray:
    """The bytes of a diba file, as an initializer has them."""
    return np.frombuffer(file_format.encode(file_format.StoredFactors(*f._parts())), np.uint8)


def model(
    op: str,
    inputs: dict[str, tuple[int, list[Any]]],
    constants: dict[str, np.ndarray],
    outputs: dict[str, int],
    **attributes: Any,
) -> Any:
    """A model of one node; an output has the type that is given and a shape to be inferred."""
    names = [*inputs, *constants]
    node = helper.make_node(op, names, list(outputs), name="layer.0.dense", domain="diba", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("diba", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def linear(
    f: diba.Factorization, bias: np.ndarray | None = None, kind: int = FLOAT, **attributes: Any
) -> Any:
    constants = {"factors": file_bytes(f)} | ({} if bias is None else {"bias": bias})
    attributes.setdefault("out_features", [f.shape[0]])
    outputs = {f"y{i}": kind for i in range(len(attributes["out_features"]))}
    return model("Linear", {"x": (kind, ["batch", "length", f.shape[1]])}, constants, outputs, **attributes)


def factors(m: int = 70, k: int = 45, n: int = 99, alphabet: str = "sign") -> diba.Factorization:
    return random_factors(m, k, n, alphabet).diba


def embedding(constants: dict[str, np.ndarray], kind: int = TensorProto.INT64, **attributes: Any) -> Any:
    return model("Embedding", {"ids": (kind, ["batch", "length"])}, constants, {"y": FLOAT}, **attributes)


def coded_constants(codes: Codes) -> dict[str, np.ndarray]:
    table = codes.codes if codes.steps is None else np.concatenate([codes.codes, codes.steps], axis=1)
    return {"table": table, "scales": codes.d1[:, None]}


def coded(codes: Codes, kind: int = FLOAT, bias: np.ndarray | None = None, **changed: Any) -> Any:
    constants = coded_constants(codes) | ({} if bias is None else {"bias": bias})
    (m, n), group = codes.shape, {} if codes.bits == 8 else {"group": codes.group}
    attributes = {"in_features": n, "out_features": [m], "bits": codes.bits} | group | changed
    return model("CodedLinear", {"x": (kind, ["batch", "length", n])}, constants, {"y": kind}, **attributes)


def conv(
    f: diba.Factorization,
    bias: np.ndarray | None,
    kernel: Any,
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    kind: int = FLOAT,
    axes: Any = ("h", "w"),
) -> Any:
    settings = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations}
    channels = f.shape[1] // int(np.prod(kernel))
    constants = {"factors": file_bytes(f)} | ({} if bias is None else {"bias": bias})
    shape = ["batch", channels, *axes]
    return model("Conv", {"x": (kind, shape)}, constants, {"y": kind}, out_channels=f.shape[0], **settings)


def windows(x: np.ndarray, kernel: Any, stride: int, pads: Any, dilation: int) -> np.ndarray:
    """Patches (batch, height, width, channels * pixels), by the definition of a convolution."""
    x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    high, wide = (dilation * (size - 1) + 1 for size in kernel)
    taken = [
        [
            x[:, :, i : i + high : dilation, j : j + wide : dilation].reshape(len(x), -1)
            for j in range(0, x.shape[3] - wide + 1, stride)
        ]
        for i in range(0, x.shape[2] - high + 1, stride)
    ]
    return np.moveaxis(np.array(taken), 2, 0)
