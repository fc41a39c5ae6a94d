"""Cells of the curves benchmark that onnxruntime's own tools make, measured in onnxruntime."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..common.command import needs
from .curves_plan import Cell
from .curves_work import Clock, Facts, Work
from .shared import teacher

__all__ = ["Session", "exported", "file_bytes"]

BLOCK = 32  # weights of int4 that share a scale and a zero point
IMAGES = 10  # batches that static quantization takes the ranges of activations from
RECIPES = {
    "int8, dynamic": "a scale for each output",
    "int8, static": f"a scale for each output; ranges from {IMAGES} batches",
    "int4": f"rounded in blocks of {BLOCK}, embeddings too",
}


def exported(cell: Cell, work: Work, clock: Clock) -> Facts:
    """The dense model as an ONNX file of fewer bits, in a session of onnxruntime."""
    needs("onnx", "onnxruntime", "onnxscript")
    folder = work.folder / f"{cell.task}-onnx"
    source = folder / "float32.onnx"
    if not source.exists():
        export(work, source)
    target = folder / f"{cell.form.replace(', ', '-')}.onnx"
    with clock:
        if cell.form == "int4":
            four_bits(source, target)
        else:
            eight_bits(source, target, work if cell.form == "int8, static" else None)
    model = Session(target, teacher(work.task))
    return {"model": model, "bytes": file_bytes(target), "recipe": RECIPES[cell.form]}


def export(work: Work, path: Path) -> None:
    import diba.onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    model: Any = teacher(work.task)
    if work.task.name == "efficientnet":
        example = {"images": work.seen[0]["images"][:2]}
        diba.onnx.export(Features(model), example, path, output_names=["features"], progress=False)
        return
    tokens = torch.from_numpy(np.random.default_rng(0).integers(1000, 30_000, (2, 20)))
    given = {"input_ids": tokens}
    if work.task.name == "minilm":
        given["attention_mask"] = torch.ones_like(tokens)
    diba.onnx.export(model, given, path, embeddings=None, head=None, progress=False)


class Features(nn.Module):
    """What of an image network stands before the probe."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model.features(images)
        return found


# ---- quantized


def eight_bits(source: Path, target: Path, ranges: Work | None) -> None:
    """Weights and activations in int8; ranges of activations from data, or anew in every call."""
    from onnxruntime.quantization import quantize_dynamic, quantize_static

    logging.getLogger().setLevel(logging.ERROR)  # it advises to optimize first
    if ranges is None:
        quantize_dynamic(source, target, per_channel=True)
    else:
        quantize_static(source, target, Images(ranges), per_channel=True)


class Images:
    """Images that conversion sees, as onnxruntime reads them."""

    def __init__(self, work: Work) -> None:
        self._left: Iterator[Any] = iter(work.seen[:IMAGES])

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._left, None)
        return None if batch is None else {"images": batch["images"].numpy()}


def four_bits(source: Path, target: Path) -> None:
    """Weights of products and tables in 4 bits."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    kinds = ("MatMul", "Gather")
    quantizer = MatMulNBitsQuantizer(
        onnx.load(source), bits=4, block_size=BLOCK, op_types_to_quantize=kinds,
        quant_axes=(("MatMul", 0), ("Gather", 1)),
    )  # fmt: skip
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), use_external_data_format=True)


def file_bytes(path: Path) -> int:
    """Of a model and of the file of tensors beside it."""
    return sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))


# ---- measured


class Session(nn.Module):
    """An ONNX file that metrics take for the dense model."""

    def __init__(self, path: Path, dense: Any) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.config, self._fc = getattr(dense, "config", None), getattr(dense, "_fc", None)
        self._inputs = [each.name for each in self._session.get_inputs()]
        self._outputs = [each.name for each in self._session.get_outputs()]

    def forward(self, **inputs: Any) -> Any:
        """What the dense model returns, by the names of the file's outputs."""
        found = self._session.run(None, {name: inputs[name].numpy() for name in self._inputs})
        return SimpleNamespace(
            **{name: torch.from_numpy(x) for name, x in zip(self._outputs, found, strict=True)}
        )

    def features(self, images: torch.Tensor) -> Any:
        """Of an image network."""
        return self(images=images).features
