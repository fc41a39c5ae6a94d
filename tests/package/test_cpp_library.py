"""The C++ library: installed, used by a project of its own, compared with Python on good and bad files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import diba

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrays import Factors


def run(*command: str | Path, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=200, check=False, **options
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def build_dir() -> Path:
    """The release build of the core, where `dev.py test` made it."""
    named = os.environ.get("DIBA_BUILD_DIR")
    if not named:
        pytest.skip("set DIBA_BUILD_DIR to a release build of the core")
    if shutil.which("cmake") is None:
        pytest.skip("no cmake on the PATH")
    return Path(named)


@pytest.fixture(scope="session")
def prefix(build_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library is installed."""
    folder = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", build_dir, "--prefix", folder)
    return folder


@pytest.fixture(scope="session")
def example(prefix: Path, source_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example program, built as a user would: it sees the installation only."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(source_root / "examples", folder / "source")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = [*generator, f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"]
    run("cmake", "-S", folder / "source", "-B", folder / "build", *configure)
    run("cmake", "--build", folder / "build")
    return folder / "build" / "multiply"


# ---------------------------------------------------------------- the installation


def test_it_holds_the_public_interface_and_nothing_else(prefix: Path) -> None:
    files = {path.name: path for path in prefix.rglob("*") if path.is_file()}
    assert set(files) - {"diba-targets-release.cmake", "diba-targets-noconfig.cmake"} == {
        "LICENSE",
        "diba-config-version.cmake",
        "diba-config.cmake",
        "diba-targets.cmake",
        "diba.hpp",
        "diba.pc",
        "libdiba.a",
        "libdiba_onnxruntime.so",
        "version.hpp",
    }
    assert f'"{diba.__version__}"' in files["version.hpp"].read_text(encoding="utf-8")
    flags = files["diba-targets.cmake"].read_text(encoding="utf-8")
    assert "-m" not in flags
    assert "COMPILE_DEFINITIONS" not in flags
    assert "COMPILE_OPTIONS" not in flags


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="no pkg-config on this machine")
def test_pkg_config_finds_it_wherever_it_lies(prefix: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(prefix, tmp_path / "moved"))
    folder = next(moved.rglob("diba.pc")).parent
    done = run("pkg-config", "--cflags", "--libs", "diba", env=os.environ | {"PKG_CONFIG_PATH": str(folder)})
    include, libraries, *rest = done.stdout.split()
    assert Path(include.removeprefix("-I"), "diba", "diba.hpp").resolve().is_relative_to(moved)
    assert Path(libraries.removeprefix("-L"), "libdiba.a").resolve().is_relative_to(moved)
    assert rest[0] == "-ldiba"
    assert set(rest[1:]) <= {"-pthread", "-lpthread"}


@pytest.mark.skipif(shutil.which("nm") is None or shutil.which("c++") is None, reason="no binutils")
def test_a_shared_library_exports_the_public_interface_only(prefix: Path, tmp_path: Path) -> None:
    archive = next(prefix.rglob("libdiba.a"))
    shared = tmp_path / "libdiba.so"
    run("c++", "-shared", "-pthread", "-o", shared, "-Wl,--whole-archive", archive, "-Wl,--no-whole-archive")
    symbols = [
        line.split(maxsplit=2)[1:] for line in run("nm", "-DC", "--defined-only", shared).stdout.splitlines()
    ]
    names = [name for kind, name in symbols if kind == "T"]
    assert "diba::version()" in names
    public = ("diba::Factorization::", "diba::FormatError::", "diba::isa", "diba::version()")
    assert [name for name in names if not name.startswith(public)] == []
    assert [name for _, name in symbols if "Implementation" in name and "unique_ptr" not in name] == []


# ---------------------------------------------------------------- products


def product(example: Path, file: Path, X: np.ndarray, *options: str) -> np.ndarray:
    numbers = "\n".join(" ".join(f"{value:.9g}" for value in row) for row in X)
    lines = run(example, file, *options, input=numbers).stdout.splitlines()
    return np.array([[np.float32(word) for word in line.split()] for line in lines])


@pytest.mark.parametrize("alphabet", ["binary", "sign"])
@pytest.mark.parametrize("diagonal_bits", [16, 32])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (70, 65, 130), (5, 300, 7)])
def test_products_are_those_of_python(
    make_factors: Callable[..., Factors],
    example: Path,
    tmp_path: Path,
    m: int,
    k: int,
    n: int,
    diagonal_bits: int,
    alphabet: str,
) -> None:
    f = make_factors(m, k, n, alphabet).diba
    if diagonal_bits == 16:
        f = f.round_diagonals()
    f.save(tmp_path / "f.diba")
    X = np.random.default_rng(1).standard_normal((3, n)).astype(np.float32)
    for threads in ("1", "3"):
        fast = product(example, tmp_path / "f.diba", X, "--threads", threads)
        assert fast.tobytes() == f.linear(X).tobytes()
        exact = product(example, tmp_path / "f.diba", X, "--threads", threads, "--exact")
        assert exact.tobytes() == np.stack([f.matvec(x) for x in X]).tobytes()


def test_the_example_times_products(
    make_factors: Callable[..., Factors], example: Path, tmp_path: Path
) -> None:
    f = make_factors(20, 30, 40, "sign").diba
    f.save(tmp_path / "f.diba")
    line = run(example, tmp_path / "f.diba", "--time").stdout
    stated = f"20 x 40, k = 30, -1/+1, {f.bits_per_weight:.3f} bits per weight: "
    assert line.startswith(f"diba {diba.__version__} on ")
    assert stated in line


def test_errors_reach_the_user(make_factors: Callable[..., Factors], example: Path, tmp_path: Path) -> None:
    file = tmp_path / "f.diba"
    make_factors(2, 3, 4, "sign").diba.save(file)
    for options, numbers, message in (
        ([file], "1 2 3", "the input has 3 numbers, expected a multiple of 4"),
        ([file], "1 2 3 x", "the input is not all numbers"),
        ([file, "--threads", "0"], "1 2 3 4", "threads is 0, it must be at least 1"),
        ([tmp_path / "none"], "", f"cannot open {tmp_path / 'none'}: No such file or directory"),
        ([tmp_path], "", f"cannot open {tmp_path}: Is a directory"),
    ):
        assert run(example, *options, input=numbers, code=1).stderr == f"multiply: {message}\n"
    unknown = os.environ | {"DIBA_ISA": "sse2"}
    error = run(example, file, input="1 2 3 4", code=1, env=unknown).stderr
    assert error.startswith("multiply: DIBA_ISA is 'sse2', must be one of: ")
    file.write_bytes(file.read_bytes()[:-1])
    assert f"{file}: is cut short" in run(example, file, input="", code=1).stderr
