"""The layers of a compressed checkpoint, read by name; and how far they are from dense weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._internal.codes import Codes
from .._internal.snr import energy_and_error, snr_db
from ..bits import BitMatrix
from ..factorization import Factorization
from .solved import CODED_ENTRIES

if TYPE_CHECKING:
    from ..checkpoints.integrity import Stored
    from ..checkpoints.layers import LayerDescription
    from .solved import Rows

__all__ = ["snr_of", "stored_layer"]


def stored_layer(stored: Stored, name: str, layer: LayerDescription) -> Factorization | Codes:
    """Read the factors or codes of a layer.

    Args:
        stored: The files of the checkpoint, checked.
        name: Of the layer.
        layer: Its description.
    """
    owner = layer.shared or name
    own = {each: stored.array(f"{owner}.{each}") for each in layer.tensors}
    if layer.codes:
        return Codes(layer.shape, layer.codes, layer.group, own["d1"], own["codes"], own.get("steps"))
    assert layer.alphabet is not None, "checked"
    b1 = BitMatrix.from_packed_rows(own["b1"], layer.k, layer.alphabet)
    b2 = BitMatrix.from_packed_rows(own["b2"], layer.shape[1], layer.alphabet)
    return Factorization(own["d1"], b1, own["d2"], b2, own["d3"])


def snr_of(f: Factorization | Codes, matrix: Rows) -> float:
    """SNR in dB of a layer against its dense matrix; rows of codes are compared some at a time."""
    if isinstance(f, Factorization):
        return snr_db(*energy_and_error(matrix[:], f))
    step = max(1, CODED_ENTRIES // f.shape[1])
    energy = error = 0.0
    for start in range(0, f.shape[0], step):
        rows = slice(start, start + step)
        found = energy_and_error(matrix[rows], f.rows(rows))
        energy, error = energy + found[0], error + found[1]
    return snr_db(energy, error)
