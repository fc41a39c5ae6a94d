"""Compressed models in onnxruntime."""

from __future__ import annotations

from .library import library_path

__all__ = ["library_path"]
