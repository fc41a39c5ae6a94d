"""diba: matrices as products of packed binary factors and three diagonals.

``A ~ D1 B1 D2 B2 D3`` with B1, B2 of entries 0/1 or -1/+1 stored as single bits.

    >>> import numpy as np
    >>> import diba
    >>> A = np.outer([1.0, 2.0, -3.0], [0.5, 1.0, 0.0, 2.0])
    >>> f = diba.solve(A, k=2)
    >>> f.shape, f.k
    ((3, 4), 2)
    >>> y = f @ np.ones(4)
"""

from __future__ import annotations

import importlib
from typing import Any

try:
    from . import _core
except ImportError as error:
    raise ImportError(
        f"diba's compiled extension diba._core cannot be loaded ({error}); build and install the package "
        "with 'python -m pip install .' in its source folder, and do not import it from inside that folder"
    ) from error

from ._internal.timing import autotune
from ._internal.tuning import Tuning, set_tuning, tuning
from .allocation.curves import Curve, curve
from .allocation.matrices import allocate
from .allocation.waterfill import Allocation
from .binarized import APB
from .bits import BitMatrix
from .errors import FormatError
from .factorization import Factorization
from .levels import Levels, bitgemm
from .loading import load
from .progress import Progress
from .runtime import info, isa, num_threads, set_num_threads, supported_isas
from .solvers import SolveOptions, apb, solve
from .svid import OneBit, onebit

__version__: str = _core.__version__


def __getattr__(name: str) -> Any:
    """``diba.compress``, imported when it is asked for: it needs torch and transformers."""
    if name == "compress":
        return importlib.import_module("diba.compressing").compress
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "APB",
    "Allocation",
    "BitMatrix",
    "Curve",
    "Factorization",
    "FormatError",
    "Levels",
    "OneBit",
    "Progress",
    "SolveOptions",
    "Tuning",
    "__version__",
    "allocate",
    "apb",
    "autotune",
    "bitgemm",
    "curve",
    "info",
    "isa",
    "load",
    "num_threads",
    "onebit",
    "set_num_threads",
    "set_tuning",
    "solve",
    "supported_isas",
    "tuning",
]
