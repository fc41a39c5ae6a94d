"""Layers, conversion and retuning for PyTorch models.

>>> import torch
>>> import diba.torch
>>> model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))
>>> report = diba.torch.convert(model, bits_per_weight=2, progress=False)
>>> model(torch.zeros(3, 64)).shape
torch.Size([3, 64])
"""

from __future__ import annotations

try:
    import torch as _torch
except ImportError as error:
    raise ImportError("diba.torch needs PyTorch; use python -m pip install 'diba[torch]'") from error

from diba_autoload import after_import as _after_import

from .allocation import allocate, keep_best
from .calibrate import calibrate
from .config import Config
from .conv import DiBAConv1d, DiBAConv2d
from .convert import convert, meet_transformers
from .embedding import DiBAEmbedding
from .factors import Factors
from .fisher import fisher
from .flips import Flips
from .linear import DiBALinear
from .losses import distillation, model_loss
from .moments import Calibration, Moments
from .report import LayerReport, Report
from .retune import RetuneReport, retune, trainable
from .scores import scores

__all__ = [
    "Calibration",
    "Config",
    "DiBAConv1d",
    "DiBAConv2d",
    "DiBAEmbedding",
    "DiBALinear",
    "Factors",
    "Flips",
    "LayerReport",
    "Moments",
    "Report",
    "RetuneReport",
    "allocate",
    "calibrate",
    "convert",
    "distillation",
    "fisher",
    "keep_best",
    "model_loss",
    "retune",
    "scores",
    "trainable",
]

_after_import("transformers.modeling_utils", meet_transformers)
_torch.ops.diba.linear.default  # noqa: B018  # registered by the imports above
