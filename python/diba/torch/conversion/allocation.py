"""Distribute the bits of a model over its layers, by noise curves or by retuning scores."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

import diba

from ..._internal import check
from ...allocation.curves import Curve
from ...allocation.matrices import SIZES, STEPS, check_sizes
from ...allocation.waterfill import waterfill
from ...checkpoints.entries import first_names
from ...progress import Steps, reporting
from ...solvers.size import no_size_warning, uniform_k
from ..model.config import Config
from ..model.selection import select
from ..model.swap import unfused
from ..modules.kinds import dense_matrix
from ..modules.layer import FactoredLayer
from ..retuning.batches import differentiable
from ..retuning.losses import model_loss
from .solving import moments_of, unreached, warn_unreached

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from ...allocation.waterfill import Allocation
    from ...progress import ProgressOption
    from ..calibration.moments import Moments
    from ..retuning.losses import Loss

__all__ = ["allocate", "keep_best", "scores"]


def allocate(
    model: nn.Module,
    bits_per_weight: float,
    *,
    config: Config | None = None,
    calibration: Mapping[str, Moments] | None = None,
    sizes: tuple[float, ...] = SIZES,
    progress: ProgressOption = True,
    threads: int | None = None,
) -> Allocation:
    """Choose k for every layer that :func:`convert` would replace, all together at ``bits_per_weight``.

    Without ``calibration`` the noise of a layer is ``m n |A - F|^2 / |A|^2``: relative to ``|A|^2``, so that
    layers of large weights do not get all bits, and proportional to the number of weights m n. With
    ``calibration`` it is the noise of the outputs, ``tr((A - F) S (A - F)')``. If the calibration has
    gradients, each output is also weighted by its mean squared gradient, and each layer by the number of
    vectors that it multiplied; the sum then estimates, to second order and with a diagonal Fisher matrix, how
    much the loss of the model rises.

    With ``calibration``, some layers need another rule:

    - Layers that it did not reach, or whose inputs were all 0, such as an expert that got no token, have
      noise 0. They get the smallest size, and a warning names them.
    - Layers whose gradients were all 0 also get the smallest size, without a warning.
    - Layers that it cannot measure (embeddings, and layers without gradients where others have them) have the
      noise ``c m n |A - F|^2 / |A|^2``. Here c is the median over the measured layers of their noise divided
      by ``m n |A - F|^2 / |A|^2``, both summed over the measured sizes.

    Args:
        model: A dense model; it is not changed.
        bits_per_weight: Stored bits per weight over all of these layers, diagonals counted.
        config: Selects the layers (those that get codes have no part in this), and sets alphabet (default
            ``"sign"``, as in :func:`convert`), method and seed. Its sizes are not used.
        calibration: Result of :func:`calibrate`, best with ``loss=diba.torch.fisher()``.
        sizes: Sizes at which noise is measured, as multiples of ``bits_per_weight``. Every k lies between the
            smallest and the largest.
        progress: True shows a bar on stderr, False nothing; a callable gets a :class:`diba.Progress`, whose
            steps are layers.
        threads: Threads of the solver; None: ``diba.num_threads()``.

    Returns:
        The allocation; ``convert`` takes it as
        ``layers={name: {"k": k} for name, k in allocation.k.items()}``.

    Raises:
        TypeError, ValueError: as for :func:`diba.torch.convert` and :func:`diba.allocate`.
    """
    asked = check.number(bits_per_weight, "bits_per_weight", minimum=0, exclusive=True)
    sizes = check_sizes(sizes)
    if config is not None:
        check.instance(config, "config", Config, "use diba.torch.Config(...)")
    with unfused(model), reporting(progress) as report:
        found = select(model, config or Config(bits_per_weight=asked)).targets
        targets = [target for target in found if target.settings.codes is None]
        if not targets:
            raise ValueError(
                "config selects no layer of the model; the error of diba.torch.convert names the reasons"
            )
        known = moments_of(targets, calibration)
        if calibration is not None:
            idle = unreached(targets, known)
            warn_unreached(
                idle, len(targets), "they get the smallest size, because these data do not use them"
            )
        measured: dict[str, _Measured] = {}
        steps = Steps("allocate", len(targets), report)
        for target in targets:
            chosen = {name: getattr(target.settings, name) for name in ("alphabet", "method", "seed")}
            options = {**chosen, "threads": threads}
            bits = [size * asked for size in sizes]
            measured[target.name] = _measured(
                dense_matrix(target.module), known.get(target.name), bits, options
            )
            steps.done(len(measured), target.name)
    if calibration is None:
        return waterfill(
            {name: found.curve(found.relative) for name, found in measured.items()}, bits_per_weight=asked
        )
    return waterfill(_in_one_unit(measured, known, idle), bits_per_weight=asked)


class _Measured(NamedTuple):
    """The noise of a layer at several k: relative to its weights, and as calibration measures it."""

    shape: tuple[int, int]
    k: list[int]
    relative: list[float]  # m n |A - F|^2 / |A|^2
    known: list[float]  # empty without moments

    def curve(self, noise: list[float]) -> Curve:
        return Curve(self.shape, np.array(self.k), np.array(noise))


def _measured(
    matrix: NDArray[Any], moments: Moments | None, bits: list[float], options: dict[str, Any]
) -> _Measured:
    m, n = matrix.shape
    rows, cols = (None, None) if moments is None else moments.importance
    sizes = sorted({uniform_k(m, n, size) for size in bits})
    energy = float(np.vdot(matrix.astype(np.float64), matrix)) or 1.0
    relative, known = [], []
    for k in sizes:
        importance = None if cols is None else (rows, cols)
        with no_size_warning():
            f = diba.solve(matrix, k, effort="fast", max_iter=STEPS, importance=importance, **options)
        error = matrix.astype(np.float64) - f.to_dense()
        relative.append(float(np.vdot(error, error)) / energy * math.prod(matrix.shape))
        if moments is not None:
            known.append(_noise(error, moments, rows))
    return _Measured((m, n), sizes, relative, known)


def _noise(error: NDArray[np.float64], moments: Moments, rows: NDArray[np.float64] | None) -> float:
    """The noise of the outputs due to an error of the matrix, weighted by gradients if they are known."""
    if rows is not None:
        error = error * (rows * math.sqrt(moments.outputs))[:, None]
    elif moments.gradient_rms is not None:  # all gradients were 0: no output changes the loss
        return 0.0
    return max(0.0, float(np.vdot(error @ np.asarray(moments.second), error)))


def _in_one_unit(
    measured: dict[str, _Measured], known: Mapping[str, Moments], idle: Sequence[str]
) -> dict[str, Curve]:
    """Noise curves of all layers in the unit of those that calibration measured: see :func:`allocate`."""
    weighed = any(moments.gradient_rms is not None for moments in known.values())
    usable = {
        name: found
        for name, found in measured.items()
        if name in known and (known[name].gradient_rms is not None or not weighed)
    }
    costs = [
        sum(found.known) / sum(found.relative)
        for found in usable.values()
        if sum(found.known) > 0 and sum(found.relative) > 0
    ]
    typical = float(np.median(costs)) if costs else 1.0
    curves = {}
    for name, found in measured.items():
        if name in idle:
            noise = [0.0] * len(found.k)
        elif name in usable:
            noise = found.known
        else:
            noise = [typical * value for value in found.relative]
        curves[name] = found.curve(noise)
    return curves


def scores(
    model: nn.Module, batches: Iterable[Any], loss: Loss | None = None
) -> dict[str, NDArray[np.float64]]:
    """Compute retuning scores: the sum over batches of ``(dE/dd2_i * d2_i)^2`` for every inner component i.

    Component i is column i of B1 with row i of B2. Removing it sets d2_i to 0, which to first order changes
    the loss E by ``-dE/dd2_i * d2_i``. So the components with the largest scores are the ones to keep when
    layers of one shape share a number of components.

    Args:
        model: Runs in evaluation mode; it is not changed.
        batches: Any iterable of batches, read once.
        loss: ``loss(model, batch)``; None: the loss that the model returns for batches with labels.

    Returns:
        Name of the layer -> scores, shape (k,), in module order. A layer that no loss reached has zeros, and
        a warning names it; :func:`keep_best` gives it the smallest size.

    Raises:
        ValueError: The model has no factored layer, there are no batches, or a loss is not finite.

    Source:
        Boza and Macko, "Double binary factorization", arXiv 2505.11076, section 3.5.
    """
    loss = loss or model_loss
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FactoredLayer)}
    if not layers:
        raise ValueError(
            "model has no factored layer; it must have some: call diba.torch.convert(model) first"
        )
    totals = {name: torch.zeros(layer.k, dtype=torch.float64) for name, layer in layers.items()}
    inner = [layer.d2 for layer in layers.values()]
    count = 0
    with differentiable(model, inner):
        for count, batch in enumerate(batches, 1):
            value = loss(model, batch)
            if not torch.isfinite(value):
                raise ValueError(f"the loss of batch {count - 1} is {value.item()}; it must be finite")
            gradients = torch.autograd.grad(value, inner, allow_unused=True)
            for total, d2, gradient in zip(totals.values(), inner, gradients, strict=True):
                if gradient is not None:
                    total += (gradient.double() * d2.detach().double()).square().cpu()
    if count == 0:
        raise ValueError("batches is empty; it must give at least one batch")
    missed = [name for name, total in totals.items() if not total.any()]
    if missed:
        text = (
            f"no loss reached {len(missed)} of {len(totals)} layers, {first_names(missed)}; their scores are "
            "0, and keep_best gives them the smallest size"
        )
        warnings.warn(text, UserWarning, stacklevel=2)
    return {name: total.numpy() for name, total in totals.items()}


def keep_best(
    model: nn.Module, scores: Mapping[str, NDArray[np.float64]], bits_per_weight: float
) -> dict[str, int]:
    """Choose k for every layer by keeping the inner components with the best scores.

    Layers of one shape share their components. Convert and score the model with more bits than wanted, for
    example 1.5 times as many; call this function to get k for each layer; then convert the dense model again.

    Args:
        model: Has the factored layers that were scored.
        scores: Result of :func:`diba.torch.scores`.
        bits_per_weight: Stored bits per weight over each group of layers of one shape, diagonals counted.

    Returns:
        Name -> k. Each layer keeps at least a quarter of an even share.

    Raises:
        TypeError: A name is not that of a factored layer.
        ValueError: The numbers of components and of scores of a layer differ, or a group has fewer components
            than it should keep.

    Source:
        Boza and Macko, "Double binary factorization", arXiv 2505.11076, section 3.5.
    """
    asked = check.number(bits_per_weight, "bits_per_weight", minimum=0, exclusive=True)
    layers = dict(model.named_modules())
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name, values in scores.items():
        layer = layers.get(name)
        if not isinstance(layer, FactoredLayer):
            raise TypeError(
                f"scores has {name!r}, a {type(layer).__name__}; it must name a factored layer of model"
            )
        check.equal(len(values), f"the number of scores of {name!r}", layer.k, "k of the layer")
        groups[layer.d1.numel(), layer.d3.numel()].append(name)
    kept: dict[str, int] = {}
    for (m, n), names in groups.items():
        even = uniform_k(m, n, asked)
        found = sum(len(scores[name]) for name in names)
        if found < even * len(names):
            raise ValueError(
                f"the {len(names)} layers of {m} x {n} have {found} components, fewer than the "
                f"{even * len(names)} of {asked:g} bits per weight; score a model with more bits"
            )
        kept |= _best_of_group({name: scores[name] for name in names}, even)
    return {name: kept[name] for name in scores}


def _best_of_group(scores: dict[str, NDArray[np.float64]], even: int) -> dict[str, int]:
    """How many components of each layer are among the best; ``even`` per layer on average."""
    counts = {name: min(len(values), max(1, even // 4)) for name, values in scores.items()}
    ranked = {name: np.sort(values)[::-1] for name, values in scores.items()}
    rest = sorted(
        ((value, name) for name, values in ranked.items() for value in values[counts[name] :]), reverse=True
    )
    for _, name in rest[: even * len(scores) - sum(counts.values())]:
        counts[name] += 1
    return counts
