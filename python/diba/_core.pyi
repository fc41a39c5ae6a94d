"""Types of the compiled module; what each function computes is stated in the headers of cpp/src.

No conversions: arrays are C-contiguous and of the exact dtype, and the caller allocates the outputs.
``words`` are packed bits, shape (rows, ceil(cols / 64)); ``threads`` is at least 1.
"""

from typing import overload

import numpy as np
from numpy.typing import NDArray

__version__: str
compiler: str

format_version: int

def isa() -> str: ...
def supported_isas() -> list[str]: ...
def select_isa(name: str) -> None: ...
def hold_threads_at_exit(main_thread: int) -> None: ...
def pack(dense: NDArray[np.float32], out: NDArray[np.uint64], threads: int) -> None: ...
def unpack(
    words: NDArray[np.uint64], cols: int, zero: float, one: float, out: NDArray[np.float32], threads: int
) -> None: ...
def transpose(words: NDArray[np.uint64], cols: int, out: NDArray[np.uint64]) -> None: ...
def tails_are_zero(words: NDArray[np.uint64], cols: int) -> bool: ...
def matvec(
    words: NDArray[np.uint64],
    cols: int,
    x: NDArray[np.float32],
    signs: bool,
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def matvec_t(
    words: NDArray[np.uint64],
    cols: int,
    x: NDArray[np.float32],
    signs: bool,
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def matmul(
    words: NDArray[np.uint64],
    cols: int,
    x: NDArray[np.float32],
    signs: bool,
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def matmul_t(
    words: NDArray[np.uint64],
    cols: int,
    x: NDArray[np.float32],
    signs: bool,
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def gram(
    words: NDArray[np.uint64],
    cols: int,
    weights: NDArray[np.float32],
    signs: bool,
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def round_rows(
    x: NDArray[np.float32], steps: NDArray[np.float32], found: bool, words: NDArray[np.uint64], threads: int
) -> None: ...
def bit_products(
    a: NDArray[np.uint64], b: NDArray[np.uint64], cols: int, out: NDArray[np.int32], threads: int
) -> None: ...
def bit_linear(
    x: NDArray[np.float32],
    weight: NDArray[np.uint64],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    bits: int,
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
@overload
def add_sparse(
    starts: NDArray[np.uint32],
    columns: NDArray[np.uint8],
    values: NDArray[np.float32],
    cols: int,
    x: NDArray[np.float32],
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
@overload
def add_sparse(
    starts: NDArray[np.uint32],
    columns: NDArray[np.uint16],
    values: NDArray[np.float32],
    cols: int,
    x: NDArray[np.float32],
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
@overload
def add_sparse(
    starts: NDArray[np.uint32],
    columns: NDArray[np.uint32],
    values: NDArray[np.float32],
    cols: int,
    x: NDArray[np.float32],
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def correlate_signs(
    words: NDArray[np.uint64],
    x: TiledMatrix,
    weights: NDArray[np.float32],
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def gram_signs(
    words: NDArray[np.uint64], cols: int, weights: NDArray[np.float32], out: NDArray[np.float32], threads: int
) -> None: ...

class TiledMatrix:
    @overload
    def __init__(self, x: NDArray[np.float32], transposed: bool = False, divisor: float = 1.0) -> None: ...
    @overload
    def __init__(self, rows: int, cols: int) -> None: ...

class QuantizedMatrix:
    def __init__(self, size: int) -> None: ...

def invert_shifted(
    gram: NDArray[np.float32],
    shift: float,
    w: NDArray[np.float32] | None,
    tiles: TiledMatrix,
    out: QuantizedMatrix,
    threads: int,
) -> None: ...
def fit_magnitudes(
    outer: NDArray[np.float32], inner: NDArray[np.float32], state: NDArray[np.float32], fixed: bool
) -> None: ...
def step_sign_side(
    words: NDArray[np.uint64],
    outer: NDArray[np.float32],
    inner: NDArray[np.float32],
    state: NDArray[np.float32],
    correlations: NDArray[np.float32],
    inverse: QuantizedMatrix,
    ratio: NDArray[np.float32],
    weights: NDArray[np.float32],
    penalty: float,
    fixed: bool,
    threads: int,
) -> float: ...
def quantize_shifted(
    x: NDArray[np.float32],
    shift: float,
    w: NDArray[np.float32] | None,
    out: QuantizedMatrix,
    threads: int,
) -> None: ...
def weighted_gram(
    x: NDArray[np.float32], weights: NDArray[np.float32], out: NDArray[np.float32], threads: int
) -> None: ...
def step_input_side(
    words: NDArray[np.uint64],
    outer: NDArray[np.float32],
    inner: NDArray[np.float32],
    state: NDArray[np.float32],
    solution: NDArray[np.float32],
    eigen_state: NDArray[np.float32],
    values: NDArray[np.float32],
    basis: NDArray[np.float32],
    gram: QuantizedMatrix,
    correlations: NDArray[np.float32],
    image: NDArray[np.float32],
    ratio: NDArray[np.float32],
    weights: NDArray[np.float32],
    penalty: float,
    iterations: int,
    fixed: bool,
    threads: int,
) -> float: ...
def correlate(
    words: NDArray[np.uint64],
    x: TiledMatrix,
    weights: NDArray[np.float32],
    signs: bool,
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def energy(x: NDArray[np.float32]) -> float: ...
def product_energy(
    gram_left: NDArray[np.float32], gram_right: NDArray[np.float32], d: NDArray[np.float32]
) -> float: ...
def product_along(
    words: NDArray[np.uint64],
    signs: bool,
    scale: NDArray[np.float32],
    correlations: NDArray[np.float32],
    d: NDArray[np.float32],
) -> float: ...
def fit_inner(
    gram_left: NDArray[np.float32],
    gram_right: NDArray[np.float32],
    correlations: NDArray[np.float32],
    words: NDArray[np.uint64],
    signs: bool,
    scale: NDArray[np.float32],
    energy: float,
    d2: NDArray[np.float32],
    threads: int,
) -> float: ...
def residual_correlations(
    gram: NDArray[np.float32],
    correlations: NDArray[np.float32],
    inner: NDArray[np.float32],
    words: NDArray[np.uint64],
    signs: bool,
    fit: bool,
    scale: NDArray[np.float32],
    out: NDArray[np.float32],
    threads: int,
) -> float: ...
def step_latents(
    values: NDArray[np.float32],
    mean: NDArray[np.float32],
    outer: NDArray[np.float32],
    inner: NDArray[np.float32],
    gradient: NDArray[np.float32] | None,
    fresh: float,
    way: float,
    farthest: float,
    edge: float,
    most: int,
    threads: int,
) -> NDArray[np.int64]: ...
def greedy_rows(
    gram: NDArray[np.float32],
    correlations: NDArray[np.float32],
    scale: NDArray[np.float32],
    words: NDArray[np.uint64],
    signs: bool,
    threads: int,
    pairs: bool,
) -> tuple[int, float]: ...

packed_store: tuple[int, str]

class Packed:
    """A factorization, or signs and exceptions, in the layout of the fast kernels (product/packed.hpp)."""

    def __init__(
        self,
        d1: NDArray[np.float32],
        b1: NDArray[np.uint64],
        d2: NDArray[np.float32],
        b2: NDArray[np.uint64],
        d3: NDArray[np.float32],
        signs: bool,
    ) -> None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def isa(self) -> str: ...
    def multiply(
        self,
        x: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        out: NDArray[np.float32],
        threads: int,
    ) -> None: ...
    def try_multiply(self, x: object, threads: int) -> NDArray[np.float32] | None: ...

# diag(alpha) S + E; the arrays of E are kept, not copied.
@overload
def pack_binarized(
    alpha: NDArray[np.float32],
    signs: NDArray[np.uint64],
    cols: int,
    starts: NDArray[np.uint32],
    columns: NDArray[np.uint8],
    values: NDArray[np.float32],
) -> Packed: ...
@overload
def pack_binarized(
    alpha: NDArray[np.float32],
    signs: NDArray[np.uint64],
    cols: int,
    starts: NDArray[np.uint32],
    columns: NDArray[np.uint16],
    values: NDArray[np.float32],
) -> Packed: ...
@overload
def pack_binarized(
    alpha: NDArray[np.float32],
    signs: NDArray[np.uint64],
    cols: int,
    starts: NDArray[np.uint32],
    columns: NDArray[np.uint32],
    values: NDArray[np.float32],
) -> Packed: ...

class PackedTensors:
    """The bits of a layer, or one bit matrix, for the fast kernels; the diagonals come with every call.

    Arrays are addresses of contiguous float32 data (bits: uint8, rows of whole bytes) of the sizes it
    was made for; ``factors`` are those of d1, b1, d2, b2, d3. A product returns False, and computes
    nothing, if the bits are not those that were packed. For one matrix, b2 is 0.
    """

    def __init__(self, b1: int, b2: int, rows: int, inner: int, cols: int, signs: bool) -> None: ...
    @staticmethod
    def matrix(bits: int, rows: int, cols: int, signs: bool, transposed: bool) -> PackedTensors: ...
    @property
    def current(self) -> bool: ...
    def holds(self, b1: int, b2: int) -> bool: ...
    def multiply(
        self,
        factors: tuple[int, int, int, int, int],
        x: int,
        count: int,
        bias: int,
        y: int,
        threads: int,
        whole: bool,
    ) -> bool: ...
    def multiply_matrix(self, bits: int, x: int, count: int, y: int, threads: int, whole: bool) -> bool: ...
    def multiply_binarized(
        self,
        signs: int,
        alpha: int,
        scales: int,
        sparse: tuple[int, int, int, int],
        x: int,
        count: int,
        bias: int,
        y: int,
        threads: int,
        whole: bool,
    ) -> bool:
        """``diag(alpha) S + E``; sparse: starts, columns, values and bytes of a column, or zeros."""
    def gradients(
        self,
        factors: tuple[int, int, int, int, int],
        x: int,
        g: int,
        count: int,
        out: tuple[int, int, int, int],
        threads: int,
    ) -> None: ...

# Addresses, as above; 0 for steps at 8 bits, and for no bias.
def multiply_codes(
    codes: int,
    steps: int,
    d1: int,
    rows: int,
    columns: int,
    bits: int,
    group: int,
    x: int,
    count: int,
    bias: int,
    y: int,
    threads: int,
) -> None: ...
def read_seconds(words: NDArray[np.uint64]) -> float: ...
def tuning() -> tuple[int, int, int]: ...
def set_tuning(table_bytes: int, bits_per_thread: int, fetch_bytes: int) -> None: ...

# Files can seek; they are read without the GIL, apart from their own methods. FormatError if they are
# damaged. Tensors are name -> (dtype, shape, begin, end).

def read_header(
    file: object, name: str
) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...], int, int]]]: ...
def read_factors(
    file: object, name: str
) -> tuple[
    dict[str, str],
    NDArray[np.float32],
    NDArray[np.uint64],
    NDArray[np.float32],
    NDArray[np.uint64],
    NDArray[np.float32],
]: ...

class ChecksummedFile:
    """A safetensors file that diba wrote; cpp/src/file/checksummed.hpp."""

    def __init__(self, file: object, name: str, kind: str, what: str, version: int) -> None: ...
    @property
    def metadata(self) -> dict[str, str]: ...
    @property
    def tensors(self) -> dict[str, tuple[str, tuple[int, ...], int, int]]: ...
    def integer(self, key: str, minimum: int, maximum: int) -> int: ...
    def read(self, key: str, out: NDArray[np.uint8]) -> None: ...
