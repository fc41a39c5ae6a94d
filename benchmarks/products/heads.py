"""Output layers of language models in 8 and 4 bits an entry: a product, beside torch's and onnxruntime's.

    python benchmarks heads --json benchmarks/results/heads.json

Each product gives the scores of every token for one vector or several, on one thread. "SNR" is that of the
product alone, against the same weights in float64, for vectors with some large entries, as hidden states
have them: onnxruntime's MatMulNBits rounds activations to 8 bits in blocks, diba's layers to 12 to 16 bits.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from diba._internal.snr import energy_and_error, snr_db
from diba._internal.timing import interleaved
from diba.torch import DibaCodedLinear

from ..common import results
from ..common.command import at_least_one, finish, parser
from ..common.tables import markdown, measured

SHAPES = ((49152, 576), (32000, 2048))  # (tokens, hidden size)
COUNTS = (1, 8, 64)
BLOCK = 32  # of MatMulNBits


def main(arguments: Sequence[str]) -> None:
    made = parser("heads", __doc__)
    made.add_argument("--rounds", type=at_least_one, default=15, metavar="N", help="samples of each (15)")
    options = made.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [measure(m, n, count, options.rounds) for m, n in SHAPES for count in COUNTS]
    versions = {"onnxruntime": importlib.import_module("onnxruntime").__version__}
    report = {"machine": results.machine(), "versions": versions, "rounds": options.rounds, "rows": rows}
    results.write(options.json, report)
    finish(table(report), report, options)


def vectors(count: int, n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Normal entries, of which one in a hundred is ten times as large."""
    random = np.random.default_rng(1)
    x = random.standard_normal((count, n), dtype=np.float32)
    x[:, random.permutation(n)[: n // 100]] *= 10
    return x


def matmul_n_bits(w: Any, bits: int) -> tuple[Callable[[Any], Any], Any]:
    """onnxruntime's product, and the weights that it multiplies."""
    onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    (m, n), zero = w.shape, 1 << bits - 1
    blocks = w.reshape(m, -1, BLOCK)
    scales = np.maximum(np.abs(blocks).max(-1) / (zero - 1), 1e-30).astype(np.float32)
    q = np.clip(np.rint(blocks / scales[..., None]), -zero, zero - 1)
    codes = (q + zero).astype(np.uint8)
    packed = codes if bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4
    make = onnx.helper
    node = make.make_node(
        "MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft",
        K=n, N=m, bits=bits, block_size=BLOCK, accuracy_level=4,
    )  # fmt: skip
    tensors = {"codes": packed, "scales": scales.ravel()}
    graph = make.make_graph(
        [node], "head",
        [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["count", n])],
        [make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["count", m])],
        [onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )  # fmt: skip
    opsets = [make.make_opsetid("", 20), make.make_opsetid("com.microsoft", 1)]
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(
        make.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString(), options
    )
    return lambda x: session.run(None, {"x": x})[0], (q * scales[..., None]).reshape(m, n)


def measure(m: int, n: int, count: int, rounds: int) -> dict[str, Any]:
    """Milliseconds and SNR of each kind of product."""
    w, x = np.random.default_rng(0).standard_normal((m, n), dtype=np.float32), vectors(count, n)
    dense = torch.nn.Linear(n, m, bias=False).requires_grad_(False)
    dense.weight.copy_(torch.from_numpy(w))
    given = torch.from_numpy(x)
    products: dict[str, tuple[Callable[[], Any], Any]] = {"torch float32": (lambda: dense(given).numpy(), w)}
    for bits in (8, 4):
        layer = DibaCodedLinear.from_dense(dense, bits=bits).requires_grad_(False)
        codes = layer.matrix_codes().rows()
        products[f"diba {bits} bits"] = (lambda layer=layer: layer(given).numpy()), codes
        run, held = matmul_n_bits(w, bits)
        products[f"MatMulNBits {bits} bits"] = (lambda run=run: run(x)), held
    with torch.no_grad():
        taken = interleaved({name: call for name, (call, _) in products.items()}, rounds, rounds * 0.1)
    found = {}
    for name, (call, weights) in products.items():
        exact = x.astype(np.float64) @ weights.T.astype(np.float64)
        found[name] = {
            "ms": 1e3 * statistics.median(taken[name]),
            "snr_db": snr_db(*energy_and_error(exact, np.asarray(call(), np.float64))),
        }
    return {"shape": [m, n], "count": count, "products": found}


def table(report: dict[str, Any]) -> str:
    rows = []
    for row in report["rows"]:
        cells = [f"{found['ms']:.2f} ({found['snr_db']:.0f})" for found in row["products"].values()]
        rows.append(["{} x {}".format(*row["shape"]), str(row["count"]), *cells])
    head = ["Tokens x hidden size", "vectors", *report["rows"][0]["products"]]
    note = (
        f"ms, in brackets the SNR in dB. One thread, medians of {report['rounds']} interleaved "
        f"samples. MatMulNBits of onnxruntime {report['versions']['onnxruntime']}: blocks of {BLOCK}, "
        f"accuracy level 4. {measured(report)}."
    )
    return f"{markdown(head, rows)}\n\n{note}"
