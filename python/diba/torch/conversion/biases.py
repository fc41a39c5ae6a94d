"""Biases that make up for the error of the mean output: which ones, their values, and what is left of errors.

If the bias is free, an error E = A - F of the matrix costs ``tr(E Sc E')``, Sc the covariance of the inputs,
in place of ``tr(E S E')``: the bias takes up E mean. See ``calibration.targets`` for inputs that have errors
themselves.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..._internal.snr import output_energy_and_error, snr_db
from ..calibration.targets import bias_values
from ..modules.kinds import input_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from torch import nn

    from ..calibration.targets import LayerTask
    from ..model.selection import Target

    Floats = NDArray[np.float64]

__all__ = ["as_dense", "fitted_bias", "free_biases", "output_snr_db"]

_ROWS_AT_ONCE = 1024  # of matrices in float64


def free_biases(model: nn.Module, targets: Iterable[Target]) -> set[str]:
    """Names of the layers whose bias is to be corrected, or added, where there are moments of their inputs.

    Left out are biases that another module holds as well, and layers whose factors another layer multiplies
    by, too, which reads other inputs.

    Args:
        model: The model.
        targets: Layers that are to be compressed.
    """
    holders = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    found = set()
    for target in targets:
        settings, module = target.settings, target.module
        minimised = settings.objective in ("auto", "covariance")
        alone = not any(input_size(other) is not None for other in target.tied.values())
        if settings.bias == "keep" or not minimised or not alone or input_size(module) is None:
            continue
        bias = getattr(module, "bias", False)  # False: a kind of layer that can have none
        if settings.bias == "add" if bias is None else holders[id(bias)] == 1:
            found.add(target.name)
    return found


def as_dense(task: LayerTask, dense: NDArray[Any]) -> LayerTask:
    """The task for the dense matrix in place of the target matrix, with the same mean of the outputs."""
    if task.bias is None or task.moments is None or task.moments.mean is None:
        return task._replace(matrix=dense)
    return task._replace(matrix=dense, bias=task.bias + _product(task.matrix, dense, task.moments.mean))


def fitted_bias(task: LayerTask, F: NDArray[Any], module: nn.Module) -> Floats | None:
    """The bias that makes the mean output of F that of the target, rounded to the dtype of the layer.

    Entries that the dtype cannot hold stay as they were.

    Args:
        task: What the layer is to compute.
        F: The compressed matrix, (m, n).
        module: The dense layer.

    Returns:
        Shape (m,); None if the mean of the inputs is not known.
    """
    if task.bias is None or task.moments is None or task.moments.mean is None:
        return None
    exact = task.bias + _product(task.matrix, F, task.moments.mean)
    weight: Any = module.weight
    bias: Any = module.bias
    dtype = weight.dtype if bias is None else bias.dtype
    rounded: Floats = torch.from_numpy(exact).to(dtype).double().numpy()
    return np.where(np.isfinite(rounded), rounded, bias_values(module))


def output_snr_db(task: LayerTask, F: NDArray[Any], bias: Floats | None) -> float | None:
    """SNR in dB of a layer's outputs, for the moments of its inputs; None without moments.

    The energy is that of the target matrix times the inputs, biases apart; the error is the difference from
    the target output, biases included.

    Args:
        task: What the layer is to compute.
        F: The compressed matrix, (m, n).
        bias: Its new bias, (m,); None: the bias is as it was.
    """
    moments = task.moments
    if moments is None:
        return None
    energy, error = output_energy_and_error(task.matrix, F, moments.second)
    if bias is not None and task.bias is not None and moments.mean is not None:
        missing = _product(task.matrix, F, moments.mean)  # in the mean
        left = task.bias + missing - bias
        error += float(left @ left - missing @ missing)
    return snr_db(energy, error)


def _product(A: NDArray[Any], F: NDArray[Any], mean: Floats) -> Floats:
    """``(A - F) mean`` in float64."""
    result = np.empty(len(A))
    for start in range(0, len(A), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        result[rows] = (A[rows].astype(np.float64) - F[rows]) @ mean
    return result
