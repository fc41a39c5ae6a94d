"""Which layers of a model are compressed, how, and why the others are not."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..._internal import check
from ...checkpoints.report import listed
from ...solvers.size import inner_dimension
from ..modules.kinds import KINDS, factored_matrix, input_size, kind_of
from ..modules.layer import FactoredLayer
from .accounts import CONVERTED, Accounts
from .config import Config, Settings, suggestion
from .swap import unfused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence, Sized

    from ...checkpoints.report import Skipped
    from ..modules.dense import Kind

__all__ = [
    "Layer",
    "Selection",
    "Target",
    "check_weights",
    "inside_attention",
    "layers_of",
    "require",
    "select",
    "targets",
    "unfit",
]

_REASONS = 4  # named in an error


@dataclass(frozen=True, eq=False)
class Target:
    """One layer that is to be compressed, or several that share one weight.

    Attributes:
        name: The layer's, as ``model.named_modules()`` has it.
        module: The dense layer.
        kind: ``"Linear"``, ``"Conv1D"``, ``"Conv1d"``, ``"Conv2d"`` or ``"Embedding"``.
        shape: (m, n) of its matrix.
        settings: How it is compressed.
        aliases: Other names of this very module.
        tied: Name -> other layers with the same weight, to share the factors.
    """

    name: str
    module: nn.Module
    kind: str
    shape: tuple[int, int]
    settings: Settings
    aliases: tuple[str, ...] = ()
    tied: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The layer, and those that are tied to it."""
        return self.module, *self.tied.values()


class Selection(NamedTuple):
    """Targets in module order; the layers that stay as they are, then all other weights."""

    targets: list[Target]
    skipped: list[Skipped]


class Layer(NamedTuple):
    """A module of a kind that may be compressed, or is already, under all of its names."""

    names: tuple[str, ...]
    module: nn.Module
    kind: Kind | None  # None: it is factored already

    @property
    def kind_name(self) -> str:
        """As reports show it."""
        return type(self.module).__name__ if self.kind is None else self.kind.name


def targets(model: nn.Module, config: Config) -> list[Target]:
    """The layers that :func:`diba.torch.convert` would compress, in module order."""
    return select(model, config).targets


def select(model: nn.Module, config: Config) -> Selection:
    """Sort the layers of a model into those to compress and those to leave, with reasons.

    Layers that are parts of fused parameters have the names that they get (``unfuse``); unless the model is
    ``unfused`` already, their modules are no part of it.

    Raises:
        TypeError: ``model`` is no module, or ``config`` no Config.
        ValueError: the model is itself a layer, has none, or a lazy one; a name in ``config`` matches none.
    """
    check.instance(model, "model", nn.Module, "use the torch model itself")
    check.instance(config, "config", Config, "use diba.torch.Config(bits_per_weight=2)")
    with unfused(model):
        return _select(model, config)


def _select(model: nn.Module, config: Config) -> Selection:
    layers = layers_of(model)
    _require_layers(model, layers)
    _rules_match(model, config, [name for layer in layers for name in layer.names])
    attention = inside_attention(model)
    chosen: dict[int, Settings] = {}  # by the id of the module
    reasons: dict[int, str] = {}  # why others stay dense, likewise
    for layer in layers:
        found = _settings(layer, config)
        reason = found if isinstance(found, str) else unfit(layer, attention)
        if (
            isinstance(found, Settings)
            and hasattr(layer.module, "_hf_hook")
            and "weight" in layer.module._parameters
        ):
            raise ValueError(
                f"{layer.names[0]} has a hook of accelerate, which moves its weight between devices, memory "
                "and disk, and would be lost; load the model without device_map, or first call "
                "accelerate.hooks.remove_hook_from_module(model, recurse=True)"
            )
        if isinstance(found, Settings) and reason is None:
            chosen[id(layer.module)] = found
        else:
            reasons[id(layer.module)] = reason or ""
    owners = _owners(model)
    made: dict[int, Target] = {}  # by the id of every module that takes part
    for layer in layers:
        key = id(layer.module)
        if key in chosen and key not in made:
            result = _target(layer, owners[id(layer.module.weight)], layers, chosen, config)
            if isinstance(result, str):
                reasons[key] = result
            else:
                made |= {id(module): result for module in result.modules}
    leads = [
        made[id(x.module)] for x in layers if id(x.module) in made and made[id(x.module)].module is x.module
    ]
    accounts = Accounts(target.module for target in leads)
    left = [layer for layer in layers if id(layer.module) in reasons]
    skipped = [accounts.layer(x.names[0], x.kind_name, x.module, reasons[id(x.module)]) for x in left]
    return Selection(leads, [*skipped, *accounts.others(model, (layer.module for layer in layers))])


def require(found: Sized, skipped: Sequence[Skipped]) -> None:
    """Refuse to compress nothing, unless something of the model is converted already: a call that goes on.

    Args:
        found: Targets, or what became of them.
        skipped: All that stays as it is.

    Raises:
        ValueError: with the reasons.
    """
    if not len(found) and not any(left.reason == CONVERTED for left in skipped):
        reasons = "; ".join(listed(skipped)[:_REASONS])
        raise ValueError(
            f"nothing of the model would be compressed: {reasons}; change the settings that are named, or "
            "leave this model dense"
        )


def check_weights(found: Iterable[Target]) -> None:
    """Require weights that can be read and factored.

    Raises:
        ValueError: a weight has no values (meta device), is not on the CPU, or not finite.
    """
    for target in found:
        weight = target.module.weight
        if weight.is_meta:
            raise ValueError(
                f"the weight of {target.name} is on the meta device, without values; load the model's "
                "weights before it is converted, without device_map or offloading"
            )
        if weight.device.type != "cpu":
            raise ValueError(
                f"the weight of {target.name} is on device '{weight.device}'; it must be on the CPU to be "
                "factored: use model.cpu() first"
            )
        finite = torch.isfinite(weight.detach())
        if not finite.all():
            raise ValueError(
                f"the weight of {target.name} has {int((~finite).sum())} NaN or infinite entries, of "
                f"{weight.numel()}; all must be finite: repair it, or use skip=[{target.name!r}]"
            )


# ---------------------------------------------------------------- layers and their weights


def layers_of(model: nn.Module) -> list[Layer]:
    """The layers of a model in module order: those that may be compressed, and those that are already."""
    names: dict[int, list[str]] = defaultdict(list)
    modules: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, FactoredLayer) or kind_of(module) is not None:
            names[id(module)].append(name)
            modules[id(module)] = module
    return [Layer(tuple(names[key]), module, kind_of(module)) for key, module in modules.items()]


def _require_layers(model: nn.Module, layers: list[Layer]) -> None:
    own = next((layer.kind_name for layer in layers if layer.module is model), None)
    if own is not None:
        raise ValueError(
            f"model is itself a {own}, which cannot be replaced in place; put it into a "
            "module, such as torch.nn.Sequential(model), or use diba.torch.DibaLinear.from_dense"
        )
    if not layers:
        possible = " or ".join(kind.described for kind in KINDS)
        held = "; ".join(listed(Accounts().others(model, ()))[:_REASONS])
        raise ValueError(
            f"model has no layer to compress: it must hold {possible}{f'; it has: {held}' if held else ''}"
        )
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            owner, _, its = name.rpartition(".")
            raise ValueError(
                f"the {its} of {owner or 'model'} is lazy, without a shape yet; run a batch through the model"
            )


def _owners(model: nn.Module) -> dict[int, list[nn.Module]]:
    """Modules that hold each parameter, by its id."""
    owners: dict[int, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)].append(module)
    return owners


def _rules_match(model: nn.Module, config: Config, names: list[str]) -> None:
    for rule in config.unmatched(names):
        below = [name for name in names if name.startswith(f"{rule}.")]
        if below:
            mend = f"it holds {len(below)} layers: use 're:{rule}\\..*' for all of them"
        else:
            mend = f"use a name from model.named_modules(){suggestion(rule.removeprefix('re:'), names)}"
        raise ValueError(f"{rule!r} in skip or layers names no layer of the model; {mend}")


# ---------------------------------------------------------------- reasons


def _settings(layer: Layer, config: Config) -> Settings | str:
    """Settings of a layer, or why it stays dense: by its names, exact ones first."""
    if layer.kind is None:
        return CONVERTED
    exact = [name for name in layer.names if config.rule(name) == name]
    ruled = [name for name in layer.names if config.rule(name) is not None]
    settings = config.settings((exact or ruled or layer.names)[0])
    if settings is None:
        return f"left out by {config.rule((exact or ruled)[0])!r}"
    off = _switched_off(layer, config)
    # With tied=True, an embedding is compressed with the layer that has its weight, if there is one.
    return off if off is not None and not (config.tied and layer.kind.switch == "embeddings") else settings


def _switched_off(layer: Layer, config: Config) -> str | None:
    """The setting that leaves a layer dense with all others of its kind, unless it has a rule of its own."""
    switch = layer.kind.switch if layer.kind is not None else ""
    if not switch or getattr(config, switch) or any(config.rule(name) == name for name in layer.names):
        return None
    return f"{switch}=False"


def inside_attention(model: nn.Module) -> set[int]:
    """Ids of modules whose weights ``nn.MultiheadAttention`` reads without calling them."""
    attention = (module for module in model.modules() if isinstance(module, nn.MultiheadAttention))
    return {id(child) for module in attention for child in module.children()}


def unfit(layer: Layer, attention: set[int]) -> str | None:
    """Why a layer cannot be replaced by one with factors; ``attention`` is of :func:`inside_attention`."""
    module: Any = layer.module
    if id(module) in attention:
        return "nn.MultiheadAttention reads its weight itself"
    return None if layer.kind is None else layer.kind.obstacle(module)


def _target(
    layer: Layer,
    group: list[nn.Module],
    layers: list[Layer],
    chosen: dict[int, Settings],
    config: Config,
) -> Target | str:
    """The target of a layer and those that share its weight, or why there is none."""
    members = [other for other in layers if any(other.module is owner for owner in group)]
    others = [other for other in members if other.module is not layer.module]
    if len(group) > 1 and not config.tied:
        return f"shares its weight with {_listed(others, group, layer)}; tied=True compresses both"
    off = _switched_off(layer, config)
    if len(group) == 1 and off is not None:
        return off
    if any(id(owner) not in chosen for owner in group):
        return f"shares its weight with {_listed(others, group, layer)}, which stays dense"
    shapes = {tuple(factored_matrix(member.module).shape) for member in members}  # type: ignore[union-attr]
    if len(shapes) > 1:
        return f"shares its weight with {_listed(others, group, layer)}, which uses it transposed or reshaped"
    # Calibration knows the layer that reads vectors, not the embedding.
    lead = next((member for member in members if input_size(member.module) is not None), members[0])
    ruled = [member for member in members if any(config.rule(name) for name in member.names)]
    settings = chosen[id((ruled or [layer])[0].module)]
    (m, n), *_ = shapes
    if settings.bits_per_weight is not None:
        try:
            inner_dimension(m, n, "bits_per_weight", settings.bits_per_weight)
        except ValueError as error:
            return str(error)
    tied = {member.names[0]: member.module for member in members if member is not lead}
    return Target(lead.names[0], lead.module, lead.kind_name, (m, n), settings, lead.names[1:], tied)


def _listed(others: list[Layer], group: list[nn.Module], layer: Layer) -> str:
    """Names of the other owners of a weight."""
    named = [other.names[0] for other in others]
    strangers = len(group) - 1 - len(named)
    return ", ".join([*named, *(["a module of another kind"] if strangers else [])])
