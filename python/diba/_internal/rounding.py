"""Codes of 4 bits for the inputs of a layer: each entry is rounded so as to make up for errors before it.

The error that counts is ``(w - f) S (w - f)'`` with the second moments S of the inputs. Rounding an entry
leaves an error that the entries of the same row which are not rounded yet can take up, each by its share of
the inverse of S: this is GPTQ, with steps as :func:`diba._internal.codes.quantize` chooses them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .codes import Codes, packed_nibbles, quantize

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["quantize_for"]

_DAMPING = 0.1  # of the mean of S's diagonal: less overfits S, more forgets it
_COLUMNS = 64  # rounded before the columns after them are updated by one product
_ENTRIES = 2**23  # of W worked on at once


def quantize_for(matrix: NDArray[Any], second: NDArray[Any], group: int = 32) -> Codes:
    """Store a matrix (m, n) in 4 bits an entry, with a small error of its products with vectors.

    Args:
        matrix: Finite numbers.
        second: Second moments of the vectors, (n, n).
        group: Entries that share a step: a power of two, at least 32.

    Returns:
        Codes; a row is as :func:`quantize` has it where that has the smaller error.

    Source:
        Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
        arXiv 2210.17323.
    """
    m, n = matrix.shape
    S = np.asarray(second, np.float64)
    S = S + _DAMPING * max(np.trace(S) / n, np.finfo(np.float32).tiny) * np.eye(n)
    # Upper factor U of the inverse, S^-1 = U'U: row j tells how entry j's error is shared by those after it.
    shares = np.linalg.cholesky(np.linalg.inv(S)).T.astype(np.float32)
    weights = S.astype(np.float32)
    found = quantize(matrix, 4, group)
    assert found.steps is not None
    rows = max(1, _ENTRIES // n)
    for first in range(0, m, rows):
        part = slice(first, first + rows)
        _round(np.asarray(matrix[part], np.float32), found, part, shares, weights)
    return found


def _round(
    w: NDArray[np.float32],
    found: Codes,
    part: slice,
    shares: NDArray[np.float32],
    weights: NDArray[np.float32],
) -> None:
    """Replace the codes and d1 of some rows where that lowers their error."""
    assert found.steps is not None
    (m, n), group = w.shape, found.group
    steps = found.steps[part].astype(np.float32) - 128
    sizes = (steps * found.d1[part, None]).T.copy()  # (groups, m)
    rest, codes = w.T.copy(), np.empty((n, m), np.int8)  # columns of W lie together
    for first in range(0, n, _COLUMNS):
        last = min(n, first + _COLUMNS)
        errors = np.empty((last - first, m), np.float32)
        for j in range(first, last):
            size = sizes[j // group]
            ratio = np.divide(rest[j], size, where=size != 0, out=np.zeros(m, np.float32))
            codes[j] = np.clip(np.rint(ratio), -8, 7)
            errors[j - first] = (rest[j] - codes[j] * size) / shares[j, j]
            rest[j + 1 : last] -= np.outer(shares[j, j + 1 : last], errors[j - first])
        rest[last:] -= shares[first:last, last:].T @ errors
    e = codes.T * np.repeat(steps, group, axis=1)[:, :n]
    heavy = e @ weights
    power = (heavy * e).sum(1, dtype=np.float64)
    d1 = np.divide((heavy * w).sum(1, dtype=np.float64), power, where=power > 0, out=np.zeros(m))
    before, after = found.rows(part) - w, e * d1[:, None].astype(np.float32) - w
    better = _energy(after, weights) < _energy(before, weights)
    found.d1[part] = np.where(better, d1, found.d1[part])
    found.codes[part] = np.where(better[:, None], packed_nibbles(codes.T), found.codes[part])


def _energy(errors: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """``e S e'`` of each row."""
    energy: NDArray[np.float64] = ((errors @ weights) * errors).sum(1, dtype=np.float64)
    return energy
