"""What a compressed model will be, before a weight is read: its layers, where their weights are, the rest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import _core
from ..checkpoints.description import Description, Recipe
from ..checkpoints.integrity import Tensor, report_of
from ..layers.tensors import FileMatrix

if TYPE_CHECKING:
    from ..checkpoints.layers import LayerDescription
    from ..checkpoints.report import Report
    from ..layers.config import Settings
    from ..layers.tensors import FileTensor

__all__ = ["GUARD", "Outline", "Weight"]

GUARD = Tensor("F32", (0,))
"""An empty tensor under the dense name of a layer, which is no use to a reader that does not know diba."""

_OWN_DTYPES = {"codes": "U8", "steps": "U8", "b1": "U8", "b2": "U8"}


@dataclass(frozen=True)
class Weight(FileMatrix):
    """The dense weight of a layer, and what is to become of it. It can be pickled, and holds no values.

    Attributes:
        settings: Of the layer.
        k: Inner dimension; 0: it gets codes.
    """

    settings: Settings = field(kw_only=True)
    k: int = field(kw_only=True)

    @property
    def work(self) -> float:
        """About the operations that it takes: m n k, or m n for codes."""
        return float(math.prod(self.shape)) * max(self.k, 1)

    @property
    def key(self) -> str:
        """What the result depends on, beside the values in the file."""
        settings = {key: x for key, x in dataclasses.asdict(self.settings).items() if key != "threads"}
        facts = [_core.__version__, self.name, self.shape, self.turned, settings]
        place = [self.tensor.name, self.tensor.dtype, self.tensor.shape]
        return hashlib.sha256(json.dumps([*facts, *place]).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The tensors that a compressed model will have.

    Attributes:
        layers: Name -> description of a layer, without checksums.
        weights: Name -> weight of a layer that shares no other's.
        dense: Name -> tensor that stays as it is.
        guarded: Layers with a guard, ``<layer>.weight``.
        recipe: Settings, and why layers stay dense.
    """

    layers: Mapping[str, LayerDescription]
    weights: Mapping[str, Weight]
    dense: Mapping[str, FileTensor]
    guarded: frozenset[str]
    recipe: Recipe

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the file, in no order."""
        found = {name: Tensor(tensor.dtype, tensor.shape) for name, tensor in self.dense.items()}
        found |= {f"{name}.weight": GUARD for name in self.guarded}
        for name in self.weights:
            shapes = self.layers[name].shapes
            found |= {f"{name}.{own}": Tensor(_OWN_DTYPES.get(own, "F32"), x) for own, x in shapes.items()}
        return found

    @property
    def description(self) -> Description:
        """The description of the model, without what is known only when its layers are."""
        return Description(layers=self.layers, recipe=self.recipe)

    def report(self) -> Report:
        """The report of the model, with diagonals counted at 16 bits, as those of solves are."""
        layers = {name: dataclasses.replace(layer, diagonal_bits=16) for name, layer in self.layers.items()}
        return report_of(dataclasses.replace(self.description, layers=layers), self.tensors)
