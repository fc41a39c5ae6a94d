"""Every rule about arrays: what counts as an array of real numbers, as an operand, a diagonal, an objective.

Arrays of real numbers are NumPy arrays of any layout, nested sequences, torch CPU tensors and anything else
that NumPy understands. torch is never imported: a tensor can only come from a caller who has imported it.
"""

from __future__ import annotations

import sys
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from .check import FloatArray, describe, number

__all__ = ["covariance", "diagonal", "importance", "operand", "real_array", "real_matrix", "saturated"]

_AS_THEY_ARE = (np.dtype(np.float32), np.dtype(np.float64))
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_ASYMMETRY = 1e-4  # of the largest entry: what a sum in float32, or a file in float16, may leave
_NEGATIVE = 1e-5  # of the trace: rounding of eigenvalues that should be zero


# ---------------------------------------------------------------- reading an argument


def real_array(value: Any, name: str) -> FloatArray:
    """``value`` as a float32 or float64 array of any shape, no copy where possible.

    float32 and narrower types become float32, wider ones float64. The result
    may share memory with ``value`` and may have any strides.

    Raises:
        TypeError: complex, text, object or masked input, a sparse matrix, a tensor off the CPU.
        ValueError: rows of unequal length.
    """
    if type(value) is np.ndarray and value.dtype in _AS_THEY_ARE:
        return value  # soon: the rest takes longer than a small product
    array = _as_ndarray(value, name)
    dtype = array.dtype
    if dtype.name == "bfloat16":  # ml_dtypes: a float without a NumPy kind of its own
        return array.astype(np.float32)
    if dtype.kind == "c":
        raise TypeError(f"{name} is complex ({dtype}), must be real; use {name}.real or {name}.imag")
    if dtype.kind not in "fiub":
        raise TypeError(
            f"{name} has dtype {dtype}, must be a real number type; use np.asarray({name}, dtype=np.float32)"
        )
    wide = dtype.itemsize > (4 if dtype.kind == "f" else 2)
    with np.errstate(over="ignore"):  # a longdouble may exceed float64; the range is checked later
        return array.astype(np.float64, copy=False) if wide else array.astype(np.float32, copy=False)


def _as_ndarray(value: Any, name: str) -> NDArray[Any]:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _from_torch(value, name, torch)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; its masked entries have no value: use {name}.filled(0)")
    if hasattr(value, "toarray") and not isinstance(value, np.ndarray):
        raise TypeError(f"{name} is a sparse {type(value).__name__}; it must be dense: use {name}.toarray()")
    if value is None or isinstance(value, (str, bytes, dict, set)):
        raise TypeError(f"{name} is {describe(value)}; it must be an array of real numbers")
    try:
        array = np.asarray(value)
    except ValueError as error:  # NumPy's message for ragged sequences
        raise ValueError(f"{name} cannot be read as a matrix: {error}; give all rows equal length") from error
    except (TypeError, RuntimeError) as error:  # an object that refuses, such as a tensor inside a list
        raise TypeError(
            f"{name} ({describe(value)}) cannot be read as an array of numbers: {error}"
        ) from error
    if array.dtype.kind == "O":
        raise TypeError(
            f"{name} is {describe(value)} with entries of dtype object; they must be real numbers: "
            f"use numpy.asarray({name}, dtype=numpy.float64)"
        )
    return array


def _from_torch(value: Any, name: str, torch: Any) -> NDArray[Any]:
    if value.device.type != "cpu":
        raise TypeError(
            f"{name} is a tensor on device '{value.device}', must be on the CPU; use {name}.cpu()"
        )
    if value.layout != torch.strided:
        raise TypeError(f"{name} is a tensor of layout {value.layout}, must be dense; use {name}.to_dense()")
    value = value.detach()
    if value.is_quantized:
        value = value.dequantize()
    if value.is_floating_point() and value.dtype not in (torch.float16, torch.float32, torch.float64):
        value = value.float()  # bfloat16 and the eight-bit floats have no NumPy dtype
    array: NDArray[Any] = value.resolve_conj().resolve_neg().numpy()
    return array


# ---------------------------------------------------------------- real arrays


def real_matrix(value: Any, name: str) -> FloatArray:
    """``value`` as a finite, non-empty, C-contiguous float32 or float64 matrix; it may share memory.

    Raises:
        TypeError: see :func:`real_array`.
        ValueError: not 2-D, empty, NaN or infinite entries, or entries beyond float32's range.
    """
    array = real_array(value, name)
    matrix_shape(array.shape, name)
    array = np.ascontiguousarray(array)
    _finite(array, name)
    if array.dtype == np.float64:
        largest = float(max(array.max(), -array.min()))
        if largest > _FLOAT32_MAX:
            raise ValueError(
                f"{name} has entries up to {largest:.3g} in size, must stay below float32's largest "
                f"number {_FLOAT32_MAX:.3g}; divide {name} by a constant first"
            )
    return array


def matrix_shape(shape: tuple[int, ...], name: str) -> None:
    """Require a shape of two positive lengths."""
    if len(shape) == 2:
        if 0 in shape:
            raise ValueError(
                f"{name} is empty, of shape {shape}; it must have at least one row and one column"
            )
        return
    if len(shape) == 1:
        mend = f"use {name}.reshape(1, -1) for one row or {name}.reshape(-1, 1) for one column"
    elif len(shape) == 0:
        mend = f"use numpy.reshape({name}, (1, 1)) for a single entry"
    else:
        mend = f"use {name}.reshape({name}.shape[0], -1) to flatten all axes but the first"
    raise ValueError(f"{name} is {len(shape)}-D, of shape {shape}; it must be a matrix (2-D): {mend}")


Form = Literal["vector", "column", "columns", "either", "rows"]
_FORMS: dict[Form, tuple[str, int, int, str]] = {  # what it must be, least and most axes, how to mend it
    "vector": ("a vector of shape ({n},)", 1, 1, "use {name}.ravel()"),
    "column": ("a vector of shape ({n},) or one column ({n}, 1)", 1, 2, "matmat takes more"),
    "columns": ("a matrix of shape ({n}, p)", 2, 2, "use {name}.reshape(-1, 1) for one column"),
    "either": ("a vector of shape ({n},) or a matrix of shape ({n}, p)", 1, 2, "stacks go to linear"),
    "rows": ("an array of shape (..., {n})", 1, 64, "columns are multiplied by matmat"),
}


def operand(value: Any, name: str, length: int, form: Form, against: str) -> NDArray[np.float32]:
    """One side of a product as a float32 array of any strides; other real types are rounded to float32.

    Args:
        value: What the caller passed.
        name: Its name in messages.
        length: Required length of the first axis (``"rows"``: of the last).
        form: ``"vector"`` (length,), ``"column"`` the same or (length, 1), ``"columns"`` (length, p),
            ``"either"`` (length,) or (length, p), ``"rows"`` (..., length).
        against: What ``length`` counts, for the message, as in ``"columns"``.

    Raises:
        TypeError: see :func:`real_array`.
        ValueError: another shape, or a finite entry beyond float32's range.
    """
    array = real_array(value, name)
    shape = array.shape
    wanted, least, most, mend = _FORMS[form]
    if not least <= array.ndim <= most or (form == "column" and shape[1:] not in ((), (1,))):
        raise ValueError(
            f"{name} is {array.ndim}-D, of shape {shape}; it must be {wanted.format(n=length)}; "
            f"{mend.format(name=name)}"
        )
    if shape[-1 if form == "rows" else 0] != length:
        raise ValueError(
            f"{name} has shape {shape}; it must be {wanted.format(n=length)}, with as many "
            f"entries as there are {against}"
        )
    return _as_float32(array, name)


def _as_float32(array: FloatArray, name: str) -> NDArray[np.float32]:
    """In float32, which all finite numbers must fit."""
    if array.dtype == np.float32:
        return cast("NDArray[np.float32]", array)
    with np.errstate(over="ignore"):
        result = array.astype(np.float32, copy=False)
    if not np.isfinite(result).all():
        beyond = np.isinf(result) & np.isfinite(array)
        if beyond.any():
            raise ValueError(
                f"{name} has entries beyond float32's range ({bad_entries(beyond, array, name)}), must "
                f"stay below {_FLOAT32_MAX:.3g} in size; divide {name} by a constant and multiply the result"
            )
    return result


def saturated(array: FloatArray) -> NDArray[np.float32]:
    """In float32, with its largest numbers in place of what is beyond them."""
    return np.clip(array, -_FLOAT32_MAX, _FLOAT32_MAX).astype(np.float32)


def diagonal(value: Any, name: str, length: int, against: str) -> NDArray[np.float32]:
    """A diagonal as a fresh read-only float32 vector of finite entries."""
    array = real_array(value, name)
    if array.ndim != 1:
        raise ValueError(
            f"{name} is {array.ndim}-D, of shape {array.shape}; it must be the vector of diagonal "
            f"entries (1-D); use numpy.diagonal({name}) or {name}.ravel()"
        )
    if array.size != length:
        raise ValueError(
            f"{name} has {array.size} entries, must have {length}, as many as there are {against}"
        )
    _finite(array, name)
    with np.errstate(over="ignore", under="ignore"):
        vector = np.array(array, dtype=np.float32, order="C", copy=True)
    if not np.isfinite(vector).all():
        raise ValueError(
            f"{name} has entries beyond float32's range ({_FLOAT32_MAX:.3g}); move the scale elsewhere"
        )
    vector.flags.writeable = False
    return vector


def _finite(array: FloatArray, name: str) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        raise ValueError(
            f"{name} has NaN or infinite entries ({bad_entries(bad, array, name)}); all must be finite: "
            f"repair them or use numpy.nan_to_num({name})"
        )


def bad_entries(bad: NDArray[np.bool_], array: FloatArray, name: str) -> str:
    """For messages: how many entries are bad, and the first of them with its place."""
    first = tuple(int(index) for index in np.unravel_index(int(bad.argmax()), array.shape))
    where = ", ".join(map(str, first))
    return f"{int(bad.sum())} of {array.size}, the first is {array[first]:g} at {name}[{where}]"


# ---------------------------------------------------------------- what a solver is to minimise


def importance(value: Any, m: int, n: int) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Importance of rows (m,) and columns (n,), float64; None stands for ones.

    Raises:
        TypeError: not a pair, or not of real numbers.
        ValueError: wrong lengths, or an entry that is not positive and finite.
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(
            f"importance is {describe(value)}; it must be a pair (rows, cols) of vectors of lengths "
            f"{m} and {n}, None for one that does not matter: use importance=(None, cols) for columns"
        )
    rows, cols = value
    return _weights(rows, "importance[0]", m, "rows of A"), _weights(cols, "importance[1]", n, "columns of A")


def _weights(value: Any, name: str, length: int, against: str) -> NDArray[np.float64] | None:
    if value is None:
        return None
    vector = diagonal(value, name, length, against).astype(np.float64)
    if not vector.min() > 0:
        first = int(vector.argmin())
        raise ValueError(
            f"{name} has entries that are not positive in float32 ({name}[{first}] is {vector[first]:g}); "
            f"all must be above 0: use numpy.maximum({name}, 1e-3 * numpy.max({name}))"
        )
    return vector


def covariance(value: Any, n: int, shrink: float) -> tuple[FloatArray, float]:
    """(S, shrink) from S or (S, shrink): symmetric positive semidefinite (n, n), share of its diagonal.

    Raises:
        TypeError: S is no matrix of real numbers, shrink no number.
        ValueError: S is not n x n, finite, symmetric, positive semidefinite and other than zero; shrink is
            not from 0 to 1.
    """
    if isinstance(value, tuple) and len(value) == 2 and np.ndim(value[1]) == 0:
        value, shrink = value
    shrink = number(shrink, "the shrinkage covariance[1]", minimum=0)
    if shrink > 1:
        raise ValueError(f"the shrinkage covariance[1] is {shrink:g}; it must be from 0 to 1")
    S = real_matrix(value, "covariance")
    if S.shape != (n, n):
        raise ValueError(
            f"covariance has shape {S.shape}; it must be {(n, n)}, the second moments of the inputs of A: "
            f"use X.T @ X / len(X) for inputs X of shape (samples, {n})"
        )
    largest = float(np.abs(S).max())
    asymmetry = float(np.abs(S - S.T).max())
    if asymmetry > _ASYMMETRY * largest:
        raise ValueError(
            f"covariance is not symmetric: entries differ from their mirror images by up to {asymmetry:.3g}, "
            f"the largest is {largest:.3g}; use (S + S.T) / 2 if that is meant"
        )
    if not largest:
        raise ValueError("covariance is zero; it must have a positive entry, or every factorization is exact")
    scaled = S / largest
    ridge = _NEGATIVE * max(float(scaled.trace()), 1.0)
    try:
        np.linalg.cholesky(scaled + ridge * np.eye(n, dtype=S.dtype))
    except np.linalg.LinAlgError:
        raise ValueError(
            "covariance is not positive semidefinite: some combination of inputs would have a negative mean "
            "square; use X.T @ X / len(X) for inputs X of shape (samples, n)"
        ) from None
    return S, shrink
