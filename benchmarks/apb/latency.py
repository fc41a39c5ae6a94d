"""How long the networks of the apb benchmark take: one image, and 64; one thread, all in turn in one process.

    python benchmarks apb_latency --json benchmarks/results/apb_latency.json

Weights are random: time does not depend on them. torch's dynamic quantization has no convolutions, so its
int8 is there for the network of dense layers only; onnxruntime's is dynamic there and static, of random
images, for the other.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import diba.onnx
import diba.torch
from diba._internal.timing import interleaved

from ..common import results
from ..common.command import arguments_of, finish, needs, parser
from ..common.tables import markdown, measured
from ..models.speed_work import randomize
from .arms import outer
from .networks import NETWORKS

__all__ = ["main", "table"]

BATCHES = (1, 64)
ROUNDS, SECONDS = 15, 0.5  # samples of each contestant, and the time for all of them
EXCEPTIONS = (0.01, 0.03)
BITS = (1.0, 2.0)

Calls = dict[str, Callable[[], object]]


def main(arguments: Sequence[str]) -> None:
    options = parser("apb_latency", __doc__, threads=1).parse_args(arguments)
    needs("torch", "onnx", "onnxruntime")
    torch.set_num_threads(options.threads)
    diba.set_num_threads(options.threads)
    rows = []
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, Path(folder), options.threads)
    report = {"machine": results.machine(), "arguments": arguments_of(options), "rows": rows}
    results.write(options.json, report)
    finish(table(report), report, options)


def measure(name: str, folder: Path, threads: int) -> list[dict[str, Any]]:
    models = dict(networks(name))
    sessions = dict(onnx_sessions(name, folder, threads))
    rows = []
    for batch in BATCHES:
        x = torch.randn(batch, 1, 28, 28)
        calls: Calls = {key: inferring(model, x) for key, model in models.items()}
        calls |= {key: running(session, x.numpy()) for key, session in sessions.items()}
        taken = interleaved(calls, ROUNDS, SECONDS)
        rows += [
            {"network": name, "batch": batch, "contestant": key, "us": round(1e6 * statistics.median(s), 2)}
            for key, s in taken.items()
        ]
    return rows


# ---- contestants


def networks(name: str) -> Iterator[tuple[str, nn.Module]]:
    """(name, network) of all that run in torch."""

    def made() -> nn.Module:
        torch.manual_seed(0)
        return NETWORKS[name].make().eval()

    yield "torch float32", made()
    if name == "mlp":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is to move to another package
            quantized = torch.ao.quantization.quantize_dynamic(made(), {nn.Linear}, dtype=torch.qint8)
        yield "torch int8", quantized
    for share in EXCEPTIONS:
        model = diba.torch.binarize(made(), share, skip=outer(made()))
        yield f"APB, {100 * share:g} %", diba.torch.freeze(model)
    for bits in BITS:
        model = made()
        config = diba.torch.Config(
            bits_per_weight=bits, alphabet="sign", skip=outer(model), convolutions=True
        )
        randomize(model, config)
        yield f"DBF ±1, {bits:g} bit{'s' if bits > 1 else ''}", model


def onnx_sessions(name: str, folder: Path, threads: int) -> Iterator[tuple[str, Any]]:
    from onnxruntime.quantization import quantize_dynamic, quantize_static

    logging.getLogger().setLevel(logging.ERROR)  # it advises to optimize first
    source, target = folder / "float32.onnx", folder / "int8.onnx"
    model = NETWORKS[name].make().eval()
    example = (torch.randn(2, 1, 28, 28),)
    diba.onnx.export(model, example, source, input_names=["x"], progress=False)
    if name == "mlp":
        quantize_dynamic(source, target, per_channel=True)
    else:
        quantize_static(source, target, RandomImages(), per_channel=True)
    for path in (source, target):
        yield f"onnxruntime {path.stem}", diba.onnx.session(path, threads=threads)


class RandomImages:
    """For ranges of activations."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self._left = [random.standard_normal((1, 1, 28, 28), np.float32) for _ in range(8)]

    def get_next(self) -> dict[str, Any] | None:
        return {"x": self._left.pop()} if self._left else None


def inferring(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return model(x)

    return call


def running(session: Any, x: np.ndarray) -> Callable[[], object]:
    [name] = (each.name for each in session.get_inputs())
    return lambda: session.run(None, {name: x})


# ---- table


def table(report: dict[str, Any]) -> str:
    """Microseconds of every contestant, networks and batches side by side."""
    columns = [(network, batch) for network in NETWORKS for batch in BATCHES]
    names = dict.fromkeys(row["contestant"] for row in report["rows"])
    found = {(row["network"], row["batch"], row["contestant"]): row["us"] for row in report["rows"]}
    rows = [
        [name, *(f"{found[*at, name]:,.0f}" if (*at, name) in found else "" for at in columns)]
        for name in names
    ]
    head = ["us", *(f"{NETWORKS[network].title}, {batch}" for network, batch in columns)]
    threads = report["arguments"]["threads"]
    note = f"A call with 1 or 64 images; {threads} thread. {measured(report)}."
    return f"{markdown(head, rows)}\n\n{note}"
