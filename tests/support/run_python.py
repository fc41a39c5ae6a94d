"""Fresh interpreters for tests of what depends on a process: environment, imports, processors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def python_environment(**changed: str) -> dict[str, str]:
    """This environment without diba's variables, and with the helper modules of the tests within reach."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DIBA_")}
    folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return inherited | {"PYTHONPATH": os.pathsep.join(filter(None, folders))} | changed


def python(
    code: str, *arguments: str, emulator: Sequence[str] = (), timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, away from the source tree."""
    return subprocess.run(
        [*emulator, sys.executable, "-c", code, *arguments],
        env=python_environment(**environment),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
