"""Which layers a calibration knows, and the warning that names those it does not."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..._internal import check
from ..._internal.check import describe
from ..model.accounts import some
from ..modules.kinds import input_size
from .solving import tells

if TYPE_CHECKING:
    from ..calibration.moments import Moments
    from ..model.selection import Target

__all__ = ["moments_of", "reads", "unreached", "warn_unreached"]


def moments_of(targets: Sequence[Target], calibration: Any, *, required: bool = False) -> dict[str, Moments]:
    """Moments by the name of the target, under whatever name of the layer, or of one tied to it, they came.

    Args:
        targets: Layers of a model.
        calibration: Name -> moments, or None.
        required: Whether an objective that needs moments must have them.

    Raises:
        TypeError: ``calibration`` is no mapping.
        ValueError: moments are of another size than their layer, of no layer at all, or required and missing.
    """
    if calibration is not None and not isinstance(calibration, Mapping):
        raise TypeError(
            f"calibration is {describe(calibration)}; it must be what diba.torch.calibrate(model, batches) "
            "gives"
        )
    found: dict[str, Moments] = {}
    known: Mapping[str, Moments] = {} if calibration is None else calibration
    for target in targets:
        names = (target.name, *target.aliases, *target.tied)
        moments = next((known[name] for name in names if name in known), None)
        if moments is not None:
            found[target.name] = _checked(target, moments)
        elif required and target.settings.objective in ("importance", "covariance"):
            raise ValueError(
                f"objective is {target.settings.objective!r} for {target.name}, and there are no moments of "
                "its inputs; give batches, calibration=diba.torch.calibrate(...), or objective='auto'"
            )
    if calibration is not None and targets and not found:
        raise ValueError(
            "calibration has none of the layers that are to be compressed; use "
            "diba.torch.calibrate(model, batches) of this very model"
        )
    return found


def _checked(target: Target, moments: Moments) -> Moments:
    n = target.shape[1]
    what = f"the shape of calibration[{target.name!r}].second"
    check.equal(tuple(moments.second.shape), what, (n, n), f"inputs of the layer {target.name}")
    return moments


def reads(target: Target) -> bool:
    """Whether the layer multiplies input vectors, which a calibration could have seen; embeddings do not."""
    return input_size(target.module) is not None


def unreached(targets: Sequence[Target], known: Mapping[str, Moments]) -> list[str]:
    """Names of layers whose input vectors no calibration saw, or saw as zeros alone."""
    return [target.name for target in targets if reads(target) and not tells(known.get(target.name))]


def warn_unreached(names: Sequence[str], count: int, meaning: str) -> None:
    """One warning for all of them, for the code that called diba.

    Args:
        names: If there are none, nothing is said.
        count: Layers in all.
        meaning: What becomes of these.
    """
    if names:
        text = f"calibration did not reach {len(names)} of {count} layers, {some(names)}; {meaning}"
        warnings.warn(text, UserWarning, stacklevel=2 + _frames_of_diba())


def _frames_of_diba() -> int:
    """How many callers of the caller are functions of this package: a warning is for the code that is not."""
    frame, count = sys._getframe(2), 0
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "diba":
        frame, count = frame.f_back, count + 1
    return count
