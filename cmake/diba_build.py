"""The build backend: scikit-build-core, once it is known that there is something to compile with.

A missing compiler, missing headers of Python or a compiler that is too old are said in one line, before
anything is fetched or configured. Where the machine has another compiler than Python was built with, that one
is used.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from scikit_build_core import build as _build
from scikit_build_core.build import (
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

_COMPILED = "diba is compiled while it is installed"
_COMPILER = "apt-get install g++, dnf install gcc-c++ or xcode-select --install, or set CXX to a compiler"
_PROGRAM = """
#include <optional>
#include <string_view>
static_assert(__cplusplus >= 201703L, "this is not C++17");
std::optional<std::string_view> found;
"""


def problem(environment: dict[str, str], include: Path) -> str | None:
    """What is missing to compile for a Python with its headers in ``include``; None if nothing is.

    Where CXX is not set in ``environment`` and Python's own compiler is not there, it is set to one that is.
    """
    given, own = environment.get("CXX", "").strip(), sysconfig.get_config_var("CXX") or "c++"
    candidates = [given] if given else [own, "c++", "g++", "clang++"]
    path = environment.get("PATH", os.defpath)
    there = [name for name in candidates if shutil.which(shlex.split(name)[0], path=path)]
    if not there:
        lacking = f"CXX is {given!r}, which is no command here" if given else "there is no C++ compiler"
        return f"{_COMPILED}, and {lacking}: {_COMPILER}"
    if there[0] not in (given, own):
        environment["CXX"] = there[0]
    command = [*shlex.split(there[0]), "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(
        command, input=_PROGRAM, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["no message"]
        first = next((line for line in said if "error" in line), said[0])
        return f"{_COMPILED}, and {there[0]!r} cannot compile C++17 ({first.strip()}): {_COMPILER}"
    if not (include / "Python.h").is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        packages = f"apt-get install python{version}-dev or dnf install python{version}-devel"
        return f"{_COMPILED}, and the headers of Python {version} are not in {include}: {packages}"
    return None


def _check(settings: dict[str, Any] | None) -> None:
    """End the build in one line if nothing can be compiled."""
    cmake = f"{settings} {os.environ.get('CMAKE_ARGS')} {os.environ.get('SKBUILD_CMAKE_ARGS')}"
    if os.name != "posix" or "CMAKE_CXX_COMPILER" in cmake or "CMAKE_TOOLCHAIN_FILE" in cmake:
        return  # CMake finds one by other ways
    environment = dict(os.environ)
    found = problem(environment, Path(sysconfig.get_path("include")))
    if found is not None:
        raise SystemExit(found)
    os.environ.update(environment)


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """The hook of PEP 517, after the check."""
    _check(config_settings)
    return _build.get_requires_for_build_wheel(config_settings)


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """The hook of PEP 660, after the check."""
    _check(config_settings)
    return _build.get_requires_for_build_editable(config_settings)


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """The hook of PEP 517, after the check, which the other hook made only where builds are isolated."""
    _check(config_settings)
    return _build.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """The hook of PEP 660, after the check."""
    _check(config_settings)
    return _build.build_editable(wheel_directory, config_settings, metadata_directory)
