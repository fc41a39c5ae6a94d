"""Replacing modules in a model: dense layers by factored ones, fused modules by separate layers, and back."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..._internal import check
from ..modules.kinds import compressed
from ..modules.state import CompressedLayer, compressed_layers
from .attention import Attention
from .experts import Experts
from .fused import UnfusedModule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    import diba

    from ..._internal.bit_weights import BitWeights
    from ..._internal.codes import Codes


__all__ = [
    "UnfusedModel",
    "exchange",
    "fuse",
    "places",
    "put",
    "replace",
    "retie",
    "settle",
    "unfuse",
    "unfused",
]

_FORMS: tuple[type[UnfusedModule], ...] = (Experts, Attention)
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)


# ---------------------------------------------------------------- replacing one module


def places(model: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """All places of a module in a model, as (owner, name)."""
    return [
        (owner, name)
        for owner in model.modules()
        for name, child in owner._modules.items()
        if child is module
    ]


def exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module under all of its names, and move its hooks to the new one.

    The new module gets the same dicts of hooks, so that ``remove()`` of a handle still works.
    """
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))
    for owner, name in places(model, old):
        setattr(owner, name, new)


def exchange_tied(model: nn.Module, dense: Sequence[nn.Module], made: Sequence[CompressedLayer]) -> None:
    """Replace layers that share one weight by compressed ones, which get the tensors of the first."""
    for twin in made[1:]:
        for name in made[0].tensor_names:
            setattr(twin, name, getattr(made[0], name))
    for old, new in zip(dense, made, strict=True):
        exchange(model, old, new)


def put(model: nn.Module, name: str, value: nn.Module | nn.Parameter) -> Any:
    """Replace the module or parameter of that name; returns the old one."""
    parent, _, own = name.rpartition(".")
    owner = model.get_submodule(parent)
    before = getattr(owner, own)
    setattr(owner, own, value)
    return before


def _keep_padding(model: nn.Module) -> None:
    """Turn off nested tensors in ``nn.TransformerEncoder``, whose fast path for dense layers makes them."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


# ---------------------------------------------------------------- dense layers by factored ones


def replace(
    model: nn.Module,
    dense: Sequence[nn.Module],
    f: diba.Factorization | Codes | diba.APB | BitWeights,
    bias: NDArray[np.float64] | None = None,
) -> CompressedLayer:
    """Replace a dense layer, or several that share one weight, by compressed layers that share their tensors.

    Hooks and biases are kept. The model is changed only after all new layers were made.

    Args:
        model: Changed in place.
        dense: The layer, or the layers that are tied.
        f: Factors or codes of their matrix, or weights of one or two bits.
        bias: New bias of the first layer, (m,); None: it keeps the bias that it has, or has none.

    Returns:
        The layer that replaced the first one.
    """
    with torch.inference_mode(False), torch.no_grad():
        made = [_like(module, f) for module in dense]
        if bias is not None:
            _set_bias(dense[0], made[0], torch.from_numpy(bias))
    exchange_tied(model, dense, made)
    if len(made) > 1:
        retie(model, {id(module) for module in made})
    _keep_padding(model)
    return made[0]


def _like(module: Any, f: diba.Factorization | Codes | diba.APB | BitWeights) -> CompressedLayer:
    new = compressed(module, f)
    if new.bias is not None:
        new.bias = module.bias  # the same object, which an optimizer or another layer may hold
    return new


def _set_bias(dense: Any, layer: CompressedLayer, values: Tensor) -> None:
    """Give a new layer these values of its bias; the dense layer keeps its own, for who still runs it."""
    if layer.bias is None:
        layer.add_bias()
    else:
        dense.bias = nn.Parameter(layer.bias.clone(), layer.bias.requires_grad)
        if layer.bias.is_inference():  # and so cannot be written to
            layer.bias = nn.Parameter(layer.bias.clone(), layer.bias.requires_grad)
    assert layer.bias is not None
    layer.bias.copy_(values)


def retie(model: nn.Module, shared: set[int]) -> None:
    """Rename tied weights to tied factors in the mappings of a transformers model.

    ``tie_weights`` and ``save_pretrained`` use mappings ``{tied name: source name}``. An entry of a weight
    becomes entries of the tensors that are shared.

    Args:
        model: The model.
        shared: Ids of the layers that share tensors.
    """
    for module in model.modules():
        for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
            mapping = getattr(module, attribute, None)
            if isinstance(mapping, dict):
                setattr(module, attribute, _renamed(module, mapping, shared))


def _renamed(module: nn.Module, mapping: dict[str, str], shared: set[int]) -> dict[str, str]:
    known = dict(module.named_modules(remove_duplicate=False))
    result: dict[str, str] = {}
    for names in mapping.items():
        owners = [name.removesuffix(".weight") for name in names]
        ours = all(name.endswith(".weight") for name in names) and all(
            id(known.get(owner)) in shared for owner in owners
        )
        target, source = owners if ours else names
        if isinstance(layer := known.get(source), CompressedLayer) and ours:
            result |= {f"{target}.{t}": f"{source}.{t}" for t in layer.tensor_names}
        else:
            result[target] = source
    return result


# ---------------------------------------------------------------- fused modules by separate layers


def unfuse(model: nn.Module, wanted: Callable[[str], bool] = lambda name: True) -> list[UnfusedModule]:
    """Replace every known fused module by an unfused one with a layer for each matrix.

    The layers share the memory of the fused parameters. Hooks are kept.

    Args:
        model: Changed in place; it cannot itself be replaced.
        wanted: Whether to replace the module of that name.

    Returns:
        The unfused modules.
    """
    found = []
    for name, module in list(model.named_modules()):
        form = next((form for form in _FORMS if form.recognises(module)), None)
        if name and form is not None and wanted(name):
            with torch.inference_mode(False), torch.no_grad():
                part = form.from_fused(module)
            exchange(model, module, part)
            found.append(part)
    if found:
        _keep_padding(model)
    return found


def fuse(model: nn.Module) -> None:
    """The reverse of :func:`unfuse`, for unfused modules that have no factored layer."""
    for part in [module for module in model.modules() if isinstance(module, UnfusedModule)]:
        if not compressed_layers(part):
            exchange(model, part, part.to_fused(part.sources()))


@contextmanager
def unfused(model: nn.Module) -> Iterator[UnfusedModel]:
    """A context in which the model is unfused; at the end, modules without factored layers are fused again.

    Within the context every layer is called, even with no vectors: see ``UnfusedModule.observed``.
    """
    check.instance(model, "model", nn.Module, "use the torch model itself")
    state = UnfusedModel(model)
    try:
        yield state
    finally:
        state.close()


class UnfusedModel:
    """A model while it is unfused, and its fused parameters from before.

    Attributes:
        parts: The unfused modules.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._padding = [(m, m.use_nested_tensor) for m in model.modules() if hasattr(m, "use_nested_tensor")]
        self.parts = unfuse(model)
        self._known: dict[int, dict[str, weakref.ref[nn.Parameter]]] = {}
        self._observed: list[UnfusedModule] = [m for m in model.modules() if isinstance(m, UnfusedModule)]
        self._before = [part.observed for part in self._observed]
        for part in self._observed:
            part.observed = True

    def forget(self, layers: Iterable[nn.Module]) -> None:
        """Drop the fused parameters whose memory these layers share, so that it is freed with the layers."""
        gone = set(map(id, layers))
        for part in self.parts:
            if any(id(module) in gone for module in part.modules()):
                held = part.fused_parameters()
                self._known[id(part)] = {name: weakref.ref(p) for name, p in held.items() if p is not None}
                part.set_fused_parameters(dict.fromkeys(held))

    def close(self) -> None:
        """Fuse modules without factored layers; dense layers of the others get separate memory."""
        for part, before in zip(self._observed, self._before, strict=True):
            part.observed = before
        for part in self.parts:
            if compressed_layers(part):
                settle(self._model, part)
            else:
                exchange(self._model, part, self._fused(part))
        if not compressed_layers(self._model):  # otherwise nested tensors must stay off
            for module, nested in self._padding:
                module.use_nested_tensor = nested

    def _fused(self, part: UnfusedModule) -> nn.Module:
        """The fused module, with its old parameter objects as far as other code still holds them."""
        known = self._known.get(id(part), {})
        part.set_fused_parameters({name: reference() for name, reference in known.items()})
        return part.to_fused(
            [name for name, parameter in part.fused_parameters().items() if parameter is None]
        )


def settle(model: nn.Module, part: UnfusedModule) -> None:
    """Make an unfused module permanent: drop the fused parameters and give dense layers separate memory."""
    with torch.inference_mode(False), torch.no_grad():
        for parameter in part.parameters():
            if parameter.untyped_storage().nbytes() > parameter.nbytes or not parameter.is_contiguous():
                parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
    part.set_fused_parameters(dict.fromkeys(part.sources()))
    exchange(model, part.fused, part)
