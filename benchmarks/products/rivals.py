"""What the matvec benchmark times: diba, and the ways to multiply by a dense or a quantized matrix.

Every contestant takes and returns float32. Weights are random, of the right size and layout. Its SNR is
that of its arithmetic: its product against float64 with the weights it really holds, rounded as they are.
"""

from __future__ import annotations

import copy
import functools
import importlib
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import diba
from diba._internal.timing import exact_product

__all__ = ["RIVALS", "Call", "Contestant", "diba_contestant"]

GROUP = 128  # weights that share a scale, in 4 and 2 bits
SCALE = 0.0625  # scale of every group, exact in float16, so that the product is known

Array = np.ndarray
Call = Callable[[], Any]


@dataclass(frozen=True)
class Contestant:
    """One way to multiply by one matrix of shape (m, n), with weights of its own."""

    name: str
    bits_per_weight: float  # stored, scales included
    weight_bytes: int  # that one product reads
    ways: Callable[[Array], list[Call]]  # X (batch, n) -> calls that compute X W', one or several
    product: Callable[[Array], Array]  # X (batch, n) -> X W'
    exact: Callable[[Array], Array]  # the same in float64
    another: Callable[[], Contestant]  # the same with a copy of the weights
    details: dict[str, Any]
    max_copies: int = 1500


# ---------------------------------------------------------------- diba


def diba_contestant(
    f: diba.Factorization, precision: str, bits: float, threads: int, suffix: str = ""
) -> Contestant:
    """f.linear in one precision; ``bits`` is what was asked for and names it."""
    (m, n), k = f.shape, f.k
    f.prepare()

    def ways(X: Array) -> list[Call]:
        x = X[0] if len(X) == 1 else X
        found: list[Call] = [functools.partial(f.linear, x, precision=precision, threads=threads)]
        if len(X) == 1 and precision == "fast" and threads == diba.num_threads():
            found.append(functools.partial(operator.matmul, f, x))
        return found

    def another() -> Contestant:
        return diba_contestant(diba.Factorization(*f._parts()), precision, bits, threads, suffix)

    return Contestant(
        name=f"diba {bits:g} bit{'s' if bits > 1 else ''}, {precision}{suffix}",
        bits_per_weight=f.bits_per_weight,
        weight_bytes=-(-k * (m + n) // 8),
        ways=ways,
        product=lambda X: f.linear(X, precision=precision, threads=threads),
        exact=functools.partial(exact_product, f),
        another=another,
        details={"k": k, "prepared_bytes": f.prepared_nbytes},
    )


# ---------------------------------------------------------------- dense and 8-bit weights


@functools.lru_cache(maxsize=1)
def dense_weights(m: int, n: int) -> Array:
    """One Gaussian matrix that all dense contestants of a shape share."""
    return np.random.default_rng(1).standard_normal((m, n), dtype=np.float32)


def exact_dense(W: Array, X: Array) -> Array:
    """X W' in float64, some rows of W at a time."""
    step = max(1, 2**22 // W.shape[1])
    X = X.astype(np.float64)
    return np.concatenate(
        [X @ np.asarray(W[i : i + step], np.float64).T for i in range(0, len(W), step)], axis=1
    )


def numpy_float32(m: int, n: int, threads: int, W: Array | None = None) -> Contestant:
    W = dense_weights(m, n) if W is None else W

    def ways(X: Array) -> list[Call]:
        columns = X[0] if len(X) == 1 else np.ascontiguousarray(X.T)
        return [lambda: X @ W.T, lambda: W @ columns]

    return Contestant(
        "NumPy float32", 32, W.nbytes, ways, lambda X: X @ W.T, functools.partial(exact_dense, W),
        lambda: numpy_float32(m, n, threads, W.copy()), {},
    )  # fmt: skip


def torch_dense(m: int, n: int, threads: int, dtype: str, W: Any = None) -> Contestant:
    torch = importlib.import_module("torch")
    kind = getattr(torch, dtype)
    if W is None:
        W = torch.from_numpy(dense_weights(m, n)).to(kind)
    linear = torch.nn.functional.linear

    def apply(x: Any) -> Any:
        return linear(x, W) if kind is torch.float32 else linear(x.to(kind), W).to(torch.float32)

    def ways(X: Array) -> list[Call]:
        operands = [X, X[0]] if len(X) == 1 else [X]
        return [functools.partial(apply, torch.from_numpy(x)) for x in operands]

    return Contestant(
        f"torch {dtype}", 8 * W.element_size(), W.nbytes, ways,
        lambda X: apply(torch.from_numpy(X)).numpy(),
        lambda X: exact_dense(W.to(torch.float32).numpy(), X),
        lambda: torch_dense(m, n, threads, dtype, W.clone()), {},
    )  # fmt: skip


def torch_int8(m: int, n: int, threads: int, model: Any = None) -> Contestant:
    """Dynamic quantization: weights rounded once, activations in every call."""
    torch = importlib.import_module("torch")
    torch.backends.quantized.engine = "x86"
    model = model or quantized_linear(torch, m, n)

    def another() -> Contestant:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch_int8(m, n, threads, copy.deepcopy(model))

    return Contestant(
        "torch int8, dynamic", 8, m * n,
        lambda X: [functools.partial(model, torch.from_numpy(X))],
        lambda X: model(torch.from_numpy(X)).numpy(),
        lambda X: exact_dense(model[0].weight().dequantize().numpy(), X),
        another, {"engine": torch.backends.quantized.engine},
    )  # fmt: skip


def quantized_linear(torch: Any, m: int, n: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of another package
        linear = torch.nn.Linear(n, m, bias=False)
        linear.weight = torch.nn.Parameter(torch.from_numpy(dense_weights(m, n)), requires_grad=False)
        return torch.ao.quantization.quantize_dynamic(
            torch.nn.Sequential(linear), {torch.nn.Linear}, dtype=torch.qint8
        )


# ---------------------------------------------------------------- onnxruntime


def onnxruntime_session(
    m: int, n: int, threads: int, nodes: list[Any], tensors: dict[str, Array]
) -> tuple[Callable[[Array], Array], Callable[[Array], list[Call]]]:
    """A product from x (batch, n) to y (batch, m), and the ways to call it, for a contestant."""
    onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = [[make.make_tensor_value_info(name, kind, ["batch", size])] for name, size in (("x", n), ("y", m))]
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()]
    model = make.make_model(
        make.make_graph(nodes, "product", *ends, weights),
        opset_imports=[make.make_opsetid("", 17), make.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")  # spares who comes next
    session = runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])

    def ways(X: Array) -> list[Call]:
        bound = session.io_binding()
        bound.bind_cpu_input("x", X)
        result = runtime.OrtValue.ortvalue_from_numpy(np.empty((len(X), m), np.float32))
        bound.bind_ortvalue_output("y", result)
        return [
            functools.partial(session.run_with_iobinding, bound),
            functools.partial(session.run, ["y"], {"x": X}),
        ]

    return lambda X: session.run(["y"], {"x": X})[0], ways


def onnxruntime_int8(m: int, n: int, threads: int) -> Contestant:
    """What its dynamic quantization makes: activations are rounded in every call; a scale for each output."""
    onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    node = onnx.helper.make_node
    W = dense_weights(m, n).T
    scales = np.abs(W).max(0) / 127
    rounded = np.rint(W / scales).astype(np.int8)
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["levels", "scale", "zero"]),
        node("MatMulInteger", ["levels", "W", "zero"], ["sums"]),
        node("Cast", ["sums"], ["floats"], to=onnx.TensorProto.FLOAT),
        node("Mul", ["scale", "scales"], ["both"]),
        node("Mul", ["floats", "both"], ["y"]),
    ]
    product, ways = onnxruntime_session(m, n, threads, nodes, {"W": rounded, "scales": scales})
    return Contestant(
        "onnxruntime int8, dynamic", 8 + 32 / n, m * n + 4 * m, ways,
        product, functools.partial(exact_dense, (rounded * scales).T),
        lambda: onnxruntime_int8(m, n, threads), {"version": runtime.__version__}, max_copies=256,
    )  # fmt: skip


# ---------------------------------------------------------------- 4 and 2 bits


def codes(m: int, n: int, bits: int) -> Array:
    """Random levels, 8 / bits to a byte, the first in the lowest bits: shape (m, n bits / 8)."""
    if n % GROUP:
        raise ValueError(f"{n} columns are no multiple of {GROUP}")
    return np.random.default_rng(2).integers(0, 256, (m, n * bits // 8), dtype=np.uint8)


def exact_codes(packed: Array, bits: int, X: Array) -> Array:
    """X W' in float64 for the weights SCALE * (level - 2^(bits - 1))."""
    levels = np.stack([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], axis=-1)
    return exact_dense(SCALE * (levels.reshape(len(packed), -1).astype(np.float32) - 2 ** (bits - 1)), X)


def onnxruntime_nbits(m: int, n: int, threads: int, bits: int) -> Contestant:
    """MatMulNBits with 8-bit activations (accuracy level 4) and a float32 scale for every 128 weights."""
    onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    packed, groups = codes(m, n, bits), n // GROUP
    tensors = {
        "B": packed.reshape(m, groups, GROUP * bits // 8),
        "scales": np.full((m, groups), SCALE, np.float32),
    }
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", *tensors], ["y"], domain="com.microsoft",
        K=n, N=m, bits=bits, block_size=GROUP, accuracy_level=4,
    )  # fmt: skip
    product, ways = onnxruntime_session(m, n, threads, [node], tensors)
    return Contestant(
        f"onnxruntime {bits}-bit", bits + 32 / GROUP, packed.nbytes + 4 * m * groups, ways,
        product, functools.partial(exact_codes, packed, bits),
        lambda: onnxruntime_nbits(m, n, threads, bits),
        {"version": runtime.__version__, "accuracy_level": 4, "block_size": GROUP}, max_copies=256,
    )  # fmt: skip


def openvino_nbits(m: int, n: int, threads: int, bits: int) -> Contestant:
    """A product with decompressed u4 or u2 weights, which the CPU plugin runs on 8-bit activations."""
    ov = importlib.import_module("openvino")
    op = importlib.import_module("openvino.opset13")
    packed, groups = codes(m, n, bits), n // GROUP
    kind = getattr(ov.Type, f"u{bits}")
    middle = sum(2 ** (bits - 1) << shift for shift in range(0, 8, bits))
    zeros = np.full(-(-m * groups * bits // 8), middle, np.uint8)
    levels, zero = (
        op.convert(ov.op.Constant(ov.Tensor(data.ravel(), ov.Shape(shape), kind)), "f16")
        for data, shape in ((packed, [m, groups, GROUP]), (zeros, [m, groups, 1]))
    )
    scales = op.constant(np.full((m, groups, 1), SCALE, np.float16))
    weights = op.reshape(op.multiply(op.subtract(levels, zero), scales), [m, n], False)
    x = op.parameter([-1, n], np.float32)
    model = ov.Model([op.matmul(x, op.convert(weights, "f32"), False, True)], [x])
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP)}  # fmt: skip
    compiled = openvino_core().compile_model(model, "CPU", settings)

    def ways(X: Array) -> list[Call]:
        request = compiled.create_infer_request()
        request.set_input_tensor(ov.Tensor(X, shared_memory=True))
        return [
            functools.partial(request.infer, share_outputs=True),
            functools.partial(compiled, X, share_inputs=True, share_outputs=True),
        ]

    return Contestant(
        f"openvino {bits}-bit", bits + (16 + bits) / GROUP, packed.nbytes + 2 * m * groups + zeros.nbytes,
        ways,
        lambda X: compiled(X)[0], functools.partial(exact_codes, packed, bits),
        lambda: openvino_nbits(m, n, threads, bits),
        {"version": ov.__version__.split("-")[0], "dynamic_quantization_group_size": GROUP}, max_copies=64,
    )  # fmt: skip


@functools.cache
def openvino_core() -> Any:
    return importlib.import_module("openvino").Core()


# ---------------------------------------------------------------- the list

# By the names of --rivals; each raises what its library does where it cannot do a shape or a format.
RIVALS: dict[str, Callable[[int, int, int], Contestant]] = {
    "torch-float32": functools.partial(torch_dense, dtype="float32"),
    "torch-bfloat16": functools.partial(torch_dense, dtype="bfloat16"),
    "torch-int8": torch_int8,
    "numpy": numpy_float32,
    "onnxruntime-8": onnxruntime_int8,
    "onnxruntime-4": functools.partial(onnxruntime_nbits, bits=4),
    "onnxruntime-2": functools.partial(onnxruntime_nbits, bits=2),
    "openvino-4": functools.partial(openvino_nbits, bits=4),
    "openvino-2": functools.partial(openvino_nbits, bits=2),
}
