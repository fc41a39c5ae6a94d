"""The weights of a compressed folder by name, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._internal import check
from .._internal.bit_weights import BitWeights
from .._internal.codes import Codes
from ..checkpoints.integrity import checked
from ..layers.stored import stored_layer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._internal.disk import PathLike
    from ..binarized import APB
    from ..factorization import Factorization

__all__ = ["Weights", "weights"]


class Weights(Mapping[str, Any]):
    """The weights of a compressed model, read when they are asked for; made by :func:`weights`.

    A factored layer's is a :class:`diba.Factorization`, that of binary weights with exceptions a
    :class:`diba.APB`, that of a layer in 8, 4 or fewer bits an array (m, n) of float32, any other tensor
    an array as it is stored.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._description, self._stored = checked(folder)
        own = self._description.tensors
        self._dense = [name for name in self._stored.tensors if name not in own]

    def __getitem__(self, name: str) -> Factorization | APB | NDArray[Any]:
        """The weight of a layer, by the layer's name, or another tensor by its own."""
        layer = self._description.layers.get(name)
        if layer is None:
            if name not in self._dense:
                raise KeyError(f"{self._folder} has no layer or tensor {name!r}")
            return self._stored.array(name)
        found = stored_layer(self._stored, name, layer)
        return found.rows() if isinstance(found, (Codes, BitWeights)) else found

    def __iter__(self) -> Iterator[str]:
        """Names of layers, then of other tensors."""
        yield from self._description.layers
        yield from self._dense

    def __len__(self) -> int:
        return len(self._description.layers) + len(self._dense)


def weights(folder: PathLike) -> Weights:
    """The weights of a compressed model as NumPy sees them, by name.

    Args:
        folder: What ``diba.compress`` or ``save_pretrained`` wrote; all its files are checked.

    Raises:
        diba.FormatError: Something is damaged.
        OSError: A file cannot be read.

    Example:
        >>> found = diba.compressing.weights("packed")  # doctest: +SKIP
        >>> y = found["mlp.up"] @ x + found["mlp.up.bias"]  # doctest: +SKIP
    """
    return Weights(Path(check.path(folder)))
