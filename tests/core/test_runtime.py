"""Instruction sets, threads, the machine's limits, and what importing diba does not do."""

from __future__ import annotations

import doctest
import importlib
import json
import mmap
import os
import pkgutil
import platform
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import diba
from arrays import ALL_ISAS
from diba import _core, runtime
from diba._internal import machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, away from the source tree."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("DIBA_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=env | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---------------------------------------------------------------- instruction sets


def test_instruction_sets(isa: str) -> None:
    assert diba.isa() == isa
    supported = diba.supported_isas()
    assert supported[-1] == "scalar"
    assert isa in supported
    assert [name for name in ALL_ISAS if name in supported] == supported


def test_environment_forces_an_instruction_set(isa: str) -> None:
    done = python("import diba; print(diba.isa())", DIBA_ISA=isa)
    assert (done.stdout.strip(), done.stderr, done.returncode) == (isa, "", 0)


def test_default_is_the_best_instruction_set() -> None:
    done = python("import diba; print(diba.isa() == diba.supported_isas()[0])")
    assert done.stdout.strip() == "True", done.stderr


def test_unknown_instruction_sets_are_refused_with_the_valid_names() -> None:
    done = python("import diba; diba.isa()", DIBA_ISA="sse9")
    assert done.returncode != 0
    assert "ValueError: DIBA_ISA" in done.stderr
    assert "sse9" in done.stderr
    for name in diba.supported_isas():
        assert name in done.stderr
    with pytest.raises(ValueError, match=r"sse9.*scalar"):
        _core.select_isa("sse9")


# ---------------------------------------------------------------- threads


@pytest.fixture
def default_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No number of threads chosen, by call or environment."""
    monkeypatch.delenv("DIBA_NUM_THREADS", raising=False)
    before = runtime._chosen_threads
    diba.set_num_threads(None)
    runtime._granted_threads.cache_clear()
    yield
    runtime._granted_threads.cache_clear()
    diba.set_num_threads(before)


def test_threads_default_to_the_processors_granted(
    default_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert diba.num_threads() == machine.available_cpus()
    monkeypatch.setattr(machine, "available_cpus", lambda: 3)
    assert diba.num_threads() == 3
    assert runtime.resolve_threads(None) == 3
    assert runtime.resolve_threads(5) == 5
    monkeypatch.setattr(machine, "available_cpus", lambda: 4)
    assert diba.num_threads() == 4
    assert runtime.resolve_threads(None) == 3  # products ask once: they are shorter than the question
    diba.set_num_threads(2)
    assert runtime.resolve_threads(None) == 2
    monkeypatch.setenv("DIBA_NUM_THREADS", "6")
    assert runtime.resolve_threads(None) == 2
    diba.set_num_threads(None)
    assert runtime.resolve_threads(None) == 6


def test_environment_sets_the_threads(default_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIBA_NUM_THREADS", " 7 ")
    assert diba.num_threads() == 7
    monkeypatch.setenv("DIBA_NUM_THREADS", "")
    assert diba.num_threads() == machine.available_cpus()
    for wrong in ("0", "-1", "two", "1.5", "1e3", "99999", "\u0663"):
        monkeypatch.setenv("DIBA_NUM_THREADS", wrong)
        with pytest.raises(ValueError, match=r"DIBA_NUM_THREADS is .*must be"):
            diba.num_threads()


def test_set_num_threads(default_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIBA_NUM_THREADS", "7")
    diba.set_num_threads(2)
    assert diba.num_threads() == 2
    diba.set_num_threads(None)
    assert diba.num_threads() == 7
    for wrong, error in ((0, ValueError), (1.0, TypeError), (True, TypeError), ("2", TypeError)):
        with pytest.raises(error, match="count is"):
            diba.set_num_threads(wrong)
    assert diba.num_threads() == 7


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity_limits_the_threads() -> None:
    done = python(
        "import os, diba; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(diba.num_threads())"
    )
    assert done.stdout.strip() == "1", done.stderr


# ---------------------------------------------------------------- limits of a container


@pytest.fixture
def fake_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up /sys/fs/cgroup and /proc of a process in the group /job; 64 processors, 8 GB free."""
    root = tmp_path / "cgroup"
    (root / "job").mkdir(parents=True)
    files = {
        "/proc/self/cgroup": "0::/job\n",
        "/proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n",
    }

    def read(path: Path) -> str:
        if str(path) in files:
            return files[str(path)]
        return path.read_text() if path.is_file() else ""

    monkeypatch.setattr(machine, "_CGROUP", root)
    monkeypatch.setattr(machine, "_read", read)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(machine, "_files_of_test", files, raising=False)
    return root


def test_limits_of_a_machine_without_cgroups(fake_machine: Path) -> None:
    assert machine.available_cpus() == 64
    assert machine.available_memory() == 8_000_000 * 1024


@pytest.mark.parametrize(
    ("own", "parent", "expected"),
    [
        ("max 100000", "max 100000", 64),
        ("250000 100000", "max 100000", 2),  # 2.5 processors' worth: two threads
        ("max 100000", "300000 100000", 3),  # the limit of a group above counts
        ("50000 100000", "max 100000", 1),
        ("garbage", "800000 100000", 8),
    ],
)
def test_cpu_quota_of_cgroup_v2(fake_machine: Path, own: str, parent: str, expected: int) -> None:
    (fake_machine / "job" / "cpu.max").write_text(own + "\n")
    (fake_machine / "cpu.max").write_text(parent + "\n")
    assert machine.available_cpus() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 64), ("400000", 4), ("1000", 1)])
def test_cpu_quota_of_cgroup_v1(fake_machine: Path, quota: str, expected: int) -> None:
    machine._files_of_test["/proc/self/cgroup"] = "5:memory:/job\n4:cpu,cpuacct:/job\n"
    group = fake_machine / "cpu" / "job"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text(quota + "\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.available_cpus() == expected


def test_memory_limit_of_cgroup_v2(fake_machine: Path) -> None:
    (fake_machine / "job" / "memory.max").write_text("max\n")
    (fake_machine / "job" / "memory.current").write_text("1000000\n")
    assert machine.available_memory() == 8_000_000 * 1024
    (fake_machine / "job" / "memory.max").write_text("3000000\n")
    assert machine.available_memory() == 2_000_000
    (fake_machine / "job" / "memory.stat").write_text("anon 5\ninactive_file 400000\n")  # cache comes free
    assert machine.available_memory() == 2_400_000


def test_memory_limit_of_cgroup_v1(fake_machine: Path) -> None:
    machine._files_of_test["/proc/self/cgroup"] = "5:memory:/job\n"
    group = fake_machine / "memory" / "job"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")  # what v1 says for unlimited
    (group / "memory.usage_in_bytes").write_text("500\n")
    assert machine.available_memory() == 8_000_000 * 1024
    (group / "memory.limit_in_bytes").write_text("1500\n")
    assert machine.available_memory() == 1000


def test_a_system_without_proc(fake_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("/proc/self/cgroup", "/proc/meminfo", "/proc/cpuinfo"):
        machine._files_of_test[name] = ""
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.available_cpus() == (os.cpu_count() or 1)
    free = {"SC_PAGE_SIZE": 4096, "SC_AVPHYS_PAGES": 1000}
    monkeypatch.setattr(os, "sysconf", free.__getitem__)
    assert machine.available_memory() == 4096 * 1000

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", unknown)
    assert machine.available_memory() is None
    assert machine.cpu_model() == (platform.processor() or platform.machine())


def test_limits_of_this_machine() -> None:
    memory = machine.available_memory()
    assert 1 <= machine.available_cpus() <= (os.cpu_count() or 1)
    assert memory is None or memory > 0


# ---------------------------------------------------------------- large pages


def test_large_pages_are_none_where_they_are_turned_off() -> None:
    if not os.access("/proc/self/smaps_rollup", os.R_OK):
        assert machine.large_pages_given() is None
        return
    done = python(
        "import ctypes; assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0  # PR_SET_THP_DISABLE\n"
        "import diba; print(diba.info()['large_pages_given'])"
    )
    assert done.stdout.strip() == "0.0", done.stderr


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no large pages on this system")
@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [("0", "6144", 0.75), ("2048", "12288", 1.0), ("4096", "2048", 0.0)],  # kB; others give back meanwhile
)
def test_large_pages_given(before: str, after: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter([f"Rss: 9 kB\nAnonHugePages: {before} kB\n", f"Rss: 9 kB\nAnonHugePages: {after} kB\n"])
    monkeypatch.setattr(machine, "_read", lambda path: next(texts))
    assert machine.large_pages_given() == expected


def test_large_pages_of_a_system_that_does_not_tell(fake_machine: Path) -> None:
    machine._files_of_test["/proc/self/smaps_rollup"] = ""
    assert machine.large_pages_given() is None


# ---------------------------------------------------------------- freed memory


@pytest.mark.skipif(not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="glibc")
def test_freed_memory_is_kept_and_then_given_back() -> None:
    """In a process of its own: pages of 80 MB that come and go, asked for once or each time."""
    done = python(
        "import resource\n"
        "from diba._internal.machine import keeping_free_memory\n"
        "def asked(times):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(times): [b'x' * 20_000_000 for _ in range(4)]\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "def held(): return int(open('/proc/self/statm').read().split()[1])\n"
        "with keeping_free_memory():\n"
        "    with keeping_free_memory(): once = asked(1)\n"
        "    again, full = asked(10), held()\n"
        "print(once, again, full - held(), asked(10))",
        GLIBC_TUNABLES="",
    )
    once, again, given_back, outside = map(int, done.stdout.split())
    pages = 4 * 20_000_000 // os.sysconf("SC_PAGE_SIZE")
    assert once > pages // 2, done.stderr
    assert again < pages // 10
    assert given_back > pages // 2
    assert outside > 2 * once


# ---------------------------------------------------------------- info and import


def test_info() -> None:
    info = diba.info()
    assert info["diba"] == diba.__version__ == _core.__version__
    assert info["isa"] == diba.isa()
    assert info["supported_isas"] == diba.supported_isas()
    assert info["threads"] == diba.num_threads()
    assert {"python", "numpy", "safetensors", "torch", "platform", "compiler", "cpu"} <= set(info)
    assert info["large_pages_given"] is None or 0 <= info["large_pages_given"] <= 1
    json.dumps(info)


def test_version_is_that_of_the_distribution() -> None:
    metadata = pytest.importorskip("importlib.metadata")
    try:
        assert metadata.version("diba") == diba.__version__
    except metadata.PackageNotFoundError:
        pytest.skip("diba is imported from a folder that is no installation")


def test_all_names_exist() -> None:
    assert diba.__all__ == sorted(diba.__all__, key=lambda name: (not name[0].isupper(), name))
    for name in diba.__all__:
        assert getattr(diba, name) is not None


@pytest.mark.slow
def test_examples_in_docstrings() -> None:
    names = [module.name for module in pkgutil.walk_packages(diba.__path__, "diba.")]
    assert "diba.factorization" in names
    others = "diba.__main__", "diba.executorch.lowering"  # runs; imports what is in another environment
    results = [doctest.testmod(importlib.import_module(name)) for name in names if name not in others]
    assert sum(result.failed for result in results) == 0
    assert sum(result.attempted for result in results) >= 10


def test_torch_is_asked_for_where_it_is_needed() -> None:
    done = python("import sys; sys.modules['torch'] = None; import diba, diba.torch")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ImportError: diba.torch needs PyTorch; use python -m pip install 'diba[torch]'"


def test_import_is_light_and_changes_nothing() -> None:
    done = python(
        """
import os, random, signal, sys, threading, warnings
import numpy as np
def state():
    return (dict(os.environ), list(warnings.filters), np.random.get_state()[1].tolist(),
            random.getstate(), np.geterr(), threading.active_count(),
            signal.getsignal(signal.SIGINT), os.getcwd(), os.umask(0o22))
os.umask(0o22)
before = state()
import diba
assert state() == before
heavy = {"torch", "scipy", "tqdm", "matplotlib", "pandas", "safetensors", "argparse"} & set(sys.modules)
assert not heavy, heavy
"""
    )
    assert done.returncode == 0, done.stderr


def test_missing_extension_says_how_to_build() -> None:
    done = python(
        """
import sys
sys.modules["diba._core"] = None
try:
    import diba
except ImportError as error:
    print(error)
"""
    )
    assert "diba._core cannot be loaded" in done.stdout, done.stderr
    assert "python -m pip install ." in done.stdout


def test_free_memory_goes_back_to_the_system() -> None:
    """Many small pieces are freed below one that stays; without the call, all of their pages stay as well."""
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        machine.give_back_free_memory()  # does nothing
        return
    code = """
from pathlib import Path
from diba._internal.machine import give_back_free_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

pieces = [bytearray(40_000) for _ in range(5_000)]  # 200 MB in the heap
last = bytearray(40_000)
before = resident()
del pieces
kept = resident()
give_back_free_memory()
print(before - kept < 20_000_000, before - resident() > 150_000_000)
"""
    assert python(code).stdout == "True True\n"
