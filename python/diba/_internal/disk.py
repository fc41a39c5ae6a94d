"""Files on disk: reading regular files, and replacing files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PathLike", "check_folder_of", "check_target", "open_regular", "replace_file"]

PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_MOST_SAVERS = 100  # processes that write the same path at the same time


# ---------------------------------------------------------------- reading


def open_regular(path: PathLike) -> BinaryIO:
    """Open a regular file for reading. Others are refused: a pipe may block, and a device has no end.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    name = _named(path)
    _check_regular(Path(name).stat(), name)  # before opening, which may have an effect on a device
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _check_regular(os.fstat(descriptor), name)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _named(path: PathLike) -> str:
    name = os.fsdecode(path)
    if not name:  # pathlib would use the current folder
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return name


def _check_regular(found: os.stat_result, name: str) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(found.st_mode):
        problem = "is a pipe, a socket or a device; it must be a regular file"
        raise OSError(errno.ESPIPE, problem, name)


# ---------------------------------------------------------------- writing


def check_target(path: PathLike) -> None:
    """Require that ``path`` is free or names a regular file, so that it can be replaced.

    Raises:
        OSError: ``path`` is a folder, pipe, socket or device.
    """
    name = _named(path)
    with contextlib.suppress(FileNotFoundError):
        _check_regular(Path(name).stat(), name)


def check_folder_of(path: Path) -> None:
    """Require the folder that something is to be written into.

    Raises:
        FileNotFoundError: There is none.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the folder does not exist", str(path.parent))


def file_to_write(path: PathLike) -> Path:
    """The path of a file that is to be written.

    Raises:
        FileNotFoundError: Its folder does not exist.
        OSError: It is a folder, pipe, socket or device.
    """
    target = Path(_named(path))
    check_target(target)
    check_folder_of(target)
    return target


def replace_file(path: PathLike, data: bytes | Iterable[bytes | memoryview]) -> None:
    """Write ``data``, in one or several parts, to ``path``, whole or not at all.

    A temporary file in the same folder is written and then renamed; file and folder are synchronised to disk
    before this returns. The new file's mode follows the umask; a symbolic link keeps pointing to the file. If
    the writing is interrupted, the old file is unchanged. A killed process leaves its temporary file behind,
    which the next one to write this path removes.

    Raises:
        OSError: the folder does not exist or is not writable, the disk is full, or ``path`` is a folder,
            pipe, socket or device.
    """
    name = os.fsdecode(path)
    try:
        check_target(name)
        _replace(Path(os.path.realpath(name)), (data,) if isinstance(data, bytes) else data)
    except OSError as error:  # name the file asked for, not the temporary one
        raise OSError(error.errno, error.strerror, name) from None


def _replace(target: Path, parts: Iterable[bytes | memoryview]) -> None:
    descriptor, temporary = _temporary(target)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(descriptor)
            temporary.replace(target)  # before the file is closed, which releases its lock
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _temporary(target: Path) -> tuple[int, Path]:
    """Create a temporary file in the folder of the target, locked while it is open.

    Names are numbered, so that files left by killed processes are found; those are not locked any more.
    """
    stem = os.fsdecode(os.fsencode(target.name)[:200])  # names have at most 255 bytes
    names = [target.with_name(f".{stem}.{number}.tmp") for number in range(_MOST_SAVERS)]
    for name in names:
        _remove_leftover(name)
    for name in names:
        while True:
            try:
                descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                break  # another process is using it
            with contextlib.suppress(OSError):  # without locks, files of killed processes stay
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return descriptor, name
            os.close(descriptor)  # another process removed it before it was locked
    raise FileExistsError(
        errno.EEXIST, f"there are {_MOST_SAVERS} temporary files in use, {names[0]} and so on", target
    )


def _remove_leftover(path: Path) -> None:
    """Remove a temporary file that no process has locked."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return  # it does not exist, or is not ours
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            path.unlink()
    except OSError:
        pass  # in use, or removed meanwhile
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Synchronise a folder to disk, so that a renamed file stays; skipped where that is not possible."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
