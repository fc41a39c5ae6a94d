"""What every packed matrix of diba can do: products with dense arrays, and what an immutable value does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from ._internal import check
from ._internal.check_arrays import operand, saturated
from .runtime import resolve_threads

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from . import _core
    from ._internal.check_arrays import Form

__all__ = ["PackedOperator", "Precision"]

Precision = Literal["fast", "exact"]


class PackedOperator(ABC):
    """Products of a packed real matrix M of shape (m, n) with dense float32 arrays.

    ``M @ x``, ``x @ M`` and ``linear`` have the precision ``"fast"`` unless told otherwise: sums looked up in
    tables of 8-bit entries, about 45 dB from the exact product. ``matvec``, ``rmatvec``, ``matmat`` and
    ``rmatmat``, the names that SciPy looks for, are ``"exact"``: sums in float32. A matrix without tables
    (BitMatrix, OneBit) multiplies exactly at either precision.

    Results are float32 and the same bytes on every instruction set and for any number of threads; fast ones
    also for any number of vectors at once. Operands of another real type are rounded to float32 first.
    Products of finite numbers are finite: where float32 would overflow on the way, a wider range is used, and
    what is beyond float32 in the end is its largest number. An infinite or NaN entry of x makes all of a fast
    ``M x`` NaN.
    """

    __slots__ = ()
    __array_ufunc__ = None  # array @ M is ours, not an elementwise loop of NumPy's

    ndim = 2
    dtype = np.dtype(np.float32)

    # What the fast products run on; None for a matrix without them, and before the first.
    _packed: _core.Packed | None = None
    _small = False  # one vector is multiplied sooner than asked how many threads there are
    _has_tables = False

    # ------------------------------------------------------------ what a matrix must say

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(m, n)."""

    @property
    @abstractmethod
    def T(self) -> Self:
        """The transposed matrix."""

    @abstractmethod
    def to_dense(self) -> NDArray[Any]:
        """All entries, of shape (m, n)."""

    @abstractmethod
    def _apply(self, x: NDArray[Any], transposed: bool, threads: int) -> NDArray[Any]:
        """``M x`` or ``M' x``, exactly, for C-contiguous columns x of shape (length, p).

        float32 all the way for float32; for finite float64 sums in float32, exponents in float64.
        """

    @abstractmethod
    def _parts(self) -> tuple[Any, ...]:
        """What ``type(self)`` is constructed from: arrays and hashable values."""

    def _apply_tables(
        self, rows: NDArray[np.float32], bias: NDArray[np.float32] | None, threads: int
    ) -> NDArray[np.float32]:
        """``rows M' + bias`` at the fast precision, for C-contiguous rows of shape (p, n)."""
        raise NotImplementedError

    # ------------------------------------------------------------ products

    def matvec(
        self, x: ArrayLike, *, precision: Precision = "exact", threads: int | None = None
    ) -> NDArray[np.float32]:
        """``M @ x``.

        Args:
            x: Vector of shape (n,), or one column (n, 1).
            precision: ``"exact"`` or ``"fast"``.
            threads: Worker threads; None uses ``diba.num_threads()``.

        Returns:
            float32 array of shape (m,), or (m, 1).

        Raises:
            TypeError: ``x`` is complex or no array of numbers.
            ValueError: ``x`` has the wrong shape; an unknown precision.
        """
        if (
            precision == "fast"
            and getattr(x, "ndim", 0) == 1
            and (y := self._at_once(x, threads)) is not None
        ):
            return y
        return self._times(x, "x", "column", False, precision, threads)

    def rmatvec(
        self, x: ArrayLike, *, precision: Precision = "exact", threads: int | None = None
    ) -> NDArray[np.float32]:
        """``M.T @ x`` for x of shape (m,) or (m, 1); see ``matvec``."""
        return self._times(x, "x", "column", True, precision, threads)

    def matmat(
        self, X: ArrayLike, *, precision: Precision = "exact", threads: int | None = None
    ) -> NDArray[np.float32]:
        """``M @ X`` for X of shape (n, p): float32 of shape (m, p); see ``matvec``."""
        return self._times(X, "X", "columns", False, precision, threads)

    def rmatmat(
        self, X: ArrayLike, *, precision: Precision = "exact", threads: int | None = None
    ) -> NDArray[np.float32]:
        """``M.T @ X`` for X of shape (m, p): float32 of shape (n, p); see ``matvec``."""
        return self._times(X, "X", "columns", True, precision, threads)

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
        if precision == "fast" and bias is None and (result := self._at_once(X, threads)) is not None:
            return result
        check.precision(precision)
        rows = operand(X, "X", self.shape[1], "rows", "columns")
        if bias is not None:
            bias = np.ascontiguousarray(operand(bias, "bias", self.shape[0], "vector", "rows"))
        return self._rows(rows, bias, False, precision, threads)

    def __matmul__(self, other: ArrayLike) -> NDArray[np.float32]:
        """``M @ x`` or ``M @ X``, fast."""
        packed = self._packed
        if packed is not None and getattr(other, "ndim", 0) == 1:  # as _at_once, without the call
            result = packed.try_multiply(other, 1 if self._small else resolve_threads(None))
            if result is not None:
                return result
        return self._times(other, "the right operand", "either", False, "fast", None)

    def __rmatmul__(self, other: ArrayLike) -> NDArray[np.float32]:
        """``x @ M`` for vectors x along the last axis, fast: ``X @ M.T`` is ``M.linear(X)``."""
        if self._has_tables and (result := self.T._at_once(other, None)) is not None:
            return result
        rows = operand(other, "the left operand", self.shape[0], "rows", "rows")
        return self._rows(rows, None, True, "fast", None)

    # ------------------------------------------------------------ the way of a product

    def _at_once(self, x: ArrayLike, threads: int | None) -> NDArray[np.float32] | None:
        """The fast product with vectors along the last axis; None if x is to be converted, M to be packed.

        The usual way takes longer than a small product.
        """
        packed = self._packed
        if packed is None:
            return None
        if threads is None and self._small and getattr(x, "ndim", 0) == 1:
            return packed.try_multiply(x, 1)
        return packed.try_multiply(x, resolve_threads(threads))

    def _times(
        self, x: ArrayLike, name: str, form: Form, transposed: bool, precision: str, threads: int | None
    ) -> NDArray[np.float32]:
        """``M x`` or ``M' x`` for what a caller passed."""
        check.precision(precision)
        length, against = (self.shape[0], "rows") if transposed else (self.shape[1], "columns")
        columns = operand(x, name, length, form, against)
        return self._multiply(columns, None, transposed, precision, resolve_threads(threads))

    def _rows(
        self,
        rows: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        transposed: bool,
        precision: str,
        threads: int | None,
    ) -> NDArray[np.float32]:
        """``rows M' + bias`` (``transposed``: ``rows M``) for a checked operand of shape (..., length)."""
        columns = rows.reshape(-1, rows.shape[-1]).T
        result = self._multiply(columns, bias, transposed, precision, resolve_threads(threads))
        return np.ascontiguousarray(result.T).reshape(*rows.shape[:-1], len(result))

    def _multiply(
        self,
        columns: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        transposed: bool,
        precision: str,
        threads: int,
    ) -> NDArray[np.float32]:
        """``M x`` or ``M' x``, plus bias, for checked columns of any strides, (length,) or (length, p)."""
        flat = columns if columns.ndim == 2 else columns[:, None]
        if precision == "fast" and self._has_tables:
            matrix = self.T if transposed else self
            result = matrix._apply_tables(np.ascontiguousarray(flat.T), bias, threads).T
        else:
            result = self._exact(np.ascontiguousarray(flat), bias, transposed, threads)
        return result if columns.ndim == 2 else result[:, 0]

    def _exact(
        self, x: NDArray[np.float32], bias: NDArray[np.float32] | None, transposed: bool, threads: int
    ) -> NDArray[np.float32]:
        """``M x`` or ``M' x``, plus bias if there is one, for columns (length, p); finite if they are."""
        with np.errstate(over="ignore", invalid="ignore"):
            result = self._apply(x, transposed, threads)
            if bias is not None:
                result += bias[:, None]
        if np.isfinite(result).all() or (bias is not None and not np.isfinite(bias).all()):
            return result
        again = ~np.isfinite(result).all(axis=0) & np.isfinite(x).all(axis=0)
        if again.any():
            wide = self._apply(x[:, again].astype(np.float64), transposed, threads)
            result[:, again] = saturated(wide if bias is None else wide + bias[:, None])
        return result

    # ------------------------------------------------------------ an immutable value

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """The dense matrix, for ``numpy.asarray``."""
        if copy is False:
            raise ValueError(
                f"a dense array of a {type(self).__name__} is always a new one; use copy=None instead of "
                "copy=False"
            )
        return self.to_dense().astype(np.float32 if dtype is None else dtype, copy=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in self._parts())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._parts()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self
