"""Select the layers of a model to compress, with their settings, and the reasons for all others."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..._internal import check
from ...checkpoints.entries import reason_lines
from ...layers.config import Config, Settings, suggestion
from ...solvers.size import inner_dimension
from ..modules.kinds import KINDS, factored_matrix, input_size
from .coding import coded_weights, settings_of, uncoded
from .layers import layers_of
from .sizes import CONVERTED, skipped_weights
from .swap import unfused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Sized

    from ...checkpoints.entries import Skipped
    from .layers import Layer

__all__ = ["Selection", "Target", "check_weights", "require", "select", "targets"]

_REASONS = 4  # how many an error names


@dataclass(frozen=True, eq=False)
class Target:
    """A layer to be compressed, together with the layers that share its weight.

    Attributes:
        name: Name of the layer in ``model.named_modules()``.
        module: The dense layer.
        kind: ``"Linear"``, ``"Conv1D"``, ``"Conv1d"``, ``"Conv2d"`` or ``"Embedding"``.
        shape: (m, n) of its matrix.
        settings: How it is compressed.
        aliases: Other names of the same module.
        tied: Name -> other layers with the same weight; they will share the factors.
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
        """The layer and those tied to it."""
        return self.module, *self.tied.values()

    @property
    def k(self) -> int | None:
        """The inner dimension that is asked for; None for codes, and where an SNR is to be reached."""
        settings = self.settings
        if settings.codes is not None:
            return None
        if settings.bits_per_weight is None:
            return settings.k
        return inner_dimension(*self.shape, "bits_per_weight", settings.bits_per_weight)


class Selection(NamedTuple):
    """What a conversion will compress and what it will not.

    Attributes:
        targets: Layers to compress, in module order.
        skipped: Layers that are not compressed, then all other parameters of two or more dimensions.
    """

    targets: list[Target]
    skipped: list[Skipped]


def targets(model: nn.Module, config: Config) -> list[Target]:
    """List the layers that :func:`diba.torch.convert` would compress, in module order."""
    return select(model, config).targets


def select(model: nn.Module, config: Config) -> Selection:
    """Decide which layers of a model are compressed and how, and give the reasons for all others.

    Matrices inside fused parameters appear as the layers that ``unfuse`` makes of them. Unless the model is
    ``unfused`` already, these layers exist only in the result.

    Raises:
        TypeError: ``model`` is not a module, or ``config`` is not a Config.
        ValueError: The model is itself a layer, has no layers, or has a lazy parameter; or an entry of
            ``config`` matches no layer.
    """
    check.instance(model, "model", nn.Module, "use the torch model itself")
    check.instance(config, "config", Config, "use diba.torch.Config(bits_per_weight=2)")
    with unfused(model):
        return _select(model, config)


def _select(model: nn.Module, config: Config) -> Selection:
    layers = layers_of(model)
    _require_layers(model, layers)
    _require_matching_rules(config, [name for layer in layers for name in layer.names])
    tables = coded_weights(model, layers, config)
    chosen: dict[int, Settings] = {}  # id of a module -> settings
    reasons: dict[int, str] = {}  # id of a module -> why it stays dense
    for layer in layers:
        found = _settings(layer, config, tables)
        reason = found if isinstance(found, str) else layer.obstacle() or uncoded(layer, found)
        if isinstance(found, Settings):
            _refuse_hook_of_accelerate(layer)
        if isinstance(found, Settings) and reason is None:
            chosen[id(layer.module)] = found
        else:
            reasons[id(layer.module)] = reason or ""
    owners = _owners(model)
    made: dict[int, Target] = {}  # id of a module -> its target, also for the tied layers of a target
    for layer in layers:
        key = id(layer.module)
        if key in chosen and key not in made:
            result = _target(layer, owners[id(layer.module.weight)], layers, chosen, config)
            if isinstance(result, str):
                reasons[key] = result
            else:
                made |= {id(module): result for module in result.modules}
    pairs = [(made[id(layer.module)], layer) for layer in layers if id(layer.module) in made]
    leads = [target for target, layer in pairs if target.module is layer.module]
    return Selection(leads, skipped_weights(model, layers, reasons, [target.module for target in leads]))


def _refuse_hook_of_accelerate(layer: Layer) -> None:
    if hasattr(layer.module, "_hf_hook") and "weight" in layer.module._parameters:
        raise ValueError(
            f"{layer.names[0]} has a hook of accelerate, which moves its weight between devices, memory and "
            "disk, and which would be lost; load the model without device_map, or first call "
            "accelerate.hooks.remove_hook_from_module(model, recurse=True)"
        )


def require(found: Sized, skipped: Sequence[Skipped]) -> None:
    """Require at least one target, unless part of the model is converted already.

    A second call of ``convert`` may find nothing left to do.

    Args:
        found: The targets.
        skipped: Everything that is not compressed, with reasons.

    Raises:
        ValueError: There is nothing to compress; the message gives the reasons.
    """
    if not len(found) and not any(left.reason == CONVERTED for left in skipped):
        reasons = "; ".join(reason_lines(skipped)[:_REASONS])
        raise ValueError(
            f"nothing of the model would be compressed: {reasons}; change the settings named here, or leave "
            "this model dense"
        )


def check_weights(found: Iterable[Target]) -> None:
    """Require weights that can be read and factored.

    Raises:
        ValueError: A weight is on the meta device, or is not finite.
    """
    for target in found:
        weight: Any = target.module.weight
        if weight.is_meta:
            raise ValueError(
                f"the weight of {target.name} is on the meta device, without values; load the model's "
                "weights before it is converted, without device_map or offloading"
            )
        finite = torch.isfinite(weight.detach())
        if not finite.all():
            raise ValueError(
                f"the weight of {target.name} has {int((~finite).sum())} NaN or infinite entries, of "
                f"{weight.numel()}; all must be finite: repair the weight, or use skip=[{target.name!r}]"
            )


# ---------------------------------------------------------------- layers and their weights


def _require_layers(model: nn.Module, layers: list[Layer]) -> None:
    own = next((layer.kind_name for layer in layers if layer.module is model), None)
    if own is not None:
        raise ValueError(
            f"model is itself a {own}, which cannot be replaced in place; put it into another "
            "module, such as torch.nn.Sequential(model), or use diba.torch.DibaLinear.from_dense"
        )
    if not layers:
        possible = " or ".join(kind.described for kind in KINDS)
        held = "; ".join(reason_lines(skipped_weights(model, [], {}))[:_REASONS])
        raise ValueError(
            f"model has no layer to compress: it must hold {possible}{f'; it has: {held}' if held else ''}"
        )
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            owner, _, its = name.rpartition(".")
            raise ValueError(
                f"the {its} of {owner or 'model'} is lazy and has no shape yet; run a batch through the model"
            )


def _owners(model: nn.Module) -> dict[int, list[nn.Module]]:
    """Id of a parameter -> the modules that hold it."""
    owners: dict[int, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)].append(module)
    return owners


def _require_matching_rules(config: Config, names: list[str]) -> None:
    for rule in config.unmatched(names):
        below = [name for name in names if name.startswith(f"{rule}.")]
        if below:
            mend = f"it holds {len(below)} layers: use 're:{rule}\\..*' for all of them"
        else:
            mend = f"use a name from model.named_modules(){suggestion(rule.removeprefix('re:'), names)}"
        raise ValueError(f"{rule!r} in skip or layers names no layer of the model; {mend}")


# ---------------------------------------------------------------- reasons


def _settings(layer: Layer, config: Config, tables: Mapping[int, Any]) -> Settings | str:
    """Settings of a layer; or why it stays dense. ``tables``: from ``coded_weights``."""
    if layer.kind is None:
        return CONVERTED
    settings = settings_of(layer.names, config)
    if isinstance(settings, str):
        return settings
    codes = tables.get(id(layer.module._parameters.get("weight")))
    if codes is not None:
        # At 8 bits there is nothing to gain from data.
        objective = settings.objective if codes == 4 else "plain"
        return dataclasses.replace(settings, codes=codes, objective=objective)
    off = _switched_off(layer, config)
    # With tied=True, an embedding is compressed together with the layer that shares its weight, if any.
    return off if off is not None and not (config.tied and layer.kind.switch == "embeddings") else settings


def _switched_off(layer: Layer, config: Config) -> str | None:
    """The setting that leaves all layers of this kind dense, unless a rule names this layer exactly."""
    switch = layer.kind.switch if layer.kind is not None else ""
    if not switch or getattr(config, switch) or any(config.rule(name) == name for name in layer.names):
        return None
    return f"{switch}=False"


def _target(
    layer: Layer,
    group: list[nn.Module],
    layers: list[Layer],
    chosen: dict[int, Settings],
    config: Config,
) -> Target | str:
    """The target of a layer and of those that share its weight, or why they stay dense."""
    members = [other for other in layers if any(other.module is owner for owner in group)]
    others = [other for other in members if other.module is not layer.module]
    settings = chosen[id(layer.module)]
    if len(group) > 1 and not config.tied and settings.codes is None:
        return f"shares its weight with {_listed(others, group, layer)}; tied=True compresses both"
    off = _switched_off(layer, config)
    if len(group) == 1 and off is not None and settings.codes is None:
        return off
    if any(id(owner) not in chosen for owner in group):
        return f"shares its weight with {_listed(others, group, layer)}, which stays dense"
    shapes = {tuple(factored_matrix(member.module).shape) for member in members}  # type: ignore[union-attr]
    if len(shapes) > 1:
        return f"shares its weight with {_listed(others, group, layer)}, which uses it transposed or reshaped"
    # The lead is a layer that multiplies vectors: calibration knows it, and not the embedding.
    lead = next((member for member in members if input_size(member.module) is not None), members[0])
    ruled = [member for member in members if any(config.rule(name) for name in member.names)]
    settings = chosen[id((ruled or [layer])[0].module)]
    (m, n), *_ = shapes
    if settings.codes is None and settings.bits_per_weight is not None:
        try:
            inner_dimension(m, n, "bits_per_weight", settings.bits_per_weight)
        except ValueError as error:
            return str(error)
    tied = {member.names[0]: member.module for member in members if member is not lead}
    return Target(lead.names[0], lead.module, lead.kind_name, (m, n), settings, lead.names[1:], tied)


def _listed(others: list[Layer], group: list[nn.Module], layer: Layer) -> str:
    """Names of the other modules that hold a weight."""
    named = [other.names[0] for other in others]
    strangers = len(group) - 1 - len(named)
    return ", ".join([*named, *(["a module of another kind"] if strangers else [])])
