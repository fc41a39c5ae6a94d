"""The layers of a compressed checkpoint, read by name; and how far they are from dense weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._internal.apb_bytes import decoded_exceptions
from .._internal.bit_weights import BitWeights
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

__all__ = ["StoredMatrix", "snr_of", "stored_layer"]

StoredMatrix = Factorization | Codes | APB | BitWeights


def stored_layer(stored: Stored, name: str, layer: LayerDescription) -> StoredMatrix:
    """Read the factors or codes of a layer, or its weights of one or two bits.

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
    if layer.weight_bits:
        return BitWeights(layer.shape, layer.weight_bits, layer.activation_bits, own["scale"], own["planes"])
    assert layer.alphabet is not None, "checked"
    return layer_of(own, layer.alphabet)


def snr_of(f: StoredMatrix, matrix: Rows) -> float:
    """SNR in dB of a layer against its dense matrix; rows of codes or bits are compared by and by."""
    if isinstance(f, (Factorization, APB)):
        return snr_db(*energy_and_error(matrix[:], f))
    energy = error = 0.0
    for rows in pieces(*f.shape):
        found = energy_and_error(matrix[rows], f.rows(rows))
        energy, error = energy + found[0], error + found[1]
    return snr_db(energy, error)
