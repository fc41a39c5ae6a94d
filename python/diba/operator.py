"""The base class of packed matrices: products with dense arrays, equality, hashing, pickling."""

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

    ``M @ x``, ``x @ M`` and ``linear`` use the precision ``"fast"`` by default: sums are looked up in tables
    of 8-bit entries, and the error is about 45 dB below the exact product. ``matvec``, ``rmatvec``,
    ``matmat`` and ``rmatmat``, the names that SciPy looks for, use ``"exact"`` by default: sums in float32.
    BitMatrix and OneBit have no tables and multiply exactly at either precision, and so do the transposed
    products of APB.

    Results are float32, and the same bytes on every instruction set and for any number of threads; fast
    results also do not depend on how many vectors are multiplied together. Operands of another real type are
    rounded to float32 first. Products of finite numbers are finite: a sum that would overflow float32 is
    computed in float64, and a result beyond float32's range becomes its largest number of that sign. If x has
    an infinite or NaN entry, all entries of a fast ``M x`` are NaN.
    """

    __slots__ = ()
    __array_ufunc__ = None  # so that array @ M calls __rmatmul__ instead of looping over elements

    ndim = 2
    dtype = np.dtype(np.float32)

    # The packed copy for fast products; None before the first, and for a class without tables.
    _packed: _core.Packed | None = None
    _small = False  # multiplying one vector takes less time than starting threads for it
    _has_tables = False
    _turned_tables = False  # whether those of T serve the transposed products

    # ------------------------------------------------------------ what a subclass defines

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

        float32 x: all steps in float32. float64 x, finite: each column is scaled to the range of float32 for
        the sums, and the result has the range of float64.
        """

    @abstractmethod
    def _parts(self) -> tuple[Any, ...]:
        """The arguments of ``type(self)`` that give an equal matrix: arrays and hashable values."""

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
            TypeError: ``x`` is not an array of real numbers.
            ValueError: ``x`` has the wrong shape, or the precision is unknown.
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
        """``X M' + bias``: a dense layer, like ``torch.nn.functional.linear``.

        Args:
            X: Rows of activations, shape (..., n).
            bias: Added to each row of the result, shape (m,).
            precision: ``"fast"`` or ``"exact"``.
            threads: Worker threads; None uses ``diba.num_threads()``.

        Returns:
            float32 array of shape (..., m).

        Raises:
            TypeError: an operand is not an array of real numbers.
            ValueError: a shape is wrong, or the precision is unknown.
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
        if (
            packed is not None and getattr(other, "ndim", 0) == 1
        ):  # _at_once inlined: the call is noticeable here
            result = packed.try_multiply(other, 1 if self._small else resolve_threads(None))
            if result is not None:
                return result
        return self._times(other, "the right operand", "either", False, "fast", None)

    def __rmatmul__(self, other: ArrayLike) -> NDArray[np.float32]:
        """``x @ M`` for vectors x along the last axis, fast: ``X @ M.T`` is ``M.linear(X)``."""
        if self._turned_tables and (result := self.T._at_once(other, None)) is not None:
            return result
        rows = operand(other, "the left operand", self.shape[0], "rows", "rows")
        return self._rows(rows, None, True, "fast", None)

    # ------------------------------------------------------------ how a product is computed

    def _at_once(self, x: ArrayLike, threads: int | None) -> NDArray[np.float32] | None:
        """The fast product with vectors along the last axis, without any checks in Python.

        None where x must be converted first or M is not packed yet. The checks of :meth:`_times` take longer
        than a small product.
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
        """``M x`` or ``M' x`` for an operand as the caller passed it."""
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
        if precision == "fast" and (self._turned_tables if transposed else self._has_tables):
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

    # ------------------------------------------------------------ conversion, equality, copies

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """The dense matrix, for ``numpy.asarray``."""
        if copy is False:
            raise ValueError(
                f"copy is False; use copy=None: the dense array of a {type(self).__name__} is always new"
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
