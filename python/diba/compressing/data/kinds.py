"""The kinds of data, by the endings of files and by what a model takes, and the data of one run."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ..files import sha256_of
from .batches import Made, picked
from .images import image_batches
from .recordings import recording_batches
from .script import Script
from .texts import text_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..recipe import CompressSettings
    from ..source import Source
    from .batches import Batch

__all__ = ["KINDS", "Data", "Kind"]

_LEAST = 4  # batches: of them one is held out
_SCRIPT = ".py"


class Kind(NamedTuple):
    """One kind of data.

    Attributes:
        name: In messages.
        endings: Of its files.
        inputs: ``main_input_name`` of the models that take it.
        read: Makes batches of a model of files, in their order; the files are read once, or whenever a batch
            is.
        beside: Endings of files that may lie beside them and belong to them.
    """

    name: str
    endings: tuple[str, ...]
    inputs: tuple[str, ...]
    read: Callable[[Source, Sequence[Path], CompressSettings], Sequence[Batch]]
    beside: tuple[str, ...] = ()


KINDS = (
    Kind("texts", (".txt", ".jsonl"), ("input_ids",), text_batches),
    Kind(
        "images",
        (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"),
        ("pixel_values",),
        image_batches,
    ),
    Kind("recordings", (".wav",), ("input_features", "input_values"), recording_batches, (".txt",)),
)


@dataclass
class Data:
    """The data of a run, for one model.

    Attributes:
        files: Those that are read, without those of a script.
    """

    source: Source
    path: Path
    settings: CompressSettings
    files: list[Path] = field(default_factory=list)
    _read: Kind | Script | None = None

    @classmethod
    def at(cls, source: Source, path: Path, settings: CompressSettings) -> Data:
        """Look for data, without reading them.

        Args:
            source: The model.
            path: A file, a folder with files (also in folders inside of it), or a script.
            settings: What batches are made by.

        Raises:
            OSError: There is nothing.
            ValueError: What is there is not what the model takes.
        """
        if path.suffix == _SCRIPT and path.is_file():
            return cls(source, path, settings, [], Script(path, source, settings.seed))
        kind = next((kind for kind in KINDS if source.kind.main_input_name in kind.inputs), None)
        name = source.kind.__name__
        if kind is None:
            raise ValueError(
                f"{name} takes {source.kind.main_input_name}, and files of data are {_all_kinds()}; give a "
                "script with a function batches(model_folder)"
            )
        files = _files(path, kind)
        if not files:
            raise ValueError(
                f"{path} {_what_it_is(path)}; for {name} it must have {kind.name} "
                f"({', '.join(kind.endings)}), or be a script ({_SCRIPT})"
            )
        return cls(source, path, settings, files, kind)

    def digests(self) -> dict[str, str]:
        """What the batches depend on, by name: SHA-256 of files; of a script also that of its batches."""
        if isinstance(self._read, Script):
            return self._read.digests()
        assert self._read is not None
        top = self.path if self.path.is_dir() else self.path.parent
        found = [path for each in self.files for path in (each, *_beside(each, self._read))]
        return {str(path.relative_to(top)): sha256_of(path) for path in found}

    def batches(self) -> Made:
        """All batches, in an order that the seed gives.

        Raises:
            OSError, ValueError, ImportError: Something cannot be read, or there is too little of it.
        """
        if isinstance(self._read, Script):
            made: Sequence[Batch] = self._read.batches()
        else:
            assert self._read is not None
            made = self._read.read(self.source, self.files, self.settings)
        if len(made) < _LEAST:
            raise ValueError(
                f"{self.path} makes {len(made)} batches of {self.settings.rows} rows; there must be at least "
                f"{_LEAST}, and hundreds are better: give more, or fewer rows or tokens"
            )
        numbers = list(range(len(made)))
        random.Random(self.settings.seed).shuffle(numbers)
        return picked(made, numbers)


def _files(path: Path, kind: Kind) -> list[Path]:
    """The files of a kind; without hidden ones."""
    if not path.is_dir():
        path.stat()  # an error if there is nothing
        return [path] if path.suffix.lower() in kind.endings else []
    return [each for each in _visible(path) if each.suffix.lower() in kind.endings]


def _visible(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [each for each in found if not any(p.startswith(".") for p in each.relative_to(folder).parts)]


def _beside(path: Path, kind: Kind) -> list[Path]:
    return [other for ending in kind.beside if (other := path.with_suffix(ending)).is_file()]


def _what_it_is(path: Path) -> str:
    """In words, what is at a path that has no file of the right kind."""
    files = _visible(path) if path.is_dir() else [path]
    for kind in KINDS:
        found = [each for each in files if each.suffix.lower() in kind.endings]
        if found:
            return f"has {kind.name} ({found[0].name})" if path.is_dir() else f"is one of {kind.name}"
    if path.is_dir():
        return f"has no file of data, but {files[0].name}" if files else "is an empty folder"
    return f"ends in {path.suffix or 'nothing'}"


def _all_kinds() -> str:
    return ", ".join(f"{kind.name} ({', '.join(kind.endings)})" for kind in KINDS)
