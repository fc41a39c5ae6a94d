"""Where the operators for onnxruntime lie, and what they share with this process."""

from __future__ import annotations

import ctypes
from pathlib import Path

from .. import _core

__all__ = ["library_path", "share_packed_bits"]


def library_path() -> Path:
    """The library of operators, which onnxruntime loads: ``SessionOptions.register_custom_ops_library``.

    It works with onnxruntime 1.17 and newer, from any language, and needs no Python.

    Raises:
        FileNotFoundError: This installation of diba was built without it.
    """
    path = Path(__file__).resolve().parents[1] / "lib" / "libdiba_onnxruntime.so"
    if not path.is_file():
        raise FileNotFoundError(
            f"this installation of diba has no operators for onnxruntime ({path} is missing); they are "
            "built on Linux: install diba anew with 'python -m pip install --force-reinstall diba'"
        )
    return path


def share_packed_bits() -> None:
    """Let the operators use the packed bits of this process, and it theirs.

    Then a model that is in memory as layers of ``diba.torch`` takes no more for a session. Without it the
    sessions of a process share among themselves.

    Raises:
        FileNotFoundError: See :func:`library_path`.
    """
    store, build = _core.packed_store
    library = ctypes.CDLL(str(library_path()))
    library.DibaUsePackedStore(ctypes.c_void_p(store), ctypes.c_char_p(build.encode()))
