"""Scripts that bring data of any kind.

A script defines ``batches(model_folder)``, which yields dicts of the arguments of the model's ``forward``:
tensors, and plain values. It must yield the same batches each time; what it draws comes from generators that
are seeded before.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import random
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..source import Source
    from .batches import Batch

__all__ = ["Script"]

_PLAIN = (bool, int, float, str, type(None))


class Script:
    """A script, which is run once.

    Args:
        path: The file.
        source: The model.
        seed: Of the generators of Python, NumPy and torch while it runs.
    """

    def __init__(self, path: Path, source: Source, seed: int) -> None:
        self._path, self._source, self._seed = path, source, seed
        self._made: list[Batch] | None = None

    def digests(self) -> dict[str, str]:
        """Of the file, and of its batches."""
        from diba.torch.retuning.batches import digest

        whole = hashlib.sha256()
        for batch in self.batches():
            whole.update(repr(list(batch)).encode() + digest(batch))
        return {self._path.name: sha256_of(self._path), f"batches of {self._path.name}": whole.hexdigest()}

    def batches(self) -> list[Batch]:
        """All batches.

        Raises:
            ValueError: The script fails, has no such function, or yields something else.
        """
        if self._made is None:
            with _seeded(self._seed):
                self._made = list(self._run())
        return self._made

    def _run(self) -> Iterator[Batch]:
        number = 0
        for number, batch in enumerate(self._yielded(), 1):
            self._check(number, batch)
            yield dict(batch)
        if not number:
            raise ValueError(f"{self._path}: batches() gave nothing; it must yield dicts of tensors")

    def _yielded(self) -> Iterator[Any]:
        """What the function gives; its errors with the line of the script."""
        try:
            found = getattr(self._module(), "batches", None)
            if not callable(found):
                what = "has no batches" if found is None else "has batches, which is no function"
                raise ValueError(
                    f"it {what}; it must define batches(model_folder), which yields dicts of tensors"
                )
            made = found(str(self._source.folder))
            if not hasattr(made, "__iter__"):
                raise TypeError(f"batches() returned {type(made).__name__}; it must yield dicts of tensors")
            yield from made
        except Exception as error:
            raise ValueError(f"{self._path}{self._line(error)}: {type(error).__name__}: {error}") from error

    def _module(self) -> Any:
        spec = importlib.util.spec_from_file_location(f"diba_data_{self._path.stem}", self._path)
        assert spec is not None, "it ends in .py"
        assert spec.loader is not None, "as files do"
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def _line(self, error: Exception) -> str:
        """The last line of the script that an error went through; empty if it did not."""
        if isinstance(error, SyntaxError):
            return ""
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(self._path)
        ]
        return f", line {lines[-1]}" if lines else ""

    def _check(self, number: int, batch: Any) -> None:
        import torch

        where = f"{self._path}: batch {number}"
        if not isinstance(batch, dict) or not all(isinstance(name, str) for name in batch):
            raise ValueError(f"{where} is {type(batch).__name__}; it must be a dict of names and tensors")
        for name, value in batch.items():
            if not isinstance(value, (torch.Tensor, *_PLAIN)):
                raise ValueError(
                    f"{where} has {name!r}, {type(value).__name__}; it must be a tensor, or a plain value"
                )
        tensors = [name for name, value in batch.items() if isinstance(value, torch.Tensor)]
        if not tensors:
            raise ValueError(f"{where} has no tensor; it must have those that the model takes")
        known = inspect.signature(self._source.kind.forward).parameters
        if not set(tensors) & set(known):  # most models take any others, too, and ignore them
            names, taken = ", ".join(map(repr, tensors)), ", ".join(name for name in known if name != "self")
            kind = self._source.kind.__name__
            raise ValueError(f"{where} has {names}, of which {kind} takes none; it takes {taken}")


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A context in which generators are seeded; they go on as before afterwards."""
    import torch

    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # a script may use them
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
