"""Exception types of diba."""

from __future__ import annotations

__all__ = ["FormatError"]


class FormatError(ValueError):
    """A file is not a readable diba file.

    The message names the file, the tensor or metadata key, what was found and what was expected. A file that
    cannot be opened raises ``OSError`` (``FileNotFoundError``, ``PermissionError``, ...) instead.
    """
