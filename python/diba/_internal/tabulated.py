"""The packed copy of the fast products: made when it is needed, no part of the value."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Self

import numpy as np

from .. import _core
from . import tuning
from .factored import ApproximateMatrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TabulatedMatrix"]

_BYTES_FOR_THREADS = 1 << 17  # with a smaller packed copy, one vector is multiplied on the caller's thread


class TabulatedMatrix(ApproximateMatrix):
    """A matrix with fast products."""

    __slots__ = ("_packed", "_small")
    _has_tables = True

    @abstractmethod
    def _pack(self) -> _core.Packed:
        """The bits in the layout of the instruction set in use."""

    def prepare(self) -> Self:
        """Make the packed copy for the fast products now instead of at the first product.

        The copy is laid out for one instruction set and made again if that changes; it takes
        ``prepared_nbytes`` bytes and is never written to a file. No lock is held while packing, so that
        signal handlers, finalizers and forked children may multiply at any time. Threads that start together
        may each make a copy; one is kept.

        Returns:
            This object.
        """
        self._tables()
        return self

    @property
    def prepared_nbytes(self) -> int:
        """Bytes of the packed copy, in addition to ``nbytes``; 0 before it is made."""
        return 0 if self._packed is None else self._packed.nbytes

    def _tables(self) -> _core.Packed:
        """This matrix in the layout of the instruction set in use."""
        packed = self._packed
        if packed is None or packed.isa != _core.isa():
            tuning.read_environment()
            packed = self._pack()
            self._small = packed.nbytes < _BYTES_FOR_THREADS
            self._packed = packed  # last: other threads read it without a lock
        return packed

    def _apply_tables(
        self, rows: NDArray[np.float32], bias: NDArray[np.float32] | None, threads: int
    ) -> NDArray[np.float32]:
        result = np.empty((len(rows), self.shape[0]), dtype=np.float32)
        self._tables().multiply(rows, bias, result, threads)
        return result
