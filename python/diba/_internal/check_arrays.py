"""Rules about array arguments: arrays of real numbers, matrices, operands of products, diagonals.

An array of real numbers is a NumPy array of any layout, a nested sequence, a torch CPU tensor or anything
else that NumPy can convert. torch is not imported here: a tensor can only come from a caller who has imported
it.
"""

from __future__ import annotations

import sys
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from .check import FloatArray, describe

__all__ = ["bad_entries", "diagonal", "matrix_shape", "operand", "real_array", "real_matrix", "saturated"]

_AS_THEY_ARE = (np.dtype(np.float32), np.dtype(np.float64))
_FLOAT32_MAX = float(np.finfo(np.float32).max)


# ---------------------------------------------------------------- reading an argument


def real_array(value: Any, name: str) -> FloatArray:
    """``value`` as a float32 or float64 array of any shape, without a copy where possible.

    Types whose values float32 holds exactly become float32, others float64. The result may share memory with
    ``value`` and have any strides.

    Raises:
        TypeError: complex, text, object or masked input, a sparse matrix, a tensor off the CPU.
        ValueError: rows of unequal length.
    """
    if type(value) is np.ndarray and value.dtype in _AS_THEY_ARE:
        return value  # first, since the rest takes longer than a small product
    array = _as_ndarray(value, name)
    dtype = array.dtype
    if dtype.name == "bfloat16":  # from ml_dtypes, with a dtype.kind that is not "f"
        return array.astype(np.float32)
    if dtype.kind == "c":
        raise TypeError(f"{name} is complex ({dtype}); it must be real: use {name}.real or {name}.imag")
    if dtype.kind not in "fiub":
        raise TypeError(
            f"{name} has dtype {dtype}; it must be a real number type: use "
            f"numpy.asarray({name}, dtype=numpy.float32)"
        )
    wide = dtype.itemsize > (4 if dtype.kind == "f" else 2)
    with np.errstate(over="ignore"):  # longdouble may exceed float64's range, which is checked later
        return array.astype(np.float64, copy=False) if wide else array.astype(np.float32, copy=False)


def _as_ndarray(value: Any, name: str) -> NDArray[Any]:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _from_torch(value, name, torch)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; every entry must have a value: use {name}.filled(0)")
    if hasattr(value, "toarray") and not isinstance(value, np.ndarray):
        raise TypeError(f"{name} is a sparse {type(value).__name__}; it must be dense: use {name}.toarray()")
    if value is None or isinstance(value, (str, bytes, dict, set)):
        raise TypeError(f"{name} is {describe(value)}; it must be an array of real numbers")
    try:
        array = np.asarray(value)
    except ValueError as error:  # NumPy's message for ragged sequences
        raise ValueError(
            f"{name} cannot be read as a matrix: {error}; all rows must have the same length"
        ) from error
    except (TypeError, RuntimeError) as error:  # from the object itself, such as a tensor inside a list
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
            f"{name} is a tensor on device '{value.device}'; it must be on the CPU: use {name}.cpu()"
        )
    if value.layout != torch.strided:
        raise TypeError(
            f"{name} is a tensor of layout {value.layout}; it must be dense: use {name}.to_dense()"
        )
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
                f"{name} has magnitudes up to {largest:.3g}; they must be within float32's range, at most "
                f"{_FLOAT32_MAX:.3g}: divide {name} by a constant first"
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
_FORMS: dict[Form, tuple[str, int, int, str]] = {  # its shape, fewest and most axes, a hint
    "vector": ("a vector of shape ({n},)", 1, 1, "use {name}.ravel()"),
    "column": ("a vector of shape ({n},) or one column ({n}, 1)", 1, 2, "use matmat for more columns"),
    "columns": ("a matrix of shape ({n}, p)", 2, 2, "use {name}.reshape(-1, 1) for one column"),
    "either": ("a vector of shape ({n},) or a matrix of shape ({n}, p)", 1, 2, "use linear for more axes"),
    "rows": ("an array of shape (..., {n})", 1, 64, "use matmat for columns"),
}


def operand(value: Any, name: str, length: int, form: Form, against: str) -> NDArray[np.float32]:
    """An operand of a product as a float32 array of any strides; other real types are rounded to float32.

    Args:
        value: What the caller passed.
        name: Its name in messages.
        length: Required length of the first axis (``"rows"``: of the last).
        form: ``"vector"`` (length,), ``"column"`` the same or (length, 1), ``"columns"`` (length, p),
            ``"either"`` (length,) or (length, p), ``"rows"`` (..., length).
        against: What ``length`` counts, for the message, as in ``"columns"``.

    Raises:
        TypeError: see :func:`real_array`.
        ValueError: the shape is wrong, or a finite entry is beyond float32's range.
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
    """``array`` rounded to float32; a finite number beyond its range is an error."""
    if array.dtype == np.float32:
        return cast("NDArray[np.float32]", array)
    with np.errstate(over="ignore"):
        result = array.astype(np.float32, copy=False)
    if not np.isfinite(result).all():
        beyond = np.isinf(result) & np.isfinite(array)
        if beyond.any():
            raise ValueError(
                f"{name} has entries beyond float32's range ({bad_entries(beyond, array, name)}); magnitudes "
                f"must be at most {_FLOAT32_MAX:.3g}: divide {name} by a number and multiply the result by it"
            )
    return result


def saturated(array: FloatArray) -> NDArray[np.float32]:
    """``array`` in float32, numbers beyond its range clipped to its largest."""
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
            f"{name} has {array.size} entries; it must have {length}, as many as there are {against}"
        )
    _finite(array, name)
    with np.errstate(over="ignore", under="ignore"):
        vector = np.array(array, dtype=np.float32, order="C", copy=True)
    if not np.isfinite(vector).all():
        raise ValueError(
            f"{name} has entries beyond float32's range; magnitudes must be at most {_FLOAT32_MAX:.3g}: "
            "divide it by a number and multiply another diagonal by it"
        )
    vector.flags.writeable = False
    return vector


def _finite(array: FloatArray, name: str) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        raise ValueError(
            f"{name} has NaN or infinite entries ({bad_entries(bad, array, name)}); all must be finite: "
            f"replace them, or use numpy.nan_to_num({name})"
        )


def bad_entries(bad: NDArray[np.bool_], array: FloatArray, name: str) -> str:
    """Text for messages: how many entries are bad, and the first of them with its index."""
    first = tuple(int(index) for index in np.unravel_index(int(bad.argmax()), array.shape))
    where = ", ".join(map(str, first))
    return f"{int(bad.sum())} of {array.size}, the first is {array[first]:g} at {name}[{where}]"
