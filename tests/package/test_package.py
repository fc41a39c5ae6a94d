"""The installed distribution: what it holds, what it links, that its types and version are true."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import diba
from diba import _core

PACKAGE = Path(diba.__file__).parent


@pytest.fixture(scope="module")
def distribution() -> metadata.Distribution:
    return metadata.distribution("diba")


@pytest.fixture(scope="module")
def project(source_root: Path) -> dict:
    return tomllib.loads((source_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.installation
def test_the_tests_run_against_an_installation(
    source_root: Path, distribution: metadata.Distribution
) -> None:
    assert not PACKAGE.is_relative_to(source_root / "python")
    assert Path(str(distribution.locate_file("diba"))) == PACKAGE


@pytest.mark.installation
def test_it_holds_every_module_and_nothing_else(
    source_root: Path, distribution: metadata.Distribution
) -> None:
    names = [str(file) for file in distribution.files or () if not str(file).endswith(".pyc")]
    inside = {name for name in names if name.startswith(("diba/", "diba_autoload/"))}
    source = source_root / "python"
    expected = {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.is_file() and path.suffix not in (".so", ".pyc") and path.parent.name != "__pycache__"
    }
    compiled = {f"diba/_core{sysconfig.get_config_var('EXT_SUFFIX')}", "diba/lib/libdiba_onnxruntime.so"}
    assert inside == expected | compiled
    assert {"diba/py.typed", "diba/_core.pyi", "diba/reference.py", "diba/solvers/greedy.py"} <= inside
    assert all((PACKAGE.parent / name).is_file() for name in inside)
    info = f"diba-{diba.__version__}.dist-info/"
    scripts = re.compile(r"(\.\./)*(bin|Scripts)/diba(\.exe)?")
    assert [
        name
        for name in names
        if not name.startswith(("diba/", "diba_autoload/", info)) and not scripts.fullmatch(name)
    ] == []


@pytest.mark.installation
def test_it_carries_the_licences(distribution: metadata.Distribution) -> None:
    texts = {
        Path(file).name: file.locate().read_text(encoding="utf-8")
        for file in distribution.files or ()
        if "licenses" in file.parts
    }
    assert "Apache License" in texts["LICENSE"]
    assert "Wenzel Jakob" in texts["pybind11.txt"]
    assert distribution.metadata["License-Expression"] == "Apache-2.0"


@pytest.mark.installation
def test_torch_is_told_how_to_find_it(distribution: metadata.Distribution) -> None:
    found = {(point.group, point.name): point.value for point in distribution.entry_points}
    assert found.pop(("torch.backends", "diba")) == "diba_autoload:register"
    assert found == {("console_scripts", "diba"): "diba.cli:main"}


@pytest.mark.installation
def test_versions_agree(distribution: metadata.Distribution, project: dict) -> None:
    assert diba.__version__ == _core.__version__ == distribution.version == project["version"]


@pytest.mark.installation
def test_it_needs_what_the_project_names(distribution: metadata.Distribution, project: dict) -> None:
    required = {name.replace(" ", "") for name in distribution.requires or () if "extra ==" not in name}
    assert required == {name.replace(" ", "") for name in project["dependencies"]}
    assert {re.split(r"[<>=!~]", name)[0] for name in required} == {"numpy", "safetensors"}


@pytest.mark.installation
def test_the_command_is_installed(distribution: metadata.Distribution) -> None:
    (entry,) = (entry for entry in distribution.entry_points if entry.group == "console_scripts")
    assert (entry.name, entry.value) == ("diba", "diba.cli:main")
    assert callable(entry.load())


@pytest.mark.skipif(shutil.which("ldd") is None, reason="no ldd on this machine")
def test_the_extension_links_the_system_only() -> None:
    """No OpenMP, which would clash with the copies inside other wheels, and no BLAS."""
    output = subprocess.run(["ldd", _core.__file__], capture_output=True, text=True, check=True).stdout
    libraries = {
        Path(line.split()[0]).name.partition(".so")[0] for line in output.splitlines() if line.strip()
    }
    system = {"linux-vdso", "libstdc++", "libgcc_s", "libc", "libm", "libpthread", "libdl", "librt"}
    assert {name for name in libraries if not name.startswith("ld-")} <= system
    assert "libstdc++" in libraries


@pytest.mark.installation
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm on this machine")
def test_the_extension_exports_its_entry_only() -> None:
    """Nothing of diba's own can clash with another library, or be replaced by one."""
    output = subprocess.run(
        ["nm", "-DC", "--defined-only", _core.__file__], capture_output=True, text=True, check=True
    ).stdout
    symbols = [line.split(maxsplit=2)[1:] for line in output.splitlines()]
    assert [name for kind, name in symbols if kind not in "WVu"] == ["PyInit__core"]
    assert [name for kind, name in symbols if "diba" in name] == []


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm on this machine")
@pytest.mark.installation
def test_the_operators_export_two_functions_and_need_no_runtime() -> None:
    library = PACKAGE / "lib" / "libdiba_onnxruntime.so"
    shown = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-2:] for line in shown.splitlines()]
    own = [name for kind, name in symbols if kind not in "UwvWVu"]
    assert own == ["DibaUsePackedStore", "RegisterCustomOps"]
    assert [name for _, name in symbols if "Ort" in name or "Py" in name] == []


@pytest.mark.slow
def test_the_stub_is_true(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    allowed = tmp_path / "allowed"
    classes = "Packed", "PackedTensors", "QuantizedMatrix", "ChecksummedFile", "TiledMatrix"
    # their metaclass is pybind11's, which no stub can name
    allowed.write_text("".join(f"diba._core.{name}\n" for name in classes))
    environment = dict(os.environ)
    if str(PACKAGE.parent) not in (*site.getsitepackages(), site.getusersitepackages()):
        environment["MYPYPATH"] = str(PACKAGE.parent)
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "diba._core", "--allowlist", str(allowed)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stub_has_the_signatures_that_pybind11_states() -> None:
    """stubtest cannot look into compiled functions; their docstrings begin with what they take and return."""
    stub = ast.parse((PACKAGE / "_core.pyi").read_text(encoding="utf-8"))
    functions = [node for node in stub.body if isinstance(node, ast.FunctionDef)]
    shorter = {r"numpy\.typing\.": "", "numpy": "np", r"diba\._core\.": ""}
    shorter[r"typing\.Supports\w+( \| typing\.Supports\w+)*(?=[,)])"] = "number"
    written: dict[str, list[str]] = {}
    for function in functions:
        arguments = ", ".join(f"{a.arg}: {ast.unparse(a.annotation)}" for a in function.args.args)
        arguments = re.sub(r": (int|float)\b", ": number", arguments)
        signature = f"{function.name}({arguments}) -> {ast.unparse(function.returns)}"
        written.setdefault(function.name, []).append(signature)
    for name, signatures in written.items():
        stated = getattr(_core, name).__doc__.strip()
        for pattern, short in shorter.items():
            stated = re.sub(pattern, short, stated)
        overloads = re.findall(r"^\d+\. (.*)$", stated, re.MULTILINE)
        assert (overloads or [stated]) == signatures
    names = {
        name for name in dir(_core) if inspect.isroutine(getattr(_core, name)) and not name.startswith("_")
    }
    assert names == set(written)


@pytest.mark.parametrize("name", diba.__all__)
def test_public_names_are_documented_and_typed(name: str) -> None:
    thing = getattr(diba, name)
    if name == "__version__":
        return
    assert inspect.getdoc(thing), name
    members = [thing] if inspect.isfunction(thing) else []
    if inspect.isclass(thing):
        public = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
        members = [
            value for value in public.values() if inspect.isfunction(value) or isinstance(value, property)
        ]
        assert all(inspect.getdoc(value) for value in members)
    for member in members:
        function = member.fget if isinstance(member, property) else member
        assert "return" in function.__annotations__, f"{name}.{function.__name__}"


# ---------------------------------------------------------------- building without what it takes

BACKEND = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import diba_build
if len(sys.argv) == 2:
    diba_build.get_requires_for_build_wheel()
    print(os.environ.get("CXX"))
else:
    print(diba_build.problem(dict(os.environ), Path(sys.argv[2])))
"""


def backend(source_root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("CXX", "CMAKE_ARGS")}
    return subprocess.run(
        [sys.executable, "-c", BACKEND, str(source_root / "cmake"), *arguments],
        env=inherited | environment,
        cwd=source_root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


@pytest.mark.skipif(os.name != "posix", reason="elsewhere CMake looks for compilers")
def test_a_build_that_cannot_compile_says_in_one_line_what_to_install(
    source_root: Path, tmp_path: Path
) -> None:
    command(tmp_path, "old", "echo \"old: error: unrecognized option '-std=c++17'\" >&2; exit 1")
    headers = str(tmp_path / "none")
    cases = [
        ((), {"PATH": str(tmp_path)}, "there is no C++ compiler: apt-get install g++"),
        ((), {"CXX": "no-such-compiler -m64"}, "CXX is 'no-such-compiler -m64', which is no command here"),
        ((), {"CXX": str(tmp_path / "old")}, "cannot compile C++17 (old: error: unrecognized option"),
        ((headers,), {}, f"are not in {headers}: apt-get install python3."),
    ]
    for arguments, environment, message in cases:
        done = backend(source_root, *arguments, **environment)
        (line,) = (done.stdout + done.stderr).splitlines()
        assert line.startswith("diba is compiled while it is installed, and ")
        assert message in line
        assert done.returncode == (0 if arguments else 1)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="elsewhere CMake looks for compilers")
def test_a_build_takes_the_compiler_that_is_there(source_root: Path, tmp_path: Path) -> None:
    real = shutil.which("c++")
    assert real is not None
    command(tmp_path, "clang++", f'exec {real} "$@"')
    for environment, chosen in (
        ({"PATH": str(tmp_path)}, "clang++"),
        ({"CXX": real}, real),
        ({"PATH": str(tmp_path), "CMAKE_ARGS": f"-DCMAKE_CXX_COMPILER={real}"}, "None"),
    ):
        done = backend(source_root, **environment)
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, chosen, "")
