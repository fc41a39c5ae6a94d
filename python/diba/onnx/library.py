"""Where the operators for onnxruntime lie."""

from __future__ import annotations

from pathlib import Path

__all__ = ["library_path"]


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
