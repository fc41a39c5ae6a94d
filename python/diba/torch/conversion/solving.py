"""Solving one layer: its moments, its objective, its factors and bias, and the SNR of its outputs."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

import diba

from ..._internal import check, storage
from ..._internal.check import describe
from ..._internal.codes import Codes, quantize
from ..._internal.rounding import quantize_for
from ..._internal.snr import energy_and_error, snr_db
from ...checkpoints.entries import first_names
from ...checkpoints.layers import LayerRecipe
from ...layers.solved import Solved, recorded, solve_weight
from ...solvers.second_moments import factor_shrinkage, missing_power
from ...solvers.size import no_size_warning, useful_k, warn_of_size
from ..modules.kinds import dense_matrix, input_size
from .biases import as_dense, fitted_bias, output_snr_db

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...layers.config import Settings
    from ..calibration.moments import Moments
    from ..calibration.targets import LayerTask
    from ..model.selection import Target

__all__ = [
    "Solved",
    "factorization",
    "moments_of",
    "objective",
    "reads",
    "solve_layer",
    "unreached",
    "warn_too_large",
    "warn_unreached",
    "warn_user",
]

_DB_OF_A_BIT = 7  # SNR of outputs for each bit per weight, about
_LARGEST_EXPONENT = 120  # of the entries of a matrix to solve


def solve_layer(task: LayerTask, target: Target, **options: Any) -> Solved:
    """Factor the matrix of a layer, or find its codes, and then its bias if that is free.

    Args:
        task: What the layer is to compute.
        target: The dense layer and its settings.
        **options: Arguments of ``diba.solve`` beyond the settings.
    """
    began = time.perf_counter()
    settings, moments = target.settings, task.moments
    minimised = objective(settings, moments)
    free = task.bias is not None and minimised == "covariance" and moments is not None
    about = moments.centred() if free and moments is not None else moments
    f: diba.Factorization | Codes
    F = None
    said = nullcontext() if target.k is None else no_size_warning()  # by ``warn_too_large``
    if moments is None:
        with said:
            f, weight_snr = solve_weight(task.matrix, settings, **options)
    elif settings.codes is None:
        with said:
            f = factorization(task.matrix, settings, minimised, about, **options)
        F = f.to_dense()
        weight_snr = recorded(f.snr_db(dense_matrix(target.module)))
    else:
        task = as_dense(task, dense_matrix(target.module))
        f = _codes(task.matrix, settings, minimised, about)
        F = f.rows()
        weight_snr = recorded(snr_db(*energy_and_error(task.matrix, F)))
    seconds = time.perf_counter() - began
    bias = None if not free or F is None else fitted_bias(task, F, target.module)
    outputs = None if F is None else output_snr_db(task, F, bias)
    recipe = LayerRecipe(
        objective=minimised,
        snr_db=weight_snr,
        output_snr_db=None if outputs is None else recorded(outputs),
        seconds=seconds,
        bias_corrected=bias is not None,
    )
    return Solved(f, recipe, bias)


def objective(settings: Settings, moments: Moments | None) -> str:
    """The objective for a layer: plain if there are no moments or if all inputs were 0."""
    if not _tells(moments) or settings.objective == "plain" or settings.codes == 8:
        return "plain"
    return "covariance" if settings.objective == "auto" or settings.codes else settings.objective


def factorization(
    matrix: NDArray[Any],
    settings: Settings,
    minimised: str,
    moments: Moments | None,
    **options: Any,
) -> diba.Factorization:
    """Factor a matrix (m, n) under the objective ``minimised``; ``options`` are passed to ``diba.solve``."""
    options |= settings.solve_options()
    if moments is None or minimised == "plain":
        return diba.solve(matrix, **options)
    rows, cols = moments.importance
    if minimised == "importance":
        return diba.solve(matrix, importance=(rows, cols), **options)
    S = np.asarray(moments.second, np.float64)
    share = factor_shrinkage(len(S), moments.count, _bits(matrix.shape, settings))
    options["covariance"] = S + np.diag(missing_power(S)), share
    if rows is None:
        return diba.solve(matrix, **options)
    # sum_i o_i^2 (A - F)_i S (A - F)_i': the covariance objective of o A, whose factors have d1 = o d1.
    rows = rows / np.sqrt(np.mean(rows**2))
    excess = max(0, math.frexp(float(np.abs(matrix).max()) * rows.max())[1] - _LARGEST_EXPONENT)
    f = diba.solve(matrix * np.ldexp(rows, -excess)[:, None], **options)
    d1, d2, d3 = storage.spread(f.d1 / rows, f.d2, f.d3, excess)
    return diba.Factorization(d1, f.b1, d2, f.b2, d3).round_diagonals()


def _bits(shape: tuple[int, ...], settings: Settings) -> float:
    """Bits per weight that the size asked for takes, about."""
    if settings.k is not None:
        return settings.k * sum(shape) / math.prod(shape)
    if settings.bits_per_weight is not None:
        return settings.bits_per_weight
    return max(settings.snr_db or 0.0, 0.0) / _DB_OF_A_BIT


def _codes(matrix: NDArray[Any], settings: Settings, minimised: str, moments: Moments | None) -> Codes:
    """Codes of a matrix, for the moments of its inputs if these are to be heeded."""
    assert settings.codes is not None
    if moments is None or minimised == "plain":
        return quantize(matrix, settings.codes, settings.group)
    return quantize_for(matrix, moments.second, settings.group)


# ---------------------------------------------------------------- moments


def moments_of(targets: Sequence[Target], calibration: Any, *, required: bool = False) -> dict[str, Moments]:
    """Find the moments of each target, under any name of its layer or of a layer tied to it.

    Args:
        targets: Layers of a model.
        calibration: Name -> moments, or None.
        required: Whether missing moments are an error for targets whose objective needs them.

    Returns:
        Name of the target -> moments.

    Raises:
        TypeError: ``calibration`` is not a mapping.
        ValueError: Moments do not fit the size of their layer, belong to no target at all, or are required
            and missing.
    """
    if calibration is not None and not isinstance(calibration, Mapping):
        raise TypeError(
            f"calibration is {describe(calibration)}; it must be the result of "
            "diba.torch.calibrate(model, batches)"
        )
    found: dict[str, Moments] = {}
    known: Mapping[str, Moments] = {} if calibration is None else calibration
    for target in targets:
        names = (target.name, *target.aliases, *target.tied)
        moments = next((known[name] for name in names if name in known), None)
        if moments is not None:
            n = target.shape[1]
            what = f"the shape of calibration[{target.name!r}].second"
            check.equal(tuple(moments.second.shape), what, (n, n), f"inputs of the layer {target.name}")
            found[target.name] = moments
        elif required and target.settings.objective in ("importance", "covariance"):
            raise ValueError(
                f"objective is {target.settings.objective!r} for {target.name}, and there are no moments of "
                "its inputs; give batches, calibration=diba.torch.calibrate(...), or objective='auto'"
            )
    if calibration is not None and targets and not found:
        raise ValueError(
            "calibration has none of the layers that are to be compressed; use the result of "
            "diba.torch.calibrate(model, batches) for this model"
        )
    return found


def reads(target: Target) -> bool:
    """Whether the layer multiplies input vectors, which calibration can see; embeddings do not."""
    return input_size(target.module) is not None


def unreached(targets: Sequence[Target], known: Mapping[str, Moments]) -> list[str]:
    """Names of the layers for which calibration saw no input vectors, or only zeros."""
    return [target.name for target in targets if reads(target) and not _tells(known.get(target.name))]


def warn_unreached(names: Sequence[str], count: int, meaning: str) -> None:
    """Warn of all layers that calibration did not reach, in one warning.

    Args:
        names: These layers; no warning if there are none.
        count: Number of all layers.
        meaning: What happens to these layers.
    """
    if names:
        warn_user(
            f"calibration did not reach {len(names)} of {count} layers, {first_names(names)}; {meaning}"
        )


def warn_too_large(targets: Sequence[Target]) -> None:
    """Warn, once for all of them, of layers whose factors are asked to be larger than is useful."""
    large = []
    for target in targets:
        useful = useful_k(*target.shape)
        if target.k is not None and target.k > useful:
            m, n = target.shape
            large.append(f"k is {target.k} for {target.name!r} ({m} x {n}; use {useful} or less)")
    if large:
        text = (
            f"{len(large)} of {len(targets)} layers get a larger k than is useful, 4 bits per weight: plain "
            f"integers of as many bits lose less: {first_names(large)}"
        )
        warn_of_size(text, warn_user)


def warn_user(text: str) -> None:
    """Warn with the line of the code outside diba that made the call."""
    frame, count = sys._getframe(1), 2
    while frame.f_back is not None and _ours(frame.f_globals.get("__name__", "")):
        frame, count = frame.f_back, count + 1
    warnings.warn(text, UserWarning, stacklevel=count)


def _ours(module: str) -> bool:
    return module.partition(".")[0] in ("diba", "diba_autoload")


def _tells(moments: Moments | None) -> bool:
    """Whether there are moments and some inputs were not 0."""
    return moments is not None and bool(np.asarray(moments.second).any())
