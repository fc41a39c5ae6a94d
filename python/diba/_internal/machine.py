"""Processors and memory available to this process, and the processor's model.

Every function reads the system when it is called. Limits that cannot be read are ignored.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "available_cpus",
    "available_memory",
    "cpu_model",
    "give_back_free_memory",
    "keeping_free_memory",
    "large_pages_given",
]

_CGROUP = Path("/sys/fs/cgroup")
_LARGE_PAGE = 2 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MAPPED = 32 << 20  # the largest threshold for mappings of their own that glibc takes
_FREE = 1 << 30  # bytes of freed memory that may be kept
_lock = threading.Lock()
_keeping = 0  # contexts of ``keeping_free_memory``


def available_cpus() -> int:
    """Number of processors this process may use: its affinity mask, limited by the cgroup CPU quota."""
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        count = os.cpu_count() or 1
    quota = _cgroup_cpu_quota()
    if quota is not None:
        count = min(count, max(1, int(quota)))
    return max(1, count)


def available_memory() -> int | None:
    """Bytes this process can still allocate without swapping; None if unknown."""
    limits = [value for value in (_free_memory(), _cgroup_memory_left()) if value is not None]
    return min(limits) if limits else None


def give_back_free_memory() -> None:
    """Give pages of the heap that hold nothing back to the system, where the C library has a call for it.

    glibc keeps them otherwise: among large pieces that come and go, a process grows to a multiple of what it
    holds.
    """
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


@contextmanager
def keeping_free_memory() -> Iterator[None]:
    """A context in which glibc keeps up to 1 GiB of freed memory until ``give_back_free_memory``.

    Otherwise it gives pages back as soon as 64 MiB are free, and where tensors of megabytes come and go, as
    in training, asks for the same pages again: for each of them the kernel writes zeros, which takes longer
    than most operations on it. Afterwards thresholds are the largest that glibc comes to on its own.
    """
    global _keeping
    limit = _malloc_option()
    with _lock:
        _keeping += 1
        if _keeping == 1:
            limit(_M_MMAP_THRESHOLD, _MAPPED)
            limit(_M_TRIM_THRESHOLD, _FREE)
    try:
        yield
    finally:
        with _lock:
            _keeping -= 1
            if _keeping == 0:
                limit(_M_TRIM_THRESHOLD, 2 * _MAPPED)
                give_back_free_memory()


def _malloc_option() -> Callable[[int, int], object]:
    """``mallopt`` of glibc; elsewhere a function that does nothing."""
    import ctypes

    option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    return (lambda which, value: None) if option is None else option


def large_pages_given() -> float | None:
    """Share of a few large pages asked for that the system gives now; None where that cannot be found out.

    It gives none where they are turned off, and fewer where memory is fragmented.
    """
    import mmap

    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    tried = 4 * _LARGE_PAGE
    with mmap.mmap(-1, tried + _LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        before = _in_large_pages()
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without them
            return 0.0
        for first in range(0, len(memory), mmap.PAGESIZE):
            memory[first] = 1
        after = _in_large_pages()
    if before is None or after is None:
        return None
    return min(1.0, max(0, after - before) / tried)  # of five, one may lie across the mapping's ends


def _in_large_pages() -> int | None:
    """Bytes of this process that lie in large pages."""
    for line in _read(Path("/proc/self/smaps_rollup")).splitlines():
        if line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    return None


def cpu_model() -> str:
    """The processor's name, as the operating system reports it."""
    import platform

    for line in _read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _cgroup_folders(controller: str) -> list[Path]:
    """This process's cgroup folders for a controller, innermost first.

    ``/proc/self/cgroup`` has lines ``0::/path`` (v2) and ``4:cpu,cpuacct:/path``
    (v1). A limit may be set on any ancestor, and inside a container the process's
    own group is often mounted as the root, so every folder up to the root is listed.
    """
    folders: list[Path] = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            root = _CGROUP
        elif controller in controllers.split(","):
            root = _CGROUP / controller
        else:
            continue
        group = root / path.strip("/")
        folders.extend(folder for folder in (group, *group.parents) if folder.is_relative_to(root))
    return folders


def _cgroup_cpu_quota() -> float | None:
    """The smallest CPU quota of any cgroup, in processors; None if unlimited."""
    quotas: list[float] = []
    for folder in _cgroup_folders("cpu"):
        fields = _read(folder / "cpu.max").split()  # v2: "<quota or max> <period>"
        if not fields:  # v1: two files, quota -1 for unlimited
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
            fields = [quota.strip(), period.strip()]
        if len(fields) == 2 and all(field.isdigit() for field in fields) and int(fields[1]) > 0:
            quotas.append(int(fields[0]) / int(fields[1]))
    return min(quotas, default=None)


def _cgroup_memory_left() -> int | None:
    """Bytes left under the smallest cgroup memory limit; None if unlimited."""
    left: list[int] = []
    for folder in _cgroup_folders("memory"):
        for limit_name, usage_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, usage = _read(folder / limit_name).strip(), _read(folder / usage_name).strip()
            if limit.isdigit() and usage.isdigit():
                left.append(max(0, int(limit) - int(usage) + _reclaimable(folder)))
    return min(left, default=None)


def _reclaimable(folder: Path) -> int:
    """Bytes of file cache, charged to a cgroup, that the kernel can reclaim."""
    for line in _read(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0


def _free_memory() -> int | None:
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
