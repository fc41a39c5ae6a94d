"""What takes seconds to import waits here for the first test that runs, so that collecting tests does not."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType


@pytest.fixture(scope="session", autouse=True)
def imported() -> set[str]:
    """The modules that ``diba.hf`` brings with it; tests find it as an attribute of ``diba``."""
    before = set(sys.modules)
    importlib.import_module("diba.hf")
    return set(sys.modules) - before


@pytest.fixture(scope="session")
def peft(imported: set[str]) -> ModuleType:
    """PEFT, imported after ``diba.hf``, as a program may do: what diba adds waits for it."""
    return importlib.import_module("peft")
