"""Wheels for other machines than this one: manylinux, x86-64 and 64-bit Arm, and the sdist, all checked.

zig's C++ compiler, which pip installs, builds for either processor and against any version of glibc, with
its own C++ library linked in; auditwheel then says on which systems the result runs, and names the file so.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .environment import BUILD, CONSTRAINTS, PYTHON, ROOT, Failure, pip, run

DIST = ROOT / "dist"
MACHINES = ("x86_64", "aarch64")
GLIBC = "2.28"  # of manylinux_2_28, which NumPy's and PyTorch's wheels need as well

TOOLCHAIN = """set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR {machine})
set(CMAKE_C_COMPILER {folder}/cc)
set(CMAKE_CXX_COMPILER {folder}/c++)
set(PYTHON_MODULE_EXTENSION .cpython-{version}-{machine}-linux-gnu.so)
"""
USE = """
import platform, sys, numpy, diba
A = numpy.random.default_rng(0).standard_normal((60, 40))
f = diba.solve(A, bits_per_weight=2)
assert numpy.abs(f.linear(numpy.ones((3, 40))) - numpy.ones((3, 40)) @ f.to_dense().T).max() < 1
print(platform.machine(), diba.isa(), round(f.snr_db(A), 2))
assert diba.isa() != "scalar", "the wheel must use what this processor has, AVX2 or NEON at least"
"""


def toolchain(machine: str) -> Path:
    """A CMake toolchain whose compilers are zig's, for one machine."""
    folder = BUILD / f"zig-{machine}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("cc", "c++"):
        wrapper = folder / name
        target = f"{machine}-linux-gnu.{GLIBC}"
        wrapper.write_text(f'#!/bin/sh\nexec {PYTHON} -m ziglang {name} -target {target} "$@"\n')
        wrapper.chmod(0o755)
    version = "".join(map(str, sys.version_info[:2]))
    file = folder / "toolchain.cmake"
    file.write_text(TOOLCHAIN.format(machine=machine, folder=folder, version=version))
    return file


def build_one(machine: str, sdist: Path) -> Path:
    """The wheel for one machine, from the sdist; its name says on which systems it runs."""
    with tempfile.TemporaryDirectory(prefix="diba-wheel-") as folder:
        shutil.unpack_archive(sdist, folder)
        (source,) = Path(folder).iterdir()
        raw = Path(folder, "raw")
        run(
            *(PYTHON, "-m", "build", "--wheel", "--no-isolation", "--outdir", raw),
            *(f"-Ccmake.args=-DCMAKE_TOOLCHAIN_FILE={toolchain(machine)}", source),
            _PYTHON_HOST_PLATFORM=f"linux-{machine}",  # the platform that the wheel is for
        )
        (wheel,) = raw.glob("*.whl")
        run("auditwheel", "repair", "--plat", "auto", "--wheel-dir", DIST, wheel)
    (made,) = DIST.glob(f"*manylinux*{machine}.whl")
    return made


def check_use(wheel: Path) -> None:
    """It works where nothing else than its dependencies is installed."""
    with tempfile.TemporaryDirectory(prefix="diba-wheel-") as folder:
        run(PYTHON, "-m", "venv", folder)
        alone = Path(folder, "bin", "python")
        pip("install", "-c", CONSTRAINTS, wheel, python=alone)
        print(f"   {run(alone, '-c', USE, cwd=Path(folder)).strip()}")


def build(args: Sequence[str]) -> None:
    """The sdist and, from it, the wheels; all of them checked."""
    parser = argparse.ArgumentParser(prog="dev.py wheels")
    parser.add_argument("machines", nargs="*", default=MACHINES, help="x86_64, aarch64 (both)")
    machines = parser.parse_args(args).machines
    if not set(machines) <= set(MACHINES):
        raise Failure(f"machines are {', '.join(machines)}; they must be of {', '.join(MACHINES)}")
    if sysconfig.get_config_var("Py_GIL_DISABLED") or os.name != "posix":
        raise Failure("wheels are built by CPython with its GIL, on Linux")
    shutil.rmtree(DIST, ignore_errors=True)
    run(PYTHON, "-m", "build", "--sdist", "--no-isolation", "--outdir", DIST, ROOT)
    (sdist,) = DIST.glob("*.tar.gz")
    for machine in machines:
        wheel = build_one(machine, sdist)
        print(f"   {wheel.name}, {wheel.stat().st_size / 1e6:.2f} MB")
        run("check-wheel-contents", "--toplevel", "diba,diba_autoload", wheel)
        if machine == platform.machine():
            check_use(wheel)
    run("twine", "check", "--strict", *DIST.iterdir())
