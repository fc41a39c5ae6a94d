"""Bits of a model where they matter: k of every layer from noise curves, or from retuning scores."""

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
from ...solvers.size import no_advice, uniform_k
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

    The noise of a layer is ``|A - F|^2``, relative to ``|A|^2`` so that layers of large weights do not take
    all, times its weights m n. With ``calibration`` it is that of the layer's outputs,
    ``tr((A - F) S (A - F)')``; where that saw gradients too, each output is weighed by its mean squared
    gradient, and each layer by how many vectors it multiplied, so that the sum estimates, to second order and
    with a diagonal Fisher matrix, what the loss of the model rises by.

    All noise is in that one unit. A layer whose inputs the calibration did not reach, or saw as zeros alone,
    such as an expert that no token was sent to, has noise 0 by the data: it gets the smallest size, and a
    warning names it. So does, without one, a layer whose gradients were all 0. A layer that the calibration
    cannot know, an embedding, or one without gradients beside others that have them, counts as much as the
    median of those it knows: its noise is ``c m n |A - F|^2 / |A|^2``, where c is the median over the
    known layers of their noise divided by ``m n |A - F|^2 / |A|^2``, both summed over the sizes measured.

    Args:
        model: Dense; nothing in it is changed.
        bits_per_weight: Mean over the weights of these layers, diagonals counted.
        config: Which layers, and alphabet (``"sign"`` by default, as in :func:`convert`), method,
            seed; its own sizes are not used.
        calibration: What :func:`calibrate` gives, best with ``loss=diba.torch.fisher()``.
        sizes: Where noise is measured, as shares of ``bits_per_weight``; no k falls outside of them.
        progress: True shows a bar on stderr, False nothing; a callable gets a :class:`diba.Progress`, whose
            steps are layers.
        threads: For the solver; None uses ``diba.num_threads()``.

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
        targets = select(model, config or Config(bits_per_weight=asked)).targets
        if not targets:
            raise ValueError(
                "config leaves no layer of the model to compress; see the reasons in convert's report"
            )
        known = moments_of(targets, calibration)
        if calibration is not None:
            idle = unreached(targets, known)
            warn_unreached(
                idle, len(targets), "they get the smallest size, for by these data they never matter"
            )
        measured: dict[str, _Measured] = {}
        steps = Steps("allocate", len(targets), report)
        for target in targets:
            options = {
                "alphabet": target.settings.alphabet,
                "method": target.settings.method,
                "seed": target.settings.seed,
                "threads": threads,
            }
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
    """What a layer costs at several sizes: relative to its weights, and by what calibration knows of it."""

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
        with no_advice():
            f = diba.solve(matrix, k, effort="fast", max_iter=STEPS, importance=importance, **options)
        error = matrix.astype(np.float64) - f.to_dense()
        relative.append(float(np.vdot(error, error)) / energy * math.prod(matrix.shape))
        if moments is not None:
            known.append(_noise(error, moments, rows))
    return _Measured((m, n), sizes, relative, known)


def _noise(error: NDArray[np.float64], moments: Moments, rows: NDArray[np.float64] | None) -> float:
    """What the error costs at the outputs, weighed by gradients if those are known."""
    if rows is not None:
        error = error * (rows * math.sqrt(moments.outputs))[:, None]
    elif moments.gradient_rms is not None:  # all 0: no output ever mattered
        return 0.0
    return max(0.0, float(np.vdot(error @ np.asarray(moments.second), error)))


def _in_one_unit(
    measured: dict[str, _Measured], known: Mapping[str, Moments], idle: Sequence[str]
) -> dict[str, Curve]:
    """Noise curves of all layers in the unit of those that calibration knows: see :func:`allocate`."""
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
    """Retuning scores: the sum over batches of ``(dE/dd2_i * d2_i)^2`` for every inner component i.

    Component i is column i of B1 with row i of B2; without it, d2_i would be 0, and to first order the loss
    would change by ``-dE/dd2_i * d2_i``. So the largest scores are the ones to keep when a number of
    components has to be shared out between layers of one shape.

    Args:
        model: Runs in eval mode; nothing in it is changed.
        batches: Any iterable; one pass.
        loss: ``loss(model, batch)``; None is the model's own, of batches with labels.

    Returns:
        By the module's name, in module order, an array of shape (k,); zeros for a layer that no loss reached,
        which a warning names: :func:`keep_best` leaves it the least.

    Raises:
        ValueError: the model has no factored layer, there are no batches, or a loss is not finite.

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
            "0, and keep_best leaves them the least"
        )
        warnings.warn(text, UserWarning, stacklevel=2)
    return {name: total.numpy() for name, total in totals.items()}


def keep_best(
    model: nn.Module, scores: Mapping[str, NDArray[np.float64]], bits_per_weight: float
) -> dict[str, int]:
    """Share inner components out by their scores: of layers of one shape together, the best stay.

    Factor and score the model at more bits than it shall have in the end, such as half as many again. This
    function then says what each layer should keep; convert the dense model anew with it.

    Args:
        model: Holds the factored layers that were scored.
        scores: What :func:`diba.torch.scores` gives.
        bits_per_weight: Size of every group of layers of one shape, diagonals counted.

    Returns:
        Name -> k. Each layer keeps at least a quarter of its even share.

    Raises:
        TypeError: a name is not of a factored layer.
        ValueError: a layer has another number of components than scores, or a group has fewer than it
            should keep.

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
