"""Whole models outside PyTorch: export to ONNX, and sessions of onnxruntime with diba's operators.

``diba.onnx.session`` needs onnxruntime alone, ``diba.onnx.export`` torch, onnx and onnxscript too, and
``diba.onnx.export_genai``, for language models that write text, onnxruntime-genai and transformers.

>>> import torch
>>> import diba.onnx, diba.torch
>>> model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))
>>> model = diba.torch.convert(model, bits_per_weight=2, progress=False)
>>> done = diba.onnx.export(model, torch.zeros(2, 64), "model.onnx", progress=False)  # doctest: +SKIP
>>> diba.onnx.session("model.onnx").run(None, {"input": x})  # doctest: +SKIP
"""

from __future__ import annotations

from .exporting import export
from .genai import export_genai
from .library import library_path
from .results import Difference, Exported, ExportError
from .runtime import session

__all__ = ["Difference", "ExportError", "Exported", "export", "export_genai", "library_path", "session"]
