"""Few steps of solvers and trainings, for tests where any factors will do."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from diba.compressing import CompressSettings

__all__ = ["few_steps", "killed_when"]

_TUNE_STEPS = 3


@contextlib.contextmanager
def few_steps() -> Iterator[None]:
    """A context in which efforts and reconstructions of this process are small."""
    from diba.solvers import methods

    few = {"fast": (16, 16, 1), "normal": (24, 24, 1), "best": (32, 32, 2)}
    efforts = {name: methods.EffortSteps(*steps) for name, steps in few.items()}
    with (
        mock.patch.dict(methods.EFFORT_STEPS, efforts),
        mock.patch("diba.compressing.fitted._reconstruction", _reconstruction),
    ):
        yield


def _reconstruction(settings: CompressSettings) -> dict[str, Any] | None:
    if not settings.reconstruct:
        return None
    return {"steps": settings.reconstruct, "tune_steps": _TUNE_STEPS, "seed": settings.seed}


def killed_when(folder: Path, files: int, *arguments: Any, **settings: Any) -> None:
    """Run ``diba.compress`` with few steps in a process, and kill it once a folder has so many files."""
    context = multiprocessing.get_context("forkserver")  # imports torch and transformers once for all
    context.set_forkserver_preload(["torch", "transformers", "diba.compressing"])
    process = context.Process(target=_compress, args=(arguments, settings))
    process.start()
    while process.is_alive() and (not folder.is_dir() or len(list(folder.iterdir())) < files):
        time.sleep(0.005)
    process.kill()
    process.join()


def _compress(arguments: tuple[Any, ...], settings: dict[str, Any]) -> None:
    import diba

    with few_steps():
        diba.compress(*arguments, **settings)
