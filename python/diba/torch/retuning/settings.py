"""How a model is retuned: all settings of a training, and which parameters train at which rates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..._internal import check
from ..._internal.check import describe
from ...layers.config import suggestion
from ..modules.layer import FactoredLayer, factored_layers
from .flips import Flips

__all__ = [
    "Group",
    "Scheduler",
    "Training",
    "grouped",
    "norms_sized",
    "parameter_groups",
    "trainable",
    "typical_size",
]

Group = dict[str, Any]

Scheduler = Literal["cosine", "linear", "constant"]

_SECTIONS = {
    "steps": ("epochs", "max_steps", "gradient_accumulation_steps"),
    "rates": ("lr", "lr_scheduler", "warmup_ratio", "optimizer"),
    "limits": ("max_grad_norm", "max_loss_change"),
    "trained": ("biases", "norms", "bits"),
    "model": ("dropout", "batch_statistics", "seed"),
}
"""The settings as they are printed."""

_SMALLEST_SCALE = 0.1  # for a bias, which may be all zeros
# Products with 0/1 columns share a common part, the mean of the bits. If the steps of many entries agree, as
# Adam's first steps do, this part changes far more than each entry. Signs have no such part.
_BINARY_SCALE = 0.5


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of :func:`diba.torch.retune`; ``print`` shows all of them.

    Attributes:
        epochs: Passes over the batches.
        max_steps: Optimizer steps; goes through the batches as often as needed, whatever ``epochs`` says.
            None: as many as ``epochs`` makes.
        lr: Learning rate relative to the median entry of each parameter, see :func:`trainable`.
        lr_scheduler: What the rate does after the warm-up: falls to zero as a cosine (``"cosine"``) or a line
            (``"linear"``), or stays (``"constant"``).
        warmup_ratio: Share of the steps in which the rate rises from zero, at most 1.
        max_grad_norm: Largest norm of the gradient for relative changes of the parameters (gradient times
            median entry), which does not depend on how a layer's scale is split over its diagonals. None: no
            limit.
        max_loss_change: Largest change of the loss in a step to first order, as a share of the loss; a longer
            step is shortened. It holds back the first steps, for losses whose smallest value is 0 (distances
            from a teacher, cross entropy); steps at a loss below 0 are not bounded. None: no limit.
        biases: Train the biases of factored layers too.
        norms: Train weights and biases of LayerNorm, RMSNorm, GroupNorm and batch normalisation too.
        bits: ``"flip"``, a :class:`Flips` or a dict of its settings: bits of the linear layers move too.
            None: all bits stay.
        optimizer: A callable that takes the groups of :func:`trainable`, such as ``torch.optim.SGD``; None:
            AdamW without weight decay.
        gradient_accumulation_steps: Batches for each optimizer step; their gradients are averaged.
        dropout: Run the model in training mode, batch normalisation excepted.
        batch_statistics: Let batch normalisation use and update the statistics of batches.
        seed: Seed of shuffling, dropout and the order in which layers flip bits; torch's own random state is
            left as it was.

    Raises:
        TypeError: a value is of the wrong kind, or a keyword is unknown.
        ValueError: a value is out of range.

    Example:
        >>> print(Training(max_steps=500, bits="flip"))
        Training
          steps    epochs=1, max_steps=500, gradient_accumulation_steps=1
          rates    lr=0.002, lr_scheduler='cosine', warmup_ratio=0.05, optimizer=None
          limits   max_grad_norm=1.0, max_loss_change=0.25
          trained  biases=True, norms=False, bits=Flips(flips=0.0008, reach=1.0, every=100, layers=1.0)
          model    dropout=False, batch_statistics=False, seed=0
    """

    epochs: int = 1
    max_steps: int | None = None
    lr: float = 0.002
    lr_scheduler: Scheduler = "cosine"
    warmup_ratio: float = 0.05
    max_grad_norm: float | None = 1.0
    max_loss_change: float | None = 0.25
    biases: bool = True
    norms: bool = False
    bits: Literal["flip"] | Flips | Mapping[str, Any] | None = None
    optimizer: Callable[[list[Group]], torch.optim.Optimizer] | None = None
    gradient_accumulation_steps: int = 1
    dropout: bool = False
    batch_statistics: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check.positive_int(self.epochs, "epochs")
        check.positive_int(self.gradient_accumulation_steps, "gradient_accumulation_steps")
        if self.max_steps is not None:
            check.positive_int(self.max_steps, "max_steps")
        check.number(self.lr, "lr", minimum=0, exclusive=True)
        check.one_of(self.lr_scheduler, "lr_scheduler", get_args(Scheduler))
        if check.number(self.warmup_ratio, "warmup_ratio", minimum=0) > 1:
            raise ValueError(f"warmup_ratio is {self.warmup_ratio:g}; it must be at most 1, all steps")
        for name in ("max_grad_norm", "max_loss_change"):
            if getattr(self, name) is not None:
                check.number(getattr(self, name), name, minimum=0, exclusive=True)
        for name in ("biases", "norms", "dropout", "batch_statistics"):
            check.instance(getattr(self, name), name, bool, "use True or False")
        if self.optimizer is not None and not callable(self.optimizer):
            raise TypeError(
                f"optimizer is {describe(self.optimizer)}; it must be a callable that takes groups of "
                "parameters, such as torch.optim.SGD, or None"
            )
        check.seed(self.seed)
        object.__setattr__(self, "bits", _flips(self.bits))

    def __str__(self) -> str:
        lines = [
            f"  {section:<9}{', '.join(f'{name}={getattr(self, name)!r}' for name in names)}"
            for section, names in _SECTIONS.items()
        ]
        return "\n".join([type(self).__name__, *lines])

    @classmethod
    def of(cls, training: Any, settings: Mapping[str, Any]) -> Training:
        """The settings of a call: ``training``, or one of these keywords.

        Raises:
            TypeError: ``training`` is no Training, or a keyword is unknown.
            ValueError: both are given.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                near = suggestion(name, known) or f"; settings are {', '.join(known)}"
                raise TypeError(f"{name!r} is no setting of a training{near}")
        if training is None:
            return cls(**settings)
        check.instance(training, "training", cls, "use diba.torch.Training(lr=0.002)")
        if settings:
            raise ValueError(
                f"training and the keyword {next(iter(settings))!r} are both given; give one, or use "
                "dataclasses.replace(training, ...)"
            )
        return training  # type: ignore[no-any-return]

    def lr_factor(self, step: int, steps: int) -> float:
        """Learning rate of step ``step`` (from 0) of ``steps``, relative to the largest: from 0 to 1."""
        rise = max(1, round(self.warmup_ratio * steps))
        if step < rise:
            return (step + 1) / rise
        rest = (step - rise) / max(1, steps - rise)
        falls = {"cosine": (1 + math.cos(math.pi * rest)) / 2, "linear": 1 - rest, "constant": 1.0}
        return falls[self.lr_scheduler]


def _flips(bits: Any) -> Flips | None:
    if bits is None or isinstance(bits, Flips):
        return bits
    if isinstance(bits, Mapping):
        return Flips(**bits)
    check.one_of(bits, "bits", ("flip",))
    return Flips()


# ---------------------------------------------------------------- what trains


def trainable(model: nn.Module, biases: bool = True, norms: bool = False, lr: float = 0.002) -> list[Group]:
    """Freeze a model except for the diagonals of its factored layers, and group them for any torch optimizer.

    A layer's diagonals differ in size by orders (d1 ~ 0.01, d2 ~ 1), and Adam moves every entry by about its
    learning rate. So each group has ``lr`` times the median size of its parameters, rounded to a power of
    two: parameters of similar size share a group. It is the median because inputs that a calibration hardly
    saw can have entries of d3 a thousand times larger than all others. Diagonals around bits of 0/1 get half
    of that: such products share the mean of their bits, which moves with all entries at once.

    Args:
        model: ``requires_grad`` is set on all of its parameters, and stays so.
        biases: Also the biases of factored layers.
        norms: Also weights and biases of LayerNorm, RMSNorm, GroupNorm and batch normalisation.
        lr: Relative learning rate; 0.002 lets an entry change by about 0.2 % a step.

    Returns:
        Groups with ``params``, ``lr`` and ``scale`` (``lr`` over the relative one). A parameter that several
        layers share is there once.

    Raises:
        ValueError: the model has no factored layer, or ``lr`` is not above 0.

    Example:
        >>> optimizer = torch.optim.AdamW(trainable(model), weight_decay=0)  # doctest: +SKIP
    """
    groups = parameter_groups(model, biases=biases, norms=norms, lr=lr)
    model.requires_grad_(False)
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)
    return groups


def parameter_groups(model: nn.Module, *, biases: bool, norms: bool, lr: float) -> list[Group]:
    """The groups of ``trainable``; changes nothing."""
    sized: list[tuple[nn.Parameter | None, float]] = []
    for name, module in model.named_modules():
        if isinstance(module, FactoredLayer):
            if module.d1.is_meta:
                raise ValueError(
                    f"the factors of {name} are on the meta device, where accelerate keeps what it "
                    "offloads; load the model without device_map, or first call "
                    "accelerate.hooks.remove_hook_from_module(model, recurse=True)"
                )
            factor = _BINARY_SCALE if module.alphabet == "binary" else 1.0
            sized += [(d, factor * typical_size(d)) for d in module.diagonals()]
            sized += [(module.bias, typical_size(module.bias, _SMALLEST_SCALE))] if biases else []
    sized += norms_sized(model) if norms else []
    if not factored_layers(model):
        raise ValueError(
            "model has no factored layer; it must have some: call diba.torch.convert(model) first"
        )
    return grouped(sized, lr)


def grouped(sized: Iterable[tuple[nn.Parameter | None, float]], lr: float) -> list[Group]:
    """Groups of the parameters of like size: (parameter, its size) -> ``lr`` times the size, nearly."""
    lr = check.number(lr, "lr", minimum=0, exclusive=True)
    by_scale: dict[float, list[nn.Parameter]] = {}
    seen: set[int] = set()
    for parameter, typical in sized:
        if parameter is not None and id(parameter) not in seen:
            seen.add(id(parameter))
            scale = 2.0 ** round(math.log2(typical)) if 0 < typical < math.inf else 1.0
            by_scale.setdefault(scale, []).append(parameter)
    return [
        {"params": params, "lr": lr * scale, "scale": scale} for scale, params in sorted(by_scale.items())
    ]


def typical_size(parameter: nn.Parameter | None, smallest: float = 0.0) -> float:
    """The median size of the entries that are not 0; ``smallest`` where that is more, or all are 0."""
    if parameter is None:
        return smallest
    sizes = parameter.detach().double().abs().flatten()
    sizes = sizes[sizes > 0]
    return max(sizes.median().item(), smallest) if len(sizes) else smallest


def norms_sized(model: nn.Module) -> list[tuple[nn.Parameter | None, float]]:
    """(parameter, its size) of all normalisation layers."""
    norms = filter(_is_norm, model.modules())
    return [(p, typical_size(p, _SMALLEST_SCALE)) for norm in norms for p in norm.parameters(recurse=False)]


def _is_norm(module: nn.Module) -> bool:
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
    return isinstance(module, kinds) or type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
