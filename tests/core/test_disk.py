"""Files on the disk: whole or not at all, whoever is killed, and only regular ones."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import diba
from diba import cli
from diba._internal import disk
from diba.cli import inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Write = Callable[[Any], object]


@pytest.fixture
def f() -> diba.Factorization:
    return diba.solve(np.eye(4, 5), k=3, max_iter=1)


def calibration() -> Any:
    from diba.torch import Calibration, Moments

    return Calibration({"a": Moments(np.eye(2), 1)})


def report() -> Any:
    from diba.torch.conversion.report import Report

    return Report()


# Everything that takes a path to write to.
WRITERS: dict[str, Callable[[], Write]] = {
    "factorization": lambda: diba.solve(np.eye(4, 5), k=3, max_iter=1).save,
    "tuning": lambda: diba.Tuning(1, 1).save,
    "curve": lambda: diba.curve(np.eye(8), bits=(6,), method="greedy", max_iter=1).plot,
    "calibration": lambda: calibration().save,
    "report, JSON": lambda: report().to_json,
    "report, CSV": lambda: report().to_csv,
}
# ... and to read from.
READERS: dict[str, Callable[[], Write]] = {
    "factorization": lambda: diba.load,
    "calibration": lambda: type(calibration()).load,
    "matrix": lambda: lambda path: inputs.read_matrix(os.fsdecode(path)),
}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> Write:
    return WRITERS[request.param]()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# ---------------------------------------------------------------- what is no regular file


@contextlib.contextmanager
def special(kind: str, folder: Path) -> Iterator[Path]:
    path = folder / "x.svg"
    if kind == "pipe":
        os.mkfifo(path)
        yield path
    elif kind == "link to a pipe":
        os.mkfifo(folder / "pipe")
        path.symlink_to("pipe")
        yield path
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            yield path
    else:
        yield Path(kind)


KINDS = ("pipe", "link to a pipe", "socket", "/dev/zero", "/dev/full")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(30)
def test_pipes_and_devices_are_not_written(write: Write, tmp_path: Path, kind: str) -> None:
    if write.__name__ == "plot" and kind.startswith("/dev"):
        kind = "pipe"  # a figure's path ends in its format
    with special(kind, tmp_path) as path:
        before = names(tmp_path)
        with pytest.raises(
            OSError, match="is a pipe, a socket or a device; it must be a regular file"
        ) as caught:
            write(path)
        assert (caught.value.errno, caught.value.filename) == (errno.ESPIPE, str(path))
        assert names(tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.timeout(30)
def test_pipes_and_devices_are_not_read(tmp_path: Path, reader: str, kind: str) -> None:
    read = READERS[reader]()
    with (
        special(kind, tmp_path) as path,
        pytest.raises(OSError, match="is a pipe, a socket or a device; it must be a regular file") as caught,
    ):
        read(path)
    assert str(caught.value.filename) == str(path)


def test_the_command_line_says_so_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for output in (tmp_path / "pipe", "/dev/full"):
        arguments = ["solve", str(tmp_path / "missing"), "--k", "2", "-o", str(output)]
        assert cli.main(arguments) == 2
        expected = f"diba: error: is a pipe, a socket or a device; it must be a regular file: {output}\n"
        assert capsys.readouterr().err == expected
    assert cli.main(["inspect", str(tmp_path / "pipe")]) == 2
    assert capsys.readouterr().err.endswith(f"must be a regular file: {tmp_path / 'pipe'}\n")


def test_settings_of_products_are_not_read_from_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    env = os.environ | {"DIBA_TUNING": str(tmp_path / "pipe")}
    done = subprocess.run(
        [sys.executable, "-c", "import diba; diba.tuning()"],
        capture_output=True, text=True, timeout=60, env=env,
    )  # fmt: skip
    assert "is a pipe, a socket or a device" in done.stderr.splitlines()[-1]


def test_settings_of_products_are_those_that_were_saved(tmp_path: Path) -> None:
    diba.Tuning(12_345, 678, 90).save(tmp_path / "tuning.json")
    env = os.environ | {"DIBA_TUNING": str(tmp_path / "tuning.json")}
    done = subprocess.run(
        [sys.executable, "-c", "import diba; print(diba.tuning(), *diba._core.tuning())"],
        capture_output=True, text=True, timeout=60, env=env,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (
        "Tuning(table_bytes=12345, bits_per_thread=678, fetch_bytes=90) 12345 678 90\n",
        "",
    )


# ---------------------------------------------------------------- paths


def test_paths_may_be_bytes(write: Write, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff\xe9.svg"  # no UTF-8
    write(odd)
    assert [os.fsencode(name) for name in names(tmp_path)] == [b"\xff\xe9.svg"]


def test_what_was_written_by_bytes_is_read_by_bytes(f: diba.Factorization, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "f")
    f.save(path)
    assert diba.load(path) == f
    calibration().save(path)
    assert list(type(calibration()).load(path)) == ["a"]
    with pytest.raises(diba.FormatError, match=f"^{tmp_path / 'f'}: "):
        diba.load(path)


@pytest.mark.parametrize("path", ["", b"", "a\0b", "missing/x.svg"])
def test_paths_that_name_nothing(write: Write, path: str | bytes, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    if path == "a\0b":
        with pytest.raises(ValueError, match="must not have a zero byte"):
            write(path)
    else:
        with pytest.raises(FileNotFoundError) as caught:
            write(path)
        assert caught.value.filename.startswith(os.fsdecode(path))
    assert names(tmp_path) == []


# ---------------------------------------------------------------- whole or not at all


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_failure_names_the_path_and_leaves_the_old_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "x.svg"
    path.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        write(path)
    assert (caught.value.errno, caught.value.filename) == (code, str(path))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x.svg"]


def test_a_disk_that_is_full_half_way(tmp_path: Path) -> None:
    """Here: a limit on the size of files, which needs no disk; writing itself fails, in the middle."""
    path = tmp_path / "f"
    path.write_bytes(b"old")
    code = f"""
import resource, signal
from diba._internal import disk
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
try:
    disk.replace_file({str(path)!r}, (bytes(60_000) for _ in range(3)))
except OSError as error:
    print(error.errno, error.filename)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))  # what else writes as the process ends
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{errno.EFBIG} {path}\n", "")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


def test_file_and_folder_are_on_the_disk_before_it_returns(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.svg"
    synchronised = []

    def fsync(descriptor: int) -> None:
        synchronised.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))
        real(descriptor)

    real = os.fsync
    monkeypatch.setattr(os, "fsync", fsync)
    write(path)
    assert synchronised == [(False, False), (True, True)]  # the file before it has its name, the folder after


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_folders_that_cannot_be_synchronised(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Some file systems cannot, which is no failure; a disk that fails is one."""

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    with contextlib.nullcontext() if code != errno.EIO else pytest.raises(OSError, match=os.strerror(code)):
        write(tmp_path / "x.svg")
    assert names(tmp_path) == ["x.svg"]


def test_too_many_writers_at_once(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with contextlib.ExitStack() as stack:
        for _ in range(disk._MOST_SAVERS):
            stack.callback(os.close, disk._temporary(path)[0])
        with pytest.raises(FileExistsError, match="temporary files in use") as caught:
            disk.replace_file(path, b"new")
        assert caught.value.filename == str(path)
        assert not path.exists()
    disk.replace_file(path, b"new")  # those that nobody holds any more are removed
    assert names(tmp_path) == ["f"]


def test_a_failing_maker_of_content_leaves_nothing(tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        disk.replace_file(tmp_path / "f", parts())
    assert names(tmp_path) == []


# ---------------------------------------------------------------- killed, and at the same time

KILLED = """
import os, signal, sys
from diba._internal import disk
def parts():
    yield b"half"
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    print("writing", flush=True)
    sys.stdin.read()
disk.replace_file(sys.argv[1], parts())
"""


def saver(path: Path, way: str) -> subprocess.Popen[str]:
    """A process in the middle of writing."""
    command = [sys.executable, "-c", KILLED, str(path), way]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_killed_savers_leave_no_growing_pile(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 120)  # 240 bytes of the 255 that a name may have
    for _ in range(3):
        with saver(path, "die") as process:
            assert process.wait(60) == -signal.SIGKILL
        assert len(names(tmp_path)) == 1  # one leftover, however often
    assert not path.exists()
    disk.replace_file(path, b"whole")
    assert names(tmp_path) == [path.name]
    assert path.read_bytes() == b"whole"


def test_a_living_saver_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with saver(path, "wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        disk.replace_file(path, b"meanwhile")
        assert path.read_bytes() == b"meanwhile"
        assert len(names(tmp_path)) == 2
        process.communicate("", timeout=60)
        assert process.returncode == 0
    assert path.read_bytes() == b"half"  # all that it had to write; the last to finish wins
    assert names(tmp_path) == ["f"]


def test_many_savers_of_one_path(tmp_path: Path) -> None:
    """Whoever reads meanwhile sees one of the contents, whole."""
    path = tmp_path / "f"
    contents = [bytes([i]) * 50_000 for i in range(6)]
    disk.replace_file(path, contents[0])
    stop = time.monotonic() + 1.0

    def save(content: bytes) -> None:
        while time.monotonic() < stop and not faults:
            try:
                disk.replace_file(path, content)
            except BaseException as error:
                faults.append(error)

    faults: list[object] = []
    threads = [threading.Thread(target=save, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while time.monotonic() < stop:
        assert path.read_bytes() in contents
    for thread in threads:
        thread.join()
    assert faults == []
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("what", ["pipe", "link", "folder"])
@pytest.mark.timeout(30)
def test_what_is_in_the_way_of_a_temporary_file_is_left_alone(tmp_path: Path, what: str) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"other")
    first = tmp_path / ".f.0.tmp"
    if what == "pipe":
        os.mkfifo(first)
    elif what == "link":
        first.symlink_to(other)
    else:
        first.mkdir()
    disk.replace_file(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert other.read_bytes() == b"other"
    assert names(tmp_path) == [".f.0.tmp", "f", "other"]


def test_a_report_in_json_is_whole(tmp_path: Path) -> None:
    text = report().to_json(tmp_path / "report")
    assert (tmp_path / "report").read_text(encoding="utf-8") == text
    assert json.loads(text)["layers"] == []
