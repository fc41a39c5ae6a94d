"""The checks: lint, the core in several builds, the wheel, the Python tests, mutants."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .environment import (
    BUILD,
    CONSTRAINTS,
    PYTHON,
    ROOT,
    VENV,
    Failure,
    Skipped,
    pip,
    run,
    wheel,
)

WHEEL_ALONE = "import numpy, diba; assert diba.solve(numpy.eye(8), k=4).to_dense().shape == (8, 8)"


def lint() -> None:
    cpp = [
        file
        for folder in ("cpp", "examples", "tests/cpp")
        for file in sorted((ROOT / folder).rglob("*"))
        if file.suffix in (".c", ".cpp", ".hpp")
    ]
    checks = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]]
    unhappy = []
    for check in [*checks, ["clang-format", "--dry-run", "-Werror", *map(str, cpp)]]:
        try:
            run(*check)
        except Failure:
            unhappy.append(" ".join(check[:2]))
    if unhappy:
        raise Failure(", ".join(unhappy))


def fixed_addresses() -> list[str]:
    """Command prefix without address randomisation, which older ThreadSanitizers do not survive."""
    prefix = ["setarch", "--addr-no-randomize"]
    works = shutil.which(prefix[0]) and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    return prefix if works else []


def build_core(preset: str) -> None:
    run("cmake", "--preset", preset)
    run("cmake", "--build", "--preset", preset)


def test_core(preset: str) -> None:
    build_core(preset)
    run(*(fixed_addresses() if preset == "tsan" else []), "ctest", "--preset", preset, show=True)


def test_arm() -> None:
    """The core for 64-bit Arm, in emulation, without some of the tests: CMakePresets.json says why."""
    if platform.machine() in ("aarch64", "arm64"):
        raise Skipped("this is an Arm machine: the other builds have tested it")
    missing = [tool for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64") if shutil.which(tool) is None]
    if missing:
        needs = f"needs {' and '.join(missing)}: apt-get install g++-aarch64-linux-gnu qemu-user"
        raise Failure(needs) if os.environ.get("DIBA_REQUIRE_QEMU") == "1" else Skipped(needs)
    test_core("aarch64")
    print("   without admm, dense and greedy (slow in emulation) and fork (more than QEMU can do)")


def test_wheel_alone() -> None:
    """The wheel works with nothing but the dependencies it names."""
    with tempfile.TemporaryDirectory(prefix="diba-wheel-") as folder:
        alone = Path(folder, "bin")
        run(PYTHON, "-m", "venv", folder)
        pip("install", "-c", CONSTRAINTS, wheel(), python=alone / "python")
        run(alone / "python", "-c", WHEEL_ALONE, cwd=Path(folder))
        run(alone / "diba", "doctor", cwd=Path(folder))


def pytest(outside: Path, *args: str, **extra: str) -> None:
    """All tests in as many processes as there are processors, from a folder outside the sources."""
    command = (PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml")
    processes = ("-n", str(len(os.sched_getaffinity(0))), "--dist", "worksteal")
    # Threads of OpenMP wait busily, which takes most of the time where they are more than the processors.
    run(
        *command,
        *processes,
        ROOT / "tests",
        *args,
        show=True,
        cwd=outside,
        DIBA_SOURCE_ROOT=str(ROOT),
        OMP_WAIT_POLICY="PASSIVE",
        **extra,
    )


def test_python(args: Sequence[str]) -> None:
    """The Python tests against the installed wheel, from a folder outside the sources."""
    wheel()
    if shutil.which("qemu-x86_64") is None:
        print("   the tests on emulated processors need qemu-x86_64: apt-get install qemu-user")
    with tempfile.TemporaryDirectory(prefix="diba-test-") as folder:
        outside = Path(folder)
        where = run(PYTHON, "-c", "import diba; print(diba.__file__)", cwd=outside).strip()
        if not Path(where).is_relative_to(VENV):
            raise Failure(f"diba is imported from {where}, it must be the wheel in {VENV}")
        pytest(outside, *args, DIBA_BUILD_DIR=str(BUILD / "release"))


def libfuzzer(seconds: float) -> None:
    """The C++ reader under libFuzzer, from the committed corpus; what it adds stays in build/."""
    if shutil.which("clang++") is None:
        raise Skipped("needs clang++ with libFuzzer: apt-get install clang libclang-rt-dev")
    build_core("fuzz")
    found = BUILD / "fuzz" / "found"
    found.mkdir(exist_ok=True)
    corpus = ROOT / "tests" / "corpus" / "files"
    limits = (
        f"-max_total_time={seconds:.0f}",
        "-max_len=8192",
        "-timeout=10",
        "-verbosity=0",
        "-print_final_stats=1",
    )
    places = (f"-artifact_prefix={BUILD / 'fuzz'}/", found, corpus / "good", corpus / "bad")
    run(BUILD / "fuzz" / "fuzz_file", *limits, *places, show=True)
