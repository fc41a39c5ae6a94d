"""What a layer is to compute after earlier layers were compressed: its target matrix and target bias.

A dense layer computes A x + b. In the compressed model its input is x~ instead of x, because the layers
before it are not exact. With S~ = E[x~ x~'], C = E[x x~'], D the diagonal of S~ and s the share of shrinkage,
the F that minimises

    (1 - s) E|A x - F x~|^2 + s tr((A - F) D (A - F)')

also minimises ``tr((A' - F) Ss (A' - F)')``, which differs by a constant, where

    Ss = (1 - s) S~ + s D,    A' = A + (1 - s) A (C - S~) Ss^-1.

So ``diba.solve(A', covariance=(S~, s))``, which shrinks S~ by s, minimises the first expression. A' is the
target matrix of the layer; it is A if x~ = x. The factors are found for a larger share than that of the
correction, because they fit the sample more closely (``second_moments.factor_shrinkage``).

If the bias is free, the best one for any F is b + A E[x] - F E[x~], which leaves
``E|A (x - E[x]) - F (x~ - E[x~])|^2``: the same problem with S~ and C about the means. A' is then that of the
centred moments, and the target bias is ``b' = b + A E[x] - A' E[x~]``; with factors F, the bias becomes
``b' + (A' - F) E[x~]``.

Source: the normal equations of these expressions. The idea to correct a layer's target for the errors of
earlier layers is from GPTAQ (Li et al., arXiv 2504.02692).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...solvers.second_moments import missing_power, shrinkage, shrunk
from ..modules.kinds import dense_matrix
from ..modules.state import as_numpy
from .moments import Moments

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from numpy.typing import NDArray
    from torch import nn

    from .inputs import InputSums

    Floats = NDArray[np.float64]

__all__ = ["LayerTask", "bias_values", "correction", "layer_tasks", "plain_task", "trained_task"]


class LayerTask(NamedTuple):
    """What a layer is to compute once it is compressed.

    Attributes:
        name: Its name.
        matrix: Target matrix, (m, n).
        moments: Moments of its inputs; None: unknown.
        bias: Target bias, (m,), float64, for layers whose bias is free; None: the bias stays as it is.
    """

    name: str
    matrix: NDArray[np.float32]
    moments: Moments | None
    bias: Floats | None = None


def plain_task(name: str, layer: nn.Module) -> LayerTask:
    """To compute what the dense layer does, for unknown inputs."""
    return LayerTask(name, dense_matrix(layer).astype(np.float32), None)


def layer_tasks(
    layers: Mapping[str, nn.Module], free: Container[str], sums: InputSums, *, tried: bool = False
) -> list[LayerTask]:
    """The tasks of the layers of one group, without gradients.

    Args:
        layers: Name -> dense layer.
        free: Names of layers whose bias is free.
        sums: Moments of their inputs.
        tried: Whether targets are tried in the dense layers: where one has no bias, A' must do without b'.

    Raises:
        ValueError: The inputs are not finite, or only padding.
    """
    moments = Moments(sums.second(next(iter(layers))), sums.count, mean=sums.mean())
    changes: dict[bool, Floats | None] = {}  # by whether A' may count on b'
    tasks = []
    for name, layer in layers.items():
        A = dense_matrix(layer).astype(np.float64)
        counts = name in free and not (tried and layer.bias is None)
        if counts not in changes:
            changes[counts] = _change(sums, moments, moments.centred() if counts else moments)
        change = changes[counts]
        target = (A if change is None else A + A @ change).astype(np.float32)
        bias = bias_values(layer) if name in free else None
        if bias is not None and counts:
            bias += A @ sums.dense_mean() - target.astype(np.float64) @ sums.mean()
        tasks.append(LayerTask(name, target, moments, bias))
    return tasks


def trained_task(task: LayerTask, layer: nn.Module) -> LayerTask:
    """The task to compute what a dense layer has become by training."""
    bias = None if task.bias is None else bias_values(layer)
    return task._replace(matrix=dense_matrix(layer).astype(np.float32), bias=bias)


def _change(sums: InputSums, moments: Moments, about: Moments) -> Floats | None:
    """The T of ``A' = A + A T``, for moments about zero or, centred, about the mean; None if A' = A."""
    C, S = sums.cross(), about.second
    if C is None:
        return None
    if about is not moments:
        C = C - np.outer(sums.dense_mean(), sums.mean())
    extra = np.diag(missing_power(S))
    return correction(C + extra, S + extra, shrinkage(len(S), moments.count))


def correction(C: NDArray[Any], S: NDArray[Any], shrink: float) -> Floats:
    """The matrix T, shape (n, n), of ``A' = A + A T``.

    Args:
        C: E[x x~'], shape (n, n).
        S: E[x~ x~'], shape (n, n).
        shrink: Share of the diagonal in S.
    """
    scale = np.sqrt(S.diagonal())
    scale[scale == 0] = 1  # for an input that is always 0
    unit = shrunk(S, shrink) / np.outer(scale, scale)
    unit[np.diag_indices_from(unit)] += 1e-7  # for a singular S without shrinkage
    gap = (1 - shrink) * (C - S) / scale
    result: Floats = np.linalg.solve(unit, gap.T).T / scale
    return result


def bias_values(layer: Any) -> Floats:
    """A copy of the bias of a dense layer, (m,), float64; zeros if it has none."""
    if layer.bias is None:
        return np.zeros(len(dense_matrix(layer)))
    return as_numpy(layer.bias).astype(np.float64)
