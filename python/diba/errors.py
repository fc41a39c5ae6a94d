"""Exceptions of diba's own."""

from __future__ import annotations

__all__ = ["FormatError"]


class FormatError(ValueError):
    """A file is not a readable diba file.

    The message names the file, the tensor or metadata key, what was found and
    what was expected. Files that cannot be opened at all raise the usual
    ``OSError`` (``FileNotFoundError``, ``PermissionError``, ...) instead.
    """
