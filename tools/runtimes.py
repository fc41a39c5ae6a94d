"""The operators in other runtimes: the oldest onnxruntime that is supported, OpenVINO, and ExecuTorch."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from .environment import BUILD, PYTHON, ROOT, Failure, pip, run, wheel

# The oldest that has wheels for this Python; diba.onnx states the floor.
OLDEST = "onnxruntime==1.17.3" if sys.version_info < (3, 13) else "onnxruntime==1.20.0"
PLAIN = ("onnx", "pytest", "pytest-timeout", "safetensors")


def environment_of(name: str, *packages: str) -> Path:
    """An environment of its own, with the wheel of diba; returns its Python."""
    folder = BUILD / "runtimes" / name
    python = folder / "bin" / "python"
    if not python.exists():
        run(PYTHON, "-m", "venv", folder)
    pip("install", *PLAIN, *packages, python=python)
    pip("install", "--force-reinstall", "--no-deps", wheel(), python=python)
    return python


def test(python: Path, *files: str, **extra: str) -> None:
    with tempfile.TemporaryDirectory(prefix="diba-test-") as folder:
        run(
            *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml"),
            *(ROOT / "tests" / "onnx" / file for file in files),
            cwd=Path(folder),
            DIBA_SOURCE_ROOT=str(ROOT),
            show=True,
            **extra,
        )


def test_oldest() -> None:
    test(environment_of("oldest", OLDEST, "numpy<2"), "test_operators.py")


def test_openvino() -> None:
    """Builds the extension with the SDK of OpenVINO's own wheel."""
    python = environment_of("openvino", "numpy", "openvino")
    library = extension("openvino", f"-DOpenVINO_DIR={package_folder(python, 'openvino') / 'cmake'}")
    test(python, "test_openvino.py", DIBA_OPENVINO=str(library))


def test_executorch() -> None:
    """Builds the backend, and the example without Python, with the SDK of ExecuTorch's own wheel."""
    python = environment_of("executorch", "executorch", "torch", "transformers")
    sdk = f"-Dexecutorch_DIR={package_folder(python, 'executorch') / 'share' / 'cmake'}"
    library, folder = extension("executorch", sdk), BUILD / "examples-executorch"
    run("cmake", "-G", "Ninja", "-S", ROOT / "examples", "-B", folder, sdk, f"-DDIBA_EXECUTORCH={library}")
    run("cmake", "--build", folder)
    program = folder / "embed_executorch"
    test(python, "test_executorch.py", DIBA_EXECUTORCH=str(library), DIBA_EMBED_EXECUTORCH=str(program))


def package_folder(python: Path, package: str) -> Path:
    where = f"import importlib.util as u; print(u.find_spec({package!r}).submodule_search_locations[0])"
    return Path(run(python, "-c", where).strip())


def extension(runtime: str, sdk: str) -> Path:
    """Build the library for a runtime with its SDK; all in one folder, as the core is the same."""
    folder = BUILD / "extensions"
    run("cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, sdk, "-DDIBA_WERROR=ON")
    run("cmake", "--build", folder, "--target", f"diba_{runtime}")
    library = folder / f"libdiba_{runtime}.so"
    if not library.exists():
        raise Failure(f"{library} was not built")
    return library
