"""Group-wise GPTQ, a baseline for whole models: rounding whose errors are made up for in what follows.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", arXiv 2210.17323.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

import diba.torch
from diba.torch.calibration import propagate
from diba.torch.model.selection import targets
from diba.torch.modules.kinds import factored_matrix

from .rounding import Codes, Rounded, round_groups, stored

__all__ = ["convert_gptq", "gptq", "packed_bytes"]

DAMPING = 0.01  # of the mean diagonal entry, added to the diagonal


@torch.no_grad()
def gptq(matrix: torch.Tensor, moments: torch.Tensor, bits: int, group: int) -> Codes:
    """Codes, scales and offsets, as ``round_groups`` has them, for a small error of the outputs.

    Columns are rounded one after another, and each error is made up for, as far as it can be, by the columns
    that follow. A group gets scale and offset when its first column is due.

    Args:
        matrix: Shape (m, n).
        moments: Second moments of the inputs, shape (n, n).
        bits: Of a code.
        group: Neighbouring columns that share scale and offset in a row.
    """
    m, n = matrix.shape
    left = matrix.double().clone()  # what is to be rounded, with the errors so far made up for
    hessian = moments.double().clone()
    hessian.diagonal().add_(DAMPING * float(hessian.diagonal().mean()) or 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    levels, parts = 2**bits - 1, []
    for first in range(0, n, group):
        last = min(first + group, n)
        _, scale, offset = round_groups(left[:, first:last].float(), bits, last - first)
        codes = torch.zeros(m, group, dtype=torch.uint8)
        errors = torch.empty(m, last - first, dtype=torch.float64)
        for j in range(first, last):
            column = left[:, j]
            code = ((column - offset[:, 0]) / scale[:, 0] + levels / 2).round().clamp(0, levels)
            codes[:, j - first] = code.to(torch.uint8)
            rounded = (code - levels / 2) * stored(scale[:, 0]) + stored(offset[:, 0])
            errors[:, j - first] = (column - rounded) / factor[j, j]
            left[:, j:last] -= errors[:, j - first, None] * factor[j, j:last]
        left[:, last:] -= errors @ factor[first:last, last:]
        parts.append((codes, scale[:, 0], offset[:, 0]))
    codes, scale, offset = (torch.stack(part, 1) for part in zip(*parts, strict=True))
    return codes, scale, offset


def convert_gptq(
    model: nn.Module, config: diba.torch.Config, batches: Iterable[Any], bits: int, group: int = 64
) -> float:
    """Replace the layers that diba would, in place, each for the inputs that it gets from those before.

    Returns:
        Stored bits for each weight, over all replaced layers.
    """
    found = {target.name: target for target in targets(model, config)}
    made: list[Rounded] = []
    solve = functools.partial(_round, model, found, made, bits, group)
    propagate.run(model, list(found), batches, solve)
    return sum(layer.bits for layer in made) / sum(layer.shape.numel() for layer in made)


def _round(
    model: nn.Module, found: dict[str, Any], made: list[Rounded], bits: int, group: int,
    layers: Sequence[propagate.LayerTask],
) -> None:  # fmt: skip
    """Round some layers; those that no batch reached to the nearest."""
    for layer in layers:
        dense, codes = model.get_submodule(layer.name), None
        if layer.moments is not None:
            matrix = factored_matrix(dense).detach().float()
            moments = torch.from_numpy(np.ascontiguousarray(layer.moments.second))
            codes = gptq(matrix, moments, bits, min(group, matrix.shape[1]))
        made.append(Rounded(dense, bits, group, codes))
        for name in (layer.name, *found[layer.name].aliases):
            model.set_submodule(name, made[-1])


def packed_bytes(model: nn.Module) -> int:
    """Of a model with rounded layers: codes packed, scales and offsets in 16 bits, the rest as it is."""
    rounded = [module for module in model.modules() if isinstance(module, Rounded)]
    inside = {id(t) for layer in rounded for t in (layer.codes, layer.scale, layer.offset)}
    others = {
        id(tensor): tensor.nbytes
        for tensor in model.state_dict(keep_vars=True).values()
        if id(tensor) not in inside
    }
    return sum((layer.bits + 7) // 8 for layer in rounded) + sum(others.values())
