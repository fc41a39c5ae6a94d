"""diba.torch.allocate: choose k for every layer of a model, by noise or by measured loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..._internal import check
from ...allocation.curves import Curve
from ...allocation.response import Response, fitted, smoothed
from ...allocation.sizes import check_sizes, first_and_end, first_part, grown
from ...allocation.waterfill import shared_k, waterfill
from ...checkpoints.entries import first_names
from ...layers.config import Config
from ...progress import Steps, reporting
from ..calibration.moments import Moments
from ..conversion.biases import free_biases
from ..conversion.solving import moments_of, unreached, warn_unreached, warn_user
from ..model.selection import check_weights, select
from ..model.swap import unfused
from .groups import joined
from .loss import LossMeter
from .noise import in_one_unit, measured

if TYPE_CHECKING:
    from torch import nn

    from ...allocation.waterfill import Allocation
    from ...progress import ProgressOption
    from ..model.selection import Target
    from ..retuning.losses import Loss
    from .noise import Noise

__all__ = ["allocate"]

Rule = Literal["weights", "outputs", "fisher", "loss"]
RULES = ("weights", "outputs", "fisher", "loss")

LOSS_SIZES = (0.5, 1.0, 2.0)
"""Sizes at which losses are measured, as shares of the bits per weight asked for."""


def allocate(
    model: nn.Module,
    bits_per_weight: float,
    *,
    config: Config | None = None,
    calibration: Mapping[str, Moments] | None = None,
    by: Rule | None = None,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    groups: Iterable[str | Sequence[str]] = (),
    sizes: tuple[float, ...] | None = None,
    progress: ProgressOption = True,
    threads: int | None = None,
) -> Allocation:
    r"""Choose k for every layer that :func:`convert` would replace, all together at ``bits_per_weight``.

    Each layer is factored at several sizes; water-filling then spends each bit where it removes most of what
    ``by`` names:

    - ``"weights"``, the default without ``calibration``: the noise ``m n |A - F|^2 / |A|^2``, relative to
      ``|A|^2``, so that layers of large weights do not get all bits, and proportional to the number of
      weights m n.
    - ``"outputs"``, the default for a ``calibration`` without gradients: the noise of the outputs,
      ``tr((A - F) S (A - F)')``, S being the covariance of the inputs where the bias will be corrected.
    - ``"fisher"``, the default for a ``calibration`` with gradients: each output is also weighted by its mean
      squared gradient, and each layer by the number of vectors that it multiplied; the sum then estimates, to
      second order and with a diagonal Fisher matrix, how much the loss of the model rises.
    - ``"loss"``: that rise itself, measured on ``batches`` with the factors of one layer at a time in the
      dense model. Factors are found as :func:`convert` does with effort ``"fast"``, for the outputs if there
      is a ``calibration``. This takes as long as so many conversions, and that many runs over the batches.

    With ``calibration``, some layers need another rule for their noise:

    - Layers that it did not reach, or whose inputs were all 0, such as an expert that got no token, have
      noise 0. They get the smallest size, and a warning names them.
    - Layers whose gradients were all 0 also get the smallest size, without a warning.
    - Layers that it cannot measure (embeddings, and layers without gradients where others have them) have the
      noise ``c m n |A - F|^2 / |A|^2``. Here c is the median over the measured layers of their noise divided
      by ``m n |A - F|^2 / |A|^2``, both summed over the measured sizes.

    A loss that is measured on few tokens is uncertain. Only differences between losses of the same batches
    count. Where their mean over the batches is less than two of its standard errors, the rise is estimated
    from the layer's noise instead (in the unit above): by the rise for each unit of noise at its other sizes,
    or else by the median over the other layers; at most by what the scatter allows. A larger size never
    counts as worse. Layers that change no loss get the smallest size, and a warning names them.

    Args:
        model: A dense model; it is not changed. Weights are exchanged while losses are measured, and are back
            at the end, also after an error or Ctrl-C.
        bits_per_weight: Stored bits per weight over all of these layers, diagonals counted.
        config: Selects the layers (those that get codes have no part in this), and sets alphabet (default
            ``"sign"``, as in :func:`convert`), method and seed; for ``"loss"`` all but size and effort.
        calibration: Result of :func:`calibrate`, best with ``loss=diba.torch.fisher()``.
        by: What is made small, see above; None: the default for this calibration.
        batches: For ``"loss"``: a few batches that calibration has not seen, at least two, of some hundred
            tokens in all or more. They are held in memory, with the dense model's answers.
        loss: For ``"loss"``: ``loss(model, batch)``, the same for the same model and batch; a smaller value
            is better. None: the distance from the dense model's answers, as in :func:`distillation`, of which
            ``loss=diba.torch.distillation(model, ...)`` has other forms.
        groups: Layers that share one k, as kernels need that multiply an input by several matrices at once.
            Each entry is a list of names, or of ends of names: ``["q_proj", "k_proj", "v_proj"]`` joins the
            three layers of every module that has some of them; or a pattern ``"re:..."`` for whole names,
            which joins the layers that it matches with equal texts for its ``(...)``:
            ``r"re:(.*)\.(?:gate|up)_proj"``. They must have equally many columns. Losses are measured with
            all factors of a group in the model.
        sizes: Sizes at which noise or loss is measured, as multiples of ``bits_per_weight``. Every k lies
            between the smallest and the largest. None: 0.5 and 1, and up to 2.25 where bits go (as
            :func:`diba.allocate` says), for ``"loss"`` ``(0.5, 1, 2)``.
        progress: True shows a bar on stderr, False nothing; a callable gets a :class:`diba.Progress`, whose
            steps are layers.
        threads: Threads of the solver; None: ``diba.num_threads()``.

    Returns:
        The allocation; ``convert`` takes it as
        ``layers={name: {"k": k} for name, k in allocation.k.items()}``. Its ``curves`` are what was measured,
        and beyond it a straight line (noise in dB against k) up to the largest k that may be chosen; those of
        losses have smooth values between, and each layer of a group has an equal part. Its ``at`` gives other
        budgets without measuring again.

    Raises:
        TypeError, ValueError: as for :func:`diba.torch.convert` and :func:`diba.allocate`; ``by`` does not
            fit the other arguments, a group has no layers, or a loss is not finite.
        KeyboardInterrupt: Promptly on Ctrl-C.

    Source:
        Reverse water-filling (Shannon).
    """
    asked = check.number(bits_per_weight, "bits_per_weight", minimum=0, exclusive=True)
    rule = _rule(by, calibration, batches, loss)
    if sizes is not None or rule == "loss":
        sizes = check_sizes(LOSS_SIZES if sizes is None else sizes)
    if config is not None:
        check.instance(config, "config", Config, "use diba.torch.Config(...)")
    with unfused(model), reporting(progress) as report:
        targets = _targets(model, config or Config(bits_per_weight=asked))
        check_weights(targets)
        known = moments_of(targets, calibration)
        if rule == "outputs":
            known = {name: Moments(x.second, x.count, mean=x.mean) for name, x in known.items()}
        parts = [_Part(members, asked, sizes) for members in joined(targets, groups)]
        idle = [] if calibration is None else unreached(targets, known)
        steps = Steps("allocate", len(targets), report)
        shared = [part.names for part in parts if len(part.names) > 1]
        fill = partial(waterfill, bits_per_weight=asked, groups=shared)
        if rule == "loss":
            curves = _by_loss(parts, LossMeter(model, batches, loss, threads), known, idle, steps)
            return fill({target.name: curves[target.name] for target in targets})
        warn_unreached(idle, len(targets), "they get the smallest size, because these data do not use them")
        free = free_biases(model, targets)
        known = {name: x.centred() if name in free else x for name, x in known.items()}
        by_noise = _ByNoise(targets, known, idle, steps, threads)
        done = by_noise.first(parts, first_part(sizes))
        ends = {name: part.end for part in parts for name in part.names}
        return grown(by_noise.curves, by_noise.more, ends, fill, steps, done)


class _Part:
    """Layers that share one k, or a single layer, the k that are measured, and the largest one."""

    def __init__(
        self, targets: Sequence[Target], bits_per_weight: float, sizes: Sequence[float] | None
    ) -> None:
        self.targets = targets
        self.names = tuple(target.name for target in targets)
        shapes = [target.shape for target in targets]
        self.k, self.end = first_and_end(partial(shared_k, shapes), sizes, bits_per_weight)


class _ByNoise:
    """The noise of all layers, measured at more and more k."""

    def __init__(
        self,
        targets: Sequence[Target],
        known: Mapping[str, Moments],
        idle: Sequence[str],
        steps: Steps,
        threads: int | None,
    ) -> None:
        self._targets = {target.name: target for target in targets}
        self._known, self._idle, self._steps, self._threads = known, idle, steps, threads
        self._found: dict[str, Noise] = {}

    def first(self, parts: Sequence[_Part], each: float) -> float:
        """Measure all layers, of which each counts for so much of a step; the steps that are done."""
        for part in parts:
            for name in part.names:
                self._found[name] = self._measured(name, part.k)
                self._steps.done(each * len(self._found), name)
        return each * len(self._found)

    def more(self, name: str, k: int, _: float, end: float) -> None:
        """Measure one layer at one more k; then ``end`` steps are done."""
        self._found[name] = self._found[name].joined(self._measured(name, [k]))
        self._steps.done(end, name)

    def curves(self) -> dict[str, Curve]:
        """The curves until now, in the order of the layers."""
        return in_one_unit({name: self._found[name] for name in self._targets}, self._known, self._idle)

    def _measured(self, name: str, sizes: Sequence[int]) -> Noise:
        return measured(self._targets[name], self._known.get(name), sizes, self._threads)


def _by_loss(
    parts: Sequence[_Part],
    meter: LossMeter,
    known: Mapping[str, Moments],
    idle: Sequence[str],
    steps: Steps,
) -> dict[str, Curve]:
    found: dict[str, Noise] = {}
    rises = {}
    for part in parts:
        noise, rises[part.names] = meter.measure(part.targets, part.k, known, steps, len(found))
        found |= noise
        steps.done(len(found), part.names[-1])
    noises = in_one_unit(found, known, idle)
    _warn_without_effect([part.names for part in parts if not rises[part.names].any()], len(found))
    responses = [
        Response(rise, np.sum([noises[name].noise for name in names], 0)) for names, rise in rises.items()
    ]
    curves = {}
    for part, rise in zip(parts, fitted(responses), strict=True):
        k, values = smoothed(part.k, rise)
        for target in part.targets:
            curves[target.name] = Curve(target.shape, k, values / len(part.targets))
    return curves


def _warn_without_effect(groups: Sequence[Sequence[str]], count: int) -> None:
    names = [name for group in groups for name in group]
    if len(names) == count:
        raise ValueError(
            "the loss of batches is the same whatever becomes of any layer; it must depend on the outputs of "
            "the model that it is given"
        )
    if names:
        warn_user(
            f"{len(names)} of {count} layers, {first_names(names)}, change no loss of these batches; they "
            "get the smallest size"
        )


def _targets(model: nn.Module, config: Config) -> list[Target]:
    targets = [target for target in select(model, config).targets if target.settings.codes is None]
    if not targets:
        raise ValueError(
            "config selects no layer of the model; the error of diba.torch.convert names the reasons"
        )
    return targets


def _rule(by: Any, calibration: Any, batches: Any, loss: Any) -> Rule:
    """The rule that is asked for or, without a word, follows from calibration."""
    gradients = isinstance(calibration, Mapping) and any(
        isinstance(moments, Moments) and moments.gradient_rms is not None for moments in calibration.values()
    )
    if by is not None:
        check.one_of(by, "by", RULES)
    given = [name for name, value in (("batches", batches), ("loss", loss)) if value is not None]
    if by != "loss" and given:
        raise ValueError(f"{given[0]} is given and by is {by!r}; it must be 'loss', or leave {given[0]} out")
    if by == "loss" and batches is None:
        raise ValueError("by is 'loss' without batches, on which the loss is measured; give a few of them")
    if by == "weights" and calibration is not None:
        raise ValueError("by is 'weights', which needs no calibration; leave it out, or choose by='outputs'")
    if by == "outputs" and calibration is None:
        raise ValueError("by is 'outputs' without calibration; give diba.torch.calibrate(model, batches)")
    if by == "fisher" and not gradients:
        raise ValueError(
            "by is 'fisher' and calibration has no gradients; give "
            "calibration=diba.torch.calibrate(model, batches, loss=diba.torch.fisher())"
        )
    chosen: Rule = by or ("weights" if calibration is None else "fisher" if gradients else "outputs")
    return chosen
