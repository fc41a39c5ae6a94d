"""Instruction sets, threads, and facts about the machine for bug reports."""

from __future__ import annotations

import os
import sys
from functools import cache

from . import _core
from ._internal import check, machine

__all__ = ["info", "isa", "num_threads", "resolve_threads", "set_num_threads", "supported_isas"]

_ENVIRONMENT_THREADS = "DIBA_NUM_THREADS"

# The number set by set_num_threads; None until then. Replacing one int is atomic: no lock.
_chosen_threads: int | None = None


def isa() -> str:
    """Name of the instruction set in use, one of ``supported_isas()``."""
    return _core.isa()


def supported_isas() -> list[str]:
    """Instruction sets this processor can run, best first; "scalar" is always last.

    The environment variable ``DIBA_ISA``, read when a kernel is first needed, selects one of them; any other
    name raises a ValueError that lists these. Results are the same bytes on every one.
    """
    return _core.supported_isas()


def num_threads() -> int:
    """Worker threads used when ``threads`` is None.

    The number given to :func:`set_num_threads`; else ``DIBA_NUM_THREADS``; else the number of processors
    this process may use (its affinity mask, limited by a container's cgroup quota). Results never depend on
    the number of threads.

    Raises:
        ValueError: ``DIBA_NUM_THREADS`` is not a positive integer.
    """
    if _chosen_threads is not None:
        return _chosen_threads
    text = os.environ.get(_ENVIRONMENT_THREADS, "").strip()
    if not text:
        return min(machine.available_cpus(), check.MAX_THREADS)
    if not (text.isascii() and text.isdigit()):
        raise ValueError(
            f"{_ENVIRONMENT_THREADS} is {text!r}; it must be an integer from 1 to {check.MAX_THREADS}, "
            "or be unset to use every processor granted to this process"
        )
    return check.thread_count(int(text), _ENVIRONMENT_THREADS)


def set_num_threads(count: int | None) -> None:
    """Set the worker threads of this process; None returns to the default.

    Raises:
        TypeError: ``count`` is not an integer.
        ValueError: ``count`` is not from 1 to 1024.
    """
    global _chosen_threads
    _chosen_threads = None if count is None else check.thread_count(count, "count")


def resolve_threads(threads: int | None) -> int:
    """The number of threads of a call: its argument, or the default for None.

    The processors of this process are read once and kept: reading them takes longer than a small product.
    """
    if threads is not None:
        return check.thread_count(threads)
    if _chosen_threads is None and _ENVIRONMENT_THREADS not in os.environ:
        return _granted_threads()
    return num_threads()


@cache
def _granted_threads() -> int:
    return num_threads()


def info() -> dict[str, object]:
    """Versions, processor, instruction sets and threads, for a bug report."""
    import platform

    return {
        "diba": _core.__version__,
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "safetensors": _version("safetensors"),
        "scipy": _version("scipy"),
        "torch": _version("torch"),
        "platform": platform.platform(),
        "compiler": _core.compiler,
        "cpu": machine.cpu_model(),
        "isa": isa(),
        "supported_isas": supported_isas(),
        "threads": num_threads(),
        "available_memory_bytes": machine.available_memory(),
        "large_pages_given": machine.large_pages_given(),
        "byteorder": sys.byteorder,
    }


def _version(distribution: str) -> str | None:
    """Version of an installed distribution, read without importing it; None if absent."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
