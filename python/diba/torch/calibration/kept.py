"""Measured gradients in a file, from which a conversion that was stopped goes on.

Inside of ``gradients_kept_at(path)``, what was measured of a loss is written to a file, and taken from it if
it is of the same model and batches, whatever was compressed meanwhile; the loss must be the same, too.
The file has the SHA-256 of its content first; a damaged one, or one of something else, is written anew.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import diba

from ..retuning.batches import digest
from ..retuning.kept import identity_of, read_state, write_state
from .sensitivity import Sensitivity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from torch import nn

__all__ = ["gradients_kept_at", "known_or_measured"]

_path: ContextVar[Path | None] = ContextVar("gradients_kept_at", default=None)


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
    found = read_state(path)
    if found is not None and found["key"] == key and set(needed) <= set(found["layers"]):
        return Sensitivity.of(found["state"])
    result = measure()
    write_state(path, {"key": key, "layers": list(needed), "state": result.state()})
    return result
