"""From layers that are trained with binary weights and exceptions to their stored form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn

import diba

from ..._internal import check, storage
from ..conversion.convert import when_converted
from ..model.swap import exchange
from ..modules.apb import sizes_of
from ..modules.bitwise import BitSizes
from ..modules.kinds import kind_of
from ..modules.state import as_numpy
from .bitwise import BitLayer
from .layer import APBLayer
from .trained import TrainedLayer

if TYPE_CHECKING:
    from ..modules.state import CompressedLayer

__all__ = ["freeze", "frozen_matrix"]

Model = TypeVar("Model", bound=nn.Module)


def freeze(model: Model) -> Model:
    """Replace layers that were trained with few bits by ones that store bits.

    :class:`APBLinear` and :class:`APBConv2d`, which :func:`binarize` makes, become :class:`DibaAPBLinear` and
    :class:`DibaAPBConv2d`; :class:`BitLinear` and :class:`BitConv2d`, which :func:`bitwise` makes, become
    :class:`DibaBitLinear` and :class:`DibaBitConv2d`, whose outputs are the same.

    With exceptions, signs, and which weights are exceptions, are exactly those of training. Alpha and the
    exceptions' distance from it are rounded to 16 bits: alpha by at most 2^-11 of itself, an exception by at
    most 2^-11 of its distance, or 2^-24 of the largest one in the layer. Products are then those of packed
    bits, in whose rounding outputs differ from the trained layer's. Latent weights are dropped. Hooks, biases
    and attributes are kept.

    Args:
        model: Changed in place. It must not itself be such a layer.

    Returns:
        The same model. It is saved and loaded like other compressed models.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: It has no layer to freeze, or a weight is not finite; nothing is changed.
    """
    check.instance(model, "model", nn.Module, "use the torch model itself")
    if isinstance(model, TrainedLayer):
        raise ValueError(
            f"model is itself a {type(model).__name__}, which cannot be replaced in place; put it into "
            "another module, such as torch.nn.Sequential(model)"
        )
    layers = {name: module for name, module in model.named_modules() if isinstance(module, TrainedLayer)}
    if not layers:
        raise ValueError(
            "model has no layer to freeze; call diba.torch.binarize(model) or diba.torch.bitwise(model), and "
            "train it first"
        )
    made = [(layer, _frozen(name, layer)) for name, layer in layers.items()]
    for old, new in made:
        exchange(model, old, new)
    for told in when_converted:
        told(model)
    return model


@torch.no_grad()
def frozen_matrix(layer: APBLayer) -> diba.APB:
    """The matrix of a layer, with alpha and the entries of E rounded to 16 bits."""
    matrix, alpha = layer.matrix, layer.alpha
    outside = (matrix.abs() - alpha[:, None] > layer.delta).cpu().numpy()
    w = as_numpy(matrix)
    stored = storage.round_to_16(as_numpy(alpha).astype(np.float32))
    signs = diba.BitMatrix.from_dense(np.where(w < 0, -1, 1), "sign")
    rows, columns = np.nonzero(outside)
    exact = w[rows, columns].astype(np.float64)
    own = stored.astype(np.float64)[rows if stored.size > 1 else 0 * rows]
    corrections = (exact - np.where(exact < 0, -own, own)).astype(np.float32)
    starts = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=len(w)))))
    values = storage.round_to_16(corrections) if corrections.size else corrections
    return diba.APB(stored, signs, starts, columns, values)


def _frozen(name: str, layer: Any) -> CompressedLayer:
    own = {"weight": layer.weight} | ({"alpha": layer.alpha} if isinstance(layer, APBLayer) else {})
    for what, values in own.items():
        if values.is_meta or not torch.isfinite(values).all():
            raise ValueError(f"the {what} of {name} has no finite values; train with a smaller learning rate")
    kind: Any = kind_of(layer)
    with torch.inference_mode(False), torch.no_grad():
        found: Any = layer.weight
        sizes: Any
        if isinstance(layer, BitLayer):
            m, n = layer.matrix.shape
            sizes = BitSizes((m, n), layer.weight_bits, layer.activation_bits)
        else:
            found = frozen_matrix(layer)
            sizes = sizes_of(found)
        new: Any = kind.empty(layer, sizes)
        new._fill(found, layer.bias, layer.weight.device)
    for d in new.diagonals():
        d.requires_grad_(layer.weight.requires_grad)
    if new.bias is not None:
        new.bias = layer.bias
    return new  # type: ignore[no-any-return]
