"""Rules about array arguments; used through ``_check``.

What counts as an array of real numbers: NumPy arrays of any layout, nested
sequences, torch CPU tensors and anything else that NumPy understands. torch is
never imported: a tensor can only come from a caller who has imported it.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ALPHABETS",
    "Alphabet",
    "FloatArray",
    "alphabet_matrix",
    "describe",
    "diagonal",
    "entry_dtype",
    "matrix_shape",
    "may_copy",
    "operand",
    "packed_bytes",
    "packed_words",
    "real_array",
    "real_matrix",
    "saturated",
    "zero_tails",
]

Alphabet = Literal["binary", "sign"]
ALPHABETS: tuple[Alphabet, ...] = ("binary", "sign")

FloatArray = NDArray[np.float32 | np.float64]
_FLOAT32_MAX = float(np.finfo(np.float32).max)


# ---------------------------------------------------------------- reading an argument


def real_array(value: Any, name: str) -> FloatArray:
    """``value`` as a float32 or float64 array of any shape, no copy where possible.

    float32 and narrower types become float32, wider ones float64. The result
    may share memory with ``value`` and may have any strides.

    Raises:
        TypeError: complex, text, object or masked input, a sparse matrix, a tensor off the CPU.
        ValueError: rows of unequal length.
    """
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


def describe(value: Any) -> str:
    """A short description of a value for messages: its type, and itself if that is short."""
    if value is None:
        return "None"
    text = repr(value)
    kind = type(value).__name__
    return f"{text} ({kind})" if len(text) <= 40 and "\n" not in text else f"of type {kind}"


# ---------------------------------------------------------------- real arrays


def real_matrix(value: Any, name: str) -> FloatArray:
    """``value`` as a finite, non-empty, C-contiguous float32 or float64 matrix.

    Accepts floats of any width, integers, booleans, nested sequences, arrays of
    any layout and torch CPU tensors. The result may share memory with ``value``.

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


def operand(value: Any, name: str, length: int, ndim: int, against: str) -> NDArray[np.float32]:
    """The right side of a product as a C-contiguous float32 array.

    Args:
        value: What the caller passed; other real types are rounded to float32.
        name: Its name in messages.
        length: Required length of the first axis.
        ndim: 1 for a vector (length,), 2 for columns (length, p).
        against: What ``length`` is, for the message, as in ``"columns of B"``.
    """
    array = real_array(value, name)
    if array.ndim != ndim:
        wanted = f"a vector of shape ({length},)" if ndim == 1 else f"a matrix of shape ({length}, p)"
        mend = "use the matrix product for several columns" if ndim == 1 else f"use {name}.reshape(-1, 1)"
        raise ValueError(f"{name} is {array.ndim}-D, of shape {array.shape}; it must be {wanted}; {mend}")
    if array.shape[0] != length:
        rows = "entries" if ndim == 1 else "rows"
        raise ValueError(
            f"{name} has shape {array.shape}; it must have {length} {rows}, as many as there are {against}"
        )
    return np.ascontiguousarray(_as_float32(array, name))


def columns(value: Any, name: str, length: int, against: str) -> NDArray[np.float32]:
    """The columns of :func:`operand`, (length, p), as rows: C-contiguous, of shape (p, length)."""
    array = real_array(value, name)
    if array.ndim != 2 or array.shape[0] != length:
        operand(array, name, length, 2, against)  # says what is wrong
    return np.ascontiguousarray(_as_float32(array, name).T)


def rows(value: Any, name: str, length: int, against: str) -> NDArray[np.float32]:
    """Vectors of ``length`` entries along the last axis, as a C-contiguous float32 array (..., length)."""
    array = real_array(value, name)
    if array.ndim == 0:
        raise ValueError(f"{name} is a single number; it must have shape (..., {length})")
    if array.shape[-1] != length:
        raise ValueError(
            f"{name} has shape {array.shape}; its last axis must have {length} entries, as many as there are "
            f"{against}; columns are multiplied by matmul"
        )
    return np.ascontiguousarray(_as_float32(array, name))


def _as_float32(array: FloatArray, name: str) -> NDArray[np.float32]:
    """In float32, which all finite numbers must fit."""
    with np.errstate(over="ignore"):
        result = array.astype(np.float32, copy=False)
    if result is not array and not np.isfinite(result).all():
        beyond = np.isinf(result) & np.isfinite(array)
        if beyond.any():
            raise ValueError(
                f"{name} has entries beyond float32's range ({_count_and_first(beyond, array, name)}), must "
                f"stay below {_FLOAT32_MAX:.3g} in size; divide {name} by a constant and multiply the result"
            )
    return result


def saturated(array: FloatArray) -> NDArray[np.float32]:
    """In float32, with its largest numbers in place of what is beyond them."""
    return np.clip(array, -_FLOAT32_MAX, _FLOAT32_MAX).astype(np.float32)


def diagonal(value: Any, name: str, length: int | None = None, against: str = "") -> NDArray[np.float32]:
    """A diagonal as a fresh read-only float32 vector of finite entries."""
    array = real_array(value, name)
    if array.ndim != 1:
        raise ValueError(
            f"{name} is {array.ndim}-D, of shape {array.shape}; it must be the vector of diagonal "
            f"entries (1-D); use numpy.diagonal({name}) or {name}.ravel()"
        )
    if array.size == 0:
        raise ValueError(f"{name} is empty; it must have at least one entry")
    if length is not None and array.size != length:
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
    finite = np.isfinite(array)
    if finite.all():
        return
    raise ValueError(
        f"{name} has NaN or infinite entries ({_count_and_first(~finite, array, name)}); all must be "
        f"finite: repair them or use numpy.nan_to_num({name})"
    )


def _count_and_first(bad: NDArray[np.bool_], array: FloatArray, name: str) -> str:
    """For messages: how many entries are bad, and the first of them with its place."""
    first = tuple(int(index) for index in np.unravel_index(int(bad.argmax()), array.shape))
    where = ", ".join(map(str, first))
    return f"{int(bad.sum())} of {array.size}, the first is {array[first]:g} at {name}[{where}]"


# ---------------------------------------------------------------- bits


def packed_words(words: Any, cols: int) -> None:
    """Require a uint64 array of shape (rows, ceil(cols / 64))."""
    _packed(words, "words", np.dtype(np.uint64), 64, cols)


def packed_bytes(packed: Any, cols: int) -> None:
    """Require a uint8 array of shape (rows, ceil(cols / 8))."""
    _packed(packed, "packed", np.dtype(np.uint8), 8, cols)


def _packed(array: Any, name: str, dtype: np.dtype[Any], width: int, cols: int) -> None:
    wanted = f"a {dtype} array of shape (rows, {-(-cols // width)}) for {cols} columns"
    mend = "use BitMatrix.from_dense for entries that are not packed"
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        what = f"of dtype {array.dtype}" if isinstance(array, np.ndarray) else describe(array)
        raise TypeError(f"{name} is {what}; it must be {wanted}; {mend}")
    if array.ndim != 2 or array.shape[0] == 0 or array.shape[1] != -(-cols // width):
        raise ValueError(f"{name} has shape {array.shape}; it must be {wanted}; {mend}")


def zero_tails(are_zero: bool, cols: int) -> None:
    """Require that the bits past the last column are zero."""
    if not are_zero:
        raise ValueError(
            f"the packed bits have ones past column {cols - 1}, the last; clear the padding or correct cols"
        )


def alphabet_matrix(value: Any, name: str, alphabet: Alphabet) -> FloatArray:
    """``value`` as a non-empty matrix whose entries are all in the alphabet."""
    array = real_array(value, name)
    matrix_shape(array.shape, name)
    zero = 0 if alphabet == "binary" else -1
    outside = (array != zero) & (array != 1)
    if outside.any():
        other = "sign" if alphabet == "binary" else "binary"
        raise ValueError(
            f"{name} has entries other than {zero} and 1 ({_count_and_first(outside, array, name)}), "
            f"alphabet {alphabet!r} has only these; correct the entries or use alphabet={other!r}"
        )
    return array


def entry_dtype(value: Any, alphabet: Alphabet) -> np.dtype[Any]:
    """A numeric dtype that holds the alphabet's entries."""
    dtype: np.dtype[Any] = np.dtype(value)
    if dtype.kind not in "fiubc" or (alphabet == "sign" and dtype.kind in "ub"):
        wanted = "a signed number type such as int8" if alphabet == "sign" else "a number type such as uint8"
        raise TypeError(f"dtype is {dtype}; entries of alphabet {alphabet!r} need {wanted}")
    return dtype


def may_copy(copy: bool | None, name: str) -> None:
    """Refuse ``copy=False`` where a dense array must be made."""
    if copy is False:
        raise ValueError(
            f"a dense array of a {name} is always a new one; use copy=None instead of copy=False"
        )
