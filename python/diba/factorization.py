"""Factorization, the result of a solver: ``A ~ D1 B1 D2 B2 D3`` with packed binary factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from . import _core, file_format
from ._internal import check, check_arrays, error_bound, storage
from ._internal.disk import open_regular
from ._internal.factored import FactoredMatrix
from ._internal.snr import dense_blocks
from ._internal.storage import bits_per_weight
from ._internal.tabulated import TabulatedMatrix
from .bits import BitMatrix
from .runtime import resolve_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from ._internal.check import Alphabet

__all__ = ["Factorization"]


class Factorization(FactoredMatrix, TabulatedMatrix):
    """An immutable m x n matrix in the form ``D1 B1 D2 B2 D3``.

    D1 (m), D2 (k), D3 (n) are diagonals; B1 (m x k), B2 (k x n) are bit matrices of one alphabet. It
    multiplies like a dense matrix, float32 in and out. ``f @ x``, ``X @ f`` and ``linear`` are fast by
    default: their error is about 45 dB below the exact product. ``matvec``, ``rmatvec``, ``matmat`` and
        ``rmatmat``,
    which SciPy's solvers call, are exact by default. All named methods take ``precision`` and ``threads``.

    Args:
        d1: m finite numbers, stored as float32.
        b1: Bit matrix of shape (m, k).
        d2: k finite numbers.
        b2: Bit matrix of shape (k, n), of the same alphabet.
        d3: n finite numbers.

    Raises:
        TypeError: ``b1`` or ``b2`` is not a BitMatrix, or a diagonal is not an array of real numbers.
        ValueError: shapes or alphabets disagree, or an entry is not finite in float32.

    Source:
        Ono, "DiBA", arXiv 2605.05994 (alphabet "binary"); Boza and Macko, "Double
        binary factorization", arXiv 2505.11076 (alphabet "sign").

    Example:
        >>> import numpy as np
        >>> f = Factorization.from_factors([2, 1], [[1, 0], [1, 1]], [3, 1], [[1, 1], [0, 1]], [1, 5])
        >>> f
        Factorization(2x2, k=2, binary, 26.00 bits/weight)
        >>> f.to_dense()
        array([[ 6., 30.],
               [ 3., 20.]], dtype=float32)
        >>> f.matvec(np.array([1, 1]))
        array([36., 23.], dtype=float32)
    """

    __slots__ = (
        "__weakref__", "_b1", "_b2", "_d1", "_d2", "_d3", "_diagonal_bits", "_transposed"
    )  # fmt: skip
    _turned_tables = True

    def __init__(self, d1: ArrayLike, b1: BitMatrix, d2: ArrayLike, b2: BitMatrix, d3: ArrayLike) -> None:
        for name, b in {"b1": b1, "b2": b2}.items():
            check.instance(b, name, BitMatrix, "use Factorization.from_factors for plain arrays")
        check.equal(b2.shape[0], "the number of rows of b2", b1.shape[1], "number of columns of b1")
        check.equal(b2.alphabet, "the alphabet of b2", b1.alphabet, "alphabet of b1")
        self._b1, self._b2 = b1, b2
        self._d1 = check_arrays.diagonal(d1, "d1", b1.shape[0], "rows of b1")
        self._d2 = check_arrays.diagonal(d2, "d2", b1.shape[1], "columns of b1")
        self._d3 = check_arrays.diagonal(d3, "d3", b2.shape[1], "columns of b2")
        self._diagonal_bits: int | None = None
        self._transposed: dict[str, Factorization] = {}  # T, once it was asked for
        self._packed: _core.Packed | None = None

    @classmethod
    def from_factors(
        cls,
        d1: ArrayLike,
        b1: ArrayLike,
        d2: ArrayLike,
        b2: ArrayLike,
        d3: ArrayLike,
        alphabet: Alphabet = "binary",
    ) -> Factorization:
        """Build from plain arrays; b1, b2 hold 0/1 (``"binary"``) or -1/+1 (``"sign"``).

        Raises:
            TypeError: a factor is not an array of real numbers.
            ValueError: wrong shapes, an entry outside the alphabet, a diagonal entry not finite.
        """
        threads = resolve_threads(None)
        packed1 = BitMatrix._from_entries(b1, "b1", alphabet, threads)
        packed2 = BitMatrix._from_entries(b2, "b2", alphabet, threads)
        return cls(d1, packed1, d2, packed2, d3)

    # ------------------------------------------------------------ factors

    @property
    def d1(self) -> NDArray[np.float32]:
        """Row scales, read-only, of shape (m,)."""
        return self._d1

    @property
    def b1(self) -> BitMatrix:
        """Left binary factor of shape (m, k)."""
        return self._b1

    @property
    def d2(self) -> NDArray[np.float32]:
        """Inner scales, read-only, of shape (k,)."""
        return self._d2

    @property
    def b2(self) -> BitMatrix:
        """Right binary factor of shape (k, n)."""
        return self._b2

    @property
    def d3(self) -> NDArray[np.float32]:
        """Column scales, read-only, of shape (n,)."""
        return self._d3

    # ------------------------------------------------------------ facts

    @property
    def k(self) -> int:
        """Inner dimension: columns of B1, rows of B2."""
        return self._b1.shape[1]

    @property
    def alphabet(self) -> Alphabet:
        """``"binary"`` (0/1) or ``"sign"`` (-1/+1)."""
        return self._b1.alphabet

    @property
    def diagonal_bits(self) -> int:
        """16 if every diagonal is one power of two times float16 values exactly, else 32."""
        if self._diagonal_bits is None:
            self._diagonal_bits = super().diagonal_bits
        return self._diagonal_bits

    @property
    def bits_per_weight(self) -> float:
        """``[k (m + n) + q (m + k + n)] / (m n)`` with q = ``diagonal_bits``; padding not counted."""
        m, n = self.shape
        return bits_per_weight(m, n, self.k, self.diagonal_bits)

    @property
    def file_padding_bits(self) -> int:
        """Unused bits in a file, where every row of B1 and B2 fills whole bytes.

        A file's tensors take ``bits_per_weight * m * n + file_padding_bits`` bits.
        """
        return self._padding(8)

    @property
    def T(self) -> Factorization:
        """The transposed factorization ``D3 B2' D2 B1' D1``; made once, then kept."""
        kept = self._transposed.get("T")
        if kept is None:
            made = Factorization(self._d3, self._b2.T, self._d2, self._b1.T, self._d1)
            made._transposed["T"] = self
            kept = self._transposed.setdefault("T", made)  # atomic: all threads get the same one
        return kept

    # ------------------------------------------------------------ the fast products

    def _pack(self) -> _core.Packed:
        check.fits_tables(max(self.k, self.shape[1]))
        signs = self.alphabet == "sign"
        return _core.Packed(self._d1, self._b1.words, self._d2, self._b2.words, self._d3, signs)

    def error_bound(self, x: ArrayLike) -> NDArray[np.float64]:
        """Bound ``|f @ x - exact product|`` entry by entry for the fast precision.

        The exact product is that of real arithmetic; ``_internal/error_bound.py`` derives the bound. Actual
        errors are usually much smaller, since roundings rarely all go the same way.

        Args:
            x: Vector of shape (n,).

        Returns:
            Bounds, float64 of shape (m,); NaN where ``x`` is not finite or a step may leave float32's range.

        Raises:
            TypeError: ``x`` is not an array of real numbers.
            ValueError: ``x`` has the wrong shape.
        """
        vector = check_arrays.operand(x, "x", self.shape[1], "vector", "columns")
        return error_bound.bound(*self._parts(), vector)

    # ------------------------------------------------------------ other forms

    def round_diagonals(self) -> Factorization:
        """The same factors with diagonals rounded to 16 bits per entry (``diagonal_bits`` 16)."""
        if self.diagonal_bits == 16:
            return self
        d1, d2, d3 = (storage.round_to_16(d) for d in (self._d1, self._d2, self._d3))
        return Factorization(d1, self._b1, d2, self._b2, d3)

    def save(self, path: file_format.PathLike) -> None:
        """Write a diba file (see ``diba.file_format`` for its format), whole or not at all.

        Raises:
            TypeError: ``path`` is not a path.
            OSError: the folder does not exist or cannot be written.
        """
        file_format.write(check.path(path), file_format.StoredFactors(*self._parts()))

    @classmethod
    def load(cls, path: file_format.PathLike) -> Factorization:
        """Read a diba file.

        Raises:
            OSError: the file cannot be opened.
            diba.FormatError: it is not a diba file, is damaged, or has a newer format version.
        """
        name = check.path(path)
        with open_regular(name) as file:
            return cls._decoded(file, name)

    @classmethod
    def _decoded(cls, file: BinaryIO, name: str) -> Factorization:
        """Read an open file, or bytes in memory, like :meth:`load`; ``name`` is used in messages."""
        stored = file_format.decode(file, name)
        return cls(stored.d1, stored.b1, stored.d2, stored.b2, stored.d3)

    def _blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        return dense_blocks(*self._parts())

    # ------------------------------------------------------------ object protocol

    def _parts(
        self,
    ) -> tuple[NDArray[np.float32], BitMatrix, NDArray[np.float32], BitMatrix, NDArray[np.float32]]:
        return self._d1, self._b1, self._d2, self._b2, self._d3

    def __repr__(self) -> str:
        m, n = self.shape
        return f"Factorization({m}x{n}, k={self.k}, {self.alphabet}, {self.bits_per_weight:.2f} bits/weight)"

    def _repr_html_(self) -> str:
        m, n = self.shape
        facts = {
            "shape": f"{m} &times; {n}",
            "k": f"{self.k}",
            "alphabet": "0/1 (binary)" if self.alphabet == "binary" else "&minus;1/+1 (sign)",
            "bits per weight": f"{self.bits_per_weight:.3f} ({self.diagonal_bits}-bit diagonals)",
            "storage ratio": f"{self.storage_ratio:.4f} of float32",
            "bytes": f"{4 * m * n:,} dense, {self.nbytes:,} packed",
        }
        rows = "".join(
            f'<tr><th style="text-align:left">{name}</th><td style="text-align:left">{value}</td></tr>'
            for name, value in facts.items()
        )
        return f"<table><caption>diba.Factorization</caption>{rows}</table>"
