"""Checks of arguments: numbers, names, objects and sizes. Those of arrays are in ``check_arrays``.

A message says which argument, what it is, what it must be and how to mend it. ``TypeError`` is for the wrong
kind of object or dtype, ``ValueError`` for a wrong shape, size or value.
"""

from __future__ import annotations

import math
import operator
import os
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from . import machine

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ALPHABETS",
    "MAX_THREADS",
    "Alphabet",
    "FloatArray",
    "SizeName",
    "alphabet",
    "describe",
    "equal",
    "exactly_one_size",
    "fits_in_memory",
    "fits_tables",
    "instance",
    "integer",
    "no_sizes",
    "number",
    "one_of",
    "path",
    "positive_int",
    "precision",
    "seed",
    "thread_count",
]

Alphabet = Literal["binary", "sign"]
SizeName = Literal["k", "bits_per_weight", "storage_ratio", "snr_db"]
FloatArray = NDArray[np.float32 | np.float64]

ALPHABETS: tuple[Alphabet, ...] = get_args(Alphabet)
MAX_THREADS = 1024
_PRECISIONS = ("fast", "exact")
_SIZES: tuple[SizeName, ...] = get_args(SizeName)


def describe(value: Any) -> str:
    """A short description of a value for messages: its repr, if that is short, and its type."""
    if value is None:
        return "None"
    text = repr(value)
    kind = type(value).__name__
    return f"{text} ({kind})" if len(text) <= 40 and "\n" not in text else f"of type {kind}"


# ---------------------------------------------------------------- numbers and names


def integer(value: Any, name: str, *, minimum: int, maximum: int | None = None) -> int:
    """Require a Python or NumPy integer within bounds; booleans are refused."""
    wanted = f"an integer of at least {minimum}"
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value}, a boolean; it must be {wanted}")
    if isinstance(value, np.ndarray) and value.ndim != 0:
        raise TypeError(f"{name} is an array of shape {value.shape}; it must be {wanted}")
    try:
        result = operator.index(value)
    except TypeError:
        mend = (
            f"; use int({name}) if a whole number is meant" if isinstance(value, (float, np.floating)) else ""
        )
        raise TypeError(f"{name} is {describe(value)}; it must be {wanted}{mend}") from None
    if maximum is not None and result > maximum:
        raise ValueError(f"{name} is {result}; it must be an integer from {minimum} to {maximum}")
    if result < minimum:
        raise ValueError(f"{name} is {result}; it must be {wanted}")
    return result


def positive_int(value: Any, name: str) -> int:
    """Require an integer of at least 1."""
    return integer(value, name, minimum=1, maximum=2**62)


def seed(value: Any) -> int:
    """Require a seed for ``numpy.random.default_rng``: 0 <= seed < 2^64."""
    return integer(value, "seed", minimum=0, maximum=2**64 - 1)


def thread_count(value: Any, name: str = "threads") -> int:
    """Require a number of worker threads; ``runtime.resolve_threads`` also takes None."""
    return integer(value, name, minimum=1, maximum=MAX_THREADS)


def number(value: Any, name: str, *, minimum: float, exclusive: bool = False) -> float:
    """Require a finite real number of at least (``exclusive``: above) ``minimum``."""
    wanted = f"a finite number {'above' if exclusive else 'of at least'} {minimum:g}"
    if isinstance(value, (bool, np.bool_, str, bytes, complex, np.complexfloating)):
        raise TypeError(f"{name} is {describe(value)}; it must be {wanted}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {describe(value)}; it must be {wanted}") from None
    if not math.isfinite(result) or result < minimum or (exclusive and result == minimum):
        raise ValueError(f"{name} is {result:g}; it must be {wanted}")
    return result


def one_of(value: Any, name: str, choices: Sequence[str]) -> str:
    """Require one of a few names."""
    listed = ", ".join(repr(choice) for choice in choices)
    if not isinstance(value, str):
        raise TypeError(f"{name} is {describe(value)}; it must be one of {listed}")
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {listed}")
    return value


def alphabet(value: Any, name: str = "alphabet") -> Alphabet:
    """Require ``"binary"`` (entries 0/1) or ``"sign"`` (entries -1/+1)."""
    return cast("Alphabet", one_of(value, name, ALPHABETS))


def precision(value: Any) -> str:
    """Require ``"fast"`` or ``"exact"``."""
    if isinstance(value, str) and value in _PRECISIONS:
        return value
    return one_of(value, "precision", _PRECISIONS)  # raises


def fits_tables(cols: int) -> None:
    """Refuse more columns than the 32-bit sums of a fast product allow (``kLookupMaxCols`` in lookup.hpp)."""
    if cols > 1 << 20:
        raise ValueError(
            f"a factor has {cols} columns; it must have at most 2^20 for fast products: use precision='exact'"
        )


# ---------------------------------------------------------------- objects


def instance(value: Any, name: str, kind: type, mend: str) -> None:
    """Require an instance of ``kind``; ``mend`` says how to get one."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {describe(value)}; it must be a {kind.__name__}; {mend}")


def equal(found: object, name: str, expected: object, against: str) -> None:
    """Require a size or name to equal that of another argument, ``against``."""
    if found != expected:
        raise ValueError(f"{name} is {found}; it must be {expected}, the {against}")


def path(value: Any, name: str = "path") -> str:
    """Require a path: str, bytes or ``os.PathLike``."""
    try:
        result = os.fsdecode(value)
    except TypeError:
        raise TypeError(f"{name} is {describe(value)}; it must be a str, bytes or a pathlib.Path") from None
    if "\0" in result:
        raise ValueError(f"{name} is {result!r}; it must not have a zero byte: remove it")
    return result


# ---------------------------------------------------------------- sizes


def exactly_one_size(k: Any, bits_per_weight: Any, storage_ratio: Any, snr_db: Any) -> tuple[SizeName, float]:
    """Require exactly one argument that sets the size.

    Returns:
        Its name and its value, an int for k.
    """
    asked = {"k": k, "bits_per_weight": bits_per_weight, "storage_ratio": storage_ratio, "snr_db": snr_db}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) != 1:
        found = " and ".join(f"{name}={value!r}" for name, value in given.items()) or "no size"
        raise ValueError(
            f"{found} {'is' if not given else 'are'} given; give exactly one of k, bits_per_weight, "
            f"storage_ratio and snr_db, for example bits_per_weight=1"
        )
    name, value = next(iter(given.items()))
    if name == "k":
        return "k", positive_int(k, "k")
    return cast("SizeName", name), number(value, name, minimum=0, exclusive=True)


def no_sizes(options: dict[str, Any], function: str, argument: str) -> None:
    """Refuse options of ``diba.solve`` that set the size, for a function that sets it itself."""
    for name in _SIZES:
        if name in options:
            raise ValueError(f"{name} is given; {function} chooses sizes itself: use {argument} instead")


def fits_in_memory(needed: int, what: str, mend: str) -> None:
    """Refuse work that needs more memory than the process can still allocate.

    Args:
        needed: Estimated bytes.
        what: Name of the work for the message, such as ``"a 9 x 9 matrix with k = 900000"``.
        mend: What the caller can do, such as ``"use a smaller k"``.
    """
    available = machine.available_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"{what} needs about {_gigabytes(needed)} of memory; "
            f"{_gigabytes(available)} are available: {mend}"
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
