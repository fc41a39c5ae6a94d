"""What every packed matrix of diba can do as a linear operator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..runtime import resolve_threads
from . import check
from .check_arrays import saturated

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["PackedOperator"]


class PackedOperator(ABC):
    """Products of a packed real matrix M of shape (m, n) with dense float32 arrays.

    Results are float32, with sums in a fixed order: the same bytes on every
    instruction set and for any number of threads. Operands of another real type
    are rounded to float32 first. Products of finite numbers are finite: where
    float32 would overflow on the way, a wider range is used, and what is beyond
    float32 in the end is its largest number.
    """

    __slots__ = ()
    __array_ufunc__ = None  # array @ M is ours, not an elementwise loop of NumPy's

    ndim = 2
    dtype = np.dtype(np.float32)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(m, n)."""

    @abstractmethod
    def to_dense(self) -> NDArray[Any]:
        """All entries, of shape (m, n)."""

    @abstractmethod
    def _apply(self, x: NDArray[np.float32], transposed: bool, threads: int) -> NDArray[np.float32]:
        """``M x`` or ``M' x`` for checked operands, 1-D or 2-D, in float32 all the way."""

    @abstractmethod
    def _apply_wide(self, x: NDArray[np.float64], transposed: bool, threads: int) -> NDArray[np.float64]:
        """The same for finite columns x (length, p) of any size: sums in float32, exponents in float64."""

    def _product(
        self,
        x: NDArray[np.float32],
        transposed: bool,
        threads: int,
        bias: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """``M x`` or ``M' x``, plus bias if there is one, of finite columns finite."""
        shift = 0 if bias is None else bias.reshape(-1, *(1,) * (x.ndim - 1))
        with np.errstate(over="ignore", invalid="ignore"):
            result = self._apply(x, transposed, threads)
            if bias is not None:
                result = result + shift
        if np.isfinite(result).all() or not np.isfinite(shift).all():
            return result
        columns, results = x.reshape(len(x), -1), result.reshape(len(result), -1)
        again = ~np.isfinite(results).all(axis=0) & np.isfinite(columns).all(axis=0)
        if again.any():
            wide = self._apply_wide(columns[:, again].astype(np.float64), transposed, threads)
            results[:, again] = saturated(wide + (0 if bias is None else bias[:, None]))
        return results.reshape(result.shape)

    def matvec(self, x: ArrayLike, *, threads: int | None = None) -> NDArray[np.float32]:
        """``M @ x``.

        Args:
            x: Vector of shape (n,), or one column (n, 1).
            threads: Worker threads; None uses ``diba.num_threads()``.

        Returns:
            float32 array of shape (m,), or (m, 1).

        Raises:
            TypeError: ``x`` is complex or no array of numbers.
            ValueError: ``x`` has the wrong shape.
        """
        return self._vector_product(x, transposed=False, threads=threads)

    def rmatvec(self, x: ArrayLike, *, threads: int | None = None) -> NDArray[np.float32]:
        """``M.T @ x`` for x of shape (m,) or (m, 1), without transposing; see ``matvec``."""
        return self._vector_product(x, transposed=True, threads=threads)

    def matmul(self, X: ArrayLike, *, threads: int | None = None) -> NDArray[np.float32]:
        """``M @ X`` for X of shape (n, p): float32 of shape (m, p); see ``matvec``."""
        columns = check.operand(X, "X", self.shape[1], 2, "columns")
        return self._product(columns, False, resolve_threads(threads))

    def rmatmul(self, X: ArrayLike, *, threads: int | None = None) -> NDArray[np.float32]:
        """``M.T @ X`` for X of shape (m, p): float32 of shape (n, p); see ``matvec``."""
        columns = check.operand(X, "X", self.shape[0], 2, "rows")
        return self._product(columns, True, resolve_threads(threads))

    matmat = matmul  # the names SciPy looks for
    rmatmat = rmatmul

    def __matmul__(self, other: ArrayLike) -> NDArray[np.float32]:
        """``M @ x`` or ``M @ X``."""
        array = check.real_array(other, "the right operand")
        return self.matvec(array) if array.ndim == 1 else self.matmul(array)

    def __rmatmul__(self, other: ArrayLike) -> NDArray[np.float32]:
        """``x @ M`` or ``X @ M``."""
        array = check.real_array(other, "the left operand")
        return self.rmatvec(array) if array.ndim == 1 else self.rmatmul(array.T).T

    def _vector_product(self, x: ArrayLike, transposed: bool, threads: int | None) -> NDArray[np.float32]:
        array = check.real_array(x, "x")
        ndim = 2 if array.ndim == 2 and array.shape[1] == 1 else 1  # SciPy passes columns, too
        length, against = (self.shape[0], "rows") if transposed else (self.shape[1], "columns")
        operand = check.operand(array, "x", length, ndim, against)
        return self._product(operand, transposed, resolve_threads(threads))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """The dense matrix, for ``numpy.asarray``."""
        check.may_copy(copy, type(self).__name__)
        return self.to_dense().astype(np.float32 if dtype is None else dtype, copy=False)
