"""The state of a training in a file, from which the same training goes on after it was stopped."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..._internal import check
from ..._internal.disk import replace_file
from ..modules.state import as_numpy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..._internal.disk import PathLike

__all__ = ["KeptTraining", "identity_of", "read_state", "write_state"]

_VERSION = 1
_HASH = 32  # bytes


class KeptTraining:
    """Where a training keeps its state: what trains, the optimizer, the losses, and torch's random state.

    Args:
        path: The file; it is written whole or not at all.
        every: Steps between two states.
    """

    def __init__(self, path: PathLike, every: int) -> None:
        self._path, self.every = Path(check.path(path)), check.positive_int(every, "every")
        self._identity = ""

    def read(self, identity: str) -> dict[str, Any] | None:
        """The state of the training of this identity, which later ones are written with; None: there is none.

        Raises:
            ValueError: The file is damaged, or of another training.
            OSError: It cannot be read.
        """
        self._identity = identity
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
            found = state["identity"], state["version"]
        except Exception as error:
            raise ValueError(
                f"checkpoint {self._path} cannot be read as the state of a training ({error}); delete it to "
                "begin anew"
            ) from error
        if found != (identity, _VERSION):
            raise ValueError(
                f"checkpoint {self._path} is of another training: of a model with other numbers, of other "
                "settings, or of another version; give another path, or delete it to begin anew"
            )
        return state

    def write(self, **state: Any) -> None:
        """Write a state; it is on the disk when this returns.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        buffer = io.BytesIO()
        torch.save({"identity": self._identity, "version": _VERSION, **state}, buffer)
        replace_file(self._path, buffer.getvalue())

    def remove(self) -> None:
        """Delete the file: the training is at its end."""
        self._path.unlink(missing_ok=True)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values, with the SHA-256 of all of it first; on the disk when this returns.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    replace_file(path, (hashlib.sha256(content).digest(), content))


def read_state(path: Path) -> dict[str, Any] | None:
    """What :func:`write_state` wrote; None: there is no file, or it is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(content[_HASH:]).digest() != content[:_HASH]:
        return None
    found: dict[str, Any] = torch.load(io.BytesIO(content[_HASH:]), weights_only=True)
    return found


def identity_of(settings: str, tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the settings of a training and of everything that it changes, as it is at the start."""
    digest = hashlib.sha256(settings.encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(as_numpy(tensor).tobytes())
    return digest.hexdigest()
