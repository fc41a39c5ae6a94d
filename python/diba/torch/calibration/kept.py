"""Measured gradients in a file, from which a conversion that was stopped goes on.

Inside of ``gradients_kept_at(path)``, what was measured of a loss is written to a file, and taken from it if
it is of the same model and batches, whatever was compressed meanwhile; the loss must be the same, too.
The file has the SHA-256 of its content first; a damaged one, or one of something else, is written anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

import diba

from ..._internal.disk import replace_file
from ..retuning.batches import digest
from ..retuning.kept import identity_of
from .sensitivity import Sensitivity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from torch import nn

__all__ = ["gradients_kept_at", "known_or_measured"]

_path: ContextVar[Path | None] = ContextVar("gradients_kept_at", default=None)
_HASH = 32  # bytes


@contextlib.contextmanager
def gradients_kept_at(path: Path) -> Iterator[None]:
    """A context whose conversions keep the gradients of their loss in a file."""
    token = _path.set(path)
    try:
        yield
    finally:
        _path.reset(token)


def known_or_measured(
    model: nn.Module, batches: Iterable[Any], needed: Iterable[str], measure: Callable[[], Sensitivity]
) -> Sensitivity:
    """What was kept, or else what is measured now, and then kept.

    Args:
        model: The dense model.
        batches: The batches.
        needed: Names of layers that must have been measured, as far as the loss reaches them.
        measure: Measures the gradients.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    path = _path.get()
    if path is None:
        return measure()
    seen = b"".join(digest(batch) for batch in batches).hex()
    key = identity_of(f"{diba.__version__} {seen}", model.parameters())
    found = _read(path, key)
    if found is not None and set(needed) <= set(found["layers"]):
        return Sensitivity.of(found["state"])
    result, buffer = measure(), io.BytesIO()
    torch.save({"key": key, "layers": list(needed), "state": result.state()}, buffer)
    content = buffer.getvalue()
    replace_file(path, (hashlib.sha256(content).digest(), content))
    return result


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """What is in the file, if it is whole and of this key."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(content[_HASH:]).digest() != content[:_HASH]:
        return None
    found: dict[str, Any] = torch.load(io.BytesIO(content[_HASH:]), weights_only=True)
    return found if found["key"] == key else None
