"""The layers of a compressed checkpoint, read by name; and how far they are from dense weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._internal.apb_bytes import decoded_exceptions
from .._internal.codes import Codes
from .._internal.snr import energy_and_error, snr_db
from ..binarized import APB
from ..bits import BitMatrix
from ..factorization import Factorization
from .solved import layer_of, pieces

if TYPE_CHECKING:
    from ..checkpoints.integrity import Stored
    from ..checkpoints.layers import LayerDescription
    from .solved import Rows

__all__ = ["snr_of", "stored_layer"]


def stored_layer(stored: Stored, name: str, layer: LayerDescription) -> Factorization | Codes | APB:
    """Read the factors or codes of a layer, or its binary weights and exceptions.

    Args:
        stored: The files of the checkpoint, checked.
        name: Of the layer.
        layer: Its description.
    """
    owner = layer.shared or name
    own = {each: stored.array(f"{owner}.{each}") for each in layer.tensors}
    if layer.codes:
        return layer_of(own, (layer.shape, layer.codes, layer.group))
    if layer.alphas:
        signs = BitMatrix.from_packed_rows(own["signs"], layer.shape[1], "sign")
        return APB(own["alpha"], signs, *decoded_exceptions(own))
    assert layer.alphabet is not None, "checked"
    return layer_of(own, layer.alphabet)


def snr_of(f: Factorization | Codes | APB, matrix: Rows) -> float:
    """SNR in dB of a layer against its dense matrix; rows of codes are compared some at a time."""
    if not isinstance(f, Codes):
        return snr_db(*energy_and_error(matrix[:], f))
    energy = error = 0.0
    for rows in pieces(*f.shape):
        found = energy_and_error(matrix[rows], f.rows(rows))
        energy, error = energy + found[0], error + found[1]
    return snr_db(energy, error)
