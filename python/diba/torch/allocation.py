"""Bits of a model where they matter: k of every layer from noise curves, or from retuning scores."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

import diba

from .. import _check
from ..allocate import SIZES, STEPS, check_sizes
from ..waterfill import NoiseCurve, uniform_k, waterfill
from .config import Config
from .factors import Factors
from .select import select
from .solving import dense_matrix
from .unfuse import unfused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from torch import nn

    from ..waterfill import Allocation
    from .moments import Moments

__all__ = ["allocate", "keep_best"]


def allocate(
    model: nn.Module,
    bits_per_weight: float,
    *,
    config: Config | None = None,
    calibration: Mapping[str, Moments] | None = None,
    sizes: tuple[float, ...] = SIZES,
    progress: Callable[[str, int, int], None] | None = None,
    threads: int | None = None,
) -> Allocation:
    """Choose k for every layer that :func:`convert` would replace, all together at ``bits_per_weight``.

    The noise of a layer is ``|A - F|^2``, relative to ``|A|^2`` so that layers of large weights do not take
    all. With ``calibration`` it is that of the layer's outputs, ``tr((A - F) S (A - F)')``; where that saw
    gradients too, each output is weighed by its mean squared gradient, and each layer by how many vectors it
    multiplied, so that the sum estimates, to second order and with a diagonal Fisher matrix, what the loss of
    the model rises by.

    Args:
        model: Dense; nothing in it is changed.
        bits_per_weight: Mean over the weights of these layers, diagonals counted.
        config: Which layers, and alphabet, method, seed; its own sizes are not used.
        calibration: Of :func:`calibrate`, best with ``loss=diba.torch.fisher()``.
        sizes: Where noise is measured, as shares of ``bits_per_weight``; no k falls outside of them.
        progress: Called with (name, layers done, layers) after each.
        threads: For the solver; None uses ``diba.num_threads()``.

    Returns:
        The allocation: ``convert(model, layers={name: {"k": k} for name, k in allocation.k.items()}, ...)``.

    Raises:
        TypeError, ValueError: as ``convert`` and ``diba.waterfill.waterfill`` say.
    """
    asked = _check.number(bits_per_weight, "bits_per_weight", minimum=0, exclusive=True)
    sizes = check_sizes(sizes)
    if config is not None:
        _check.instance(config, "config", Config, "use diba.torch.Config(...)")
    with unfused(model):
        targets = select(model, config or Config(bits_per_weight=asked)).targets
        if not targets:
            raise ValueError(
                "config leaves no layer of the model to compress; see the reasons in convert's report"
            )
        curves: dict[str, NoiseCurve] = {}
        for target in targets:
            matrix = dense_matrix(target.module)
            moments = None if calibration is None else calibration.get(target.name)
            options = {
                "alphabet": target.settings.alphabet,
                "method": target.settings.method,
                "seed": target.settings.seed,
                "threads": threads,
            }
            curves[target.name] = _curve(matrix, moments, [size * asked for size in sizes], options)
            if progress is not None:
                progress(target.name, len(curves), len(targets))
    return waterfill(curves, bits_per_weight=asked)


def _curve(
    matrix: NDArray[Any], moments: Moments | None, bits: list[float], options: dict[str, Any]
) -> NoiseCurve:
    m, n = matrix.shape
    rows, cols = (None, None) if moments is None else moments.importance
    sizes = sorted({uniform_k((m, n), size) for size in bits})
    noise = []
    for k in sizes:
        importance = None if cols is None else (rows, cols)
        f = diba.solve(matrix, k, effort="fast", max_iter=STEPS, importance=importance, **options)
        noise.append(_noise(matrix.astype(np.float64) - f.to_dense(), moments, rows))
    if moments is None:  # relative: all layers count alike
        energy = float(np.vdot(matrix.astype(np.float64), matrix)) or 1.0
        noise = [value / energy * math.prod(matrix.shape) for value in noise]
    return NoiseCurve((m, n), sizes, noise)


def _noise(error: NDArray[np.float64], moments: Moments | None, rows: NDArray[np.float64] | None) -> float:
    """What the error costs: at the outputs if their inputs are known, weighed by gradients if those are."""
    if moments is None:
        return float(np.vdot(error, error))
    if rows is not None:
        error = error * (rows * math.sqrt(moments.outputs))[:, None]
    return max(0.0, float(np.vdot(error @ np.asarray(moments.second), error)))


def keep_best(
    model: nn.Module, scores: Mapping[str, NDArray[np.float64]], bits_per_weight: float
) -> dict[str, int]:
    """Share inner components out by their scores: of layers of one shape together, the best stay.

    Factor and score the model at more bits than wanted, half as many again, say; then ask here what each
    layer should keep, and convert the dense model anew.

    Args:
        model: Holds the factored layers that were scored.
        scores: Of :func:`diba.torch.scores`.
        bits_per_weight: Of every group of layers of one shape, diagonals counted.

    Returns:
        Name -> k. Each layer keeps at least a quarter of its even share.

    Raises:
        TypeError: a name is not of a factored layer.
        ValueError: a layer has another number of components than scores, or a group has fewer than it
            should keep.

    Source:
        Boza and Macko, "Double binary factorization", arXiv 2505.11076, section 3.5.
    """
    asked = _check.number(bits_per_weight, "bits_per_weight", minimum=0, exclusive=True)
    layers = dict(model.named_modules())
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name, values in scores.items():
        layer = layers.get(name)
        if not isinstance(layer, Factors):
            raise TypeError(
                f"scores has {name!r}, a {type(layer).__name__}; it must name a factored layer of model"
            )
        _check.equal(len(values), f"the number of scores of {name!r}", layer.k, "k of the layer")
        groups[layer.d1.numel(), layer.d3.numel()].append(name)
    kept: dict[str, int] = {}
    for (m, n), names in groups.items():
        even = uniform_k((m, n), asked)
        found = sum(len(scores[name]) for name in names)
        if found < even * len(names):
            raise ValueError(
                f"the {len(names)} layers of {m} x {n} have {found} components, fewer than the "
                f"{even * len(names)} of {asked:g} bits per weight; score a model of more bits"
            )
        kept |= _best_of_group({name: scores[name] for name in names}, even)
    return {name: kept[name] for name in scores}


def _best_of_group(scores: dict[str, NDArray[np.float64]], even: int) -> dict[str, int]:
    """How many of each layer are among the best, ``even`` a layer on average."""
    counts = {name: min(len(values), max(1, even // 4)) for name, values in scores.items()}
    ranked = {name: np.sort(values)[::-1] for name, values in scores.items()}
    rest = sorted(
        ((value, name) for name, values in ranked.items() for value in values[counts[name] :]), reverse=True
    )
    for _, name in rest[: even * len(scores) - sum(counts.values())]:
        counts[name] += 1
    return counts
