"""All drivers by name; each imports what it needs when it is made."""

from __future__ import annotations

import importlib
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .engine import Driver


def _make(module: str, name: str) -> Driver:
    made: Driver = getattr(importlib.import_module(f"{__package__}.{module}"), name)()
    return made


DRIVERS: dict[str, Callable[[], Driver]] = {
    "binarized": partial(_make, "binarized", "BinarizedDriver"),
    "files": partial(_make, "files", "FilesDriver"),
    "readers": partial(_make, "readers", "ReadersDriver"),
    "calibration": partial(_make, "calibration", "CalibrationDriver"),
    "checkpoints": partial(_make, "checkpoints", "CheckpointsDriver"),
}
