"""Layers, conversion and retuning for PyTorch models.

>>> import torch
>>> import diba.torch
>>> model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))
>>> model = diba.torch.convert(model, bits_per_weight=2, progress=False)
>>> model(torch.zeros(3, 64)).shape
torch.Size([3, 64])
"""

from __future__ import annotations

try:
    import torch as _torch
except ImportError as error:
    raise ImportError("diba.torch needs PyTorch; use python -m pip install 'diba[torch]'") from error

from diba_autoload import expect_transformers as _expect_transformers

from ..layers.config import Config
from .allocation.allocate import allocate
from .allocation.scores import keep_best, scores
from .binary.bitwise import BitConv2d, BitLayer, BitLinear
from .binary.freezing import freeze
from .binary.layer import APBLayer, exception_penalty
from .binary.layers import APBConv2d, APBLinear
from .binary.training import binarize, bitwise
from .calibration.calibration import Calibration
from .calibration.collect import calibrate
from .calibration.moments import Moments
from .conversion.convert import convert
from .conversion.loading import load
from .conversion.report import LayerReport, Report, report
from .modules.apb import DibaAPBLayer
from .modules.apb_layers import DibaAPBConv2d, DibaAPBLinear
from .modules.bitwise import DibaBitLayer
from .modules.bitwise_layers import DibaBitConv2d, DibaBitLinear
from .modules.coded import CodedLayer
from .modules.coded_layers import DibaCodedEmbedding, DibaCodedLinear
from .modules.conv import DibaConv1d, DibaConv2d
from .modules.embedding import DibaEmbedding
from .modules.layer import FactoredLayer
from .modules.linear import DibaLinear
from .reconstruction.settings import BlockRecipe, Reconstruction
from .retuning.curvature import fisher
from .retuning.flips import Flips
from .retuning.losses import distillation, model_loss
from .retuning.retune import RetuneReport, retune
from .retuning.settings import Training, trainable

__all__ = [
    "APBConv2d",
    "APBLayer",
    "APBLinear",
    "BitConv2d",
    "BitLayer",
    "BitLinear",
    "BlockRecipe",
    "Calibration",
    "CodedLayer",
    "Config",
    "DibaAPBConv2d",
    "DibaAPBLayer",
    "DibaAPBLinear",
    "DibaBitConv2d",
    "DibaBitLayer",
    "DibaBitLinear",
    "DibaCodedEmbedding",
    "DibaCodedLinear",
    "DibaConv1d",
    "DibaConv2d",
    "DibaEmbedding",
    "DibaLinear",
    "FactoredLayer",
    "Flips",
    "LayerReport",
    "Moments",
    "Reconstruction",
    "Report",
    "RetuneReport",
    "Training",
    "allocate",
    "binarize",
    "bitwise",
    "calibrate",
    "convert",
    "distillation",
    "exception_penalty",
    "fisher",
    "freeze",
    "keep_best",
    "load",
    "model_loss",
    "report",
    "retune",
    "scores",
    "trainable",
]

_expect_transformers()
_torch.ops.diba.linear.default  # noqa: B018  # registered by the imports above
