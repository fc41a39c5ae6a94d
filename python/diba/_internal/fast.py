"""Fast products with a factorization: table kernels on packed bits, with a stated error.

What the kernels compute is in ``cpp/src/kernels/lookup.hpp``; how far off they
can be, in ``error_bound``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from .. import _core
from ..runtime import resolve_threads
from . import check, tuning
from .operator import PackedOperator

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["FastOperator", "Precision"]

Precision = Literal["fast", "exact"]

_BYTES_FOR_THREADS = 1 << 17


class FastOperator(PackedOperator):
    """A packed matrix whose products come in two precisions.

    ``"fast"`` (the default) looks up sums in tables of 8-bit entries: about 45 dB
    from the exact product, at most ``error_bound(x)`` off. ``"exact"`` adds up in
    float32. Both return the same bytes on every instruction set and for any number
    of threads; the fast products also for any number of vectors at once. An infinite
    or NaN entry of x makes all of a fast ``M x`` NaN; for finite x either is finite.
    """

    __slots__ = ("_prepared", "_small")

    _prepared: _core.Packed | None
    _small: bool  # one vector is multiplied sooner than asked how many threads there are

    @abstractmethod
    def _pack(self) -> _core.Packed:
        """This matrix in the execution layout of the instruction set in use."""

    @property
    @abstractmethod
    def T(self) -> FastOperator:
        """The transposed matrix."""

    # ------------------------------------------------------------ the execution layout

    def prepare(self) -> Self:
        """Pack now what the first fast product would pack; returns this object.

        The packed copy belongs to one instruction set, is made again if that changes,
        takes ``prepared_nbytes``, and is never written to a file. The transposed
        products (``rmatvec``, ``rmatmul``, ``x @ M``) use one of ``M.T``. Nothing is
        locked meanwhile, so that signal handlers, finalizers and children made by
        ``fork`` may multiply at any time: threads that come at once may each pack a
        copy, of which one stays.
        """
        self._ready()
        return self

    @property
    def prepared_nbytes(self) -> int:
        """Bytes of the packed copy, in addition to ``nbytes``; 0 before there is one."""
        return 0 if self._prepared is None else self._prepared.nbytes

    def _ready(self) -> _core.Packed:
        prepared = self._prepared
        if prepared is None or prepared.isa != _core.isa():
            tuning.read_environment()
            prepared = self._pack()
            self._small = prepared.nbytes < _BYTES_FOR_THREADS
            self._prepared = prepared  # last: from here on others use it
        return prepared

    # ------------------------------------------------------------ products

    def matvec(
        self, x: ArrayLike, *, precision: Precision = "fast", threads: int | None = None
    ) -> NDArray[np.float32]:
        """``M @ x``.

        Args:
            x: Vector of shape (n,), or one column (n, 1).
            precision: ``"fast"`` or ``"exact"``.
            threads: Worker threads; None uses ``diba.num_threads()``.

        Returns:
            float32 array of shape (m,), or (m, 1).

        Raises:
            TypeError: ``x`` is complex or no array of numbers.
            ValueError: ``x`` has the wrong shape; an unknown precision.
        """
        if check.precision(precision) == "exact":
            return super().matvec(x, threads=threads)
        if (result := self._at_once(x, threads, ndim=1)) is not None:
            return result
        vector, ndim = self._vector(x, transposed=False)
        result = self._rows(vector.reshape(1, -1), None, threads).reshape(-1)
        return result if ndim == 1 else result.reshape(-1, 1)

    def rmatvec(
        self, x: ArrayLike, *, precision: Precision = "fast", threads: int | None = None
    ) -> NDArray[np.float32]:
        """``M.T @ x`` for x of shape (m,) or (m, 1); see ``matvec``."""
        if check.precision(precision) == "exact":
            return super().rmatvec(x, threads=threads)
        vector, ndim = self._vector(x, transposed=True)
        result = self.T._rows(vector.reshape(1, -1), None, threads).reshape(-1)
        return result if ndim == 1 else result.reshape(-1, 1)

    def matmul(
        self, X: ArrayLike, *, precision: Precision = "fast", threads: int | None = None
    ) -> NDArray[np.float32]:
        """``M @ X`` for X of shape (n, p): float32 of shape (m, p); see ``matvec``.

        The fast kernels work on rows: the result is in column order, and ``linear``
        saves the copy of X if its rows are the vectors.
        """
        if check.precision(precision) == "exact":
            return super().matmul(X, threads=threads)
        return self._rows(check.columns(X, "X", self.shape[1], "columns"), None, threads).T

    def rmatmul(
        self, X: ArrayLike, *, precision: Precision = "fast", threads: int | None = None
    ) -> NDArray[np.float32]:
        """``M.T @ X`` for X of shape (m, p): float32 of shape (n, p); see ``matmul``."""
        if check.precision(precision) == "exact":
            return super().rmatmul(X, threads=threads)
        return self.T._rows(check.columns(X, "X", self.shape[0], "rows"), None, threads).T

    matmat = matmul  # the names SciPy looks for
    rmatmat = rmatmul

    def linear(
        self,
        X: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        precision: Precision = "fast",
        threads: int | None = None,
    ) -> NDArray[np.float32]:
        """``X M' + bias``: a dense layer, as ``torch.nn.functional.linear``.

        Args:
            X: Rows of activations, shape (..., n).
            bias: Added to each row of the result, shape (m,).
            precision: ``"fast"`` or ``"exact"``.
            threads: Worker threads; None uses ``diba.num_threads()``.

        Returns:
            float32 array of shape (..., m).

        Raises:
            TypeError: an operand is complex or no array of numbers.
            ValueError: wrong shapes; an unknown precision.
        """
        fast = check.precision(precision) == "fast"
        if fast and bias is None and (result := self._at_once(X, threads)) is not None:
            return result
        m, n = self.shape
        rows = check.rows(X, "X", n, "columns")
        shift = None if bias is None else check.operand(bias, "bias", m, 1, "rows")
        flat = rows.reshape(-1, n)
        if fast:
            result = self._rows(flat, shift, threads)
        else:
            used = resolve_threads(threads)
            if len(flat) == 1:  # one vector has a kernel of its own
                result = self._product(flat[0], False, used, shift)
            else:
                columns = np.ascontiguousarray(flat.T)
                result = np.ascontiguousarray(self._product(columns, False, used, shift).T)
        return result.reshape(*rows.shape[:-1], m)

    def __matmul__(self, other: ArrayLike) -> NDArray[np.float32]:
        """``M @ x`` or ``M @ X``."""
        if (result := self._at_once(other, None, ndim=1)) is not None:
            return result
        return super().__matmul__(other)

    def __rmatmul__(self, other: ArrayLike) -> NDArray[np.float32]:
        """``x @ M`` or ``X @ M``: rows times M, so that ``X @ f.T`` is ``f.linear(X)``."""
        if (result := self.T._at_once(other, None, ndim=min(getattr(other, "ndim", 0), 2))) is not None:
            return result
        return super().__rmatmul__(other)

    # ------------------------------------------------------------ inner parts

    def _at_once(self, x: ArrayLike, threads: int | None, ndim: int = 0) -> NDArray[np.float32] | None:
        """The product with rows of x if there is nothing to convert and to pack; else None.

        The usual way takes longer than a small product. ``ndim``: of x; 0: any.
        """
        prepared = self._prepared
        if prepared is None or (ndim and getattr(x, "ndim", 0) != ndim):
            return None
        if threads is None and ndim == 1 and self._small:
            return prepared.try_multiply(x, 1)
        return prepared.try_multiply(x, resolve_threads(threads))

    def _vector(self, x: ArrayLike, transposed: bool) -> tuple[NDArray[np.float32], int]:
        """The checked vector, 1-D, and the number of dimensions it came with."""
        array = check.real_array(x, "x")
        ndim = 2 if array.ndim == 2 and array.shape[1] == 1 else 1  # SciPy passes columns, too
        length, against = (self.shape[0], "rows") if transposed else (self.shape[1], "columns")
        return check.operand(array, "x", length, ndim, against).reshape(-1), ndim

    def _rows(
        self, X: NDArray[np.float32], bias: NDArray[np.float32] | None, threads: int | None
    ) -> NDArray[np.float32]:
        """``X M' + bias`` for checked operands, X of shape (p, n)."""
        result = np.empty((X.shape[0], self.shape[0]), dtype=np.float32)
        self._ready().multiply(X, bias, result, resolve_threads(threads))
        return result
